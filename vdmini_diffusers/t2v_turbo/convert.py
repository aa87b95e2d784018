"""T2V-Turbo's and VideoCrafter2's own files in, the folder of a diffusers pipeline out."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LCMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from vdmini_diffusers.models import VDMiniUNet3DConditionModel
from vdmini_diffusers.pipelines import VDMiniT2VPipeline, VDMiniVideoCrafterDDIMScheduler
from vdmini_diffusers.serialization.atomic import check_apart, check_free_space, new_folder, write_file
from vdmini_diffusers.serialization.cards import write_card
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.t2v_turbo.card import converted_card_fields
from vdmini_diffusers.t2v_turbo.checkpoint import read_original
from vdmini_diffusers.t2v_turbo.lora import merge_lora
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError, convert_tensors
from vdmini_diffusers.t2v_turbo.text_encoder import (
    original_text_encoder_key,
    text_encoder_config,
    unused_text_encoder_keys,
)
from vdmini_diffusers.t2v_turbo.tokenizer import TOKENIZER, read_tokenizer
from vdmini_diffusers.t2v_turbo.unet import original_unet_key, unet_config
from vdmini_diffusers.t2v_turbo.vae import original_vae_key, vae_config
from vdmini_diffusers.t2v_turbo.variants import VARIANTS, Variant, recognise_variant
from vdmini_diffusers.version import __version__


# Both original networks are trained on it.
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROVENANCE = "conversion_provenance.json"


def convert_t2v_turbo(
    checkpoint_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    unet_checkpoint_path: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike = TOKENIZER,
    expect: Variant | None = None,
    time_cond_proj_seed: int | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
) -> Path:
    """Write the pipeline that these files are, in their dtypes; [`VDMiniT2VPipeline`] opens it.

    Which network a file holds is known by the names in it. `output_dir` appears when it is complete.

    Args:
        checkpoint_path: a whole checkpoint: VideoCrafter2's `model.ckpt`, or T2V-Turbo's `t2v_turbo_vc2.pt`.
        output_dir: made by this function.
        unet_checkpoint_path: a U-Net that takes the place of the checkpoint's, T2V-Turbo-v2's `unet_mg.pt` or
            `unet_no_mg.pt`; or T2V-Turbo's `unet_lora.pt`, which is merged into it. Of a whole checkpoint, only the
            U-Net is taken.
        tokenizer: CLIP's, which the files do not hold: a folder, or the id of a repository on the Hub.
        expect: what the U-Net is meant to be: `"videocrafter2"`, `"v1"`, `"v2-no-mg"` or `"v2-mg"`. By default what
            the name of its file says, where it is the original one.
        time_cond_proj_seed: for `unet_lora.pt`, see `merge_lora`.
        max_shard_size: as in `save_pretrained`.
        overwrite: replace `output_dir` if it is a pipeline folder.

    Returns:
        `output_dir`.

    Raises:
        OriginalCheckpointError: a `ValueError`; if a file is something else, lacks tensors, has others, or holds NaN
            or infinity; if the U-Net is not what it is meant to be; if the tokenizer is not the text encoder's.
        ValueError: for an unknown `expect`, a seed without a LoRA, or an `output_dir` that is or holds an input.
        FileExistsError: if `output_dir` exists and may not be replaced.
        OSError: if a file cannot be read or written, or the disk is too small.
    """
    if expect is not None and expect not in VARIANTS:
        raise ValueError(f"`expect` is one of {', '.join(VARIANTS)}, not {expect!r}.")
    files = {"checkpoint": Path(checkpoint_path)}
    if unet_checkpoint_path is not None:
        files["unet_checkpoint"] = Path(unet_checkpoint_path)
    check_apart(
        output_dir, {"the checkpoint": checkpoint_path, "the U-Net": unet_checkpoint_path, "the tokenizer": tokenizer}
    )
    with new_folder(output_dir, overwrite) as folder:
        checkpoint = read_original(files["checkpoint"])
        if not checkpoint.is_whole:
            raise OriginalCheckpointError(
                f"{checkpoint_path} is a {'LoRA' if checkpoint.lora else 'U-Net'} alone: give VideoCrafter2's"
                " `model.ckpt`, which has the VAE and the text encoder, as the checkpoint, and this file as the"
                " U-Net's."
            )
        components, factors = dict(checkpoint.components), ()
        if "unet_checkpoint" in files:
            unet_checkpoint = read_original(files["unet_checkpoint"])
            factors = unet_checkpoint.lora
            if not factors:
                components["unet"] = unet_checkpoint.components["unet"]
        if time_cond_proj_seed is not None and not factors:
            raise ValueError("`time_cond_proj_seed` is for a LoRA (`unet_lora.pt`), and there is none.")
        words = read_tokenizer(tokenizer, text_encoder_config(components["text_encoder"]))
        models = {name: build(components[name]) for name, build in BUILDERS.items()}
        if factors:
            models["unet"] = convert_unet(merge_lora(components["unet"], factors, time_cond_proj_seed))
        config = models["unet"].config
        title, doubt = recognise_variant(config, files.get("unet_checkpoint", files["checkpoint"]).name, expect)
        check_free_space(folder, sum(_num_bytes(model) for model in models.values()))
        for name, model in models.items():
            _check_finite(model, name)
        noise: Any = scheduler(config)
        VDMiniT2VPipeline(**models, tokenizer=words, scheduler=noise).save_pretrained(
            folder, max_shard_size=max_shard_size
        )
        record = {
            "package_version": __version__,
            "unet": title,
            "doubt": doubt or None,
            "num_parameters": models["unet"].num_parameters(),
            "tokenizer": Path(tokenizer).resolve().name if os.path.isdir(tokenizer) else str(tokenizer),
            "lora": bool(factors),
            # VideoCrafter2, the base, has no layer for the guidance: one that is there now was drawn.
            "time_cond_proj_seed": time_cond_proj_seed if factors and config["time_cond_proj_dim"] else None,
            "files": {
                role: {"name": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)}
                for role, file in files.items()
            },
        }
        write_file(folder / PROVENANCE, (json.dumps(record, indent=2) + "\n").encode())
        repository = Path(os.path.abspath(output_dir)).name
        write_card(folder, "t2v_turbo_converted.md", repository=repository, **converted_card_fields(record))
    return Path(output_dir)


def convert_unet(tensors: Mapping[str, Tensor]) -> VDMiniUNet3DConditionModel:
    """With the given tensors, under their original names, without copying them. Raises `OriginalCheckpointError`."""
    with torch.device("meta"):
        unet = VDMiniUNet3DConditionModel(**unet_config(tensors))
    return _fill(unet, tensors, original_unet_key, (), "U-Net")


def convert_vae(tensors: Mapping[str, Tensor]) -> AutoencoderKL:
    """As `convert_unet`."""
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config(tensors))
    return _fill(vae, tensors, original_vae_key, (), "VAE")


def convert_text_encoder(tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    """As `convert_unet`."""
    config = CLIPTextConfig(**text_encoder_config(tensors))
    with torch.device("meta"):
        text_encoder = CLIPTextModel(config)
    unused = unused_text_encoder_keys(tensors)
    return _fill(text_encoder, tensors, original_text_encoder_key, unused, "text encoder")


BUILDERS = {"unet": convert_unet, "vae": convert_vae, "text_encoder": convert_text_encoder}


def scheduler(unet_config: Mapping[str, Any]) -> LCMScheduler | VDMiniVideoCrafterDDIMScheduler:
    """T2V-Turbo's, with its grid of 200 timesteps, for a U-Net with a guidance embedding; else VideoCrafter2's."""
    if unet_config["time_cond_proj_dim"] is None:
        return VDMiniVideoCrafterDDIMScheduler(
            **NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
    return LCMScheduler(**NOISE_SCHEDULE, clip_sample=False, original_inference_steps=200)


def _fill(model: Any, tensors: Mapping[str, Tensor], source_of: Any, unused: Collection[str], network: str) -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(convert_tensors(tensors, shapes, source_of, unused, network), assign=True)
    return model.eval()


def _num_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _check_finite(model: nn.Module, network: str) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise OriginalCheckpointError(f"The {network} holds NaN or infinity, in what becomes {name!r}.")
