"""Plans of U-Nets that keep all layers and lose channels: the baselines of Table 3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from vdmini_diffusers.pruning.plans.base import MAX_CHANNELS, PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.plans.unet import STOCK_DEFAULTS
from vdmini_diffusers.serialization.safetensors_reader import short_repr


@dataclass(frozen=True, eq=True)
class ChannelPruningPlan(PruningPlan):
    """The widths of a U-Net of SVD after channel pruning. Which channels went is found by importance.

    Args:
        layer_widths: `[out, in]` channels of layers, `[channels]` of norms and `[heads]` of attentions that are
            narrower than in the teacher, by their names.
        stages: the teacher's channels that each stage's output keeps, by the stage's name. These are compared in
            distillation.
    """

    layer_widths: Mapping[str, Sequence[int]]
    stages: Mapping[str, tuple[int, ...]]

    kind: ClassVar[str] = "unet_channels"
    network: ClassVar[str] = "U-Net"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layer_widths, Mapping) or not all(
            isinstance(name, str)
            and isinstance(widths, (list, tuple))
            and len(widths) in (1, 2)
            and all(type(width) is int and 1 <= width <= MAX_CHANNELS for width in widths)
            for name, widths in self.layer_widths.items()
        ):
            raise PruningPlanError(
                f"`layer_widths` maps modules to one or two widths from 1 to {MAX_CHANNELS}; got"
                f" {short_repr(self.layer_widths)}."
            )
        frozen = {name: tuple(widths) for name, widths in sorted(self.layer_widths.items())}
        object.__setattr__(self, "layer_widths", MappingProxyType(frozen))
        self._freeze_kept("stages", str)

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(self.stages) - set(_stage_names(teacher_config))):
            raise PruningPlanError(f"{short_repr(unknown[0])} is no stage of the teacher.")
        config = {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        widths = {name: list(widths) for name, widths in self.layer_widths.items()}
        return STOCK_DEFAULTS["SpatioTemporal"] | config | {"layer_widths": widths}

    def teacher_key(self, student_key: str) -> str:
        return student_key

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The output of every stage. The student's has `feature_channels` of the teacher's."""
        return tuple((name, name) for name in _stage_names(teacher_config) if name in self.stages)

    @property
    def feature_channels(self) -> Mapping[str, tuple[int, ...]]:
        return self.stages

    def block_names(self, teacher_key: str) -> Sequence[str]:
        return (teacher_key.rpartition(".")[0],)


def _stage_names(config: Mapping[str, Any]) -> list[str]:
    stages = range(len(config["block_out_channels"]))
    return [*(f"down_blocks.{i}" for i in stages), "mid_block", *(f"up_blocks.{i}" for i in stages)]
