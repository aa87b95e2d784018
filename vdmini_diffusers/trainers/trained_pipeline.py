"""The results of training a denoiser: a whole pipeline with its card, and validation videos on trackers."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image, ImageSequence
from safetensors import SafetensorError

from vdmini_diffusers.distillation.arguments import DenoiserTrainingArguments, RunArguments
from vdmini_diffusers.distillation.engine import without_folders
from vdmini_diffusers.families import UNetFamily
from vdmini_diffusers.pruning.student_folder import student_file
from vdmini_diffusers.serialization.cards import render_card, trained_card
from vdmini_diffusers.serialization.repository import fetch_file, push_folder
from vdmini_diffusers.version import __version__


logger = logging.getLogger(__name__)

StateDict = Mapping[str, torch.Tensor]
IGNORED_BY_PUSH = ["checkpoint-*", ".*", "*/.*", "logs/*", "skipped_videos/*", "validation/*"]


def show_on_trackers(trackers: Iterable[GeneralTracker], files: Iterable[Path], step: int) -> None:
    """Show frames on TensorBoard, GIFs and pictures on Weights & Biases. Other trackers show none."""
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


@contextmanager
def finished_files(output_dir: Path, marker: str, anew: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a folder for the result of training, whose files move to `output_dir` when the block ends.

    A kill on the way leaves `output_dir` without `marker`, which is moved last: what does not open is taken for no
    result, and the same command, run again, goes on from the last checkpoint.

    Args:
        marker: the file without which the result does not open: `model_index.json`, or a model's `config.json`.
        anew: folders of which an earlier result leaves nothing, where the new one has none.

    Raises:
        OSError: if the files cannot be written.
    """
    aside = output_dir / ".finished.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.rglob("config.json"):
            config = json.loads(path.read_text("utf-8"))
            if "_name_or_path" in config:  # where diffusers has read the model from
                config["_name_or_path"] = without_folders(config["_name_or_path"])
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files = [path for path in sorted(aside.rglob("*")) if path.is_file() and path != aside / marker]
        (output_dir / marker).unlink(missing_ok=True)
        for name in anew:
            shutil.rmtree(output_dir / name, ignore_errors=True)
        for path in [*files, aside / marker]:
            shutil.copymode(aside / marker, path)  # safetensors shuts other users out of its files
            target = output_dir / path.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    except SafetensorError as error:  # for a full disk
        raise OSError(
            f"The result of training could not be written to {output_dir}: {error}. The checkpoints are kept: mend"
            " what is wrong (a full disk?) and run the same command again."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_trained_pipeline(
    args: DenoiserTrainingArguments,
    pipeline_with: Callable[[ModelMixin], DiffusionPipeline],
    denoiser: ModelMixin,
    state_dict: StateDict,
    companions: Mapping[str, Path],
    card: str,
) -> None:
    """Write the whole pipeline to `args.output_dir`, with the student's plan and a card.

    Args:
        pipeline_with: puts a denoiser in float32 among the teacher's other parts.
        companions: files of the pruned student to copy, by their paths in a pipeline folder.
    """
    trained = clone_with_weights(denoiser, state_dict)
    pipe: Any = pipeline_with(trained)
    if args.rank is not None:
        from peft.utils import get_peft_model_state_dict  # an optional dependency, for `--rank` only

        pipe.save_lora_weights(args.output_dir / "lora", get_peft_model_state_dict(trained))
        trained.fuse_lora()
        trained.unload_lora()
    pipe.save_pretrained(args.output_dir)
    for name, path in companions.items():
        shutil.copyfile(path, args.output_dir / name)
    (args.output_dir / "README.md").write_text(card, encoding="utf-8")


def student_companions(student_name: str, subfolder: str) -> dict[str, Path]:
    """Plan and provenance of a pruned student, by their paths in a pipeline folder.

    Raises:
        ValueError: if one is missing.
    """
    names = [f"{subfolder}/{name}" for name in ("pruning_plan.json", "pruning_provenance.json")]
    return {name: student_file(student_name, name) for name in names}


def student_card(args: DenoiserTrainingArguments, student_name: str, keeps_variant: bool) -> str:
    """The pruned student's card, with the note that it was trained, and code that opens the result."""
    note = (
        f"**Distilled towards the teacher** by ICMD (section 3.3) for {args.max_train_steps:,} steps with"
        f" `vdmini_diffusers` {__version__}; `training.json` has the settings and the names of teacher and data."
    )
    card = student_file(student_name, "README.md").read_text(encoding="utf-8")
    return trained_card(card, note, args.repository, keeps_variant)


def teacher_card(args: DenoiserTrainingArguments, teacher_name: str, family: UNetFamily) -> str:
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
        repository=args.repository,
        teacher=Path(teacher_name).resolve().name if is_folder else teacher_name,
        max_train_steps=f"{args.max_train_steps:,}",
        package_version=__version__,
    )


def push(args: RunArguments) -> None:
    """Upload the result of training, without checkpoints, logs and temporary files."""
    repository = push_folder(args.output_dir, args.hub_model_id, "End of training", IGNORED_BY_PUSH)
    logger.info("it is on the Hub as %s", repository)
