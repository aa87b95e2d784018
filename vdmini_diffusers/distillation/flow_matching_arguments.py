"""Settings of training a video transformer. The defaults are FastVideo's, which the paper follows (appendix D)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    DenoiserTrainingArguments,
    ICMDArguments,
    Settings,
    setting,
)


@dataclass
class FlowMatchingTrainingArguments(DenoiserTrainingArguments):
    """Settings of the scripts that train a video transformer."""

    max_train_steps: int = setting(30_000, "Number of optimiser steps (appendix D).")
    train_batch_size: int = setting(1, "Videos per process and step (appendix D: a batch of 8).")
    gradient_accumulation_steps: int = setting(1, "Batches per optimiser step (FastVideo).")
    learning_rate: float = setting(5e-6, "Learning rate of the transformer (appendix D).")
    lr_warmup_steps: int = setting(10, "Optimiser steps over which the learning rate rises from 0 (FastVideo).")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        "bf16", "Precision of the student's forward pass (FastVideo); the teacher's weights are loaded in it."
    )
    gradient_checkpointing: bool = setting(
        True, "Save memory by computing the student's activations again in the backward pass (FastVideo)."
    )
    validation_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts to make videos from during training."}
    )


@dataclass
class FlowMatchingCriticArguments(CriticArguments):
    """Settings of the critics of a transformer."""

    critic_backbone: str | None = setting(
        None,
        "Pipeline, folder or Hub id, whose transformer's features critics see. By default the teacher itself, which"
        " knows all noise levels. none: a light critic sees the latents themselves, at a fraction of the cost.",
    )
    critic_block_stride: int = setting(
        8,
        "Critics see what every so many blocks of the backbone put out (FastVideo's discriminators: 2 to 8).",
        least=1,
    )

    @property
    def features_in_words(self) -> str:
        return f"every {self.critic_block_stride} blocks"


@dataclass
class FlowMatchingICMDArguments(ICMDArguments):
    """Settings of Eq. 4 to 6 for transformers."""

    icd_normalize: bool = setting(
        True,
        "Divide each pair's error by the mean square of the teacher's feature: that of the text's stream can be larger"
        " than the video's by orders of magnitude.",
    )
    lambda_data_critic: float = setting(
        0.0,
        "Weight of a critic whose real samples are the data. The teacher's outputs, which are MCA's, are means at high"
        " noise, and blurred.",
    )


@dataclass
class FlowMatchingArguments(Settings):
    """Settings of the velocity that is predicted."""

    help_part: ClassVar[str] = "losses"

    flow_shift: float = setting(
        1.0,
        "Shift of the noise levels. FastVideo at the time of the paper: 1; its present trainer: 7 for HunyuanVideo, 3"
        " for Wan.",
        above=0,
    )
    timestep_density: Literal["uniform", "logit_normal", "mode"] = setting(
        "uniform", "Density of the noise levels before the shift (FastVideo: uniform)."
    )
    logit_mean: float = setting(0.0, "Mean of the logit-normal density.")
    logit_std: float = setting(1.0, "Standard deviation of the logit-normal density.", above=0)
    mode_scale: float = setting(1.29, "Scale of the density `mode` (SD3).")
    embedded_guidance: float = setting(
        1.0,
        "Guidance scale that is embedded. FastVideo at the time of the paper: 1; its present trainer: 6.016.",
        least=0,
    )
    text_mask: bool = setting(
        True, "Mask the padding of prompts. FastVideo's present trainer does not, for HunyuanVideo."
    )
    training_target: Literal["velocity", "clean_latents"] = setting(
        "velocity", "What the loss compares; clean_latents is FastVideo's `precondition_outputs`."
    )
    icd_places: Literal["removed_runs", "all_blocks"] = setting(
        "removed_runs",
        "Where ICD compares features: after the blocks that take over a run of removed ones, or after all. Each place"
        " holds a feature of the teacher in memory.",
    )
