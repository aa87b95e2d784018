"""What fine-tuning a VAE's decoder can be told. The defaults are the paper's (section 4.2, appendix A)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdmini_diffusers.distillation.arguments import RunArguments, setting


@dataclass
class DecoderTrainingArguments(RunArguments):
    output_dir: Path = field(default=Path("vdmini-vae"), metadata={"help": "Where checkpoints and the VAE go."})
    max_train_steps: int = setting(15_000, "Optimiser steps (section 4.2).")
    train_batch_size: int = setting(8, "Clips per process and step (section 4.2: 8 in all).")
    gradient_accumulation_steps: int = setting(1, "Batches per optimiser step.")
    learning_rate: float = setting(5e-5, "Of the decoder, at first (section 4.2).")
    lr_scheduler: str = setting("cosine", "A name that diffusers' get_scheduler knows (section 4.2).")
    validation_steps: int = setting(1000, "Reconstruct the validation images every so many steps.")
    validation_images: list[Path] = field(
        default_factory=list, metadata={"help": "Pictures to show: original, original decoder, this one."}
    )
    push_to_hub: bool = setting(False, "Upload the finished VAE.")
    hub_model_id: str | None = setting(None, "Where to, e.g. org/vdmini-vae. By default the name of output_dir.")


@dataclass
class DecoderLossArguments:
    min_num_frames: int = setting(
        14, "Frames of the shortest clip; each batch has a length from there to --num_frames (section 4.2: 14 to 25)."
    )
    reconstruction_weight: float = setting(1.0, "Of the distance to what was encoded (section 4.2).")
    reconstruction_loss: Literal["l1", "l2"] = setting("l1", "That distance; also of --output_distillation_weight.")
    perceptual_weight: float = setting(1.0, "Of the perceptual loss, frame by frame (section 4.2).")
    perceptual_loss: Literal["lpips", "none"] = setting("lpips", "lpips needs the package of that name.")
    lpips_net: Literal["vgg", "alex"] = setting("vgg", "Network of LPIPS (VQGAN: vgg).")
    lpips_random_trunk: bool = setting(
        False, "Leave that network at random weights, where its own cannot be downloaded. Weaker, and not LPIPS."
    )
    adversarial_weight: float = setting(0.2, "Of the adversarial loss (section 4.2); 0 turns it off.")
    adversarial_start_step: int = setting(0, "The discriminator is trained and obeyed after so many steps.")
    adaptive_adversarial_weight: bool = setting(
        False, "Multiply that weight by how much steeper reconstruction is at the last layer (VQGAN)."
    )
    discriminator: Literal["per_frame", "3d"] = setting("per_frame", "Patches of frames, or of clips.")
    discriminator_width: int = setting(64, "Of its first layer (PatchGAN: 64).")
    discriminator_learning_rate: float = setting(5e-5, "Of the discriminator. Not printed; that of the decoder.")
    discriminator_adam_beta1: float = setting(0.5, "Of the discriminator's optimiser (VQGAN).")
    output_distillation_weight: float = setting(0.0, "Of the distance to what the original decoder gives.")
    feature_distillation_weight: float = setting(
        0.0, "Of the squared distance to the original's mid and up blocks, on the channels that were kept."
    )

    def __post_init__(self) -> None:
        if self.min_num_frames < 1:
            raise ValueError(f"`--min_num_frames` must be at least 1, not {self.min_num_frames}.")
        weights = {name: value for name, value in vars(self).items() if name.endswith("_weight")}
        if negative := [f"`--{name}`" for name, value in weights.items() if value < 0]:
            raise ValueError(f"Weights of losses are not negative; {', '.join(negative)} is.")

    @property
    def uses_teacher(self) -> bool:
        return self.output_distillation_weight > 0 or self.feature_distillation_weight > 0
