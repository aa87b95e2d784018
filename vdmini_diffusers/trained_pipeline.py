"""What image-to-video training leaves: videos on the way, and at the end a whole pipeline with its card."""

import importlib.resources
import shutil
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.utils import export_to_gif, load_image
from PIL import Image, ImageOps, ImageSequence

from vdmini_diffusers import __version__
from vdmini_diffusers.distillation.arguments import RunArguments, TrainingArguments
from vdmini_diffusers.hub import push_folder
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.pruning.provenance import license_of, with_training_note
from vdmini_diffusers.pruning.student_folder import student_file


StateDict = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ClipShape:
    """What the clips trained on are like; height and width in pixels."""

    num_frames: int
    height: int
    width: int
    fps: int
    motion_bucket_id: int

    @classmethod
    def of_latents(cls, sample: Mapping[str, torch.Tensor], vae_scale_factor: int) -> "ClipShape":
        """Of precomputed ones. Their motion bucket is that of one sample."""
        num_frames, _, height, width = sample["latents"].shape
        fps, motion_bucket_id, _ = (round(value) for value in sample["added_time_ids"].tolist())
        # The U-Net is told one frame a second less than there are, as in SVD's training.
        return cls(num_frames, height * vae_scale_factor, width * vae_scale_factor, fps + 1, motion_bucket_id)


def write_validation_videos(
    args: TrainingArguments,
    shape: ClipShape,
    teacher: VDMiniI2VPipeline,
    unet: UNetSpatioTemporalConditionModel,
    state_dict: StateDict,
    step: int,
) -> list[Path]:
    """One-step videos of the validation images with these weights, as GIFs in `output_dir/validation`."""
    shown = like(unet, state_dict).to(teacher.device, teacher.dtype).eval()
    pipe = VDMiniI2VPipeline(**{**teacher.components, "unet": shown})
    folder = args.output_dir / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, path in enumerate(args.validation_images):
        image = ImageOps.fit(load_image(str(path)), (shape.width, shape.height))
        frames = pipe(
            image,
            height=shape.height,
            width=shape.width,
            num_frames=shape.num_frames,
            fps=shape.fps,
            motion_bucket_id=shape.motion_bucket_id,
            generator=torch.Generator().manual_seed(args.seed),
        ).frames[0]
        paths.append(folder / f"step-{step:06d}-{i}.gif")
        export_to_gif(frames, str(paths[-1]), fps=shape.fps)
    return paths


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


def like(unet: UNetSpatioTemporalConditionModel, state_dict: StateDict) -> UNetSpatioTemporalConditionModel:
    """A U-Net of the same kind, adapter included, with whole weights, however `unet` is wrapped or divided."""
    made = type(unet)(**unet.config)
    for adapter in getattr(unet, "peft_config", {}).values():
        made.add_adapter(adapter)
    made.load_state_dict(state_dict)
    return made


def save_trained_pipeline(
    args: TrainingArguments,
    load_teacher: Callable[..., VDMiniI2VPipeline],
    unet: UNetSpatioTemporalConditionModel,
    state_dict: StateDict,
    teacher_name: str,
    student_name: str | None,
) -> None:
    """The whole pipeline, whose other parts are the teacher's, in float32, with plan and card."""
    trained = like(unet, state_dict)
    if args.rank is not None:
        trained.save_lora_adapter(args.output_dir / "lora")
        trained.fuse_lora()
        trained.unload_lora()
    load_teacher(unet=trained, dtype=torch.float32).save_pretrained(args.output_dir)
    if student_name is not None:
        for name in ("pruning_plan.json", "pruning_provenance.json"):
            shutil.copyfile(student_file(student_name, f"unet/{name}"), args.output_dir / "unet" / name)
    card = student_card(args, student_name) if student_name is not None else sf_v_card(args, teacher_name)
    (args.output_dir / "README.md").write_text(card, encoding="utf-8")


def student_card(args: TrainingArguments, student_name: str) -> str:
    """The pruned student's card, which now says that it was trained."""
    note = (
        f"**Distilled towards the teacher** by ICMD (section 3.3) for {args.max_train_steps:,} steps with"
        f" `vdmini_diffusers` {__version__}; `training.json` has the settings and the names of teacher and data."
    )
    return with_training_note(student_file(student_name, "README.md").read_text(encoding="utf-8"), note)


def sf_v_card(args: TrainingArguments, teacher_name: str) -> str:
    template = importlib.resources.files("vdmini_diffusers.model_cards").joinpath("sf_v.md").read_text("utf-8")
    is_folder = Path(teacher_name).is_dir()
    try:
        teacher_license = license_of(student_file(teacher_name, "README.md"))
    except (ValueError, huggingface_hub.errors.EntryNotFoundError):
        teacher_license = license_of(None)
    front_matter = huggingface_hub.ModelCardData(
        **teacher_license,
        library_name="diffusers",
        pipeline_tag="image-to-video",
        base_model=None if is_folder else teacher_name,
        tags=["sf-v", "video-diffusion", "stable-video-diffusion", "image-to-video"],
    ).to_yaml()
    return string.Template(template).substitute(
        front_matter=front_matter,
        teacher=Path(teacher_name).resolve().name if is_folder else teacher_name,
        max_train_steps=f"{args.max_train_steps:,}",
        package_version=__version__,
    )


def push(args: RunArguments) -> None:
    """What was trained, without what training left beside it."""
    ignored = ["checkpoint-*", ".*", "logs/*", "skipped_videos/*", "validation/*"]
    push_folder(args.output_dir, args.hub_model_id, "End of training", ignored)
