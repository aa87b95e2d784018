"""What a pipeline encodes before it denoises: each prompt and picture once, however many videos are made from it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map


# Methods of diffusers' pipelines that encode prompts and pictures.
ENCODERS = ("encode_prompt", "encode_image", "_encode_image", "_encode_vae_image")


class Encodings:
    """The results of a pipeline's encoders by what they were given, on the CPU. Encoders must not draw at random.

    What cannot be compared by value, such as a generator, is not kept, and neither are the results of calls with it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    @contextmanager
    def remembered(self, pipe: Any) -> Iterator[None]:
        """Within the block, the pipeline's encoders run only for what they were not yet given."""
        encoders = [(pipe, name) for name in ENCODERS if hasattr(pipe, name)]
        vae = getattr(pipe, "vae", None)
        if vae is not None and not hasattr(pipe, "_encode_vae_image"):
            encoders.append((vae, "encode"))  # called in `prepare_latents`
        with ExitStack() as stack:
            for holder, name in encoders:
                setattr(holder, name, self._remembering(name, getattr(holder, name)))
                stack.callback(delattr, holder, name)
            yield

    def _remembering(self, name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        def remembering(*args: Any, **kwargs: Any) -> Any:
            digest = hashlib.sha256(name.encode())
            try:
                _add(digest, [args, kwargs])
            except TypeError:
                return encode(*args, **kwargs)
            key = digest.hexdigest()
            if key not in self._kept:
                self._kept[key] = tree_map(_keep, encode(*args, **kwargs))
            return tree_map(lambda again: again(), self._kept[key])

        return remembering


def _keep(value: Any) -> Callable[[], Any]:
    """A function that gives a copy of the value, on the device where it was."""
    if isinstance(value, Tensor):
        device, held = value.device, value.detach().to("cpu", copy=True)
        return lambda: held.to(device, copy=True)
    if isinstance(value, DiagonalGaussianDistribution):
        parameters = _keep(value.parameters)
        return lambda: DiagonalGaussianDistribution(parameters(), value.deterministic)
    return lambda: value


def _add(digest: Any, value: Any) -> None:
    """Raises `TypeError` for a value that is more than its content."""
    digest.update(type(value).__name__.encode())
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, (Tensor, np.ndarray, Image.Image)):
        if isinstance(value, Tensor):
            digest.update(str((value.dtype, value.device)).encode())
            value = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        array = np.ascontiguousarray(value)
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(array.tobytes())
    elif value is None or isinstance(value, (str, int, float, torch.device, torch.dtype)):
        digest.update(repr(value).encode())
    else:
        raise TypeError(type(value).__name__)
