"""What Stable Video Diffusion and its students bring to `train_unet`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.utils import export_to_gif, load_image
from PIL import ImageOps
from torch import nn

from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.latents import PrecomputedLatents, encode_image_to_video
from vdmini_diffusers.distillation.arguments import CriticArguments, TrainingArguments, UNetTrainingArguments
from vdmini_diffusers.distillation.tasks.base import Encode, Generators
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pipelines import VDMiniI2VPipeline
from vdmini_diffusers.pruning import PruningPlan
from vdmini_diffusers.pruning.student_folder import check_family, check_student, read_plan
from vdmini_diffusers.trained_pipeline import StateDict, like, save_trained_pipeline, student_card, teacher_card


@dataclass(frozen=True)
class ClipShape:
    """What the clips trained on are like; height and width in pixels."""

    num_frames: int
    height: int
    width: int
    fps: int
    motion_bucket_id: int

    @classmethod
    def of_latents(cls, sample: Mapping[str, torch.Tensor], vae_scale_factor: int) -> "ClipShape":
        """Of precomputed ones. Their motion bucket is that of one sample."""
        num_frames, _, height, width = sample["latents"].shape
        fps, motion_bucket_id, _ = (round(value) for value in sample["added_time_ids"].tolist())
        # The U-Net is told one frame a second less than there are, as in SVD's training.
        return cls(num_frames, height * vae_scale_factor, width * vae_scale_factor, fps + 1, motion_bucket_id)


class ImageToVideo:
    """A one-step teacher (SF-V) and its student; without a student, a teacher in the making.

    Args:
        teacher_name: folder or Hub id of an SVD-style pipeline.
        student_name: of a pruned one, as `conversion/convert_svd_to_vdmini.py` writes it.
        variant: of the teacher's weight files, e.g. `"fp16"`.
        revision: of the teacher on the Hub.
        student_variant: of the student's weight files.
    """

    def __init__(
        self,
        teacher_name: str,
        student_name: str | None,
        variant: str | None = None,
        revision: str | None = None,
        student_variant: str | None = None,
    ):
        self.teacher_name, self.student_name, self.student_variant = teacher_name, student_name, student_variant
        self._load: Callable[..., VDMiniI2VPipeline] = partial(
            VDMiniI2VPipeline.from_pretrained, teacher_name, variant=variant, revision=revision
        )

    def load_teacher(self, args: TrainingArguments, dtype: torch.dtype) -> list[nn.Module]:
        for image in args.validation_images:
            if not image.is_file():
                raise ValueError(f"`--validation_images`: there is no file {image}.")
        for name in (self.teacher_name, self.student_name):
            if name is not None:
                check_family(name, "i2v")
        self.teacher = self._load(dtype=dtype)
        return [self.teacher.unet, self.teacher.vae, self.teacher.image_encoder]

    def load_student(self, args: UNetTrainingArguments) -> tuple[UNetSpatioTemporalConditionModel, PruningPlan | None]:
        if self.student_name is None:
            return self._load(dtype=torch.float32).unet, None
        unet = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(
            self.student_name, subfolder="unet", variant=self.student_variant, dtype=torch.float32
        )
        plan = read_plan(self.student_name)
        check_student(plan, self.teacher.unet.config, unet.config, self.student_name)
        return unet, plan

    def precomputed(self, folder: str) -> PrecomputedLatents:
        dataset = PrecomputedLatents(folder)
        if missing := sorted({"latents", "image_latents", "image_embeds", "added_time_ids"} - set(dataset[0])):
            raise ValueError(
                f"{folder} has no {', '.join(missing)}: it was not made by training/precompute_latents.py for image to"
                " video."
            )
        return dataset

    def describe(self, clips: VideoDataArguments | Mapping[str, Any]) -> None:
        if isinstance(clips, VideoDataArguments):
            self.shape = ClipShape(clips.num_frames, clips.height, clips.width, clips.fps, clips.motion_bucket_id)
        else:
            self.shape = ClipShape.of_latents(clips, 2 ** (len(self.teacher.vae.config.block_out_channels) - 1))

    def encode(self, batch: Mapping[str, Any], generators: Generators) -> Mapping[str, Any]:
        pipe = self.teacher
        return encode_image_to_video(
            dict(batch), pipe.vae, pipe.image_encoder, pipe.feature_extractor, generators=list(generators)
        )

    def make_task(self, unet: nn.Module, critic_args: CriticArguments, encode: Encode | None) -> SingleStepTask:
        return SingleStepTask(
            instance_noise_mean=critic_args.instance_noise_mean,
            instance_noise_std=critic_args.instance_noise_std,
            encode=encode,
        )

    @property
    def critic_condition_dim(self) -> int:
        return self.teacher.image_encoder.config.projection_dim

    def settings(self) -> dict[str, Any]:
        return {}

    def wants_validation(self, args: TrainingArguments) -> bool:
        return bool(args.validation_images)

    def write_validation_videos(
        self, args: TrainingArguments, unet: UNetSpatioTemporalConditionModel, state_dict: StateDict, step: int
    ) -> list[Path]:
        """One-step videos of the validation images, as GIFs."""
        shown = like(unet, state_dict).to(self.teacher.device, self.teacher.dtype).eval()
        pipe = VDMiniI2VPipeline(**{**self.teacher.components, "unet": shown})
        folder = args.output_dir / "validation"
        folder.mkdir(parents=True, exist_ok=True)
        paths, shape = [], self.shape
        for i, path in enumerate(args.validation_images):
            image = ImageOps.fit(load_image(str(path)), (shape.width, shape.height))
            frames = pipe(
                image,
                height=shape.height,
                width=shape.width,
                num_frames=shape.num_frames,
                fps=shape.fps,
                motion_bucket_id=shape.motion_bucket_id,
                generator=torch.Generator().manual_seed(args.seed),
            ).frames[0]
            paths.append(folder / f"step-{step:06d}-{i}.gif")
            export_to_gif(frames, str(paths[-1]), fps=shape.fps)
        return paths

    def save(self, args: TrainingArguments, unet: UNetSpatioTemporalConditionModel, state_dict: StateDict) -> None:
        if self.student_name is None:
            card = sf_v_card(args, self.teacher_name)
        else:
            card = student_card(args, self.student_name)

        def pipeline_of(trained: UNetSpatioTemporalConditionModel) -> VDMiniI2VPipeline:
            return self._load(unet=trained, dtype=torch.float32)

        save_trained_pipeline(args, pipeline_of, unet, state_dict, self.student_name, card)


def sf_v_card(args: UNetTrainingArguments, teacher_name: str) -> str:
    return teacher_card(args, teacher_name, "sf_v.md", "image-to-video", ["sf-v", "stable-video-diffusion"])
