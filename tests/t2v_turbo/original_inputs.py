"""What the original networks are asked in the tests of whole files."""

import original_text_encoder
import torch


CONTEXT = 128  # channels of the text


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


UNET_INPUTS = {
    "latents": normal(1, 4, 2, 8, 8),
    "timesteps": torch.tensor([459]),
    "context": normal(1, 5, CONTEXT),
    "fps": torch.tensor([8]),
}
PIXELS = normal(1, 3, 16, 16)
LATENTS = normal(1, 4, 2, 2)
TOKENS = torch.arange(original_text_encoder.TOKENS)[None]
