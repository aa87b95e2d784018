"""Feed-forward layers with fewer passes over their widest activations."""

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import nn

from vdmini_diffusers.inference.conditions import Rewrite, is_full_precision_on_cpu, is_inference, is_plain


class SplitGEGLU(Rewrite, GEGLU):
    """GELU's gate and what it gates as two products, each of which is then worked on in place.

    The stock layer takes both from one product, and halves of it can be neither activated nor multiplied in place
    without a copy: two more tensors of its widest kind.
    """

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        if not (is_full_precision_on_cpu(hidden_states) and is_inference(self) and is_plain(self.proj, nn.Linear)):
            return super().forward(hidden_states, *args, **kwargs)
        weights = self.proj.weight.chunk(2)
        biases = (None, None) if self.proj.bias is None else self.proj.bias.chunk(2)
        gated, gate = (F.linear(hidden_states, *pair) for pair in zip(weights, biases, strict=True))
        return torch.ops.aten.gelu_(gate).mul_(gated)
