"""What training a U-Net leaves: at the end a whole pipeline with its card, and what trackers are shown on the way."""

import importlib.resources
import shutil
import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image, ImageSequence

from vdmini_diffusers import __version__
from vdmini_diffusers.distillation.arguments import RunArguments, UNetTrainingArguments
from vdmini_diffusers.hub import push_folder
from vdmini_diffusers.pruning.provenance import license_of, with_training_note
from vdmini_diffusers.pruning.student_folder import student_file


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


def like(unet: ModelMixin, state_dict: StateDict) -> ModelMixin:
    """A U-Net of the same kind, adapter included, with whole weights, however `unet` is wrapped or divided."""
    made = type(unet)(**unet.config)
    for adapter in getattr(unet, "peft_config", {}).values():
        made.add_adapter(adapter)
    made.load_state_dict(state_dict)
    return made


def save_trained_pipeline(
    args: UNetTrainingArguments,
    pipeline_of: Callable[[ModelMixin], DiffusionPipeline],
    unet: ModelMixin,
    state_dict: StateDict,
    student_name: str | None,
    card: str,
) -> None:
    """The whole pipeline, with the student's plan and a card.

    Args:
        pipeline_of: puts a U-Net in float32 among the teacher's other parts.
    """
    trained = like(unet, state_dict)
    if args.rank is not None:
        trained.save_lora_adapter(args.output_dir / "lora")
        trained.fuse_lora()
        trained.unload_lora()
    pipeline_of(trained).save_pretrained(args.output_dir)
    if student_name is not None:
        for name in ("pruning_plan.json", "pruning_provenance.json"):
            shutil.copyfile(student_file(student_name, f"unet/{name}"), args.output_dir / "unet" / name)
    (args.output_dir / "README.md").write_text(card, encoding="utf-8")


def student_card(args: UNetTrainingArguments, student_name: str) -> str:
    """The pruned student's card, which now says that it was trained."""
    note = (
        f"**Distilled towards the teacher** by ICMD (section 3.3) for {args.max_train_steps:,} steps with"
        f" `vdmini_diffusers` {__version__}; `training.json` has the settings and the names of teacher and data."
    )
    return with_training_note(student_file(student_name, "README.md").read_text(encoding="utf-8"), note)


def teacher_card(args: UNetTrainingArguments, teacher_name: str, template: str, task: str, tags: list[str]) -> str:
    """Of a teacher that was trained to few steps.

    Args:
        teacher_name: what it was trained from.
        template: a file of `model_cards`.
        task: as the Hub names it, `"image-to-video"` or `"text-to-video"`.
    """
    text = importlib.resources.files("vdmini_diffusers.model_cards").joinpath(template).read_text("utf-8")
    is_folder = Path(teacher_name).is_dir()
    try:
        teacher_license = license_of(student_file(teacher_name, "README.md"))
    except (ValueError, huggingface_hub.errors.EntryNotFoundError):
        teacher_license = license_of(None)
    front_matter = huggingface_hub.ModelCardData(
        **teacher_license,
        library_name="diffusers",
        pipeline_tag=task,
        base_model=None if is_folder else teacher_name,
        tags=[*tags, "video-diffusion", task],
    ).to_yaml()
    return string.Template(text).substitute(
        front_matter=front_matter,
        teacher=Path(teacher_name).resolve().name if is_folder else teacher_name,
        max_train_steps=f"{args.max_train_steps:,}",
        package_version=__version__,
    )


def push(args: RunArguments) -> None:
    """What was trained, without what training left beside it."""
    ignored = ["checkpoint-*", ".*", "logs/*", "skipped_videos/*", "validation/*"]
    push_folder(args.output_dir, args.hub_model_id, "End of training", ignored)
