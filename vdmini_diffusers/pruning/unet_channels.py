"""The width of a U-Net, pruned along Torch-Pruning's dependency graph: the baselines of Table 3.

Torch-Pruning's classes and the paper's rows: "DepGraph" scores a channel by all layers that lose it
(`group_reduction="mean"`), "magnitude pruning" by the first layer of the group alone (`"first"`). "L2" is
`GroupMagnitudeImportance(p=2)` and "Taylor" `GroupTaylorImportance`. The latencies in Table 3 differ from row to row
at one number of parameters, which equal ratios for all layers cannot give: channels are ranked over the whole network.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from tqdm.auto import tqdm

from vdmini_diffusers.models.unet_spatio_temporal_vdmini import set_layer_widths
from vdmini_diffusers.pruning.dependency_graph import (
    Importance,
    accumulate_gradients,
    build_graph,
    coupled_groups,
    make_importance,
    rank_within,
)
from vdmini_diffusers.pruning.plans.vae_decoder import CoupledChannels


Losses = Callable[[nn.Module], Iterable[Tensor]]
MULTIPLE = 8  # of which widths without norm groups or heads stay, for the kernels of GPUs


class Criterion(NamedTuple):
    """How the channels to prune are chosen.

    Args:
        importance: `"l2"` or `"taylor"`.
        layers: whose weights count: all that lose the channel (`"coupled"`), or the group's first layer (`"first"`).
        ranking: `"global"` removes what scores least in the whole network, each group's scores being divided by their
            mean. `"uniform"` removes the same share of every group.
        num_iterations: the channels go in so many steps of equal size, and are scored anew before each.
    """

    importance: Importance
    layers: Literal["coupled", "first"] = "coupled"
    ranking: Literal["global", "uniform"] = "global"
    num_iterations: int = 1


# The rows of Table 3.
CRITERIA = {
    "depgraph_l2": Criterion("l2"),
    "depgraph_taylor": Criterion("taylor"),
    "magnitude_l2": Criterion("l2", "first"),
    "magnitude_taylor": Criterion("taylor", "first"),
}


def prune_unet_channels(
    unet: nn.Module,
    num_parameters: int,
    criterion: Criterion,
    losses: Losses | None = None,
    tolerance: float = 0.01,
) -> tuple[CoupledChannels, ...]:
    """Narrow a `UNetSpatioTemporalConditionModel` of diffusers in place, until it has `num_parameters`.

    What keeps its width: inputs and outputs of the network. Norms keep their number of groups, each of which loses as
    many channels; attention loses whole heads, so that their width and the scale of the scores stay; the halves of a
    GEGLU lose the same channels; what is added or concatenated follows, time embeddings included. Other widths stay
    multiples of 8. Every layer keeps one step of these at least.

    Args:
        losses: for `"taylor"`: of a U-Net, on data; each is differentiated before the next is asked for. Of the
            distance to the U-Net's own output they would be of no use, as its gradient is zero there.
        tolerance: largest relative difference to `num_parameters`.

    Returns:
        Each set of coupled channels, whether some of them went or not, in the channels of the U-Net as it came.

    Raises:
        FloatingPointError: if a score is not finite.
        ImportError: without the extra `prune`.
        ValueError: for a criterion that does not exist, losses that do not go with it, or a number of parameters that
            pruning cannot reach.
    """
    check_criterion(criterion, losses)
    names = {module: name for name, module in unet.named_modules()}
    check_num_parameters(unet, num_parameters)
    before = count_parameters(unet)
    kept: dict[str, list[int]] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for iteration in range(1, criterion.num_iterations + 1):
        graph = build_graph(unet, _example_inputs(unet))
        accumulate_gradients(unet, losses(unet) if losses else ())
        groups = _score_groups(graph, unet, criterion, names)
        unet.zero_grad()
        is_last = iteration == criterion.num_iterations
        surplus = (before - num_parameters) * iteration // criterion.num_iterations
        _choose(groups, unet, before - surplus, tolerance if is_last else None)
        for group in groups:
            root, removed = names[group.root.target.module], group.removed
            layers.setdefault(root, group.layers)
            present = kept.setdefault(root, list(range(group.num_channels)))
            kept[root] = [channel for i, channel in enumerate(present) if i not in removed]
        _remove(groups, unet, names)
    return tuple(CoupledChannels(layers[root], tuple(channels)) for root, channels in kept.items())


def layer_widths(unet: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """The widths in which `pruned` differs from `unet`, as `VDMiniUNetSpatioTemporalConditionModel` takes them."""
    before = {name: widths for name, module in unet.named_modules() if (widths := _widths(module))}
    after = {name: widths for name, module in pruned.named_modules() if (widths := _widths(module))}
    return {name: widths for name, widths in after.items() if widths != before[name]}


def stage_channels(unet: Any, coupled: Sequence[CoupledChannels]) -> dict[str, tuple[int, ...]]:
    """The channels that each stage's output keeps, by the stage's name."""
    kept = {layer: channels.kept for channels in coupled for layer in channels.layers}
    stages = {f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)}
    stages |= {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)}
    outputs = {}
    for name, block in {**stages, "mid_block": unet.mid_block}.items():
        samplers = [kind for kind in ("downsamplers", "upsamplers") if getattr(block, kind, None)]
        last = f"{samplers[0]}.0.conv" if samplers else f"resnets.{len(block.resnets) - 1}.spatial_res_block.conv2"
        outputs[name] = kept[f"{name}.{last}"]
    return outputs


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def check_criterion(criterion: Criterion, losses: Losses | None) -> None:
    """Raises `ValueError` for a criterion that does not exist, or losses that do not go with it."""
    for name, known in {
        "importance": ("l2", "taylor"),
        "layers": ("coupled", "first"),
        "ranking": ("global", "uniform"),
    }.items():
        if getattr(criterion, name) not in known:
            raise ValueError(f"`{name}` of a criterion is one of {known}, not {getattr(criterion, name)!r}.")
    if criterion.num_iterations < 1:
        raise ValueError(f"`num_iterations` is at least 1, not {criterion.num_iterations}.")
    if (criterion.importance == "taylor") != (losses is not None):
        raise ValueError("The importance 'taylor', and no other, needs `losses`.")


def check_num_parameters(unet: nn.Module, num_parameters: int) -> None:
    """Raises `ValueError` for a number that pruning cannot lead to."""
    present = count_parameters(unet)
    if not 0 < num_parameters <= present:
        raise ValueError(f"`num_parameters` is between 1 and the U-Net's {present:,}, not {num_parameters:,}.")


class _Member(NamedTuple):
    """The channels of one layer that belong to a group.

    Args:
        dim: 0 for output channels, and those of norms, 1 for input channels.
        channels: of the layer.
        roots: of the root, for each of `channels`.
        times: how often the layer has each channel of the group.
    """

    module: Any
    dim: int
    channels: Tensor
    roots: Tensor
    times: int


@dataclass
class _Group:
    """Channels that stay or go together.

    Attributes:
        root: the dependency at which pruning starts.
        layers: names of the layers that these are output channels of.
        steps: the channels in the order in which they go, those of one row together: `(steps, channels of a step)`.
        scores: one for each step, rising.
        halves: how often the root has each channel: twice before a GEGLU.
        members: layers and norms that lose the channels.
    """

    root: Any
    layers: tuple[str, ...]
    steps: Tensor
    scores: Tensor
    halves: int
    members: "list[_Member]"
    num_removed: int = 0

    @property
    def num_channels(self) -> int:
        """Those of the root."""
        return self.halves * self.steps.numel()

    @property
    def removed(self) -> set[int]:
        """Channels of the root."""
        width = self.steps.numel()
        gone = self.steps[: self.num_removed].flatten().tolist()
        return {channel + half * width for channel in gone for half in range(self.halves)}


class _Shape:
    """The width of a layer or norm, while it is being planned."""

    def __init__(self, layer: Any):
        self.widths = list(layer.weight.shape[:2])
        self.kernel = layer.weight.numel() // prod(self.widths)
        self.has_bias = layer.bias is not None

    @property
    def num_parameters(self) -> int:
        return prod(self.widths) * self.kernel + self.has_bias * self.widths[0]


def _score_groups(graph: Any, unet: nn.Module, criterion: Criterion, names: Mapping[nn.Module, str]) -> list[_Group]:
    reduction = "mean" if criterion.layers == "coupled" else "first"
    score = make_importance(criterion.importance, reduction, normalizer=None)
    heads = {
        projection: module.heads
        for module in unet.modules()
        if isinstance(module, Attention)
        for projection in (module.to_q, module.to_k, module.to_v)
    }
    groups = []
    for group in tqdm(coupled_groups(graph, [unet.get_submodule("conv_out")]), desc="scores", leave=False):
        root = group[0].dep
        num_channels = len(group[0].idxs)
        parts = [
            (dep.target.module, 0 if graph.is_out_channel_pruning_fn(dep.handler) else 1, indices, group[i].root_idxs)
            for i, (dep, indices) in enumerate(group)
            if _widths(dep.target.module)
        ]
        # The two halves of a GEGLU are multiplied: only half as many channels go on.
        halves = max(num_channels // len(indices) for _, _, indices, _ in parts)
        scores = score(group).float()
        if not scores.isfinite().all():
            raise FloatingPointError(
                f"The scores of {names[root.target.module]} are not finite: the weights, or the losses' gradients, are"
                " not."
            )
        scores = scores.unflatten(0, (halves, -1)).mean(dim=0)
        writers = [module for module, dim, _, _ in parts if dim == 0]
        norm_groups = {m.num_groups for m in writers if isinstance(m, nn.GroupNorm)} or {1}
        steps = _steps(scores, max(norm_groups), {heads[m] for m in writers if m in heads})
        relative = scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
        ranks = torch.arange(1, len(steps) + 1) / len(steps)
        groups.append(
            _Group(
                root=root,
                layers=tuple(names[m] for m in writers if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear))),
                steps=steps,
                scores=relative[steps].mean(dim=1) if criterion.ranking == "global" else ranks,
                halves=halves,
                members=[
                    _Member(module, dim, torch.tensor(indices), torch.tensor(roots), len(indices) // len(scores))
                    for module, dim, indices, roots in parts
                ],
            )
        )
    return groups


def _steps(scores: Tensor, num_norm_groups: int, num_heads: set[int]) -> Tensor:
    """The channels in the order in which they go, `(steps, channels of a step)`."""
    if num_heads:
        (heads,) = num_heads
        channels = torch.arange(len(scores)).unflatten(0, (heads, -1))
        return channels[scores.unflatten(0, (heads, -1)).mean(dim=1).argsort(stable=True)]
    least_first = rank_within(scores, num_norm_groups).flip(1).T
    if num_norm_groups > 1:
        return least_first  # one channel of each
    return least_first.reshape(-1, gcd(len(scores), MULTIPLE))


def _choose(groups: list[_Group], unet: nn.Module, num_parameters: int, tolerance: float | None) -> None:
    """Note in `groups` what to remove: steps by their scores, as long as the U-Net keeps `num_parameters` at least.

    Raises:
        ValueError: if the result is further from `num_parameters` than `tolerance`.
    """
    shapes = {member.module: _Shape(member.module) for group in groups for member in group.members}
    left = count_parameters(unet)
    full = set()
    for _, i in sorted((float(score), i) for i, group in enumerate(groups) for score in group.scores):
        group = groups[i]
        if i in full or group.num_removed == len(group.steps) - 1:
            continue
        affected = {shapes[member.module] for member in group.members}
        before = sum(shape.num_parameters for shape in affected)
        for member in group.members:
            shapes[member.module].widths[member.dim] -= member.times * group.steps.shape[1]
        saved = before - sum(shape.num_parameters for shape in affected)
        if left - saved < num_parameters:
            full.add(i)
            for member in group.members:
                shapes[member.module].widths[member.dim] += member.times * group.steps.shape[1]
        else:
            left -= saved
            group.num_removed += 1
    if tolerance is not None and left - num_parameters > tolerance * num_parameters:
        raise ValueError(
            f"{num_parameters:,} parameters cannot be met within {tolerance:.1%} by removing channels: the nearest"
            f" that this criterion reaches is {left:,}. Name that, or a larger `tolerance`."
        )


def _widths(module: nn.Module) -> list[int]:
    """As in `layer_widths` of the student's config; empty for modules without widths of their own."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        return list(module.weight.shape[:2])
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        return list(module.weight.shape)
    return [module.heads] if isinstance(module, Attention) else []


def _remove(groups: list[_Group], unet: nn.Module, names: Mapping[nn.Module, str]) -> None:
    """Remove what is noted in `groups`, in place. Torch-Pruning would work out every group anew, for minutes."""
    keeps: dict[tuple[Any, int], Tensor] = {}
    for group in groups:
        removed = torch.tensor(sorted(group.removed), dtype=torch.long)
        for member in group.members:
            width = member.module.weight.shape[member.dim]
            keep = keeps.setdefault((member.module, member.dim), torch.ones(width, dtype=torch.bool))
            keep[member.channels[torch.isin(member.roots, removed)]] = False
    widths: dict[str, list[int]] = {}
    for (module, dim), keep in keeps.items():
        rows = keep.nonzero().flatten()
        for kind in ("weight", "bias") if dim == 0 else ("weight",):
            if (parameter := getattr(module, kind)) is not None:
                setattr(module, kind, nn.Parameter(parameter.detach().index_select(dim, rows)))
        widths[names[module]] = list(module.weight.shape[:2])
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            widths[name] = [len(module.to_q.weight) * module.heads // module.to_q.out_features]
    set_layer_widths(unet, widths)  # what modules remember of their widths


def _example_inputs(unet: Any) -> dict[str, Any]:
    """The smallest clip with more than one of everything, but one clip and one token."""
    weight, config = unet.conv_in.weight, unet.config
    side = 2 ** len(config.block_out_channels)
    context = next(module.to_k.in_features for name, module in unet.named_modules() if name.endswith("attn2"))
    num_ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return {
        "sample": weight.new_zeros(1, 2, config.in_channels, side, side),
        "timestep": weight.new_zeros(1),
        "encoder_hidden_states": weight.new_zeros(1, 1, context),
        "added_time_ids": weight.new_zeros(1, num_ids),
        "return_dict": False,
    }
