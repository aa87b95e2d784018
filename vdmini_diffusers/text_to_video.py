"""What T2V-Turbo and its students bring to `train_unet`, and what T2V-Turbo itself begins as."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import LCMScheduler, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from diffusers.utils import export_to_gif
from torch import nn

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents
from vdmini_diffusers.data.text_to_video import encode_captions, encode_text_to_video
from vdmini_diffusers.distillation.arguments import CriticArguments, UNetTrainingArguments
from vdmini_diffusers.distillation.consistency import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.rewards import RewardMixture
from vdmini_diffusers.distillation.tasks.base import Encode, Generators
from vdmini_diffusers.distillation.tasks.consistency import MOTION_GUIDANCE, ConsistencyTask
from vdmini_diffusers.models import VDMiniUNet3DConditionModel
from vdmini_diffusers.pipelines import VDMiniT2VPipeline
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.pruning.student_folder import check_family, check_student, read_plan
from vdmini_diffusers.reward_weights import load_rewards
from vdmini_diffusers.trained_pipeline import StateDict, like, save_trained_pipeline, student_card, teacher_card


@dataclass(frozen=True)
class ClipShape:
    """What the clips trained on are like; height and width in pixels."""

    num_frames: int
    height: int
    width: int
    fps: float


class TextToVideo:
    """A teacher of few steps (T2V-Turbo) and its student; without a student, such a teacher in the making.

    Args:
        teacher_name: folder or Hub id of a pipeline that [`VDMiniT2VPipeline`] opens. Without a student, one whose
            U-Net is not told guidance, as VideoCrafter2: what is made of it is, and its own ODE is followed.
        student_name: of a pruned one.
        variant: of the teacher's weight files, e.g. `"fp16"`.
        revision: of the teacher on the Hub.
        student_variant: of the student's weight files.
        guidance_dims: without a student, widths of the new embeddings of guidance and of motion guidance; the second
            may be None.
    """

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
        self.teacher_name, self.student_name, self.student_variant = teacher_name, student_name, student_variant
        self.consistency_args, self.reward_args, self.guidance_dims = consistency_args, reward_args, guidance_dims
        self._load = partial(VDMiniT2VPipeline.from_pretrained, teacher_name, variant=variant, revision=revision)

    def load_teacher(self, args: TextToVideoTrainingArguments, dtype: torch.dtype) -> list[nn.Module]:
        own = self.consistency_args
        if self.student_name is None and args.rank is not None:
            raise ValueError("`--rank` trains a pruned student: LoRA would leave the new layers of a teacher at zero.")
        for name in (self.teacher_name, self.student_name, own.ode_teacher_model_name_or_path):
            if name is not None:
                check_family(name, "t2v")
        self.teacher = self._load(dtype=dtype)
        unet = self.teacher.unet
        is_told = unet.config.get("time_cond_proj_dim") is not None
        if self.student_name is not None and not is_told:
            raise ValueError(
                f"The U-Net of {self.teacher_name} is not told guidance (`time_cond_proj_dim`): it needs many steps."
                " Make one of it with training/train_t2v_turbo.py; it can be the ODE teacher then."
            )
        if self.student_name is None and is_told:
            raise ValueError(f"The U-Net of {self.teacher_name} is told guidance: it was distilled already.")
        self.schedule = DiffusionSchedule.of(lcm_scheduler(self.teacher, own.num_ddim_steps))
        ode_unet, ode_schedule = unet, self.schedule
        if own.ode_teacher_model_name_or_path is not None:
            ode = VDMiniT2VPipeline.from_pretrained(
                own.ode_teacher_model_name_or_path,
                variant=own.ode_teacher_variant,
                dtype=dtype,
                **dict.fromkeys(("vae", "text_encoder", "tokenizer")),
            )
            ode_unet, ode_schedule = ode.unet, DiffusionSchedule.of(ode.scheduler)
            if ode_unet.config.cross_attention_dim != unet.config.cross_attention_dim:
                raise ValueError(f"{own.ode_teacher_model_name_or_path} reads texts of another encoder.")
        uncond_prompt_embeds = encode_captions([""], self.teacher)[0]
        self.ode_teacher = ODETeacher(ode_unet, ode_schedule, uncond_prompt_embeds)
        self.rewards = load_rewards(self.reward_args, self.teacher.vae, dtype)
        frozen = [unet, ode_unet, self.teacher.vae, self.teacher.text_encoder]
        return frozen if self.rewards is None else [*frozen, *models_of(self.rewards)]

    def load_student(
        self, args: TextToVideoTrainingArguments
    ) -> tuple[VDMiniUNet3DConditionModel, PruningPlan | None]:
        plan = None
        if self.student_name is None:
            unet = with_guidance(self._load(dtype=torch.float32).unet, *self.guidance_dims)
        else:
            unet = VDMiniUNet3DConditionModel.from_pretrained(
                self.student_name, subfolder="unet", variant=self.student_variant, dtype=torch.float32
            )
            plan = read_plan(self.student_name)
            check_student(plan, self.teacher.unet.config, unet.config, self.student_name)
        for module in unet.modules():
            if isinstance(module, TemporalConvLayer):
                for dropout in (layer for layer in module.modules() if isinstance(layer, nn.Dropout)):
                    dropout.p = args.temporal_dropout
        return unet, plan

    def precomputed(self, folder: str) -> PrecomputedLatents:
        dataset = PrecomputedLatents(folder, captions=self.rewards is not None)
        sample = dataset[0]
        if missing := sorted({"latents", "prompt_embeds", "pooled_prompt_embeds", "fps"} - set(sample)):
            raise ValueError(
                f"{folder} has no {', '.join(missing)}: it was not made by `training/precompute_latents.py"
                " --latents_for text_to_video`."
            )
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

    def describe(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        if isinstance(clips, VideoDataArguments):
            self.shape = ClipShape(clips.num_frames, clips.height, clips.width, clips.fps)
        else:
            num_frames, _, height, width = clips["latents"].shape
            factor = self.teacher.vae_scale_factor
            self.shape = ClipShape(num_frames, height * factor, width * factor, float(clips["fps"]))
        # The last stage of the U-Net does not downsample.
        multiple = self.teacher.vae_scale_factor * 2 ** (len(self.teacher.unet.config.down_block_types) - 1)
        if self.shape.height % multiple or self.shape.width % multiple:
            raise ValueError(
                f"Height and width of clips must be multiples of {multiple}, which VAE and U-Net of the teacher"
                f" downsample by; they are {self.shape.height} and {self.shape.width}."
            )
        if self.rewards is not None:
            self.rewards.draw_frames(self.shape.num_frames, [torch.Generator()])  # refuses too few now, not later

    def encode(self, batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        return encode_text_to_video(dict(batch), self.teacher, generators)

    def make_task(self, unet: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> ConsistencyTask:
        own = self.consistency_args
        return ConsistencyTask(
            unet,
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

    @property
    def critic_condition_dim(self) -> int:
        return self.teacher.text_encoder.config.hidden_size

    def settings(self) -> dict[str, Any]:
        return asdict(self.consistency_args) | asdict(self.reward_args)

    def wants_validation(self, args: TextToVideoTrainingArguments) -> bool:
        return bool(args.validation_prompts)

    def write_validation_videos(
        self, args: TextToVideoTrainingArguments, unet: nn.Module, state_dict: StateDict, step: int
    ) -> list[Path]:
        """Videos of the validation prompts with the pipeline's default settings, as GIFs."""
        shown = like(unet, state_dict).to(self.teacher.device, self.teacher.dtype).eval()
        pipe = self.pipeline_of(shown)
        folder = args.output_dir / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        paths, shape = [], self.shape
        for i, prompt in enumerate(args.validation_prompts):
            frames = pipe(
                prompt,
                height=shape.height,
                width=shape.width,
                num_frames=shape.num_frames,
                fps=shape.fps,
                generator=torch.Generator().manual_seed(args.seed),
            ).frames[0]
            paths.append(folder / f"step-{step:06d}-{i}.gif")
            export_to_gif(frames, str(paths[-1]), fps=round(shape.fps))
        return paths

    def pipeline_of(self, unet: UNet3DConditionModel, **parts: Any) -> VDMiniT2VPipeline:
        scheduler = lcm_scheduler(self.teacher, self.consistency_args.num_ddim_steps)
        return VDMiniT2VPipeline(**{**self.teacher.components, **parts, "unet": unet, "scheduler": scheduler})

    def save(self, args: TextToVideoTrainingArguments, unet: nn.Module, state_dict: StateDict) -> None:
        if self.student_name is None:
            card = t2v_turbo_card(args, self.teacher_name)
        else:
            card = student_card(args, self.student_name)

        def pipeline_of(trained: UNet3DConditionModel) -> VDMiniT2VPipeline:
            whole = self._load(unet=None, dtype=torch.float32)
            return self.pipeline_of(trained, vae=whole.vae, text_encoder=whole.text_encoder)

        save_trained_pipeline(args, pipeline_of, unet, state_dict, self.student_name, card)


def with_guidance(
    base: UNet3DConditionModel, time_cond_proj_dim: int = 256, motion_cond_proj_dim: int | None = 256
) -> VDMiniUNet3DConditionModel:
    """A U-Net with the weights of `base` that is told guidance besides, and at first pays no attention to it.

    The last of the new layers is zero: that of guidance, or the one that combines it with motion guidance.
    """
    stock = {"mid_block_type": "UNetMidBlock3DCrossAttn", "fps_cond": False}  # what a stock config does not say
    told = {"time_cond_proj_dim": time_cond_proj_dim, "motion_cond_proj_dim": motion_cond_proj_dim}
    config = {name: value for name, value in base.config.items() if not name.startswith("_")}
    unet = VDMiniUNet3DConditionModel(**{**stock, **config, **told})
    missing, unexpected = unet.load_state_dict(base.state_dict(), strict=False)
    new = ("cond_proj", "motion_cond_proj", "combine_proj")
    assert not unexpected and {name.split(".")[-2] for name in missing} <= set(new), (missing, unexpected)
    embedding: Any = unet.time_embedding
    nn.init.zeros_((embedding.cond_proj if motion_cond_proj_dim is None else embedding.combine_proj).weight)
    return unet


def lcm_scheduler(pipe: VDMiniT2VPipeline, num_ddim_steps: int) -> LCMScheduler:
    """For a pipeline of few steps: with the noise of the scheduler that it has, on the grid that is trained on."""
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    kept = (*noise, "rescale_betas_zero_snr", "timestep_scaling")
    config = {name: value for name, value in pipe.scheduler.config.items() if name in kept}
    return LCMScheduler(**config, original_inference_steps=num_ddim_steps)


def models_of(rewards: RewardMixture) -> list[nn.Module]:
    """The networks of the rewards that have one."""
    models = [getattr(reward, "model", None) for _, reward in (*rewards.image_rewards, *rewards.video_rewards)]
    return [model for model in models if isinstance(model, nn.Module)]


def t2v_turbo_card(args: UNetTrainingArguments, teacher_name: str) -> str:
    return teacher_card(args, teacher_name, "t2v_turbo.md", "text-to-video", ["t2v-turbo", "consistency-distillation"])
