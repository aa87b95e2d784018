"""The main job on what ships with the package: prune the embedded teacher, distil, animate, and show all three.

    python -m vdmini_diffusers.quickstart --output_dir outputs/quickstart

Writes a GIF for each model, `contact_sheet.png`, `report.md` and `report.json` into the output folder, and into
folders inside it the pruned pipeline (`pruned`) and the distilled one (`vdmini-i2v`). Distillation is a short one.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, TrainingArguments
from vdmini_diffusers.embedded import I2V_TEACHER, Example, load_examples
from vdmini_diffusers.evaluation.continuation import motion_cosine, motion_ratio, psnr
from vdmini_diffusers.image_to_video import ImageToVideo
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.prune_pipeline import prune_svd_pipeline
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.train_unet import train_unet
from vdmini_diffusers.training_clips import write_training_latents


logger = logging.getLogger(__name__)

SCALE = 3  # the clips are small: each pixel is shown as 3 x 3


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/quickstart"), metadata={"help": "Where the results go."})
    image: Path | None = field(default=None, metadata={"help": "Animate this picture instead of the shipped ones."})
    num_inference_steps: int = field(default=1, metadata={"help": "Sampling steps; all three are one-step models."})
    max_train_steps: int = field(default=100, metadata={"help": "Steps of distillation; 0 for none."})
    num_train_clips: int = field(default=128, metadata={"help": "Clips to distil on."})
    motion_bucket_id: int = field(default=127, metadata={"help": "Speed of --image, 32 to 255."})
    seed: int = field(default=0, metadata={"help": "Seed of the training, and of the noise that all start from."})


def count_macs(unet: nn.Module, cross_attention_dim: int, num_frames: int) -> int:
    """Multiply-accumulates of one U-Net call on one clip (matrix products, convolutions and attention)."""
    size = unet.config.sample_size
    sample = torch.zeros(1, num_frames, unet.config.in_channels, size, size)
    # The counter does not know the CPU's fused attention, and would count it as nothing.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet(sample, torch.zeros(()), torch.zeros(1, 1, cross_attention_dim), torch.zeros(1, 3))
    return counter.get_total_flops() // 2


def animate(
    pipe: VDMiniI2VPipeline, examples: list[Example], num_inference_steps: int, seed: int
) -> tuple[list[np.ndarray], float]:
    """The pipeline's clips for the first frames of `examples`, as uint8, and its seconds per clip."""
    clips, started = [], time.perf_counter()
    for example in examples:
        frames = pipe(
            Image.fromarray(example.frames[0]),
            num_inference_steps=num_inference_steps,
            motion_bucket_id=example.motion_bucket_id,
            generator=torch.manual_seed(seed),
            output_type="np",
            return_dict=False,
        )
        clips.append((np.asarray(frames)[0] * 255).round().astype(np.uint8))
    return clips, (time.perf_counter() - started) / len(examples)


def enlarge(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((frame.shape[1] * SCALE, frame.shape[0] * SCALE), Image.Resampling.NEAREST)


def write_gif(clips: list[np.ndarray], path: Path, fps: int = 7) -> None:
    """All clips side by side, in a loop."""
    frames = [enlarge(np.concatenate(frames, axis=1)) for frames in zip(*clips, strict=True)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def write_contact_sheet(rows: list[tuple[str, np.ndarray]], path: Path) -> None:
    """One row a clip, time to the right, with its label above."""
    font, label_height = ImageFont.load_default(14), 20
    strips = [enlarge(np.concatenate(list(clip), axis=1)) for _, clip in rows]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height + label_height for strip in strips)), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for (label, _), strip in zip(rows, strips, strict=True):
        draw.text((4, y + 2), label, fill="black", font=font)
        sheet.paste(strip, (0, y + label_height))
        y += label_height + strip.height
    sheet.save(path)


def read_image(path: Path, size: int) -> np.ndarray:
    """The centre square of a picture, `(size, size, 3)` uint8."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def distil(args: Arguments, pruned: Path) -> Path:
    """ICMD as `training/train_icmd.py` does it, on clips drawn from photographs of the extra `teacher`."""
    latents, folder = args.output_dir / "latents", args.output_dir / "vdmini-i2v"
    for earlier in (latents, folder):
        shutil.rmtree(earlier, ignore_errors=True)
    write_training_latents(latents, I2V_TEACHER, args.num_train_clips)
    return train_unet(
        ImageToVideo(str(I2V_TEACHER), str(pruned)),
        TrainingArguments(
            output_dir=folder,
            seed=args.seed,
            max_train_steps=args.max_train_steps,
            train_batch_size=2,
            gradient_accumulation_steps=1,
            learning_rate=3e-4,
            lr_scheduler="cosine",
            checkpointing_steps=args.max_train_steps,
            resume_from_checkpoint="none",
        ),
        CriticArguments(discriminator_learning_rate=1e-4),
        ICMDArguments(mca_start_step=round(0.3 * args.max_train_steps)),
        VideoDataArguments(precomputed_data_dir=latents),
    )


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    plan = PLANS["vdmini"]
    examples = load_examples()
    if args.image is not None:
        first = read_image(args.image, size=64)
        examples = [Example(args.image.stem, args.motion_bucket_id, np.repeat(first[None], 8, axis=0))]
    args.output_dir.mkdir(parents=True, exist_ok=True)

    logger.info("1/4 Pruning the embedded teacher by the plan %r (paper, Table A4)", plan.name)
    folders = {"teacher": I2V_TEACHER}
    folders["pruned"] = prune_svd_pipeline(I2V_TEACHER, args.output_dir / "pruned", plan=plan, overwrite=True)
    if args.max_train_steps > 0:
        logger.info("2/4 Distilling: %d steps of ICMD (paper, section 3.3)", args.max_train_steps)
        folders["distilled"] = distil(args, folders["pruned"])

    logger.info("3/4 Animating %d pictures with each model", len(examples))
    clips, models = {}, {}
    for name, folder in folders.items():
        # The weights are stored in half precision, which CPUs do not compute in.
        pipe = VDMiniI2VPipeline.from_pretrained(folder, dtype=torch.float32)
        clips[name], seconds = animate(pipe, examples, args.num_inference_steps, args.seed)
        unet = pipe.unet
        models[name] = {
            "unet_parameters": unet.num_parameters(),
            "unet_macs_per_step": count_macs(unet, unet.config.cross_attention_dim, unet.config.num_frames),
            "seconds_per_video": round(seconds, 2),
            "psnr_to_teacher_db": round(psnr(np.stack(clips[name]), np.stack(clips["teacher"])), 2),
        }
    models["teacher"]["psnr_to_teacher_db"] = "-"

    logger.info("4/4 Writing pictures and report to %s", args.output_dir)
    rows = []
    for index, example in enumerate(examples):
        if args.image is None:
            rows.append((f"{example.caption}: what really came (held out)", example.frames))
        rows += [(f"{example.caption}: {name}", clips[name][index]) for name in folders]
    write_contact_sheet(rows, args.output_dir / "contact_sheet.png")
    for name in folders:
        write_gif(clips[name], args.output_dir / f"{name}.gif")

    if args.image is None:
        real = np.stack([example.frames for example in examples])
        for name in folders:
            models[name] |= against_real(np.stack(clips[name]), real)
        still = np.repeat(real[:, :1], real.shape[1], axis=1)
        models["first frame repeated"] = {"psnr_to_real_db": round(psnr(still[:, 1:], real[:, 1:]), 2)}
    report = {
        "plan": plan.name,
        "num_inference_steps": args.num_inference_steps,
        "max_train_steps": args.max_train_steps,
        "models": models,
    }
    (args.output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown_report(report)
    (args.output_dir / "report.md").write_text(text)
    logger.info("%s\nLook at %s", text, args.output_dir / "contact_sheet.png")


def against_real(generated: np.ndarray, real: np.ndarray) -> dict[str, float]:
    return {
        "psnr_to_real_db": round(psnr(generated[:, 1:], real[:, 1:]), 2),
        "motion_cosine_to_real": round(motion_cosine(generated, real), 3),
        "motion_ratio_to_real": round(motion_ratio(generated, real), 3),
    }


def markdown_report(report: dict[str, Any]) -> str:
    models = report["models"]
    lines = [
        f"# Embedded teacher and its student by the plan {report['plan']!r}",
        "",
        f"{report['num_inference_steps']} sampling steps, {report['max_train_steps']} steps of distillation.",
        "",
        f"| | {' | '.join(models)} |",
        "| --- " * (len(models) + 1) + "|",
    ]
    for measure in models["teacher"]:
        values = (numbers.get(measure, "-") for numbers in models.values())
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in values)
        lines.append(f"| {measure.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
