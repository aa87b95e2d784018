"""Settings of training scripts. The defaults are the paper's values, the names are those of diffusers' examples."""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


# For each kind of bound, its words and what it demands of a value.
BOUNDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


class HelpText(str):
    """A help text that carries the bounds of its setting: `HfArgumentParser` would hand other metadata to argparse."""

    bounds: Mapping[str, float]


def setting(
    default: Any,
    help_text: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of [`Settings`] with its help text and the bounds of its values.

    A subclass that changes the default keeps the bounds that it does not restate.
    """
    text = HelpText(help_text)
    bounds = {"least": least, "above": above, "most": most, "below": below}
    text.bounds = {which: bound for which, bound in bounds.items() if bound is not None}
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """Base class of groups of settings.

    Raises:
        ValueError: if it is made with a number that is not finite or out of its bounds, or with an unknown choice.
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value: Any = getattr(self, name)
            kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if value is None and NoneType in kinds:
                continue
            kind = kinds[0]
            if kind in (int, float):
                self._check_number(name, value, kind)
            elif kind is bool and not isinstance(value, bool):
                raise ValueError(f"`--{name}` must be True or False, not {value!r}.")
            elif get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"`--{name}` must be one of {', '.join(get_args(kind))}, not {value!r}.")
            elif get_origin(kind) is list:
                if not isinstance(value, (list, tuple)):
                    raise ValueError(f"`--{name}` must be a list, not {value!r}.")
                setattr(self, name, [get_args(kind)[0](item) for item in value])
            elif kind is Path and isinstance(value, str):
                setattr(self, name, Path(value))

    def _check_number(self, name: str, value: Any, kind: type) -> None:
        if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
            raise ValueError(f"`--{name}` must be a {'whole ' if kind is int else ''}number, not {value!r}.")
        bounds: dict[str, Any] = {}
        for parent in reversed(type(self).__mro__):
            declared = getattr(parent, "__dataclass_fields__", {}).get(name)
            if declared is not None and isinstance(declared.metadata.get("help"), HelpText):
                bounds |= declared.metadata["help"].bounds
        finite = isinstance(value, Integral) or math.isfinite(value)
        if not finite or not all(BOUNDS[which][1](value, bound) for which, bound in bounds.items()):
            words = " and ".join(f"{BOUNDS[which][0]} {bound}" for which, bound in bounds.items())
            raise ValueError(f"`--{name}` must be {words or 'a finite number'}, not {value}.")


def is_changed(settings: Settings, name: str) -> bool:
    """Whether a setting is another than the default of its class."""
    return getattr(settings, name) != type(settings).__dataclass_fields__[name].default


@dataclass
class RunArguments(Settings):
    """Settings of every training script."""

    help_part: ClassVar[str] = "optimisation"
    help_parts: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("optimizer", "mixed_precision", "gradient_checkpointing", "shard_teacher", "rank"), "memory and precision"
        ),
        **dict.fromkeys(
            (
                *("output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"),
                *("push_to_hub", "hub_model_id"),
            ),
            "checkpoints and the result",
        ),
        **dict.fromkeys(
            (
                *("validation_steps", "validation_images", "validation_prompts"),
                *("logging_steps", "report_to", "dry_run"),
            ),
            "logging and validation",
        ),
    }

    output_dir: Path = field(
        default=Path("vdmini"), metadata={"help": "Folder for checkpoints and the finished pipeline."}
    )
    seed: int = setting(0, "Seed of new weights, the order of the data, and noise.", least=0, most=2**32 - 1)
    max_train_steps: int = setting(10_000, "Number of optimiser steps (section 4.2).", least=1)
    train_batch_size: int = setting(
        1, "Videos per process and step (section 4.2: 8 processes times 4 accumulated).", least=1
    )
    gradient_accumulation_steps: int = setting(4, "Batches per optimiser step (section 4.2).", least=1)
    learning_rate: float = setting(1e-4, "Learning rate of the U-Net (section 4.2).", above=0)
    # Those of diffusers' names that need no further arguments, as `piecewise_constant` would.
    lr_scheduler: Literal[
        "constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = setting("constant_with_warmup", "Schedule of the learning rate, by its name in diffusers' `get_scheduler`.")
    lr_warmup_steps: int = setting(0, "Optimiser steps over which the learning rate rises from 0.", least=0)
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = setting(
        "adamw", "Optimiser of the student. adamw_8bit needs the package bitsandbytes."
    )
    adam_beta1: float = setting(0.9, "First beta of the student's optimiser.", least=0, below=1)
    adam_beta2: float = setting(0.999, "Second beta of the student's optimiser.", least=0, below=1)
    adam_weight_decay: float = setting(1e-2, "Weight decay of the student's optimiser.", least=0)
    max_grad_norm: float = setting(1.0, "Norm to which gradients are clipped.", above=0)
    use_ema: bool = setting(False, "Save an exponential moving average of the weights instead of the last ones.")
    ema_decay: float = setting(0.999, "Decay rate of the exponential moving average.", least=0, below=1)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None,
        "Precision of the student's forward pass; the teacher's weights are loaded in it. By default the one that"
        " accelerate is configured for.",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Save memory by computing activations of the student and of the critics' backbone again in backward passes.",
    )
    checkpointing_steps: int = setting(500, "A checkpoint is saved every so many steps.", least=1)
    checkpoints_total_limit: int | None = setting(
        None, "Number of newest checkpoints to keep; all by default.", least=1
    )
    resume_from_checkpoint: str = setting(
        "latest",
        "'latest', the name of a checkpoint in output_dir (checkpoint-000500), its path, or 'none' to start anew.",
    )
    validation_steps: int = setting(1000, "Validation videos are made every so many steps and at the end.", least=1)
    logging_steps: int = setting(10, "Losses are reported every so many steps.", least=1)
    report_to: str | None = setting(None, "Tracker that accelerate knows: tensorboard, wandb, ..., or none.")
    push_to_hub: bool = setting(False, "Upload the finished pipeline. Access to the Hub is checked at the start.")
    hub_model_id: str | None = setting(
        None, "Repository to upload to, e.g. org/vdmini-i2v. By default the name of output_dir."
    )
    dry_run: bool = setting(False, "Print the settings and what would be trained, and stop.")

    @property
    def tracker(self) -> str | None:
        """What `report_to` names, or None."""
        return None if self.report_to == "none" else self.report_to

    @property
    def repository(self) -> str:
        """By what name the result will be opened: its repository's if it is uploaded, else its folder's."""
        return (self.push_to_hub and self.hub_model_id) or self.output_dir.resolve().name


@dataclass
class DenoiserTrainingArguments(RunArguments):
    """Settings of the scripts that train a denoiser."""

    shard_teacher: bool = setting(
        False, "Divide the teacher over the processes as FSDP divides the student; otherwise each holds all of it."
    )
    rank: int | None = setting(None, "Train LoRA matrices of this rank instead of all weights.", least=1)


@dataclass
class TrainingArguments(DenoiserTrainingArguments):
    """Settings of the scripts that train an image-to-video U-Net."""

    validation_images: list[Path] = field(
        default_factory=list, metadata={"help": "Pictures to animate during training."}
    )


@dataclass
class CriticArguments(Settings):
    """Settings of the critics: MCA's (Eq. 5), and SF-V's own."""

    help_part: ClassVar[str] = "critics"

    discriminator_learning_rate: float = setting(1e-5, "Learning rate of the critics' heads (section 4.2).", above=0)
    discriminator_adam_beta1: float = setting(0.5, "First beta of the heads' optimiser (SF-V).", least=0, below=1)
    discriminator_width: int = setting(256, "Channels of the heads' hidden layers. The paper does not say.", least=1)
    temporal_kernel_size: int = setting(
        3, "Kernel size of the temporal heads; 1 makes them the learnable MLP of section 3.3.", least=1
    )
    discriminator_model_name_or_path: str | None = setting(
        None,
        "Pipeline, folder or Hub id, whose `discriminator` the data critic starts from (section 3.3: the original"
        " one). By default the teacher's, if it has one; none: new heads.",
    )
    mca_from_discriminator: bool = setting(False, "Let MCA's critic start from the same discriminator.")
    discriminator_steps: int = setting(
        1, "Optimiser steps of the heads for each of the student's (DMD2: 5), each with new instance noise.", least=1
    )
    critic_backbone: str | None = setting(
        None,
        "Pipeline, folder or Hub id, whose denoiser's features critics see. By default the multi-step model that the"
        " teacher was made of (SF-V: pre-trained SVD), as the teacher's provenance names it. teacher: the teacher"
        " itself. none: a light critic sees the latents themselves.",
    )
    critic_backbone_variant: str | None = setting(None, "Variant of the backbone's weight files, e.g. fp16.")
    critic_backbone_revision: str | None = setting(None, "Revision of the backbone on the Hub.")
    critic_warmup_steps: int = setting(
        100,
        "Steps in which new heads learn before the student is trained by them. The paper has none; heads that know"
        " nothing yet push the student anywhere.",
        least=0,
    )
    critic_loss: Literal["hinge", "relativistic"] = setting(
        "hinge", "Loss of heads and student: hinge (SF-V), or of the difference of real and fake (RpGAN; R3GAN, 2024)."
    )
    adaptive_critic_weight: bool = setting(
        False,
        "Scale each critic's loss until its gradient at the student's output is as long as the task's (VQGAN).",
    )
    num_held_out_clips: int = setting(
        0,
        "Last precomputed clips, which are not trained on. Every validation_steps and at the end, how each critic"
        " ranks them against the student's videos of the same noise is logged.",
        least=0,
    )
    generator_loss: Literal["non_saturating", "hinge"] = setting(
        "non_saturating",
        "Student's hinge loss by MCA's critic, a reading of Eq. 5's log D: -log sigmoid(D), or -D.",
    )
    data_generator_loss: Literal["non_saturating", "hinge"] = setting(
        "hinge", "Student's hinge loss by the task's own critic: -D as in SF-V, or -log sigmoid(D)."
    )
    r1_weight: float = setting(
        0.0, "Weight of the heads' R1 penalty (SF-V's gamma, whose value is not printed).", least=0
    )
    r1_sigma: float = setting(
        0.0,
        "Above 0: R1 by finite differences, with noise of this deviation on the real latents (APT, 2025). 0: by the"
        " gradient at the features.",
        least=0,
    )
    instance_noise_mean: float = setting(-1.0, "P_mean of the instance noise sigma_t' (Eq. 5, SF-V).")
    instance_noise_std: float = setting(1.0, "P_std of the instance noise sigma_t' (Eq. 5, SF-V).", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temporal_kernel_size % 2 == 0:
            raise ValueError(f"`--temporal_kernel_size` must be odd, not {self.temporal_kernel_size}.")
        if self.r1_sigma > 0 and self.r1_weight == 0:
            raise ValueError("`--r1_sigma` is of a penalty whose weight is 0: give `--r1_weight` as well.")
        given = self.critic_backbone_variant or self.critic_backbone_revision
        if given and self.critic_backbone in (None, "teacher", "none"):
            raise ValueError(
                "`--critic_backbone_variant` and `--critic_backbone_revision` need `--critic_backbone`, a folder or"
                f" Hub id, not {self.critic_backbone}: give one, or leave them out."
            )
        if self.critic_backbone == "none" and self.discriminator_width < 4:  # its first layer is a quarter
            raise ValueError(
                f"`--discriminator_width` must be at least 4 with `--critic_backbone none`, not"
                f" {self.discriminator_width}."
            )

    @property
    def features_in_words(self) -> str:
        """Which of the backbone's features the critics see."""
        return ""


@dataclass
class UNetCriticArguments(CriticArguments):
    """Settings of the critics of a U-Net."""

    critic_taps: Literal["blocks", "before_downsampling"] = setting(
        "blocks", "Features that critics see: what down blocks put out (SF-V), or what their downsamplers take (ours)."
    )

    @property
    def features_in_words(self) -> str:
        return self.critic_taps


@dataclass
class ICMDArguments(Settings):
    """Settings of Eq. 4 to 6."""

    help_part: ClassVar[str] = "losses"

    lambda_icd: float = setting(0.1, "Weight of ICD (section 4.2); 0 turns it off.", least=0)
    icd_reduction: Literal["sum", "mean"] = setting("sum", "Reduction over the plan's pairs of features (Eq. 4: sum).")
    icd_normalize: bool = setting(False, "Divide each pair's error by the mean square of the teacher's feature.")
    lambda_mca: float = setting(1.0, "Weight of MCA (section 4.2); 0 turns it off.", least=0)
    mca_start_step: int = setting(
        3000,
        "First step at which MCA's critic contributes to the student's loss (section 4.2).",
        least=0,
    )
    lambda_data_critic: float = setting(
        1.0, "Weight of the task's own critic, whose real samples are the data (section 3.3); 0 turns it off.", least=0
    )
    joint_critic: bool = setting(
        False,
        "One critic in place of two, the other reading of section 3.3: to the data critic the teacher's output is real"
        " as well, from mca_start_step on.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint_critic and self.lambda_data_critic == 0:
            raise ValueError("`--joint_critic` is the data critic's: `--lambda_data_critic` must be above 0.")
