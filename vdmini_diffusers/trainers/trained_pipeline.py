"""What training a denoiser leaves: a whole pipeline with its card, and validation videos on trackers."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image, ImageSequence

from vdmini_diffusers.distillation.arguments import RunArguments, UNetTrainingArguments
from vdmini_diffusers.families import Family
from vdmini_diffusers.pruning.student_folder import student_file
from vdmini_diffusers.serialization.cards import render_card, with_training_note
from vdmini_diffusers.serialization.repository import fetch_file, push_folder
from vdmini_diffusers.version import __version__


StateDict = Mapping[str, torch.Tensor]


def show_on_trackers(trackers: Iterable[GeneralTracker], files: Iterable[Path], step: int) -> None:
    """The frames on TensorBoard, GIFs and pictures on Weights & Biases; other trackers show none."""
    for i, path in enumerate(files):
        for tracker in trackers:
            if tracker.name == "tensorboard":
                with Image.open(path) as gif:
                    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
                tracker.tracker.add_images(f"validation/{i}", frames, step, dataformats="NHWC")
            elif tracker.name == "wandb":
                import wandb  # pyright: ignore[reportMissingImports] - the user asked for it

                shown = wandb.Video(str(path), format="gif") if path.suffix == ".gif" else wandb.Image(str(path))
                tracker.log({f"validation/{i}": shown}, step=step)


def clone_with_weights(denoiser: Any, state_dict: StateDict) -> Any:
    """A network of the same class, config and adapter with these whole weights, however `denoiser` is wrapped."""
    made = type(denoiser)(**denoiser.config)
    for adapter in getattr(denoiser, "peft_config", {}).values():
        made.add_adapter(adapter)
    made.load_state_dict(state_dict)
    return made


def save_trained_pipeline(
    args: UNetTrainingArguments,
    pipeline_with: Callable[[ModelMixin], DiffusionPipeline],
    denoiser: ModelMixin,
    state_dict: StateDict,
    student_name: str | None,
    subfolder: str,
    card: str,
) -> None:
    """Write the whole pipeline, with the student's plan and a card.

    Args:
        pipeline_with: puts a denoiser in float32 among the teacher's other parts.
        subfolder: the denoiser's.
    """
    trained = clone_with_weights(denoiser, state_dict)
    pipe: Any = pipeline_with(trained)
    if args.rank is not None:
        from peft.utils import get_peft_model_state_dict  # an optional dependency, for `--rank` only

        pipe.save_lora_weights(args.output_dir / "lora", get_peft_model_state_dict(trained))
        trained.fuse_lora()
        trained.unload_lora()
    pipe.save_pretrained(args.output_dir)
    if student_name is not None:
        for name in ("pruning_plan.json", "pruning_provenance.json"):
            shutil.copyfile(student_file(student_name, f"{subfolder}/{name}"), args.output_dir / subfolder / name)
    (args.output_dir / "README.md").write_text(card, encoding="utf-8")


def student_card(args: UNetTrainingArguments, student_name: str) -> str:
    """The pruned student's card, which now says that it was trained."""
    note = (
        f"**Distilled towards the teacher** by ICMD (section 3.3) for {args.max_train_steps:,} steps with"
        f" `vdmini_diffusers` {__version__}; `training.json` has the settings and the names of teacher and data."
    )
    return with_training_note(student_file(student_name, "README.md").read_text(encoding="utf-8"), note)


def teacher_card(args: UNetTrainingArguments, teacher_name: str, family: Family) -> str:
    """The card of a teacher that was distilled to few steps from `teacher_name`."""
    is_folder = Path(teacher_name).is_dir()
    try:
        source: Path | None = fetch_file(teacher_name, "README.md")
    except OSError:  # it has no card
        source = None
    return render_card(
        family.teacher_card,
        front_matter={
            "pipeline_tag": family.pipeline_tag,
            "base_model": None if is_folder else teacher_name,
            "tags": list(family.teacher_tags),
        },
        teacher_card=source,
        teacher=Path(teacher_name).resolve().name if is_folder else teacher_name,
        max_train_steps=f"{args.max_train_steps:,}",
        package_version=__version__,
    )


def push(args: RunArguments) -> None:
    """What was trained, without what training left beside it."""
    ignored = ["checkpoint-*", ".*", "logs/*", "skipped_videos/*", "validation/*"]
    push_folder(args.output_dir, args.hub_model_id, "End of training", ignored)
