"""The folder of an image-to-video pipeline in, that of the same pipeline with a narrower U-Net out: a baseline."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vdmini_diffusers.families import Family, find_family
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning.plans import ChannelPruningPlan, UNetPruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import channels_json
from vdmini_diffusers.pruning.provenance import card_fields
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.pruning.survey import build_empty, check_numbers
from vdmini_diffusers.pruning.unet_channels import (
    CRITERIA,
    Criterion,
    Losses,
    check_criterion,
    check_num_parameters,
    count_parameters,
    layer_widths,
    prune_unet_channels,
    stage_channels,
)
from vdmini_diffusers.serialization.atomic import check_apart, check_replaceable, new_folder, write_file
from vdmini_diffusers.serialization.cards import write_card
from vdmini_diffusers.serialization.pipeline_folder import STEMS, Teacher, open_teacher
from vdmini_diffusers.serialization.safetensors_copy import FLOATS
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_checkpoint, read_json


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
    if isinstance(criterion, str) and criterion not in CRITERIA:
        raise ValueError(f"`criterion` is one of {', '.join(CRITERIA)}, not {criterion!r}.")
    label, criterion = (criterion, CRITERIA[criterion]) if isinstance(criterion, str) else ("channels", criterion)
    check_criterion(criterion, losses)
    check_apart(output_dir, {"the teacher": name})
    check_replaceable(output_dir, overwrite)
    downloads = {key: value for key, value in options.items() if key not in ("max_shard_size", "allow_pickle")}
    family = find_family(str(name), **downloads)
    if family.denoisers[family.denoiser].student is not VDMiniUNetSpatioTemporalConditionModel:
        raise CheckpointError(f"{name} is {family.name}; channels are pruned of U-Nets of Stable Video Diffusion.")
    config_file = open_teacher(name, family.layout, **downloads).folder / family.denoiser / "config.json"
    config = read_json(config_file)
    check_numbers(config_file, config)
    stock = family.denoisers[family.denoiser].teachers[0]
    empty = build_empty(lambda: stock.from_config(config), config_file, "U-Net")
    check_num_parameters(empty, num_parameters)
    teacher_config = {key: value for key, value in empty.config.items() if not key.startswith("_")}

    with new_folder(output_dir, overwrite) as folder:
        opened = folder / ".whole"
        prune_pipeline(name, opened, UNetPruningPlan.keep_everything(teacher_config), variant=variant, **options)
        for path in opened.iterdir():
            path.rename(folder / path.name)
        opened.rmdir()

        denoiser_folder = folder / family.denoiser
        unet: Any = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
            denoiser_folder, variant=variant, dtype=torch.float32
        )
        coupled = prune_unet_channels(unet, num_parameters, criterion, losses, tolerance)
        with torch.device("meta"):
            whole: Any = VDMiniUNetSpatioTemporalConditionModel.from_config(unet.config)
            plan = ChannelPruningPlan(label, layer_widths(whole, unet), stage_channels(unet, coupled))
            student: Any = VDMiniUNetSpatioTemporalConditionModel.from_config(plan.student_config(teacher_config))
        dtype = _dtype(denoiser_folder, variant)
        tensors = {key: tensor.to(dtype) for key, tensor in unet.state_dict().items()}
        student.load_state_dict(tensors, assign=True)
        for path in denoiser_folder.glob("*.safetensors*"):
            path.unlink()
        student.save_pretrained(denoiser_folder, variant=variant, max_shard_size=options.get("max_shard_size", "10GB"))

        record_file = denoiser_folder / "pruning_provenance.json"
        record = json.loads(record_file.read_text(encoding="utf-8"))
        record |= {"plan": label, "criterion": criterion._asdict()}
        record["num_parameters"]["student"] = count_parameters(student)
        write_file(record_file, (json.dumps(record, indent=2) + "\n").encode())
        write_file(denoiser_folder / "pruning_plan.json", plan.to_json_string().encode())
        write_file(denoiser_folder / "pruning_channels.json", channels_json(coupled).encode())
        _write_card(folder, Path(os.path.abspath(output_dir)).name, family, record, criterion)
    return Path(output_dir)


def _dtype(folder: Path, variant: str | None) -> torch.dtype:
    """That of the weights in `folder`."""
    return FLOATS[next(iter(read_checkpoint(folder, STEMS["diffusers"][0], variant).values())).dtype]


def _write_card(
    folder: Path, repository: str, family: Family, record: Mapping[str, Any], criterion: Criterion
) -> None:
    """The card, with the licence of the one that is there."""
    origin = record["teacher"]
    teacher = Teacher(folder, origin["name"], origin["revision"], origin["commit"], {})
    fields = card_fields(teacher, record, "")
    write_card(
        folder,
        "vdmini_i2v_channels.md",
        front_matter={
            "pipeline_tag": family.pipeline_tag,
            "tags": list(family.tags),
            "base_model": teacher.name if teacher.commit else None,
        },
        teacher_card=folder / "README.md",
        repository=repository,
        importance=criterion.importance,
        layers=criterion.layers,
        ranking=criterion.ranking,
        num_iterations=str(criterion.num_iterations),
        **{name: text for name, text in fields.items() if name not in ("dropped_blocks", "plan_json")},
    )
