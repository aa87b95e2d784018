"""Settings of training a text-to-video U-Net. Defaults are T2V-Turbo-v2's where the paper does not print its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from vdmini_diffusers.distillation.arguments import DenoiserTrainingArguments, ICMDArguments, Settings, setting


@dataclass
class TextToVideoTrainingArguments(DenoiserTrainingArguments):
    """Settings of the scripts that train a text-to-video U-Net."""

    max_train_steps: int = setting(8_000, "Number of optimiser steps (section 4.2).")
    train_batch_size: int = setting(2, "Videos per process and step (section 4.2).")
    gradient_accumulation_steps: int = setting(1, "Batches per optimiser step (T2V-Turbo-v2).")
    learning_rate: float = setting(1e-5, "Learning rate of the U-Net (section 4.2: as T2V-Turbo-v2).")
    adam_weight_decay: float = setting(0.0, "Weight decay of the student's optimiser (T2V-Turbo-v2).")
    temporal_dropout: float = setting(
        0.1,
        "Dropout in the student's temporal convolutions (T2V-Turbo-v2). With 0, two processes have the losses of one.",
        least=0,
        below=1,
    )
    validation_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts to make videos from during training."}
    )


@dataclass
class TextToVideoICMDArguments(ICMDArguments):
    """Settings of Eq. 4 to 6 for text to video."""

    lambda_data_critic: float = setting(0.0, "Weight of a critic whose real samples are the data; T2V-Turbo has none.")


@dataclass
class ConsistencyArguments(Settings):
    """Settings of Eq. 3."""

    help_part: ClassVar[str] = "losses"
    help_parts: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("ode_teacher_model_name_or_path", "ode_teacher_variant"), "models"
    )

    ode_teacher_model_name_or_path: str | None = setting(
        None,
        "Pipeline whose U-Net solves the ODE: VideoCrafter2 for T2V-Turbo, by guidance at run time (T2V-Turbo-v2's own"
        " recipe). teacher: the teacher, with guidance embedded. Required with a student.",
    )
    ode_teacher_variant: str | None = setting(None, "Variant of the ODE teacher's weight files, e.g. fp16.")
    num_ddim_steps: int = setting(
        200, "Points of the grid on the ODE; k = 1000 / 200 = 5 timesteps lie between two.", least=1
    )
    w_min: float = setting(5.0, "Least guidance weight that is drawn.", least=0)
    w_max: float = setting(15.0, "Greatest guidance weight that is drawn.", least=0)
    huber_c: float = setting(0.001, "Constant c of the pseudo-Huber loss.", above=0)
    motion_gs: float = setting(0.05, "Strength of motion guidance.", least=0)
    motion_percentage: float = setting(
        0.5, "Part of the grid, from its noisy end on, that has motion guidance.", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.w_min > self.w_max:
            raise ValueError(f"`--w_min` {self.w_min} and `--w_max` {self.w_max} are no range of guidance weights.")


@dataclass
class RewardArguments(Settings):
    """Settings of the mixture of rewards; without `--image_rewards` and `--video_rewards` there is none."""

    help_part: ClassVar[str] = "rewards"

    image_rewards: list[str] = field(
        default_factory=list,
        metadata={"help": "Image rewards, each with its weight: clip_score:1 hpsv2.1:1 (T2V-Turbo-v2), pick_score:1."},
    )
    video_rewards: list[str] = field(
        default_factory=list, metadata={"help": "Rewards of video and text, each with its weight: xclip:1."}
    )
    image_reward_weight: float = setting(0.2, "Weight beta_img of all image rewards.", least=0)
    video_reward_weight: float = setting(0.5, "Weight beta_vid of all video rewards.", least=0)
    num_reward_frames: int = setting(2, "Frames that are decoded for the image rewards.", least=1)
    num_video_reward_frames: int = setting(
        8, "Frames that are decoded for the video rewards (X-CLIP: 8; T2V-Turbo-v2: 4).", least=1
    )
    max_caption_words: int = setting(
        40, "Samples with longer captions get no reward. T2V-Turbo-v2 decides by data set.", least=1
    )
    clip_score_model: str = setting("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "Folder or Hub id of the CLIP score.")
    pick_score_model: str = setting("yuvalkirstain/PickScore_v1", "Folder or Hub id of PickScore.")
    hps_checkpoint: str = setting(
        "xswu/HPSv2", "File HPS_v2.1_compressed.pt, or Hub id of the repository that has it."
    )
    xclip_model: str = setting("microsoft/xclip-base-patch32", "Folder or Hub id of the video-text reward.")
