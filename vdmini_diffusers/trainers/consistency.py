"""Pairs that are trained by T2V-Turbo's objective: text to video in a few steps, by consistency and rewards."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, LCMScheduler, ModelMixin
from diffusers.models.resnet import TemporalConvLayer
from torch import nn

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.distillation.arguments import CriticArguments
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.engine import DTYPES
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.rewards import RewardMixture
from vdmini_diffusers.distillation.tasks.base import Encode
from vdmini_diffusers.distillation.tasks.consistency import MOTION_GUIDANCE, ConsistencyTask
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.trainers.critics import ModelSource
from vdmini_diffusers.trainers.reward_weights import load_rewards, reward_weights
from vdmini_diffusers.trainers.unet_pair import UNetPair


class ConsistencyPair(UNetPair):
    """A few-step teacher (T2V-Turbo) and its student. Without a student, a multi-step model is distilled to few steps.

    Without a student, the teacher's denoiser has no embedding of guidance (VideoCrafter2's, for example): the trained
    denoiser gets one, and the teacher's own ODE is followed.

    Args:
        guidance_dims: without a student, widths of the new embeddings of guidance and of motion guidance; the second
            may be None.
    """

    task = "consistency"

    def __init__(
        self,
        teacher_name: str,
        student_name: str | None,
        consistency_args: ConsistencyArguments,
        reward_args: RewardArguments,
        variant: str | None = None,
        revision: str | None = None,
        student_variant: str | None = None,
        guidance_dims: tuple[int, int | None] = (256, 256),
    ):
        super().__init__(teacher_name, student_name, variant, revision, student_variant)
        self.consistency_args, self.reward_args, self.guidance_dims = consistency_args, reward_args, guidance_dims

    @property
    def ode_source(self) -> ModelSource:
        """The pipeline whose network solves the ODE."""
        name, variant = self.consistency_args.ode_teacher_model_name_or_path, self.consistency_args.ode_teacher_variant
        return self.teacher_source if name in (None, "teacher") else ModelSource(name, variant)

    def multi_step_model(self) -> ModelSource | None:
        named = self.consistency_args.ode_teacher_model_name_or_path not in (None, "teacher")
        return self.ode_source if named else super().multi_step_model()

    def trained_with(self) -> set[str]:
        return super().trained_with() | ({"vae"} if self.rewards is not None else set())

    def load_critic_backbone(self, source: ModelSource, dtype: torch.dtype) -> nn.Module:
        return self.ode_teacher.unet if source == self.ode_source else super().load_critic_backbone(source, dtype)

    def sources(self) -> dict[str, str | None]:
        return {**super().sources(), "the ODE teacher": self.ode_source.name}

    def check(self, args: TextToVideoTrainingArguments) -> None:
        if self.student_name is None and args.rank is not None:
            raise ValueError("`--rank` trains a pruned student: LoRA would leave the new layers of a teacher at zero.")
        super().check(args)
        if self.student_name is not None and self.consistency_args.ode_teacher_model_name_or_path is None:
            raise ValueError(
                "`--ode_teacher_model_name_or_path` is missing: the model that the teacher was made of, whose ODE is"
                " followed (VideoCrafter2 for T2V-Turbo-v2). `teacher` lets the teacher solve it, with guidance"
                " embedded."
            )
        if self.ode_source != self.teacher_source:
            self.check_family(self.ode_source.name)
        reward_weights(self.reward_args)

    def check_teacher(self, config: Mapping[str, Any]) -> None:
        embeds_guidance = config.get("time_cond_proj_dim") is not None
        if self.student_name is not None and not embeds_guidance:
            raise ValueError(
                f"The U-Net of {self.teacher_name} does not embed guidance (`time_cond_proj_dim`): it needs many"
                " steps. Distil it with training/train_t2v_turbo.py first; it can be the ODE teacher then."
            )
        if self.student_name is None and embeds_guidance:
            raise ValueError(f"The U-Net of {self.teacher_name} embeds guidance: it was distilled already.")

    def load_teacher(self, args: TextToVideoTrainingArguments, accelerator: Accelerator) -> list[nn.Module]:
        own, dtype = self.consistency_args, DTYPES[accelerator.mixed_precision]
        frozen = super().load_teacher(args, accelerator)
        self.schedule = DiffusionSchedule.of(lcm_scheduler(self.teacher, own.num_ddim_steps))
        self.ode_teacher = self._load_ode_teacher(dtype)
        self.rewards = load_rewards(self.reward_args, self.teacher.vae, dtype)
        return [*frozen, self.ode_teacher.unet, *(models_of(self.rewards) if self.rewards is not None else ())]

    def _load_ode_teacher(self, dtype: torch.dtype) -> ODETeacher:
        denoiser, schedule = self.teacher_denoiser, self.schedule
        if self.ode_source != self.teacher_source:
            denoiser, scheduler = self.load_denoiser(self.ode_source, dtype)
            schedule = DiffusionSchedule.of(scheduler)
        assert self.family.encode_prompts is not None, f"{self.family.name} is not given text"
        uncond_prompt_embeds = self.family.encode_prompts([""], self.teacher)[0]
        return ODETeacher(self.family.predict, denoiser, schedule, uncond_prompt_embeds)

    def load_student(
        self, args: TextToVideoTrainingArguments, accelerator: Accelerator
    ) -> tuple[Any, PruningPlan | None]:
        denoiser, plan = super().load_student(args, accelerator)
        if self.student_name is None:
            assert self.family.add_guidance is not None, f"{self.family.name} has no embedding of guidance"
            denoiser = self.family.add_guidance(denoiser, *self.guidance_dims)
        for module in denoiser.modules():
            if isinstance(module, TemporalConvLayer):
                for dropout in (layer for layer in module.modules() if isinstance(layer, nn.Dropout)):
                    dropout.p = args.temporal_dropout
        return denoiser, plan

    def precomputed(self, folder: str) -> PrecomputedLatents:
        dataset = PrecomputedLatents(folder, captions=self.rewards is not None)
        sample = dataset[0]
        self._check_tensors(sample, folder)
        if self.rewards is not None and not any(dataset.info(i)["caption"] for i in range(min(len(dataset), 100))):
            raise ValueError(f"{folder} has no captions, which rewards compare videos with: leave out the rewards.")
        if found := sorted(set(MOTION_GUIDANCE) & set(sample)):
            if absent := sorted(set(MOTION_GUIDANCE) - set(sample)):
                raise ValueError(f"{folder} has {', '.join(found)} without {', '.join(absent)}: they go together.")
            if self.ode_teacher.embeds_motion_guidance:
                raise ValueError(
                    f"{folder} has scores for motion guidance, and the ODE teacher embeds it: it would be applied"
                    " twice. Give the model that the scores were made with as `--ode_teacher_model_name_or_path`."
                )
        return dataset

    def set_clip_shape(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        super().set_clip_shape(clips)
        shape, pipe = self.clip_shape, self.teacher
        # The last stage of the U-Net does not downsample.
        multiple = pipe.vae_scale_factor * 2 ** (len(self.teacher_denoiser.config.down_block_types) - 1)
        if shape.height % multiple or shape.width % multiple:
            raise ValueError(
                f"Height and width of clips must be multiples of {multiple}, which VAE and U-Net of the teacher"
                f" downsample by; they are {shape.height} and {shape.width}."
            )
        if self.rewards is not None:
            self.rewards.draw_frames(shape.num_frames, [torch.Generator()])  # refuses too few now, not later

    def make_task(self, denoiser: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> ConsistencyTask:
        own = self.consistency_args
        return ConsistencyTask(
            self.family,
            denoiser,
            self.schedule,
            self.ode_teacher,
            num_ddim_steps=own.num_ddim_steps,
            guidance_range=(own.w_min, own.w_max),
            huber_c=own.huber_c,
            motion_gs=own.motion_gs,
            motion_percentage=own.motion_percentage,
            instance_noise_mean=critic_args.instance_noise_mean,
            instance_noise_std=critic_args.instance_noise_std,
            rewards=self.rewards,
            encode=encode,
        )

    def settings(self) -> dict[str, Any]:
        return asdict(self.consistency_args) | asdict(self.reward_args)

    def pipeline_with(self, denoiser: ModelMixin, **parts: Any) -> DiffusionPipeline:
        scheduler = lcm_scheduler(self.teacher, self.consistency_args.num_ddim_steps)
        return super().pipeline_with(denoiser, **parts, scheduler=scheduler)


def lcm_scheduler(pipe: Any, num_ddim_steps: int) -> LCMScheduler:
    """The scheduler of a few-step pipeline: noise levels of the pipeline's own scheduler, on the grid of training."""
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    kept = (*noise, "rescale_betas_zero_snr", "timestep_scaling")
    config = {name: value for name, value in pipe.scheduler.config.items() if name in kept}
    return LCMScheduler(**config, original_inference_steps=num_ddim_steps)


def models_of(rewards: RewardMixture) -> list[nn.Module]:
    """The networks of the rewards that have one."""
    models = [getattr(reward, "model", None) for _, reward in (*rewards.image_rewards, *rewards.video_rewards)]
    return [model for model in models if isinstance(model, nn.Module)]
