"""The removable parts of a denoiser, by the paper's names, and denoisers that run without one of them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from diffusers.models.resnet import AlphaBlender
from torch import nn

from vdmini_diffusers.families.block_lists import BLOCK_LISTS, BlockList
from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.plans import TransformerPruningPlan
from vdmini_diffusers.pruning.plans.block_rules import block_counts, places


Forward = Callable[..., Any]
MEASURED_KINDS = ("stage", "layer", "block", "half", "stream")


@dataclass(frozen=True)
class Part:
    """What can be taken out of a denoiser.

    Args:
        name: the paper's name of it (`D.1`, `D.1.R.0`, `D.1.R.0.RB-S`), or for a transformer that of the block, with
            the stream behind it (`transformer_blocks.3[text]`) where it is a part of the block.
        kind: a `"stage"` of a U-Net; a `"layer"`, the R-A pair that a plan keeps or removes; a `"block"`, ResBlock or
            AttentionBlock, or a block of a transformer; a `"half"`, spatial or temporal; a `"stream"` of a block. A
            `"sampler"`, down or up, goes in a student together with a stage and is never removed by itself.
        modules: names of the modules that it consists of. None of them lies in another.
        replaced: those of them whose forward passes are replaced, if not all.
        stream: for a stream, its index among the block's outputs.
    """

    name: str
    kind: Literal["stage", "layer", "block", "half", "stream", "sampler"]
    modules: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    stream: int | None = None


def removable_parts(denoiser: nn.Module) -> dict[str, Part]:
    """All parts of a U-Net or a transformer that `removed` knows how to take out, by name, in running order.

    Raises:
        ValueError: if the network is neither a U-Net with spatial and temporal layers nor in `BLOCK_LISTS`.
    """
    class_name = transformer_class(denoiser)
    if class_name is not None:
        parts = _transformer_parts(denoiser, class_name)
    elif hasattr(denoiser, "down_blocks") and hasattr(denoiser, "up_blocks"):
        parts = _unet_parts(denoiser)
    else:
        raise ValueError(
            f"A {type(denoiser).__name__} has no parts that can be removed: it is neither a U-Net of diffusers nor one"
            " of the transformers in `families/block_lists.py`."
        )
    return {part.name: part for part in parts}


def transformer_class(denoiser: nn.Module) -> str | None:
    """The class in `BLOCK_LISTS` that a denoiser is one of, if it is."""
    return next((cls.__name__ for cls in type(denoiser).__mro__ if cls.__name__ in BLOCK_LISTS), None)


def plain_config(network: nn.Module) -> dict[str, Any]:
    """A network's config as JSON gives it back; empty for a part of a network, which has none."""
    config = {name: value for name, value in getattr(network, "config", {}).items() if not name.startswith("_")}
    return json.loads(json.dumps(config, default=list))


@contextmanager
def removed(denoiser: nn.Module, *parts: Part) -> Iterator[None]:
    """Within the block, the denoiser runs without the parts; afterwards it is what it was.

    Only forward passes are replaced: tensors, their names, hooks of offloading and processors stay where they are.

    - A ResBlock becomes the identity or, where it changes the width, its own trained 1x1 shortcut.
    - Its spatial half (`RB-S`) likewise; its temporal half still runs on what comes through.
    - An AttentionBlock becomes the identity. Its spatial half (`AB-S`) is its spatial transformer blocks: the input
      and output projections and the temporal half stay.
    - A temporal half (`RB-T`, `AB-T`) goes with the `AlphaBlender` that mixes it in: the block returns what its
      spatial half made, unmixed. A blender that stayed would add a share of the embedding of the frame's number to it.
    - A layer is a ResBlock and the AttentionBlock after it. Of a stage all layers go, and its down- or upsampler and
      its skip connections stay, so that what follows finds the resolution and the widths that it was made for.
    - A block of a transformer passes on its streams, and what is attached to it adds nothing. A stream of a block is
      passed on while the block's other streams are computed as ever.

    Args:
        denoiser: the bare module.
        parts: of `removable_parts(denoiser)`.
    """
    with ExitStack() as stack:
        for part in parts:
            for name in part.replaced or part.modules:
                forward = stand_in(denoiser, name, part.stream)
                stack.enter_context(replaced_forward(denoiser.get_submodule(name), forward))
        yield


def stand_in(denoiser: nn.Module, name: str, stream: int | None = None) -> Forward:
    """The forward pass that a module has while it is removed.

    Args:
        stream: for a block of a transformer, the only one of its outputs that is not computed; by default none is.
    """
    module, (first, _, rest) = denoiser.get_submodule(name), name.partition(".")
    for blocks in BLOCK_LISTS.get(transformer_class(denoiser) or "", ()):
        if blocks.name == first:
            return _block_stand_in(module, denoiser, blocks, int(rest), stream)
    return _unet_stand_in(module)


# ---- U-Nets


def _unet_parts(unet: Any) -> Iterator[Part]:
    stages = [(f"down_blocks.{i}", stage) for i, stage in enumerate(unet.down_blocks)]
    if hasattr(unet.mid_block, "resnets"):  # a student's may have gone
        stages.append(("mid_block", unet.mid_block))
    stages += [(f"up_blocks.{i}", stage) for i, stage in enumerate(unet.up_blocks)]
    for path, stage in stages:
        letter = paper_name(path)
        resnets = [_halves(path, stage, "R", i) for i in range(len(stage.resnets))]
        attentions = [_halves(path, stage, "A", i) for i in range(len(getattr(stage, "attentions", ())))]
        whole = tuple(name for found in (*resnets, *attentions) for name in found[0].modules)
        yield Part(letter, "stage", whole)
        # A mid block has a ResBlock more than attentions, before the first of them, and goes as a whole only.
        for i, found in enumerate(resnets):
            if path != "mid_block" and i < len(attentions):
                yield Part(f"{letter}.R-A.{i}", "layer", (*found[0].modules, *attentions[i][0].modules))
            yield from found
            if path == "mid_block" and 0 < i <= len(attentions):
                yield from attentions[i - 1]
            elif path != "mid_block" and i < len(attentions):
                yield from attentions[i]


def _halves(path: str, stage: Any, kind: Literal["R", "A"], i: int) -> tuple[Part, Part, Part]:
    """A ResBlock or an AttentionBlock, and its spatial and its temporal half."""
    plural, temporal_list, ending = {
        "R": ("resnets", "temp_convs", "RB"),
        "A": ("attentions", "temp_attentions", "AB"),
    }[kind]
    name, block = f"{paper_name(path)}.{kind}.{i}", f"{path}.{plural}.{i}"
    if hasattr(stage, temporal_list):  # the U-Net of text to video has them as modules one after the other
        temporal = f"{path}.{temporal_list}.{i}"
        whole, halves, mixed = (block, temporal), ((block,), (temporal,)), ()
    else:
        whole, mixed = (block,), (f"{block}.time_mixer",)
        if kind == "R":
            halves = ((f"{block}.spatial_res_block",), (f"{block}.temporal_res_block", *mixed))
        else:
            module = getattr(stage, plural)[i]
            spatial, temporal = (
                tuple(f"{block}.{name}.{k}" for k in range(len(getattr(module, name))))
                for name in ("transformer_blocks", "temporal_transformer_blocks")
            )
            halves = (spatial, (*temporal, f"{block}.time_pos_embed", *mixed))
    running = tuple(module for module in halves[1] if not module.endswith("time_pos_embed"))
    return (
        Part(name, "block", whole),
        Part(f"{name}.{ending}-S", "half", halves[0]),
        Part(f"{name}.{ending}-T", "half", halves[1], replaced=running),
    )


def _unet_stand_in(module: Any) -> Forward:
    if isinstance(module, AlphaBlender):
        return lambda x_spatial, x_temporal, image_only_indicator=None: x_spatial
    shortcut = getattr(getattr(module, "spatial_res_block", module), "conv_shortcut", None)

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if shortcut is not None:
            hidden_states = shortcut(hidden_states)
        return (hidden_states,) if "return_dict" in kwargs else hidden_states  # stages ask attentions for tuples

    return forward


# ---- Transformers


def _transformer_parts(transformer: Any, class_name: str) -> Iterator[Part]:
    config = transformer.config
    counts = block_counts(class_name, config)
    lists = {blocks.name: blocks for blocks in BLOCK_LISTS[class_name] if blocks.name in counts}
    plan = TransformerPruningPlan.keep_everything(class_name, config)
    attached = {
        (str(blocks.attached_to), at): f"{name}.{i}"
        for name, blocks in lists.items()
        if blocks.attached_to
        for i, at in enumerate(places(blocks, config, counts[name]))
    }
    streams = {
        (block.list_name, block.number): block.streams
        for order in plan.running_order(config).values()
        for block in order
    }
    for name, blocks in lists.items():
        if blocks.attached_to:
            continue
        for i in range(counts[name]):
            module = f"{name}.{i}"
            if _must_stay(module, lists, counts, config):
                continue
            beside = [other for (host, at), other in attached.items() if (host, at) == (name, i)]
            if any(_must_stay(other, lists, counts, config) for other in beside):
                continue
            yield Part(module, "block", (module, *beside))
            named = [(k, stream) for k, stream in enumerate(streams.get((name, i), ())) if stream]
            if len(named) > 1:
                yield from (Part(f"{module}[{stream}]", "stream", (module,), stream=k) for k, stream in named)


def _must_stay(module: str, lists: Mapping[str, BlockList], counts: Mapping[str, int], config: Any) -> bool:
    """Whether no plan can remove this block."""
    name, _, number = module.partition(".")
    blocks, i, period = lists[name], int(number), lists[name].period
    n = config.get(period.field) if period else None
    differs = period is not None and not period.removable and n and (i + period.last) % n == 0
    return bool(differs) or i in {k % counts[name] for k in blocks.never_remove}


def _block_stand_in(block: Any, denoiser: Any, blocks: BlockList, i: int, stream: int | None) -> Forward:
    names = [name for name in signature(type(block).forward).parameters if name != "self"]
    compute = getattr(*forward_holder(block))
    streams = blocks.streams
    num_trailing = denoiser.config.get(blocks.trailing or "", 0)
    if i >= len(getattr(denoiser, blocks.name)) - num_trailing and num_trailing:
        streams = blocks.trailing_streams
    # A stream is a parameter of its name, or that of its place.
    sources = [names.index(own) if (own := f"{name}_hidden_states") in names else k for k, name in enumerate(streams)]

    def forward(*args: Any, **kwargs: Any) -> Any:
        def given(k: int) -> Any:
            return args[k] if k < len(args) else kwargs[names[k]]

        if stream is not None:
            outputs = list(compute(*args, **kwargs))
            outputs[stream] = given(sources[stream])
            return tuple(outputs)
        # Without a name, what a block returns is its host's stream, or, where it is itself the guest, added to that.
        adds = given(0).new_zeros(())
        passed = tuple(
            adds if name is None and blocks.attached_to else given(k) for name, k in zip(streams, sources, strict=True)
        )
        return passed if len(passed) > 1 else passed[0]

    return forward


# ---- Forward passes


@contextmanager
def replaced_forward(module: Any, forward: Forward) -> Iterator[None]:
    """Within the block, a module has this forward pass. Hooks of offloading run around it as ever."""
    holder, name = forward_holder(module)
    had, before = name in vars(holder), getattr(holder, name)
    setattr(holder, name, forward)
    try:
        yield
    finally:
        if had:
            setattr(holder, name, before)
        else:
            delattr(holder, name)


def forward_holder(module: Any) -> tuple[Any, str]:
    """Where the forward pass stands that the hooks of offloading wrap: they must run, as they move weights."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None and registry._fn_refs:
        return registry._fn_refs[0], "forward"
    return (module, "_old_forward") if hasattr(module, "_hf_hook") else (module, "forward")
