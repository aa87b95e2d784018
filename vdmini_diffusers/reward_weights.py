"""The rewards that were asked for by name, with their published weights."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import torch
from torch import nn
from transformers import CLIPModel, CLIPTokenizer, XCLIPModel

from vdmini_diffusers.distillation.consistency_arguments import RewardArguments
from vdmini_diffusers.distillation.reward_models import CLIPReward, XCLIPReward
from vdmini_diffusers.distillation.rewards import Reward, RewardMixture
from vdmini_diffusers.t2v_turbo.open_clip import clip_model


HPS_FILE = "HPS_v2.1_compressed.pt"


def load_rewards(args: RewardArguments, vae: nn.Module, dtype: torch.dtype = torch.float32) -> RewardMixture | None:
    """The mixture, or None if no reward was asked for.

    Raises:
        OSError: if the weights of one cannot be had; the message names them.
        ValueError: for a name that is not known, or a weight that is no number.
    """
    if not args.image_rewards and not args.video_rewards:
        return None
    image_rewards: dict[str, Callable[[RewardArguments], Reward]] = {
        "clip_score": lambda args: _clip(args.clip_score_model, "squash", dtype),
        "pick_score": lambda args: _clip(args.pick_score_model, "crop", dtype),
        "hpsv2.1": lambda args: _hps(args, dtype),
    }
    video_rewards: dict[str, Callable[[RewardArguments], Reward]] = {"xclip": lambda args: _xclip(args, dtype)}
    mixture = RewardMixture(
        vae,
        _load("image_rewards", args.image_rewards, image_rewards, args),
        _load("video_rewards", args.video_rewards, video_rewards, args),
        args.image_reward_weight,
        args.video_reward_weight,
        args.num_reward_frames,
        args.num_video_reward_frames,
        args.max_caption_words,
    )
    for _, reward in mixture.video_rewards:
        if (wanted := reward.num_frames) != args.num_video_reward_frames:
            raise ValueError(
                f"{args.xclip_model} takes {wanted} frames: `--num_video_reward_frames {wanted}`, not"
                f" {args.num_video_reward_frames}."
            )
    return mixture


def _load(
    flag: str, asked: list[str], known: dict[str, Callable[[RewardArguments], Reward]], args: RewardArguments
) -> list[tuple[float, Reward]]:
    """`["name:weight", ...]` to rewards with their weights."""
    weights = {}
    for entry in asked:
        name, _, weight = entry.partition(":")
        if name not in known:
            raise ValueError(f"`--{flag}`: {name!r} is not known; there are {', '.join(known)}.")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"`--{flag}`: the weight of {entry!r} is no number.") from None
    rewards = []
    for name, weight in weights.items():
        try:
            rewards.append((weight, known[name](args)))
        except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
            raise OSError(
                f"The weights of the reward {name!r} cannot be had: {error} Download them and name their place (see"
                f" `--help`), or leave {name!r} out of `--{flag}`: training goes without rewards, too."
            ) from error
    return rewards


def _clip(name: str, fit: str, dtype: torch.dtype) -> CLIPReward:
    return CLIPReward(CLIPModel.from_pretrained(name, dtype=dtype), CLIPTokenizer.from_pretrained(name), fit)


def _hps(args: RewardArguments, dtype: torch.dtype) -> CLIPReward:
    file = Path(args.hps_checkpoint)
    if not file.is_file():
        file = Path(huggingface_hub.hf_hub_download(args.hps_checkpoint, HPS_FILE))
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    model = clip_model({name.removeprefix("module."): tensor for name, tensor in tensors.items()}).to(dtype)
    return CLIPReward(model, CLIPTokenizer.from_pretrained(args.clip_score_model), "pad")


def _xclip(args: RewardArguments, dtype: torch.dtype) -> XCLIPReward:
    name = args.xclip_model
    return XCLIPReward(XCLIPModel.from_pretrained(name, dtype=dtype), CLIPTokenizer.from_pretrained(name))
