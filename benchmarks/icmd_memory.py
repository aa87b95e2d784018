#!/usr/bin/env python
"""Memory of an ICMD step per GPU at full size, for 1, 8 and 64 GPUs, without a GPU; and a real step that checks it.

    python benchmarks/icmd_memory.py

Per GPU of N, with the student divided by FSDP2:

    (4 + 4 + 8 + 4 with EMA) P_student / N      weights, gradients, AdamW's moments, average; float32
    + b P_teacher, / N with --shard_teacher     b bytes a weight: 2 in bf16
    + 16 P_heads                                the critics' heads with gradients and moments; float32, on every GPU
    + the largest block's weights               as FSDP gathers it while it runs, and the next; of student and teacher
    + what a step needs besides                 activations, and what backward makes on its way

The last line does not depend on N. It is read off a step with fake tensors, which have shapes and no memory:
`MemTracker` follows what lives. The same step with real tensors of the embedded teacher's size is held against it, and
against the process's resident memory.
"""

import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import HfArgumentParser

from vdmini_diffusers.distillation.critics import CriticFeatures, InstanceNoise
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.losses import discriminator_loss, generator_loss, icd_loss
from vdmini_diffusers.distillation.tasks.base import ModelInputs
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.embedded import I2V_TEACHER
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET, feature_pairs, student_config


GIB = 2**30
SVD = {"num_attention_heads": (5, 10, 20, 20), "num_frames": 14, "sample_size": 96}


@dataclass
class Arguments:
    num_frames: int = field(default=14, metadata={"help": "Of a clip."})
    height: int = field(default=448, metadata={"help": "Pixels (paper: 448 x 576)."})
    width: int = field(default=576, metadata={"help": "Pixels."})
    train_batch_size: int = field(default=1, metadata={"help": "Clips per GPU."})


class Parts:
    """What takes part in a step, on one device, in the current tensor mode."""

    def __init__(self, teacher_config: dict, teacher_dtype: torch.dtype, gradient_checkpointing: bool):
        student = VDMiniUNetSpatioTemporalConditionModel(**student_config(VDMINI_UNET, teacher_config))
        self.student = student.train()
        self.teacher = UNetSpatioTemporalConditionModel(**teacher_config).to(teacher_dtype).requires_grad_(False)
        self.pairs = feature_pairs(VDMINI_UNET, self.teacher.config)
        if gradient_checkpointing:
            student.enable_gradient_checkpointing()
        channels = dict(zip(SingleStepTask.critic_taps, self.teacher.config.block_out_channels, strict=True))
        width = self.teacher.config.cross_attention_dim
        self.critics = nn.ModuleList(DiscriminatorHeads(channels, width) for _ in range(2))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), fused=False, foreach=False)


def draw(args_shape: tuple[int, ...], width: int) -> ModelInputs:
    batch, frames, channels, height, rest = args_shape
    latents = torch.randn(args_shape)
    conditioning = {
        "image_latents": torch.randn(batch, channels, height, rest),
        "image_embeds": torch.randn(batch, 1, width),
        "added_time_ids": torch.randn(batch, 3),
    }
    return ModelInputs(latents, latents + torch.randn(args_shape), torch.ones(batch), conditioning)


def step(parts: Parts, inputs: ModelInputs, autocast: bool) -> None:
    """Student, teacher, both critics and backward, as `icmd_training_loop` has them; no optimiser step."""
    task = SingleStepTask()
    given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    noise = InstanceNoise(torch.randn_like(inputs.clean_latents), torch.ones_like(inputs.noise_levels))
    critic_features = CriticFeatures(task, parts.teacher)
    with mixed, FeatureTaps(parts.student, [name for name, _ in parts.pairs]) as student_features:
        denoised = task.denoise(parts.student, *given)
    taps = FeatureTaps(parts.teacher, [name for _, name in parts.pairs])
    with torch.no_grad(), mixed, taps as teacher_features:
        teacher_denoised = task.denoise(parts.teacher, *given)
    losses = list(task.losses(denoised, inputs).values())
    losses.append(icd_loss(student_features, teacher_features, parts.pairs))
    told = task.critic_condition(noise.levels, inputs.conditioning)
    with mixed:
        fake = critic_features(denoised, noise, inputs)
    for critic in parts.critics:
        critic.requires_grad_(False)
        losses.append(generator_loss(critic(fake, *told)))
    torch.stack(losses).sum().backward()
    with torch.no_grad(), mixed:
        real = [critic_features(latents, noise, inputs) for latents in (teacher_denoised, inputs.clean_latents)]
    fake = {name: feature.detach() for name, feature in fake.items()}
    for critic, features in zip(parts.critics, real, strict=True):
        critic.requires_grad_(True)
        discriminator_loss(critic(features, *told), critic(fake, *told)).backward()
