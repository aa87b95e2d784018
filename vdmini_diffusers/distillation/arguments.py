"""What training scripts can be told. The defaults are the paper's values, the names are the diffusers examples'."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def setting(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class RunArguments:
    """Of every training script."""

    output_dir: Path = field(
        default=Path("vdmini"), metadata={"help": "Where checkpoints and the finished pipeline go."}
    )
    seed: int = setting(0, "Of weights, order of the data, and noise.")
    max_train_steps: int = setting(10_000, "Optimiser steps (section 4.2).")
    train_batch_size: int = setting(1, "Videos per process and step (section 4.2: 8 processes times 4 accumulated).")
    gradient_accumulation_steps: int = setting(4, "Batches per optimiser step (section 4.2).")
    learning_rate: float = setting(1e-4, "Of the U-Net (section 4.2).")
    lr_scheduler: str = setting("constant_with_warmup", "A name that diffusers' get_scheduler knows.")
    lr_warmup_steps: int = setting(0, "Optimiser steps of warm-up.")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = setting("adamw", "adamw_8bit needs bitsandbytes.")
    adam_beta1: float = setting(0.9, "Of the student's optimiser.")
    adam_beta2: float = setting(0.999, "Of the student's optimiser.")
    adam_weight_decay: float = setting(1e-2, "Of the student's optimiser.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    use_ema: bool = setting(False, "Save the average of the weights instead of the last ones.")
    ema_decay: float = setting(0.999, "Of that average.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Of the student; the teacher is held in it as well. By default what accelerate was told."
    )
    gradient_checkpointing: bool = setting(False, "Less memory for the student, a forward pass more.")
    checkpointing_steps: int = setting(500, "Save the state every so many steps.")
    checkpoints_total_limit: int | None = setting(None, "Keep only so many checkpoints, the newest.")
    resume_from_checkpoint: str = setting("latest", "'latest', a checkpoint's folder, or 'none' to start anew.")
    validation_steps: int = setting(1000, "Make videos of what is to be validated every so many steps.")
    logging_steps: int = setting(10, "Report losses every so many steps.")
    report_to: str | None = setting(None, "Tracker: tensorboard, wandb, ...")
    push_to_hub: bool = setting(False, "Upload the finished pipeline.")
    hub_model_id: str | None = setting(None, "Where to, e.g. org/vdmini-i2v. By default the name of output_dir.")
    dry_run: bool = setting(False, "Print the settings and what would be trained, and stop.")

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be at least 1, not {getattr(self, name)}.")


@dataclass
class UNetTrainingArguments(RunArguments):
    """Of the scripts that train a U-Net."""

    shard_teacher: bool = setting(
        False, "Divide the teacher over the processes as FSDP divides the student; otherwise each holds all of it."
    )
    rank: int | None = setting(None, "Train LoRA matrices of this rank instead of all weights.")


@dataclass
class TrainingArguments(UNetTrainingArguments):
    """Of the scripts that train an image-to-video U-Net."""

    validation_images: list[Path] = field(default_factory=list, metadata={"help": "Pictures to animate on the way."})


@dataclass
class CriticArguments:
    """Of the adversaries: MCA's (Eq. 5), and SF-V's own."""

    discriminator_learning_rate: float = setting(1e-5, "Of the heads (section 4.2).")
    discriminator_adam_beta1: float = setting(0.5, "Of the heads' optimiser (SF-V).")
    discriminator_width: int = setting(256, "Of the heads' hidden layers. Not printed.")
    temporal_kernel_size: int = setting(3, "Of the temporal heads; 1 makes them the learnable MLP of section 3.3.")
    discriminator_backbone: Literal["teacher", "none"] = setting("teacher", "none: a light critic on the latents.")
    generator_loss: Literal["non_saturating", "hinge"] = setting(
        "non_saturating", "MCA's, a reading of Eq. 5's log D: -log sigmoid(D), or -D."
    )
    data_generator_loss: Literal["non_saturating", "hinge"] = setting(
        "hinge", "Of the task's own critic: -D as in SF-V, or -log sigmoid(D)."
    )
    r1_weight: float = setting(0.0, "R1 penalty of the heads (SF-V's gamma, whose value is not printed).")
    instance_noise_mean: float = setting(-1.0, "P_mean of sigma_t' (Eq. 5, SF-V).")
    instance_noise_std: float = setting(1.0, "P_std of sigma_t' (Eq. 5, SF-V).")


@dataclass
class ICMDArguments:
    """Of Eq. 4 to 6."""

    lambda_icd: float = setting(0.1, "Weight of ICD (section 4.2); 0 turns it off.")
    icd_reduction: Literal["sum", "mean"] = setting("sum", "Over the plan's pairs (Eq. 4: sum).")
    icd_normalize: bool = setting(False, "Divide each pair's error by the teacher's mean square.")
    lambda_mca: float = setting(1.0, "Weight of MCA (section 4.2); 0 turns it off.")
    mca_start_step: int = setting(3000, "MCA is enabled after so many steps (section 4.2).")
    lambda_data_critic: float = setting(
        1.0, "Weight of the task's own critic, which takes the data for real (section 3.3); 0 turns it off."
    )
