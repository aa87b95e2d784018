"""Pairs of U-Nets, whose teachers may be distilled themselves, without a student."""

from collections.abc import Mapping
from typing import Any

from vdmini_diffusers.distillation.arguments import DenoiserTrainingArguments, UNetCriticArguments
from vdmini_diffusers.families import UNetFamily
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent
from vdmini_diffusers.trainers.trained_pipeline import teacher_card


class UNetPair(TeacherAndStudent[UNetFamily]):
    """A teacher and its pruned student. Without a student, the teacher itself is distilled to fewer steps."""

    def check(self, args: DenoiserTrainingArguments) -> None:
        super().check(args)
        if self.student_name is None:
            self.companions, self.card = {}, teacher_card(args, self.teacher_name, self.family)

    def critic_channels(self, critic_args: UNetCriticArguments, config: Mapping[str, Any]) -> dict[str, int]:
        taps = self.family.critic_taps[critic_args.critic_taps]
        return dict(zip(taps, self.family.critic_channels(config), strict=True))
