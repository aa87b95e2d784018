"""The exponential moving average of the student's weights, also where FSDP has divided them over processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedEMA(EMAModel):
    """`EMAModel` whose averages are divided as the weights are. Its state holds them so."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also the state of a whole model, as it was saved once."""
        divided = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [
            distribute_tensor(new.to(old.device), old.device_mesh, old.placements)
            if isinstance(old, DTensor) and not isinstance(new, DTensor)
            else new
            for old, new in zip(divided, self.shadow_params, strict=True)
        ]


@contextmanager
def averaged(ema: EMAModel | None, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the `with` block, the parameters hold their averages; without `ema`, nothing changes."""
    if ema is None:
        yield
        return
    trained = [parameter.detach().clone() for parameter in parameters]
    ema.copy_to(parameters)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
