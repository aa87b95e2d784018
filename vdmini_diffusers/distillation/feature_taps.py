"""Outputs of named modules, collected while a model runs."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from vdmini_diffusers.families.block_lists import BLOCK_LISTS


class _Collected(Exception):  # noqa: N818 - it ends a forward pass, and is no error
    pass


class FeatureTaps:
    """Collects what the named modules of `model` put out during the `with` block.

        with FeatureTaps(unet, ("down_blocks.0", "up_blocks.2")) as features:
            unet(...)
        features["down_blocks.0"]  # (batch * frames, channels, height, width)

    Where a module returns a tuple, as blocks do, its first element is taken, and by `"transformer_blocks.0[1]"` its
    second: the text beside the video of a dual-stream block. Tokens of text that the model is told to mask, by its
    keyword argument `encoder_attention_mask`, are zero where it has one value for each: they are padding, which
    nothing reads. Nothing is detached.
    Tap the bare module: its names do not depend on what wraps it (DDP, compile).

    Args:
        names: names of submodules, with the index of an output behind those of which it is not the first.
        channels: by name, the channels to take, `(batch, channels, ...)`, where not all are.

    Raises:
        ValueError: if `model` has no module of such a name.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], channels: Mapping[str, Sequence[int]] = MappingProxyType({})
    ):
        modules = dict(model.named_modules())
        self.model, self.channels = model, channels
        self.text_mask: torch.Tensor | None = None
        self.text_outputs = _text_outputs(model)
        self.modules = {}
        self.outputs = {}
        for name in names:
            module, _, output = name.removesuffix("]").partition("[")
            if module not in modules:
                raise ValueError(f"{type(model).__name__} has no module {module!r} to take features from.")
            self.modules[name], self.outputs[name] = modules[module], int(output or 0)
        self.features: dict[str, torch.Tensor] = {}

    def __enter__(self) -> dict[str, torch.Tensor]:
        self.features = {}
        self.handles = [
            module.register_forward_hook(lambda module, args, output, name=name: self._tap(name, output))
            for name, module in self.modules.items()
        ]
        self.handles.append(self.model.register_forward_pre_hook(self._note_text_mask, with_kwargs=True))
        return self.features

    def _note_text_mask(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.text_mask = kwargs.get("encoder_attention_mask")

    def _tap(self, name: str, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        feature = output[self.outputs[name]] if isinstance(output, tuple) else output
        self.features[name] = feature[:, list(self.channels[name])] if name in self.channels else feature

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        # Not in the hooks: where gradient checkpointing runs a block again, they are gone.
        if self.text_mask is None:
            return
        for name, feature in self.features.items():  # (batch, tokens, width)
            is_text = (name.partition(".")[0], self.outputs[name]) in self.text_outputs
            if is_text and feature.shape[:2] == self.text_mask.shape:  # there may be tokens of images beside the text
                self.features[name] = feature * self.text_mask[:, :, None].to(feature.dtype)


class FirstFeatures(FeatureTaps):
    """The same, but leaves the `with` block as soon as every module has run, without running the rest of the model.

    Do not use it on a model that FSDP has sharded: weights that were gathered would not be freed. Nor where gradient
    checkpointing is to run a block again: it would not know the block's end.
    """

    def _tap(self, name: str, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        super()._tap(name, output)
        if len(self.features) == len(self.modules):
            raise _Collected

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        super().__exit__()
        return kind is _Collected


def _text_outputs(model: nn.Module) -> set[tuple[str, int]]:
    """Which outputs of the blocks of a transformer are text: the name of their list, and the output's index."""
    lists = [blocks for cls in type(model).__mro__ for blocks in BLOCK_LISTS.get(cls.__name__, ())]
    return {(blocks.name, i) for blocks in lists for i, stream in enumerate(blocks.streams) if stream == "text"}
