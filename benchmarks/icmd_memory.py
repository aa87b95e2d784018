#!/usr/bin/env python
"""Memory of an ICMD step per GPU at full size, for 1, 8 and 64 GPUs, without a GPU; and a real step that checks it.

    python benchmarks/icmd_memory.py

Per GPU of N, with precomputed latents and the student divided by FSDP2:

    (4 + 4 + 8 + 4) P_student / N        weights, gradients, AdamW's moments, their average; float32
    + b P_teacher, or / N if divided     b bytes a weight: 2 in bf16
    + 16 P_heads                         both critics' heads, gradients and moments; float32, on every GPU
    + gathered blocks, if N > 1          the student's largest, and the next, in float32; likewise the teacher's
    + what lives besides                 activations, features, what backward makes on its way

The last does not depend on N. It is counted while a step runs with fake tensors, which have shapes and no memory. The
same count of a real step, of the demo teacher's size, is printed beside it, and what the process grew by.
"""

from dataclasses import dataclass, field

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.teachers import I2V_TEACHER
from vdmini_diffusers.distillation.critics import CriticFeatures, InstanceNoise
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.losses import discriminator_loss, generator_loss, icd_loss
from vdmini_diffusers.distillation.tasks.base import ModelInputs
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.evaluation.live_bytes import LiveBytes, grown_by
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET


GIB = 2**30
STUDENT_UNITS = ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel")  # what FSDP wraps
TASK = SingleStepTask(SVD)  # with its distribution of noise levels in real tensors, as it is checked
SVD_CONFIG = {"num_attention_heads": (5, 10, 20, 20), "num_frames": 14, "sample_size": 96}


@dataclass
class Arguments:
    num_frames: int = field(default=14, metadata={"help": "Frames in a clip."})
    height: int = field(default=448, metadata={"help": "Pixels (paper: 448 x 576)."})
    width: int = field(default=576, metadata={"help": "Pixels."})
    train_batch_size: int = field(default=1, metadata={"help": "Clips per GPU."})
    tiny_batch_size: int = field(default=4, metadata={"help": "Clips of the step that checks the count."})


class Parts:
    """What takes part in a step, on one device, in the current tensor mode."""

    def __init__(self, teacher_config: dict, teacher_dtype: torch.dtype, gradient_checkpointing: bool):
        student = VDMiniUNetSpatioTemporalConditionModel(**VDMINI_UNET.student_config(teacher_config))
        self.student = student.train()
        torch.set_default_dtype(teacher_dtype)  # fake weights cannot be converted
        self.teacher = UNetSpatioTemporalConditionModel(**teacher_config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        self.pairs = VDMINI_UNET.feature_pairs(self.teacher.config)
        if gradient_checkpointing:
            student.enable_gradient_checkpointing()
        channels = dict(zip(SVD.critic_taps["blocks"], self.teacher.config.block_out_channels, strict=True))
        width = self.teacher.config.cross_attention_dim
        self.critics = nn.ModuleList(DiscriminatorHeads(channels, width) for _ in range(2))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), fused=False, foreach=False)


def draw(shape: tuple[int, ...], embedding_width: int) -> ModelInputs:
    latents = torch.randn(shape)
    conditioning = {
        "image_latents": latents[:, 0].clone(),
        "image_embeds": torch.randn(len(latents), 1, embedding_width),
        "added_time_ids": torch.randn(len(latents), 3),
    }
    return ModelInputs(latents, latents + torch.randn(shape), torch.ones(len(latents)), conditioning)


def step(parts: Parts, inputs: ModelInputs, autocast: bool) -> None:
    """Student, teacher, both critics and backward, as `icmd_training_loop` has them; no optimiser step."""
    given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    noise = InstanceNoise(torch.randn_like(inputs.clean_latents), torch.ones_like(inputs.noise_levels))
    critic_features = CriticFeatures(TASK, parts.teacher)
    with mixed, FeatureTaps(parts.student, [name for name, _ in parts.pairs]) as student_features:
        denoised = TASK.denoise(parts.student, *given)
    taps = FeatureTaps(parts.teacher, [name for _, name in parts.pairs])
    with torch.no_grad(), mixed, taps as teacher_features:
        teacher_denoised = TASK.denoise(parts.teacher, *given)
    losses = list(TASK.losses(denoised, inputs).values())
    losses.append(icd_loss(student_features, teacher_features, parts.pairs))
    critic_condition = TASK.critic_condition(noise.levels, inputs.conditioning)
    with mixed:
        fake = critic_features(denoised, noise, inputs)
    for critic in parts.critics:
        critic.requires_grad_(False)
        losses.append(generator_loss(critic(fake, *critic_condition)))
    torch.stack(losses).sum().backward()
    with torch.no_grad(), mixed:
        real = [critic_features(latents, noise, inputs) for latents in (teacher_denoised, inputs.clean_latents)]
    fake = {name: feature.detach() for name, feature in fake.items()}
    for critic, features in zip(parts.critics, real, strict=True):
        critic.requires_grad_(True)
        discriminator_loss(critic(features, *critic_condition), critic(fake, *critic_condition)).backward()


def peak_besides(parts: Parts, inputs: ModelInputs, autocast: bool) -> int:
    """Bytes that live at the peak of a step, beside weights and the gradients of the U-Net, which the formula has."""
    for parameter in parts.student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    known = [p for model in (parts.student, parts.teacher, parts.critics) for p in model.parameters()]
    with LiveBytes(known) as counter:
        step(parts, inputs, autocast)
    return counter.peak


def num_values(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def per_gpu(parts: Parts, besides: int, num_gpus: int, teacher_bytes: int, shard_teacher: bool) -> dict[str, float]:
    """GiB by what they are for, and their sum."""
    divided = num_gpus > 1
    student_blocks = [m for m in parts.student.modules() if type(m).__name__ in STUDENT_UNITS]
    teacher_blocks = [
        block for child in parts.teacher.children() if isinstance(child, nn.ModuleList) for block in child
    ]
    rows = {
        "student: weights, gradients, moments, average": 20 * num_values(parts.student) / num_gpus,
        "teacher": teacher_bytes * num_values(parts.teacher) / (num_gpus if shard_teacher else 1),
        "critics": 16 * num_values(parts.critics),
        "gathered student blocks": divided * 2 * 4 * max(map(num_values, student_blocks)),
        "gathered teacher blocks": divided * shard_teacher * 2 * teacher_bytes * max(map(num_values, teacher_blocks)),
        "besides": besides,
    }
    return {name: value / GIB for name, value in rows.items()} | {"sum": sum(rows.values()) / GIB}


def write_table(parts: Parts, besides: int) -> str:
    columns = [(1, False), (8, False), (8, True), (64, False), (64, True)]
    found = [per_gpu(parts, besides, num_gpus, 2, shard) for num_gpus, shard in columns]
    heads = [f"{n} GPU{'s' * (n > 1)}{', teacher divided' * shard}" for n, shard in columns]
    lines = [f"| GiB per GPU | {' | '.join(heads)} |", "| --- " * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{rows[name]:.2f}' for rows in found)} |" for name in found[0]]
    return "\n".join(lines)


def main(args: Arguments) -> None:
    # Tiny, three times: fake, real, and real without the counter
    config = UNetSpatioTemporalConditionModel.load_config(I2V_TEACHER / "unet")
    tiny = {name: value for name, value in config.items() if not name.startswith("_")}
    shape = (args.tiny_batch_size, tiny["num_frames"], 4, tiny["sample_size"], tiny["sample_size"])
    with FakeTensorMode():
        fake = peak_besides(Parts(tiny, torch.float32, True), draw(shape, tiny["cross_attention_dim"]), False)
    parts, inputs = Parts(tiny, torch.float32, True), draw(shape, tiny["cross_attention_dim"])
    grown = grown_by(lambda: step(parts, inputs, False))
    parts.student.zero_grad()
    real = peak_besides(parts, inputs, False)
    grown -= 4 * num_values(parts.student)  # its gradients, which the count leaves out
    print(
        f"demo teacher, {args.tiny_batch_size} clips: counted {fake / 2**20:.1f} MiB of fake and"
        f" {real / 2**20:.1f} MiB of real tensors; the process grew by {grown / 2**20:.1f} MiB"
    )

    shape = (args.train_batch_size, args.num_frames, 4, args.height // 8, args.width // 8)
    for gradient_checkpointing in (True, False):
        with FakeTensorMode():
            full = dict(UNetSpatioTemporalConditionModel(**SVD_CONFIG).config)
            full = {name: value for name, value in full.items() if not name.startswith("_")}
            parts = Parts(full, torch.bfloat16, gradient_checkpointing)
            besides = peak_besides(parts, draw(shape, full["cross_attention_dim"]), True)
        print(
            f"\nSVD, {args.train_batch_size} clips of {args.num_frames} x {args.height} x {args.width} a GPU, bf16,"
            f" gradient checkpointing {'on' if gradient_checkpointing else 'off'}\n\n{write_table(parts, besides)}",
            flush=True,
        )


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
