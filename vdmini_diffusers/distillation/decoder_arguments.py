"""Settings of fine-tuning a VAE's decoder. The defaults are the paper's (section 4.2, appendix A)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from vdmini_diffusers.distillation.arguments import RunArguments, Settings, setting


@dataclass
class DecoderTrainingArguments(RunArguments):
    """Settings of `training/train_vae_decoder.py`."""

    output_dir: Path = field(
        default=Path("vdmini-vae"), metadata={"help": "Folder for checkpoints and the finished VAE."}
    )
    max_train_steps: int = setting(15_000, "Number of optimiser steps (section 4.2).")
    train_batch_size: int = setting(8, "Clips per process and step (section 4.2: 8 in all).")
    gradient_accumulation_steps: int = setting(1, "Batches per optimiser step.")
    learning_rate: float = setting(5e-5, "Initial learning rate of the decoder (section 4.2).")
    lr_scheduler: Literal[
        "constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = setting("cosine", "Schedule of the learning rate (section 4.2), by its name in diffusers' `get_scheduler`.")
    validation_steps: int = setting(1000, "The validation images are reconstructed every so many steps.")
    validation_images: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "Pictures to show during training beside what the original decoder and this one reconstruct."
        },
    )
    push_to_hub: bool = setting(False, "Upload the finished VAE. Access to the Hub is checked at the start.")
    hub_model_id: str | None = setting(
        None, "Repository to upload to, e.g. org/vdmini-vae. By default the name of output_dir."
    )


@dataclass
class DecoderLossArguments(Settings):
    """Weights and kinds of the decoder's losses."""

    help_part: ClassVar[str] = "losses"

    min_num_frames: int = setting(
        14,
        "Frames of the shortest clip; each batch has a length from there to --num_frames (section 4.2: 14 to 25).",
        least=1,
    )
    reconstruction_weight: float = setting(1.0, "Weight of the distance to the encoded frames (section 4.2).", least=0)
    reconstruction_loss: Literal["l1", "l2"] = setting(
        "l1", "Distance of pixels, for reconstruction and for --output_distillation_weight."
    )
    perceptual_weight: float = setting(1.0, "Weight of the perceptual loss of each frame (section 4.2).", least=0)
    perceptual_loss: Literal["lpips", "none"] = setting(
        "lpips", "Perceptual loss. lpips needs the package of that name."
    )
    lpips_net: Literal["vgg", "alex"] = setting("vgg", "Network of LPIPS (VQGAN: vgg).")
    lpips_random_trunk: bool = setting(
        False,
        "Leave the network of LPIPS at random weights, where its own cannot be downloaded. Weaker, and not LPIPS.",
    )
    adversarial_weight: float = setting(0.2, "Weight of the adversarial loss (section 4.2); 0 turns it off.", least=0)
    adversarial_start_step: int = setting(
        0, "First step at which the discriminator trains and contributes to the decoder's loss.", least=0
    )
    adaptive_adversarial_weight: bool = setting(
        False,
        "Multiply the adversarial weight by the ratio of the gradients of reconstruction and adversarial loss at the"
        " last layer (VQGAN).",
    )
    discriminator: Literal["per_frame", "3d"] = setting(
        "per_frame", "Discriminator of patches of single frames, or of clips."
    )
    discriminator_width: int = setting(64, "Channels of the discriminator's first layer (PatchGAN: 64).", least=1)
    discriminator_learning_rate: float = setting(
        5e-5, "Learning rate of the discriminator. The paper does not say; the decoder's.", above=0
    )
    discriminator_adam_beta1: float = setting(
        0.5, "First beta of the discriminator's optimiser (VQGAN).", least=0, below=1
    )
    output_distillation_weight: float = setting(
        0.0, "Weight of the distance to what the original decoder reconstructs.", least=0
    )
    feature_distillation_weight: float = setting(
        0.0,
        "Weight of the squared distance to the features of the original's mid and up blocks, on the channels that were"
        " kept.",
        least=0,
    )

    @property
    def uses_teacher(self) -> bool:
        return self.output_distillation_weight > 0 or self.feature_distillation_weight > 0
