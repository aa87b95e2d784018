"""Pairs that are trained by SF-V's objective: image to video in one step."""

from torch import nn

from vdmini_diffusers.distillation.arguments import CriticArguments
from vdmini_diffusers.distillation.tasks.base import Encode
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.trainers.unet_pair import UNetPair


class SingleStepPair(UNetPair):
    """A one-step teacher (SF-V) and its student. Without a student, a multi-step model is distilled to one step."""

    task = "single_step"

    def make_task(self, denoiser: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> SingleStepTask:
        return SingleStepTask(
            self.family,
            instance_noise_mean=critic_args.instance_noise_mean,
            instance_noise_std=critic_args.instance_noise_std,
            encode=encode,
        )
