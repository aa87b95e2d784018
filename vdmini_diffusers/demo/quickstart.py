"""The whole method on a demo teacher that ships with the package: prune it, distil the student, sample, compare.

    python -m vdmini_diffusers.quickstart
    python -m vdmini_diffusers.quickstart --task t2v

Writes a GIF for each model, `contact_sheet.png`, `report.md` and `report.json` into the output folder, and into
folders inside it the pruned pipeline (`pruned`) and the distilled one (`vdmini-i2v`, `vdmini-t2v`). Distillation is a
short one.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from vdmini_diffusers.data.images import fit_picture, read_image
from vdmini_diffusers.demo.contact_sheet import write_contact_sheet, write_gif
from vdmini_diffusers.demo.students import QUICKSTART_FOLDERS
from vdmini_diffusers.demo.teachers import (
    I2V_TEACHER,
    T2V_BASE,
    T2V_DISTILLATION,
    T2V_SAMPLING,
    T2V_TEACHER,
    Example,
    load_examples,
)
from vdmini_diffusers.demo.training_latents import write_training_latents
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr, sharpness_ratio
from vdmini_diffusers.pipelines import VDMiniI2VPipeline, VDMiniT2VPipeline
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.pruning.cost import forward_cost
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.trainers.distill import distill


logger = logging.getLogger(__name__)

PROMPTS = (  # objects in front of what the teacher has not seen them in front of
    "a car moves right quickly in front of an astronaut",
    "a ghost moves up slowly in front of the stars",
    "a pizza turns left quickly in front of a temple",
    "a ball bounces quickly in front of a cup of coffee",
)


@dataclass
class Arguments:
    output_dir: Path | None = field(
        default=None,
        metadata={"help": "Where the results go; by default outputs/quickstart, or quickstart_t2v there."},
    )
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})
    image: Path | None = field(default=None, metadata={"help": "Animate this picture instead of the shipped ones."})
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS), metadata={"help": "Prompts for --task t2v."})
    num_inference_steps: int | None = field(
        default=None, metadata={"help": "Sampling steps; by default 1 for image to video and 4 for text to video."}
    )
    max_train_steps: int = field(default=100, metadata={"help": "Distillation steps; 0 only prunes."})
    num_train_clips: int = field(default=128, metadata={"help": "Clips to distil on."})
    seed: int = field(default=0, metadata={"help": "Seed of the training and of the videos' noise."})

    def __post_init__(self) -> None:
        if self.image is not None and self.task != "i2v":
            raise ValueError("`--image` belongs to `--task i2v`; `--task t2v` makes videos from `--prompts`.")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"`--num_inference_steps` must be at least 1, not {self.num_inference_steps}.")

    @property
    def folder(self) -> Path:
        return self.output_dir or QUICKSTART_FOLDERS[self.task]


class FromPictures:
    """The image-to-video demo teacher and its inputs.

    Attributes:
        captions: one for each sample.
        real: one way that the pictures go on, uint8 `(n, frames, height, width, 3)`; `None` for one's own picture.
    """

    teacher, student_name = I2V_TEACHER, "vdmini-i2v"
    pipeline: type[DiffusionPipeline] = VDMiniI2VPipeline

    def __init__(self, args: Arguments):
        self.num_inference_steps = args.num_inference_steps or 1
        self.examples = load_examples()
        if args.image is not None:
            num_frames, size = self.examples[0].frames.shape[:2]
            still = np.repeat(read_square(args.image, size)[None], num_frames, axis=0)
            self.examples = [Example(args.image.stem, still)]
        self.captions = [example.caption for example in self.examples]
        self.real = None if args.image is not None else np.stack([example.frames for example in self.examples])

    def distil(self, pruned: Path, latents: Path, settings: dict[str, Any]) -> None:
        distill(
            self.teacher,
            pruned,
            **settings,
            precomputed_data_dir=latents,
            learning_rate=3e-4,
            discriminator_learning_rate=1e-4,
        )

    def sample(self, pipe: Any, index: int, generator: torch.Generator) -> np.ndarray:
        """One video, `(frames, height, width, 3)`, 0 to 1."""
        example = self.examples[index]
        return pipe(
            Image.fromarray(example.frames[0]),
            num_inference_steps=self.num_inference_steps,
            generator=generator,
            output_type="np",
        ).frames[0]

    @staticmethod
    def unet_inputs(config: Any, num_frames: int) -> dict[str, torch.Tensor]:
        """The arguments of one U-Net call on one clip."""
        return {
            "sample": torch.zeros(1, num_frames, config.in_channels, config.sample_size, config.sample_size),
            "timestep": torch.zeros(()),
            "encoder_hidden_states": torch.zeros(1, 1, config.cross_attention_dim),
            "added_time_ids": torch.zeros(1, 3),
        }


class FromTexts:
    """The text-to-video demo teacher, with the attributes and methods of [`FromPictures`]."""

    teacher, student_name = T2V_TEACHER, "vdmini-t2v"
    pipeline: type[DiffusionPipeline] = VDMiniT2VPipeline
    real = None

    def __init__(self, args: Arguments):
        self.num_inference_steps = args.num_inference_steps or T2V_SAMPLING["num_inference_steps"]
        self.captions = args.prompts

    def distil(self, pruned: Path, latents: Path, settings: dict[str, Any]) -> None:
        distill(
            self.teacher,
            pruned,
            **settings,
            precomputed_data_dir=latents,
            ode_teacher_model_name_or_path=str(T2V_BASE),
            **T2V_DISTILLATION,
            temporal_dropout=0.0,
            learning_rate=5e-4,
            discriminator_learning_rate=1e-3,
        )

    def sample(self, pipe: Any, index: int, generator: torch.Generator) -> np.ndarray:
        return pipe(
            self.captions[index],
            **{**T2V_SAMPLING, "num_inference_steps": self.num_inference_steps},
            generator=generator,
            output_type="np",
        ).frames[0]

    @staticmethod
    def unet_inputs(config: Any, num_frames: int) -> dict[str, torch.Tensor]:
        return {
            "sample": torch.zeros(1, config.in_channels, num_frames, config.sample_size, config.sample_size),
            "timestep": torch.zeros(()),
            "encoder_hidden_states": torch.zeros(1, 77, config.cross_attention_dim),
            "timestep_cond": torch.zeros(1, config.time_cond_proj_dim),
            "motion_cond": torch.zeros(1, config.motion_cond_proj_dim),
            "fps": torch.full((1,), 8.0),
        }


def count_macs(unet: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Multiply-accumulates of one U-Net call (matrix products, convolutions and attention)."""
    return forward_cost(unet, inputs)[""].num_flops // 2


def read_square(path: Path, size: int) -> np.ndarray:
    """The centre square of a picture, `(size, size, 3)` uint8. Raises `ValueError` if it cannot be read."""
    return np.asarray(fit_picture(read_image(path), size, size))


def distil(task: FromPictures | FromTexts, args: Arguments, pruned: Path) -> Path:
    """ICMD as `training/train_icmd.py` does it, on clips drawn from photographs of the extra `teacher`."""
    latents, folder = args.folder / "latents", args.folder / task.student_name
    for earlier in (latents, folder):
        shutil.rmtree(earlier, ignore_errors=True)
    write_training_latents(latents, task.teacher, args.num_train_clips)
    settings = {
        "output_dir": folder,
        "seed": args.seed,
        "max_train_steps": args.max_train_steps,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "lr_scheduler": "cosine",
        "checkpointing_steps": args.max_train_steps,
        "resume_from_checkpoint": "none",
        "mca_start_step": round(0.3 * args.max_train_steps),
        "critic_warmup_steps": round(0.2 * args.max_train_steps),
    }
    task.distil(pruned, latents, settings)
    return folder


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    plan = PLANS["vdmini"]
    task = {"i2v": FromPictures, "t2v": FromTexts}[args.task](args)
    args.folder.mkdir(parents=True, exist_ok=True)

    logger.info("1/4 Pruning the demo teacher by the plan %r (paper, Table A4)", plan.name)
    folders = {"teacher": task.teacher}
    folders["pruned"] = prune_pipeline(task.teacher, args.folder / "pruned", plan=plan, overwrite=True)
    if args.max_train_steps > 0:
        logger.info("2/4 Distilling: %d steps of ICMD (paper, section 3.3)", args.max_train_steps)
        folders["distilled"] = distil(task, args, folders["pruned"])

    logger.info("3/4 Making %d videos with each model", len(task.captions))
    clips: dict[str, np.ndarray] = {}
    models: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        # The weights are stored in half precision, which CPUs do not compute in.
        pipe = task.pipeline.from_pretrained(folder, dtype=torch.float32)
        started = time.perf_counter()
        videos = [task.sample(pipe, i, torch.manual_seed(args.seed)) for i in range(len(task.captions))]
        seconds = (time.perf_counter() - started) / len(videos)
        clips[name] = (np.stack(videos) * 255).round().astype(np.uint8)
        models[name] = {
            "unet_parameters": pipe.unet.num_parameters(),
            "unet_macs_per_step": count_macs(pipe.unet, task.unet_inputs(pipe.unet.config, clips[name].shape[1])),
            "seconds_per_video": round(seconds, 2),
        }
        if name != "teacher":
            models[name] |= against_teacher(clips[name], clips["teacher"])

    logger.info("4/4 Writing pictures and report to %s", args.folder)
    rows = []
    for i, caption in enumerate(task.captions):
        if task.real is not None:
            rows.append((f"{caption}: one way to go on (held out)", task.real[i]))
        rows += [(f"{caption}: {name}", clips[name][i]) for name in folders]
    write_contact_sheet(rows, args.folder / "contact_sheet.png")
    for name in folders:
        write_gif(list(clips[name]), args.folder / f"{name}.gif")

    report = {
        "plan": plan.name,
        "num_inference_steps": task.num_inference_steps,
        "max_train_steps": args.max_train_steps,
        "models": models,
    }
    (args.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown_report(report)
    (args.folder / "report.md").write_text(text)
    logger.info("%s\nLook at %s", text, args.folder / "contact_sheet.png")


def against_teacher(videos: np.ndarray, teachers: np.ndarray) -> dict[str, float]:
    """How near a student's videos are to its teacher's, which are of the same pictures or texts and the same noise."""
    return {
        "psnr_to_teacher_db": round(psnr(videos, teachers), 2),
        "motion_cosine_to_teacher": round(motion_cosine(videos, teachers), 3),
        "motion_ratio_to_teacher": round(motion_ratio(videos, teachers), 3),
        "sharpness_ratio_to_teacher": round(sharpness_ratio(videos, teachers), 3),
    }


def markdown_report(report: dict[str, Any]) -> str:
    models, steps = report["models"], report["num_inference_steps"]
    lines = [
        f"# Demo teacher and its student by the plan {report['plan']!r}",
        "",
        f"{steps} sampling step{'s' * (steps > 1)}, {report['max_train_steps']} steps of distillation.",
        "",
        f"| | {' | '.join(models)} |",
        "| --- " * (len(models) + 1) + "|",
    ]
    for measure in list(models.values())[-1]:
        values = (numbers.get(measure, "-") for numbers in models.values())
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in values)
        lines.append(f"| {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
