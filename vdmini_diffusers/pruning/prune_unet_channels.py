"""The folder of an image-to-video pipeline in, the folder of the same pipeline with a narrower U-Net out: a baseline."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from vdmini_diffusers.families import Denoiser, find_family
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning.plans import ChannelPruningPlan, UNetPruningPlan
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline, survey_pipeline
from vdmini_diffusers.pruning.unet_channels import (
    CRITERIA,
    Criterion,
    Losses,
    count_parameters,
    layer_widths,
    prune_unet_channels,
    stage_channels,
)
from vdmini_diffusers.serialization.atomic import check_apart, check_replaceable, new_folder, write_file
from vdmini_diffusers.serialization.cards import with_training_note
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


NOTE = (
    "**A baseline: all layers stay, and channels were pruned** along Torch-Pruning's dependency graph, by {criterion}."
    " The U-Net has {student:,} parameters of the teacher's {teacher:,}. It is not yet trained. `unet/config.json` and"
    " `unet/pruning_plan.json` hold the widths, `unet/pruning_channels.json` which channels stayed."
)


def prune_pipeline_channels(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    num_parameters: int,
    criterion: Criterion | str,
    losses: Losses | None = None,
    *,
    tolerance: float = 0.01,
    variant: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Prune the channels of an image-to-video pipeline's U-Net and write the whole pipeline with it.

    The U-Net is held in memory, in float32; what is kept of it goes back to the teacher's dtype, bit for bit.
    `output_dir` appears when it is complete; on an error nothing is left behind.

    Args:
        pretrained_model_name_or_path: a pipeline folder, or the id of a repository on the Hub.
        output_dir: made by this function; the pipeline that opens it is that of a student of the paper's plan.
        num_parameters: of the pruned U-Net, within `tolerance`.
        criterion: or its name in `CRITERIA`: a row of Table 3.
        losses: as for `prune_unet_channels`.
        options: those of `prune_pipeline`.

    Returns:
        `output_dir`.

    Raises:
        CheckpointError: a `ValueError`; if the pipeline is not one of SVD's kind, besides what `prune_pipeline` says.
        Exception: as `prune_pipeline` and `prune_unet_channels`.
    """
    name = pretrained_model_name_or_path
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise ValueError(f"`criterion` is one of {', '.join(CRITERIA)}, not {criterion!r}.")
        label, criterion = criterion, CRITERIA[criterion]
    else:
        label = "channels"
    check_apart(output_dir, {"the teacher": name})
    check_replaceable(output_dir, overwrite)
    downloads = {key: value for key, value in options.items() if key not in ("max_shard_size", "allow_pickle")}
    family = find_family(str(name), downloads.get("revision"))
    if family.denoisers["unet" if "unet" in family.denoisers else family.denoiser].student is not (
        VDMiniUNetSpatioTemporalConditionModel
    ):
        raise CheckpointError(f"{name} is {family.name}; channels are pruned of U-Nets of Stable Video Diffusion.")
    whole = UNetPruningPlan.keep_everything(next(iter(survey_pipeline(name, **downloads).values())).config)

    with new_folder(output_dir, overwrite) as folder:
        opened = folder / ".whole"
        prune_pipeline(name, opened, whole, variant=variant, **options)
        for path in opened.iterdir():
            path.rename(folder / path.name)
        opened.rmdir()
        _prune_folder(folder / "unet", label, num_parameters, criterion, losses, tolerance)
        record = json.loads((folder / "unet" / "pruning_provenance.json").read_text())
        note = NOTE.format(criterion=_in_words(criterion), **record["num_parameters"])
        card = (folder / "README.md").read_text(encoding="utf-8")
        write_file(folder / "README.md", with_training_note(card, note).encode())
    return Path(output_dir)


def _in_words(criterion: Criterion) -> str:
    return (
        f"the {criterion.importance} importance of {criterion.layers} layers, {criterion.ranking} ranking, in"
        f" {criterion.num_iterations} steps"
    )
