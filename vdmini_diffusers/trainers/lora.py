"""LoRA on a denoiser."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.training_utils import cast_training_params


def lora_config(rank: int, targets: Sequence[str]) -> Any:
    """LoRA on linear layers of these names. Raises `ImportError` if peft is not installed."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("`--rank` needs peft: `pip install -e '.[train]'`.") from error
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))


def add_lora(denoiser: ModelMixin, config: Any) -> None:
    """Freeze the denoiser, and add LoRA to it, in float32."""
    if not isinstance(denoiser, PeftAdapterMixin):
        raise ValueError("`--rank` trains a pruned student; diffusers' own U-Net classes take no adapter.")
    denoiser.requires_grad_(False)
    denoiser.add_adapter(config)
    cast_training_params(denoiser, torch.float32)
