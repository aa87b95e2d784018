"""What runs the same whichever later part is removed, kept, so that it runs once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from vdmini_diffusers.analysis.parts import Part, forward_holder, replaced_forward


MAX_BYTES = 8 * 2**30  # of kept states; SVD's take 0.65 GB for each video of 14 frames, 576 x 1024, in half precision


class Call(NamedTuple):
    """One run of the denoiser: the noise that it was given, and what its stages returned, by name."""

    sample: torch.Tensor
    states: dict[str, Any]


class SharedStates:
    """The outputs of a U-Net's stages from one-step sampling of several videos.

    Without a part, the stages before that which holds it return what they return in the whole U-Net, and need not run
    again. With more steps only the first would have such states, and none are kept; nor are they of transformers, of
    which none samples in one step here.

    Args:
        denoiser: the bare module.
        max_bytes: what is beyond is computed as ever.
    """

    def __init__(self, denoiser: nn.Module, max_bytes: int = MAX_BYTES):
        self.denoiser, self.max_bytes = denoiser, max_bytes
        lists: Any = {name: getattr(denoiser, name, ()) for name in ("down_blocks", "up_blocks")}
        down, up = ([f"{name}.{i}" for i in range(len(stages))] for name, stages in lists.items())
        mid = ["mid_block"] if getattr(denoiser, "mid_block", None) is not None else []
        self.stages = [*down, *mid, *up]  # in running order
        self.calls: list[Call] = []

    def record(self, generate: Callable[[], np.ndarray]) -> np.ndarray:
        """The videos that `generate` makes with the whole denoiser. States are kept if each took one run of it."""
        self.calls, num_bytes = [], 0

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.calls.append(Call(_sample(args, kwargs).to("cpu", copy=True), {}))

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                nonlocal num_bytes
                num_bytes += _num_bytes(output)
                if num_bytes <= self.max_bytes:
                    self.calls[-1].states[name] = _copy(output, torch.device("cpu"))

            return hook

        with ExitStack() as hooks:
            hooks.enter_context(self.denoiser.register_forward_pre_hook(begin, with_kwargs=True))
            for name in self.stages[:-1]:  # nothing comes after the last
                hooks.enter_context(self.denoiser.get_submodule(name).register_forward_hook(keep(name)))
            videos = generate()
        if len(self.calls) != len(videos):
            self.calls = []
        return videos

    @contextmanager
    def replayed(self, part: Part) -> Iterator[None]:
        """Within the block, the n-th run of the denoiser does not compute what runs before a part, if its noise is
        that of the n-th recorded run."""
        earlier, current, count = self._before(part), {}, 0

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal count
            current.clear()
            sample = _sample(args, kwargs)
            if count < len(self.calls) and torch.equal(self.calls[count].sample, sample.cpu()):
                states = self.calls[count].states
                current.update({name: _copy(states[name], sample.device) for name in earlier if name in states})
            count += 1

        def stand_in(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: current.pop(name) if name in current else compute(*args, **kwargs)

        with ExitStack() as stack:
            if self.calls and earlier:
                stack.enter_context(self.denoiser.register_forward_pre_hook(begin, with_kwargs=True))
                for name in earlier:
                    module = self.denoiser.get_submodule(name)
                    forward = stand_in(name, getattr(*forward_holder(module)))
                    stack.enter_context(replaced_forward(module, forward))
            yield

    def _before(self, part: Part) -> Sequence[str]:
        """The stages that run before the first that holds a module of the part."""
        for i, stage in enumerate(self.stages):
            if any(f"{module}.".startswith(f"{stage}.") for module in part.modules):
                return self.stages[:i]
        return []


def _sample(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
    return args[0] if args else kwargs["sample"]


def _copy(output: Any, device: torch.device) -> Any:
    """What a stage returns, a tensor or tuples of them, where nothing else writes into it."""
    if isinstance(output, torch.Tensor):
        return output.detach().to(device, copy=True)
    return tuple(_copy(each, device) for each in output)


def _num_bytes(output: Any) -> int:
    if isinstance(output, torch.Tensor):
        return output.numel() * output.element_size()
    return sum(map(_num_bytes, output))
