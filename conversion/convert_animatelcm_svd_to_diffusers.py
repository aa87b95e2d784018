#!/usr/bin/env python
"""Put AnimateLCM-SVD's U-Net and scheduler into a copy of the Stable Video Diffusion that it was made of.

    python conversion/convert_animatelcm_svd_to_diffusers.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid-xt --variant fp16 \
        --unet_checkpoint AnimateLCM-SVD-xt-1.1.safetensors --output_dir animatelcm-svd

AnimateLCM-SVD is published as one safetensors file that holds the U-Net alone, by diffusers' names. What this script
writes opens with `VDMiniI2VPipeline.from_pretrained`; the paper's Table 2 samples it in 8 steps without guidance.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file

from vdmini_diffusers import VDMiniAnimateLCMSVDScheduler, VDMiniI2VPipeline
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.serialization.atomic import check_apart, new_folder
from vdmini_diffusers.serialization.checkpoint_error import CheckpointError
from vdmini_diffusers.serialization.pipeline_folder import open_teacher
from vdmini_diffusers.serialization.safetensors_reader import read_header


@dataclass
class Arguments:
    pretrained_model_name_or_path: str = field(
        metadata={"help": "Stable Video Diffusion XT: the folder of a pipeline, or its id on the Hub."}
    )
    unet_checkpoint: Path = field(metadata={"help": "AnimateLCM-SVD's file, e.g. AnimateLCM-SVD-xt-1.1.safetensors."})
    output_dir: Path = field(metadata={"help": "The folder of the pipeline. It must not exist yet."})
    variant: str | None = field(default=None, metadata={"help": "Variant of SVD's weight files, e.g. fp16."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of SVD on the Hub."})
    dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "Precision of the weights that are written."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace output_dir if it is a pipeline folder."})


def load_unet(file: Path, config: dict[str, Any], dtype: torch.dtype) -> UNetSpatioTemporalConditionModel:
    """The U-Net of `config` with the tensors of `file`.

    Raises:
        CheckpointError: if the file is damaged, if its tensors are not those of the U-Net, or if one is not finite.
        OSError: if it cannot be read.
    """
    stored = {name: tensor.shape for name, tensor in read_header(file).items()}
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    wrong = sorted(name for name in stored.keys() | expected.keys() if stored.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{file} does not hold the U-Net of this Stable Video Diffusion: {len(wrong)} tensor(s) differ, first"
            f" {name} of shape {stored.get(name, 'none')}, expected {expected.get(name, 'none')}. AnimateLCM-SVD-xt"
            " belongs to stable-video-diffusion-img2vid-xt."
        )
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{file}: {len(broken)} tensors are not finite in {dtype}, first {broken[0]}.")
    unet.load_state_dict(tensors, assign=True)
    return unet.eval()


def main(args: Arguments) -> None:
    source, dtype = args.pretrained_model_name_or_path, getattr(torch, args.dtype)
    open_teacher(source, SVD.layout, variant=args.variant, revision=args.revision)  # or an error says what it is
    check_apart(args.output_dir, {"Stable Video Diffusion": source, "the U-Net": args.unet_checkpoint})
    with new_folder(args.output_dir, args.overwrite) as folder:
        config: Any = UNetSpatioTemporalConditionModel.load_config(source, subfolder="unet", revision=args.revision)
        unet = load_unet(args.unet_checkpoint, config, dtype)
        pipe = VDMiniI2VPipeline.from_pretrained(
            source,
            unet=unet,
            scheduler=VDMiniAnimateLCMSVDScheduler(),
            variant=args.variant,
            revision=args.revision,
            dtype=dtype,
        )
        pipe.save_pretrained(folder)
    print(f"The pipeline is in {args.output_dir}: pass num_inference_steps=8 (1, 2 and 4 work as well).")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
