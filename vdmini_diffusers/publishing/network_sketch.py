"""What pruning left of a network, as stages and layers that can be drawn. Known from a plan and a config alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vdmini_diffusers.families.block_lists import BLOCK_LISTS
from vdmini_diffusers.pruning.plans import (
    DecoderPruningPlan,
    PruningPlan,
    TransformerPruningPlan,
    UNetPruningPlan,
)
from vdmini_diffusers.pruning.plans.unet_channels import ChannelPruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import stage_widths


State = Literal["kept", "narrowed", "removed"]


class Layer(NamedTuple):
    """A ResBlock (`R.0`), a TransformerBlock (`A.0`), or a block of a transformer, which has its number as name."""

    name: str
    state: State


@dataclass(frozen=True)
class Stage:
    """Layers that run one after the other at one resolution, or a list of a transformer's blocks.

    Args:
        name: in the paper's notation, `D.0`, `M` or `U.3`; of a transformer, the list's.
        layers: empty where the stage is removed as a whole and nothing says what was in it.
        channels: of what it returns, where the config says.
        num_removed: parameters that were removed from it, where the provenance says.
    """

    name: str
    layers: tuple[Layer, ...]
    channels: int | None = None
    num_removed: int = 0

    @property
    def is_removed(self) -> bool:
        return all(layer.state == "removed" for layer in self.layers)


@dataclass(frozen=True)
class NetworkSketch:
    """A network before and after pruning.

    Args:
        network: what it is called: "U-Net", "transformer", "VAE decoder".
        stages: of the teacher, in the order in which they run.
        is_u_shaped: whether its `U` stages mirror its `D` stages and take their skip connections.
    """

    network: str
    stages: tuple[Stage, ...]
    is_u_shaped: bool = False

    def count(self, state: State) -> int:
        """The number of layers in a state. A stage that was removed as a whole counts as one."""
        states = [layer.state for stage in self.stages for layer in stage.layers]
        return states.count(state) + (sum(not stage.layers for stage in self.stages) if state == "removed" else 0)


def sketch_network(
    config: Mapping[str, Any], plan: PruningPlan | None = None, dropped_blocks: Mapping[str, int] | None = None
) -> NetworkSketch | None:
    """What a plan left of a network; all of it, without a plan. None for a network of which no plan removes anything.

    Args:
        config: the student's.
        dropped_blocks: what was removed, with its parameters, as the provenance records it. Plans say what is kept.
    """
    dropped = dropped_blocks or {}
    if isinstance(plan, DecoderPruningPlan):
        return _sketch_decoder(config, plan)
    if isinstance(plan, ChannelPruningPlan):
        return _sketch_unet(config, UNetPruningPlan.keep_everything(config), {}, narrowed=tuple(plan.layer_widths))
    if isinstance(plan, UNetPruningPlan):
        return _sketch_unet(config, plan, dropped)
    if isinstance(plan, TransformerPruningPlan):
        return _sketch_transformer(plan, dropped)
    class_name = config.get("_class_name")
    if isinstance(class_name, str) and class_name in BLOCK_LISTS:
        return _sketch_transformer(TransformerPruningPlan.keep_everything(class_name, config), dropped)
    if {"down_block_types", "layers_per_block", "cross_attention_dim"} <= set(config):
        return _sketch_unet(config, UNetPruningPlan.keep_everything(config), dropped)
    return None


def _sketch_unet(
    config: Mapping[str, Any], plan: UNetPruningPlan, dropped: Mapping[str, int], narrowed: Sequence[str] = ()
) -> NetworkSketch:
    widths = tuple(config["block_out_channels"])

    def stages(letter: str, kept: Mapping[int, Sequence[int]], types: Sequence[str]) -> list[Stage]:
        gone = {tuple(name.split(".")): count for name, count in dropped.items() if name.startswith(f"{letter}.")}
        made = []
        for number in range(max([*kept, *(int(parts[1]) for parts in gone)]) + 1):
            lost = sum(count for parts, count in gone.items() if parts[1] == str(number))
            if number not in kept:
                made.append(Stage(f"{letter}.{number}", (), num_removed=lost))
                continue
            removed = {(parts[2], int(parts[3])) for parts in gone if parts[1] == str(number) and len(parts) == 4}
            place = list(kept).index(number)
            kinds = "RA" if "CrossAttn" in types[place] else "R"
            indices = sorted({*kept[number], *(index for _, index in removed)})
            layers = [
                Layer(f"{kind}.{index}", "kept" if index in kept[number] else "removed")
                for index in indices
                for kind in "RA"
                if (kind in kinds and index in kept[number]) or (kind, index) in removed
            ]
            width = (widths if letter == "D" else widths[::-1])[place]
            made.append(Stage(f"{letter}.{number}", tuple(layers), width, lost))
        return made

    down = stages("D", plan.down, config["down_block_types"])
    up = stages("U", plan.up, config["up_block_types"])
    middle = []
    if plan.keep_mid:
        middle = [Stage("M", tuple(Layer(name, "kept") for name in ("R.0", "A.0", "R.1")), widths[-1])]
    elif "M" in dropped:
        middle = [Stage("M", (), num_removed=dropped["M"])]
    found = [*down, *middle, *up]
    if narrowed:
        found = [_narrow(stage, narrowed) for stage in found]
    return NetworkSketch("U-Net", tuple(found), is_u_shaped=True)


_MODULES = {"D": "down_blocks", "U": "up_blocks", "R": "resnets", "A": "attentions"}


def _narrow(stage: Stage, narrowed: Sequence[str]) -> Stage:
    """With the layers marked of which a module has lost channels. The stage's own number of channels is not known."""
    letter, _, number = stage.name.partition(".")
    prefix = "mid_block" if letter == "M" else f"{_MODULES[letter]}.{number}"
    layers = []
    for layer in stage.layers:
        kind, _, index = layer.name.partition(".")
        start = f"{prefix}.{_MODULES[kind]}.{index}."
        layers.append(layer._replace(state="narrowed") if any(n.startswith(start) for n in narrowed) else layer)
    return Stage(stage.name, tuple(layers))


def _sketch_decoder(config: Mapping[str, Any], plan: DecoderPruningPlan) -> NetworkSketch:
    whole, full = DecoderPruningPlan.keep_everything(config), stage_widths(config)

    def marked(names: Mapping[str, bool], width: int, full_width: int) -> tuple[Layer, ...]:
        state: State = "narrowed" if width < full_width else "kept"
        return tuple(Layer(name, state if is_kept else "removed") for name, is_kept in names.items())

    middle = {f"R.{i}": i in plan.mid for i in whole.mid}
    if whole.keep_mid_attention:
        middle = {"R.0": 0 in plan.mid, "A.0": plan.keep_mid_attention, "R.1": 1 in plan.mid}
    stages = [Stage("M", marked(middle, plan.widths[0], full[0]), plan.widths[0])]
    for number, layers in whole.up.items():
        names = {f"R.{i}": i in plan.up[number] for i in layers}
        width = plan.widths[number]
        stages.append(Stage(f"U.{number}", marked(names, width, full[number]), width))
    return NetworkSketch("VAE decoder", tuple(stages))


def _sketch_transformer(plan: TransformerPruningPlan, dropped: Mapping[str, int]) -> NetworkSketch:
    stages = []
    for name, kept in plan.blocks.items():
        gone = {int(block.split(".")[1]): n for block, n in dropped.items() if block.split(".")[0] == name}
        indices = range(max([*kept, *gone]) + 1)
        layers = tuple(Layer(str(i), "kept" if i in kept else "removed") for i in indices)
        stages.append(Stage(name, layers, num_removed=sum(gone.values())))
    order = [blocks.name for blocks in BLOCK_LISTS[plan.transformer]]
    return NetworkSketch("transformer", tuple(sorted(stages, key=lambda stage: order.index(stage.name))))
