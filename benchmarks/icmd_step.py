#!/usr/bin/env python
"""Time and memory of an ICMD training step against its floor, in one run.

    python benchmarks/icmd_step.py

The floor is what no loop can leave out, each part timed alone: the teacher's forward pass, the student's forward and
backward pass, and the critics' (backbone and heads, on the student's, the teacher's and the real videos). Each step of
the loop is followed by one turn of each part. Models: the demo teacher and its pruned student; latents at random.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.adversary import Samples, draw_instance_noise
from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments, TrainingArguments
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import CriticFeatures
from vdmini_diffusers.distillation.engine import make_accelerator, make_optimizer
from vdmini_diffusers.distillation.loop import LoopSettings, icmd_training_loop
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline
from vdmini_diffusers.trainers.critics import make_critics


@dataclass
class Arguments:
    steps: int = field(default=10, metadata={"help": "Steps that are measured, after two that are not."})
    train_batch_size: int = field(default=4, metadata={"help": "Videos a step."})
    mixed_precision: Literal["no", "fp16", "bf16"] = field(default="no", metadata={"help": "The student's precision."})


class Stopwatch:
    """Seconds and, on a GPU, peak memory of parts, by name."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.peaks: dict[str, int] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def take(self, name: str, part: Callable[[], None]) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = self.now()
        part()
        self.note(name, start)

    def note(self, name: str, start: float) -> None:
        self.seconds.setdefault(name, []).append(self.now() - start)
        if self.device.type == "cuda":
            self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated())


def random_latents(pipe: VDMiniI2VPipeline, count: int) -> list[dict[str, torch.Tensor]]:
    config = pipe.unet.config
    size, frames, channels = config.sample_size, config.num_frames, config.out_channels
    return [
        {
            "latents": torch.randn(frames, channels, size, size),
            "image_latents": torch.randn(channels, size, size),
            "image_embeds": torch.randn(1, config.cross_attention_dim),
            "added_time_ids": torch.tensor([6.0, 127.0, 0.02]),
        }
        for _ in range(count)
    ]


def main(args: Arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=Path(folder),
            train_batch_size=args.train_batch_size,
            gradient_accumulation_steps=1,
            mixed_precision=args.mixed_precision,
        )
        accelerator = make_accelerator(training)
        teacher_pipe = VDMiniI2VPipeline.from_pretrained(I2V_TEACHER, dtype=torch.float32)
        student_folder = prune_pipeline(I2V_TEACHER, Path(folder) / "student")
        student = VDMiniI2VPipeline.from_pretrained(student_folder, dtype=torch.float32).unet.train()
        teacher = teacher_pipe.unet.eval().requires_grad_(False).to(accelerator.device)
        task = SingleStepTask(SVD)
        condition_dim = teacher_pipe.image_encoder.config.projection_dim
        channels = dict(zip(task.critic_taps, SVD.critic_channels(teacher.config), strict=True))
        critics = make_critics(
            channels,
            teacher.config.out_channels,
            condition_dim,
            CriticArguments(critic_warmup_steps=0),
            ICMDArguments(mca_start_step=0),
            None,
            accelerator.device,
        )
        critic_features = CriticFeatures(task, teacher)
        optimizer = make_optimizer(training, student.parameters())
        samples = random_latents(teacher_pipe, 4 * args.train_batch_size)
        prepared, optimizer, dataloader = accelerator.prepare(
            student,
            optimizer,
            DataLoader(samples, batch_size=args.train_batch_size, drop_last=True),  # pyright: ignore[reportArgumentType]: a list will do
        )
        watch = Stopwatch(accelerator.device)
        parts = floor_parts(task, prepared, teacher, critics, critic_features, next(iter(dataloader)), accelerator)
        begun = watch.now()

        def between_steps(step: int) -> None:
            nonlocal begun
            counts = 2 < step < args.steps + 3  # the first two warm up, the last one saves a checkpoint
            if counts:
                watch.note("step of the loop", begun)
            for name, part in parts.items():
                watch.take(name, part) if counts else part()
            if accelerator.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            begun = watch.now()

        icmd_training_loop(
            accelerator=accelerator,
            task=task,
            student=prepared,
            teacher=teacher,
            dataloader=dataloader,
            optimizer=optimizer,
            lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer),
            settings=LoopSettings(
                seed=0,
                max_train_steps=args.steps + 3,
                train_batch_size=args.train_batch_size,
                logging_steps=10**6,
                checkpointing_steps=10**6,
                validation_steps=1,
            ),
            checkpoints=Checkpoints(Path(folder), None),
            pairs=VDMINI_UNET.feature_pairs(teacher.config),
            critics=critics,
            critic_features=critic_features,
            validate=between_steps,
        )
    report(watch)


def floor_parts(
    task: SingleStepTask,
    student: nn.Module,
    teacher: nn.Module,
    critics: list,
    critic_features: CriticFeatures,
    batch: dict[str, torch.Tensor],
    accelerator: Accelerator,
) -> dict[str, Callable[[], None]]:
    """Each does its part of a step once, on the same batch, and leaves no gradient behind."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(batch["latents"]))]
    inputs = task.prepare(batch, generators)
    latents = inputs.clean_latents
    noise = draw_instance_noise(critic_features, Samples(latents, {}, inputs, generators))
    critic_condition = task.critic_condition(noise.levels, inputs.conditioning)
    given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning

    def teacher_forward() -> None:
        with torch.no_grad(), accelerator.autocast():
            task.denoise(teacher, *given)

    def student_forward_backward() -> None:
        with accelerator.autocast():
            denoised = task.denoise(student, *given)
        denoised.square().mean().backward()
        student.zero_grad()

    def critics_forward_backward() -> None:
        video = inputs.clean_latents.clone().requires_grad_()
        with accelerator.autocast():
            fake = critic_features(video, noise, inputs)
        torch.stack([critic.loss_for_student(fake, [], *critic_condition) for critic in critics]).sum().backward()
        with torch.no_grad(), accelerator.autocast():
            real = [critic_features(inputs.clean_latents, noise, inputs) for _ in critics]  # the teacher's, the data
        for critic, features in zip(critics, real, strict=True):
            critic.loss_for_heads(fake, [features], *critic_condition).loss.backward()
            critic.heads.zero_grad()

    return {
        "teacher forward": teacher_forward,
        "student forward and backward": student_forward_backward,
        "critics forward and backward": critics_forward_backward,
    }


def report(watch: Stopwatch) -> None:
    step = watch.seconds.pop("step of the loop")
    floors = [sum(parts) for parts in zip(*watch.seconds.values(), strict=True)]
    ratios = [a / b for a, b in zip(step, floors, strict=True)]
    print("| part | median seconds | share of the floor |\n| --- | --- | --- |")
    for name, seconds in watch.seconds.items():
        print(f"| {name} | {statistics.median(seconds):.3f} | {sum(seconds) / sum(floors):.0%} |")
    print(f"| floor: their sum | {statistics.median(floors):.3f} | 100% |")
    print(f"| step of the loop | {statistics.median(step):.3f} | {statistics.median(ratios):.0%} |")
    print(
        f"\nratio, median of {len(ratios)}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    if watch.peaks:
        peak = watch.peaks.pop("step of the loop")
        print(f"peak memory {peak / 2**20:.0f} MiB, of the largest part {max(watch.peaks.values()) / 2**20:.0f} MiB")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
