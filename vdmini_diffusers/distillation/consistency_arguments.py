"""What training a text-to-video U-Net can be told. The defaults are T2V-Turbo-v2's, where the paper has no others."""

from dataclasses import dataclass, field

from vdmini_diffusers.distillation.arguments import ICMDArguments, UNetTrainingArguments, setting


@dataclass
class TextToVideoTrainingArguments(UNetTrainingArguments):
    max_train_steps: int = setting(8_000, "Optimiser steps (section 4.2).")
    train_batch_size: int = setting(2, "Videos per process and step (section 4.2).")
    gradient_accumulation_steps: int = setting(1, "Batches per optimiser step (T2V-Turbo-v2).")
    learning_rate: float = setting(1e-5, "Of the U-Net (section 4.2: as T2V-Turbo-v2).")
    adam_weight_decay: float = setting(0.0, "Of the student's optimiser (T2V-Turbo-v2).")
    temporal_dropout: float = setting(
        0.1, "Of the student's temporal convolutions (T2V-Turbo-v2). Without it, two processes have the losses of one."
    )
    validation_prompts: list[str] = field(default_factory=list, metadata={"help": "Texts to film on the way."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temporal_dropout < 1:
            raise ValueError(f"`--temporal_dropout` goes from 0 to below 1, not to {self.temporal_dropout}.")


@dataclass
class TextToVideoICMDArguments(ICMDArguments):
    lambda_data_critic: float = setting(0.0, "Weight of a critic that takes the data for real; T2V-Turbo has none.")


@dataclass
class ConsistencyArguments:
    """Of Eq. 3."""

    ode_teacher_model_name_or_path: str | None = setting(
        None,
        "Pipeline whose U-Net solves the ODE, as VideoCrafter2 by guidance at run time (T2V-Turbo-v2's own recipe)."
        " By default the teacher, with guidance embedded.",
    )
    ode_teacher_variant: str | None = setting(None, "Of its weight files, e.g. fp16.")
    num_ddim_steps: int = setting(200, "Points of the grid on the ODE; k = 1000 / 200 = 5 timesteps lie between two.")
    w_min: float = setting(5.0, "Least guidance weight that is drawn.")
    w_max: float = setting(15.0, "Greatest guidance weight that is drawn.")
    huber_c: float = setting(0.001, "Of the pseudo-Huber loss.")
    motion_gs: float = setting(0.05, "Strength of motion guidance.")
    motion_percentage: float = setting(0.5, "Part of the grid, from its noisy end on, with motion guidance.")

    def __post_init__(self) -> None:
        if not 0 <= self.w_min <= self.w_max:
            raise ValueError(f"`--w_min` {self.w_min} and `--w_max` {self.w_max} are no range of guidance weights.")
        if self.huber_c <= 0:
            raise ValueError(f"`--huber_c` must be positive, not {self.huber_c}.")
        if not 0 <= self.motion_percentage <= 1:
            raise ValueError(f"`--motion_percentage` goes from 0 to 1, not to {self.motion_percentage}.")


@dataclass
class RewardArguments:
    """Of the mixture of rewards; without `--image_rewards` and `--video_rewards` there is none."""

    image_rewards: list[str] = field(
        default_factory=list,
        metadata={"help": "Names, each with its weight: clip_score:1 hpsv2.1:1 (T2V-Turbo-v2), pick_score:1."},
    )
    video_rewards: list[str] = field(default_factory=list, metadata={"help": "The same, of video and text: xclip:1."})
    image_reward_weight: float = setting(0.2, "beta_img, of all image rewards.")
    video_reward_weight: float = setting(0.5, "beta_vid, of all video rewards.")
    num_reward_frames: int = setting(2, "Frames that are decoded for the image rewards.")
    num_video_reward_frames: int = setting(8, "Frames decoded for the video rewards (X-CLIP: 8; T2V-Turbo-v2: 4).")
    max_caption_words: int = setting(40, "Samples with longer captions get no reward. T2V-Turbo-v2 goes by data set.")
    clip_score_model: str = setting("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "Folder or Hub id of the CLIP score.")
    pick_score_model: str = setting("yuvalkirstain/PickScore_v1", "Folder or Hub id of PickScore.")
    hps_checkpoint: str = setting("xswu/HPSv2", "HPS_v2.1_compressed.pt, or the Hub id of the repository that has it.")
    xclip_model: str = setting("microsoft/xclip-base-patch32", "Folder or Hub id of the video-text reward.")

    def __post_init__(self) -> None:
        for name in ("num_reward_frames", "num_video_reward_frames", "max_caption_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, not {getattr(self, name)}.")
