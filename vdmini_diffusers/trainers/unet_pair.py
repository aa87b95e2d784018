"""Pairs of U-Nets, whose teachers may be distilled themselves, without a student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vdmini_diffusers.distillation.arguments import DenoiserTrainingArguments, UNetCriticArguments
from vdmini_diffusers.distillation.recomputation import recompute_layers
from vdmini_diffusers.families import UNetFamily
from vdmini_diffusers.trainers.critics import ModelSource
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import teacher_card


class UNetPair(TeacherAndStudent[UNetFamily]):
    """A teacher and its pruned student. Without a student, the teacher itself is distilled to fewer steps.

    Attributes:
        resting: models of the teacher's pipeline that are on the CPU but for validation.
        shards_teacher: whether FSDP divides what is frozen, once the pair is checked.
    """

    resting: tuple[nn.Module, ...] = ()
    shards_teacher: bool

    def check(self, args: DenoiserTrainingArguments) -> None:
        super().check(args)
        self.shards_teacher = args.shard_teacher
        if self.student_name is None:
            self.companions, self.card = {}, teacher_card(args, self.teacher_name, self.family)

    def critic_channels(self, critic_args: UNetCriticArguments, config: Mapping[str, Any]) -> dict[str, int]:
        taps = self.family.critic_taps[critic_args.critic_taps]
        return dict(zip(taps, self.family.critic_channels(config), strict=True))

    def load_critic_backbone(self, source: ModelSource, dtype: torch.dtype) -> nn.Module:
        """A network that is for the critics alone keeps its down blocks only, which are all that they see.

        Where it is divided, it runs to its end, and is kept whole.
        """
        backbone: Any = super().load_critic_backbone(source, dtype)
        if backbone is not self.teacher_denoiser and not self.shards_teacher:
            backbone.mid_block, backbone.up_blocks = None, nn.ModuleList()
        return backbone

    def checkpoint_activations(self, model: Any) -> None:
        recompute_layers(model, self.family.recomputed_layers)

    def trained_with(self) -> set[str]:
        """The components of the teacher's pipeline that a step of training runs."""
        return {self.family.denoiser}

    def rest_encoders(self) -> None:
        components = {name: part for name, part in self.teacher.components.items() if isinstance(part, nn.Module)}
        self.resting = tuple(components[name] for name in components.keys() - self.trained_with())
        for model in self.resting:
            model.to("cpu")

    def write_validation_videos(
        self, args: Any, accelerator: Accelerator, prepared: nn.Module, denoiser: Any, step: int
    ) -> list[Path]:
        for model in self.resting:
            model.to(accelerator.device)
        try:
            return super().write_validation_videos(args, accelerator, prepared, denoiser, step)
        finally:
            for model in self.resting:
                model.to("cpu")
