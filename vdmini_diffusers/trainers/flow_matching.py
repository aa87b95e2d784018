"""Pairs of video transformers, which are trained to predict velocities: FastVideo's objective (appendix D)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.distillation.flow_matching_arguments import (
    FlowMatchingArguments,
    FlowMatchingCriticArguments,
    FlowMatchingTrainingArguments,
)
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule
from vdmini_diffusers.distillation.tasks.base import Encode
from vdmini_diffusers.distillation.tasks.flow_matching import FlowMatchingTask
from vdmini_diffusers.distillation.velocity import FlowMatchingPath, VelocityPath, VPredictionPath
from vdmini_diffusers.families import TokenGrid, TransformerFamily
from vdmini_diffusers.pruning import PruningPlan, TransformerPruningPlan
from vdmini_diffusers.trainers.critics import ModelSource
from vdmini_diffusers.trainers.teacher_and_student import TeacherAndStudent


class FlowMatchingPair(TeacherAndStudent[TransformerFamily]):
    """A video transformer and its student.

    Of the teacher's pipeline, the transformer is loaded, and its encoders and VAE only where clips are encoded or
    validation videos made.
    """

    task = "flow_matching"
    student_name: str

    def __init__(
        self,
        teacher_name: str,
        student_name: str,
        flow_args: FlowMatchingArguments,
        variant: str | None = None,
        revision: str | None = None,
        student_variant: str | None = None,
    ):
        super().__init__(teacher_name, student_name, variant, revision, student_variant)
        self.flow_args = flow_args

    def multi_step_model(self) -> ModelSource:
        return self.teacher_source

    def load_teacher(self, args: FlowMatchingTrainingArguments, dtype: torch.dtype) -> list[nn.Module]:
        without = set(self.family.layout.components) - {self.family.denoiser, "scheduler"}
        self.teacher = self.load_pipeline(dtype=dtype, **dict.fromkeys(without))
        if args.validation_prompts:
            self._load_encoders()
        return [model for model in self.teacher.components.values() if isinstance(model, nn.Module)]

    def set_clip_shape(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        if isinstance(clips, VideoDataArguments):  # which are to be encoded
            self._load_encoders()
        super().set_clip_shape(clips)

    def _load_encoders(self) -> None:
        """Complete the teacher's pipeline, on the transformer's device."""
        if getattr(self.teacher, "vae", None) is not None:
            return
        denoiser, device = self.family.denoiser, self.teacher_denoiser.device
        pipe: DiffusionPipeline = self.load_pipeline(dtype=self.teacher_denoiser.dtype, **{denoiser: None})
        for model in pipe.components.values():
            if isinstance(model, nn.Module):
                model.to(device).eval().requires_grad_(False)
        self.teacher = self.family.pipeline(**{**pipe.components, denoiser: self.teacher_denoiser})

    def feature_pairs(self, plan: PruningPlan) -> Sequence[tuple[str, str]]:
        config = self.teacher_denoiser.config
        if self.flow_args.icd_places == "all_blocks":
            return plan.feature_pairs(config)
        assert isinstance(plan, TransformerPruningPlan), plan
        return pairs_after_removed_runs(plan, config)

    def critic_channels(self, critic_args: FlowMatchingCriticArguments, config: Mapping[str, Any]) -> dict[str, int]:
        """The video's tokens after every n-th block."""
        stride, class_name = critic_args.critic_block_stride, config["_class_name"]
        order = TransformerPruningPlan.keep_everything(class_name, config).running_order(config)
        blocks = next(chain for chain in order.values() if "video" in chain[0].streams)
        width = config["num_attention_heads"] * config["attention_head_dim"]
        chosen = blocks[stride - 1 :: stride]
        if not chosen:
            raise ValueError(
                f"`--critic_block_stride` {stride} is more than the {len(blocks)} blocks of the critics' backbone."
            )
        streams = [block.streams.index("video") for block in chosen]
        return {
            f"{block.list}.{block.index}" + (f"[{stream}]" if stream else ""): width
            for block, stream in zip(chosen, streams, strict=True)
        }

    @property
    def token_grid(self) -> TokenGrid:
        return self.family.token_grid

    def make_task(
        self, denoiser: nn.Module, critic_args: FlowMatchingCriticArguments, encode: Encode | None
    ) -> FlowMatchingTask:
        own = self.flow_args
        return FlowMatchingTask(
            self.family,
            self._path(critic_args),
            embedded_guidance=own.embedded_guidance,
            text_mask=own.text_mask,
            target=own.training_target,
            encode=encode,
        )

    def _path(self, critic_args: FlowMatchingCriticArguments) -> VelocityPath:
        """Flow matching, or v-prediction where the scheduler's noise is DDPM's."""
        own, scheduler = self.flow_args, self.teacher.scheduler
        noise = critic_args.instance_noise_mean, critic_args.instance_noise_std
        if not hasattr(scheduler, "alphas_cumprod"):
            density = own.timestep_density, own.logit_mean, own.logit_std, own.mode_scale
            return FlowMatchingPath(own.flow_shift, *density, *noise)
        if own.flow_shift != 1 or own.timestep_density != "uniform":
            raise ValueError(
                f"{self.teacher_name} predicts v at DDPM's timesteps, which are drawn uniformly: `--flow_shift` and"
                " `--timestep_density` are for models of flow matching."
            )
        return VPredictionPath(DiffusionSchedule.of(scheduler), *noise)

    def settings(self) -> dict[str, Any]:
        return asdict(self.flow_args)


def pairs_after_removed_runs(
    plan: TransformerPruningPlan, teacher_config: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """The pairs of kept blocks after which a run was removed, with the run's last block.

    Nothing of the student stands before a run at the start of the teacher: there the first kept block is compared.
    """
    pairs = plan.feature_pairs(teacher_config)
    runs = plan.removed_runs(teacher_config)
    ends = {run[-1] for run in runs}
    begins = {f"{order[0].list}.{order[0].index}" for order in plan.running_order(teacher_config).values()}
    first = pairs[0][0] if any(run[0] in begins for run in runs) else None
    return tuple(
        (student, teacher)
        for student, teacher in pairs
        if teacher.partition("[")[0] in ends or student.partition("[")[0] == first
    )
