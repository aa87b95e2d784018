"""The rewards that are named on the command line, with their published weights."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel, XCLIPModel

from vdmini_diffusers.distillation.consistency_arguments import RewardArguments
from vdmini_diffusers.distillation.reward_models import CLIPReward, Fit, XCLIPReward
from vdmini_diffusers.distillation.rewards import Reward, RewardMixture
from vdmini_diffusers.t2v_turbo.checkpoint import read_original
from vdmini_diffusers.t2v_turbo.open_clip import clip_model


HPS_FILE = "HPS_v2.1_compressed.pt"
# The argument that says where the weights of a reward are.
IMAGE_REWARDS = {"clip_score": "clip_score_model", "pick_score": "pick_score_model", "hpsv2.1": "hps_checkpoint"}
VIDEO_REWARDS = {"xclip": "xclip_model"}


def load_rewards(
    args: RewardArguments, vae: AutoencoderKL, dtype: torch.dtype = torch.float32
) -> RewardMixture | None:
    """The mixture, or None if no reward is named.

    Raises:
        OSError: if the weights of one cannot be had, or are not all there; the message names them.
        ValueError: for an unknown name, a weight that is no finite number, or a file that is not HPSv2.1's.
    """
    if not args.image_rewards and not args.video_rewards:
        return None
    weights = reward_weights(args)
    make: dict[str, Callable[[str], Reward]] = {
        "clip_score": lambda place: _clip(place, "squash", dtype),
        "pick_score": lambda place: _clip(place, "crop", dtype),
        "hpsv2.1": lambda place: _hps(place, args.clip_score_model, dtype),
        "xclip": lambda place: _xclip(place, args.num_video_reward_frames, dtype),
    }
    rewards = {"image": [], "video": []}
    for kind, sources in (("image", IMAGE_REWARDS), ("video", VIDEO_REWARDS)):
        for name, weight in weights[kind].items():
            flag = sources[name]
            place = getattr(args, flag)
            try:
                rewards[kind].append((weight, make[name](place)))
            except OSError as error:
                raise OSError(
                    f"The weights of the reward {name!r} cannot be had from {place}: {error}\nDownload them and give"
                    f" their place as `--{flag}`, or leave {name!r} out of `--{kind}_rewards`: training also works"
                    " without rewards."
                ) from error
    return RewardMixture(
        vae,
        image_rewards=rewards["image"],
        video_rewards=rewards["video"],
        image_weight=args.image_reward_weight,
        video_weight=args.video_reward_weight,
        num_image_frames=args.num_reward_frames,
        num_video_frames=args.num_video_reward_frames,
        max_caption_words=args.max_caption_words,
    )


def reward_weights(args: RewardArguments) -> dict[str, dict[str, float]]:
    """The weights of image and video rewards by their names. Raises `ValueError` as `load_rewards`."""
    return {
        "image": _weights("image_rewards", args.image_rewards, IMAGE_REWARDS),
        "video": _weights("video_rewards", args.video_rewards, VIDEO_REWARDS),
    }


def _weights(flag: str, entries: list[str], known: Mapping[str, str]) -> dict[str, float]:
    """Read `["name:weight", ...]`."""
    weights = {}
    for entry in entries:
        name, _, weight = entry.partition(":")
        if name not in known:
            raise ValueError(f"`--{flag}`: {name!r} is not known; there are {', '.join(known)}.")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"`--{flag}`: the weight of {entry!r} is no number.") from None
        if not math.isfinite(weights[name]):
            raise ValueError(f"`--{flag}`: the weight of {entry!r} is not finite.")
    return weights


def _clip(place: str, fit: Fit, dtype: torch.dtype) -> CLIPReward:
    return CLIPReward(_whole(CLIPModel, place, dtype), _tokenizer(place), fit)


def _hps(place: str, tokenizer: str, dtype: torch.dtype) -> CLIPReward:
    """HPSv2.1 is OpenCLIP's ViT-H/14, fine-tuned: the CLIP score's texts become the same tokens."""
    file = Path(place)
    if not file.is_file():
        file = Path(huggingface_hub.hf_hub_download(place, HPS_FILE))
    tensors = read_original(file).components.get("unet", {})  # as a bare U-Net's: tensors by name, without a prefix
    model: Any = clip_model(tensors)
    return CLIPReward(model.to(dtype), _tokenizer(tokenizer), "pad")


def _xclip(place: str, num_frames: int, dtype: torch.dtype) -> XCLIPReward:
    model = _whole(XCLIPModel, place, dtype)
    if (wanted := model.config.vision_config.num_frames) != num_frames:
        raise ValueError(f"{place} takes {wanted} frames: `--num_video_reward_frames {wanted}`, not {num_frames}.")
    return XCLIPReward(model, _tokenizer(place))


def _whole(kind: type[PreTrainedModel], place: str, dtype: torch.dtype) -> Any:
    """A model with all its weights: where some are missing, transformers only warns, and draws them at random."""
    loaded: Any = kind.from_pretrained(place, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if absent := sorted(info["missing_keys"]):
        raise OSError(f"it holds no whole {kind.__name__}; {absent[0]} and {len(absent) - 1} more are missing.")
    return model


def _tokenizer(place: str) -> CLIPTokenizer:
    """A tokenizer with its vocabulary: where its files are missing, transformers makes one without words."""
    tokenizer = CLIPTokenizer.from_pretrained(place)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise OSError(f"{place} has no files of a tokenizer.")
    return tokenizer
