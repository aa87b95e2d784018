"""Layers, then channels, of a VAE's decoder (appendix A), along Torch-Pruning's dependency graph."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from vdmini_diffusers.models import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.pruning.dependency_graph import (
    IMPORTANCES,
    Importance,
    accumulate_gradients,
    build_graph,
    coupled_groups,
    make_importance,
    prune_group,
    rank_within,
)
from vdmini_diffusers.pruning.plans import DecoderPruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import CoupledChannels
from vdmini_diffusers.pruning.shortcuts import fold_shortcut


# What a stock VAE becomes, by the class in its config.
STUDENTS = {
    "AutoencoderKL": VDMiniAutoencoderKL,
    "AutoencoderKLTemporalDecoder": VDMiniAutoencoderKLTemporalDecoder,
}


def without_layers(
    plan: DecoderPruningPlan, class_name: str, vae_config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The decoder of a stock VAE, in float32, without the layers that `plan` removes and with shortcuts folded.

    Args:
        class_name: the VAE's class; a key of `STUDENTS`.
        tensors: the VAE's, by name (`decoder.conv_in.weight`, ...); others than the decoder's are not needed.

    Raises:
        PruningPlanError: if the plan does not fit the VAE.
    """
    decoder = empty_decoder(plan.only_layers(vae_config), class_name, vae_config)
    folded = plan.folded_shortcuts(vae_config)
    blocks = {i: f"up_blocks.{i}.resnets.0" for i in folded}
    if isinstance(decoder, TemporalDecoder):
        blocks = {i: f"{block}.spatial_res_block" for i, block in blocks.items()}
    names = [*decoder.state_dict()]
    names += [f"{block}.conv_shortcut.{kind}" for block in blocks.values() for kind in ("weight", "bias")]
    sources = plan.weight_map(f"decoder.{name}" for name in names)
    state = {name.removeprefix("decoder."): tensors[source].float() for name, source in sources.items()}
    for i, block in blocks.items():
        fold_shortcut(state, f"up_blocks.{i - 1}.upsamplers.0.conv", block, vae_config.get("norm_num_groups", 32))
    decoder.load_state_dict(state, assign=True)
    return decoder


def empty_decoder(plan: DecoderPruningPlan, class_name: str, vae_config: Mapping[str, Any]) -> nn.Module:
    """On the meta device. Raises `PruningPlanError` if the plan does not fit the VAE."""
    with init_empty_weights():
        return STUDENTS[class_name].from_config(plan.student_config(vae_config)).decoder


def prune_channels(
    decoder: nn.Module,
    target: nn.Module,
    importance: Importance = "l2",
    losses: Callable[[nn.Module], Iterable[Tensor]] | None = None,
) -> tuple[CoupledChannels, ...]:
    """Narrow `decoder` in place to the widths of `target`, by slicing: channels that depend on each other go together.

    The least important go, within each group of the norms, so that the groups stay what they were. All scores are
    those of the decoder as it came. Importances are Torch-Pruning's: mean over coupled layers of squared weights
    (`l2`), or of weight times gradient (`taylor`, Molchanov et al. 2019).

    Args:
        decoder: a `TemporalDecoder` or `Decoder` of diffusers; it runs when it is narrow as well.
        target: a decoder of the same layers, on the meta device for example.
        losses: for `taylor`: of a decoder; each is differentiated before the next is asked for.

    Returns:
        Each set of coupled channels, whether some of them went or not.

    Raises:
        ImportError: without the extra `prune`.
        ValueError: for an unknown importance, or `taylor` without losses.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"`importance` is 'l2' or 'taylor', not {importance!r}.")
    if (importance == "taylor") != (losses is not None):
        raise ValueError("`importance='taylor'`, and no other, needs `losses`.")
    names = {module: name for name, module in decoder.named_modules()}
    graph = build_graph(decoder, _example_inputs(decoder))
    accumulate_gradients(decoder, losses(decoder) if losses else ())
    score = make_importance(importance)
    outputs = [module for name, module in decoder.named_modules() if name in ("conv_out", "time_conv_out")]
    coupled, removals = [], []
    for group in coupled_groups(graph, outputs):
        members = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        layers = tuple(names[m] for m in members if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear)))
        (num_groups,) = {m.num_groups for m in members if isinstance(m, nn.GroupNorm)} or {1}
        (width,) = {target.get_parameter(f"{layer}.weight").shape[0] for layer in layers}
        scores = score(group)
        kept = rank_within(scores, num_groups)[:, : width // num_groups].flatten().sort().values.tolist()
        coupled.append(CoupledChannels(layers, tuple(kept)))
        removals.append((group[0].dep, sorted(set(range(scores.numel())) - set(kept))))
    decoder.zero_grad()
    for root, removed in removals:
        if removed:
            prune_group(graph, root, removed)
    for module in decoder.modules():
        if isinstance(module, Upsample2D):  # it asserts what it was built with
            conv: Any = module.conv
            module.channels, module.out_channels = conv.in_channels, conv.out_channels
    shapes = {name: tensor.shape for name, tensor in decoder.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in target.state_dict().items()}
    return tuple(coupled)


def _example_inputs(decoder: Any) -> dict[str, Any]:
    """The smallest clip with more than one of everything."""
    weight = decoder.conv_in.weight
    sample = torch.zeros(2, weight.shape[1], 2, 2, dtype=weight.dtype, device=weight.device)
    if not isinstance(decoder, TemporalDecoder):
        return {"sample": sample}
    return {"sample": sample, "image_only_indicator": sample.new_zeros(1, 2), "num_frames": 2}
