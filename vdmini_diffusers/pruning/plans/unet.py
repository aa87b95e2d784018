"""Plans of U-Nets: which stages and layers stay (paper, section 3.2, Table A4 and appendix B)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.plans.base import PruningPlan, PruningPlanError


# Config fields with one value per down stage, where they are not a single value for all.
PER_STAGE_FIELDS = (
    "down_block_types",
    "block_out_channels",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "num_attention_heads",
)

# What the config of a stock class leaves unsaid and our subclass has a field for, by the ending of its block types.
STOCK_DEFAULTS = {
    "SpatioTemporal": {"mid_block_type": "UNetMidBlockSpatioTemporal"},
    "3D": {"mid_block_type": "UNetMidBlock3DCrossAttn", "fps_cond": False, "motion_cond_proj_dim": None},
}

# The lists of a stage in the order in which a layer runs through them: entry i of each is part of layer i. SVD has no
# `temp_` lists.
LAYER_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions")


@dataclass(frozen=True, eq=True)
class UNetPruningPlan(PruningPlan):
    """Kept stages and layers of a U-Net with cross-attention stages (SVD, ModelScope, VideoCrafter2).

    A layer is the pair "R-A" of the paper: a ResBlock and, where the stage has them, its TransformerBlock.

    Args:
        down: kept layers of each kept down stage, e.g. `{0: (0,)}` keeps layer 0 of Down-0. A stage that is not named
            is removed.
        keep_mid: whether the mid block stays.
        up: kept layers of each kept up stage, numbered as in the teacher: Up-0 is the innermost.
    """

    down: Mapping[int, tuple[int, ...]]
    keep_mid: bool
    up: Mapping[int, tuple[int, ...]]

    kind: ClassVar[str] = "unet"
    network: ClassVar[str] = "U-Net"
    __hash__ = PruningPlan.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep_mid, bool):
            raise PruningPlanError(f"`keep_mid` is true or false, not {self.keep_mid!r}.")
        self._freeze_kept("down", int)
        self._freeze_kept("up", int)

    @classmethod
    def keep_everything(cls, teacher_config: Mapping[str, Any]) -> "UNetPruningPlan":
        """The plan that removes nothing from a teacher with this config."""
        depths = stage_depths(teacher_config)
        return cls(
            name="keep-everything",
            down={i: tuple(range(depth)) for i, depth in enumerate(depths)},
            keep_mid=teacher_config.get("mid_block_type", "stock") is not None,
            up={i: tuple(range(depth + 1)) for i, depth in enumerate(reversed(depths))},
        )

    def student_config(self, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
        self._check_fits(teacher_config)
        block_type = teacher_config["down_block_types"][0]
        unsaid = next(fields for ending, fields in STOCK_DEFAULTS.items() if block_type.endswith(ending))
        config = unsaid | {key: value for key, value in teacher_config.items() if not key.startswith("_")}
        num_stages = len(config["block_out_channels"])
        for field in PER_STAGE_FIELDS:
            if isinstance(config.get(field), (list, tuple)):
                config[field] = tuple(config[field][stage] for stage in self.down)
        config["up_block_types"] = tuple(config["up_block_types"][stage] for stage in self.up)
        config["layers_per_block"] = tuple(len(layers) for layers in self.down.values())
        if not self.keep_mid:
            config["mid_block_type"] = None
        assert len(config["block_out_channels"]) == len(self.down) <= num_stages
        return config

    def teacher_key(self, student_key: str) -> str:
        parts = student_key.split(".")
        if parts[0] in ("down_blocks", "up_blocks"):
            kept = self.down if parts[0] == "down_blocks" else self.up
            stage = list(kept)[int(parts[1])]
            parts[1] = str(stage)
            if len(parts) > 3 and parts[2] in LAYER_LISTS:
                parts[3] = str(kept[stage][int(parts[3])])
        return ".".join(parts)

    def feature_pairs(self, teacher_config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        """The output of every kept stage, of equal shape in both models.

        A down stage is compared after its downsampler. The student's last one has none; where the teacher's has, the
        pair is the output of the last kept layer instead: for the paper's plan `down_blocks.2.attentions.1`, for text
        to video `down_blocks.2.temp_attentions.1`, six pairs in all.
        """
        self._check_fits(teacher_config)
        students = [f"down_blocks.{stage}" for stage in self.down]
        if len(self.down) < len(teacher_config["block_out_channels"]):
            last = len(self.down) - 1
            block_type = teacher_config["down_block_types"][last]
            parts = LAYER_LISTS if block_type.endswith("3D") else ("resnets", "attentions")
            layers = [part for part in parts if "attentions" not in part or "CrossAttn" in block_type]
            students[-1] = f"down_blocks.{last}.{layers[-1]}.{len(self.down[last]) - 1}"
        elif self.keep_mid:  # with fewer stages, the student's works at another resolution than the teacher's
            students.append("mid_block")
        students += [f"up_blocks.{i}" for i in range(len(self.up))]
        return tuple((student, self.teacher_key(student)) for student in students)

    def block_names(self, teacher_key: str) -> Sequence[str]:
        """A stage and a layer, by the paper's names: `D.1` and `D.1.R.0`."""
        parts = paper_name(teacher_key).split(".")
        if parts[0] == "M":
            return ("M",)
        return (".".join(parts[:2]), ".".join(parts[:4]))

    def _check_fits(self, teacher_config: Mapping[str, Any]) -> None:
        """Refuse a plan that the teacher's stages, depths or skip widths do not allow; nothing is built for it.

        The skip connections of a U-Net are a stack: the down stages push, the up stages pop. A kept layer fits if it
        meets the hidden width and the skip width that its weights were made for.

        Raises:
            PruningPlanError: with the paper's name of the first part that does not fit.
        """
        depths, widths = stage_depths(teacher_config), tuple(teacher_config["block_out_channels"])
        num_stages = len(widths)
        up_depths = tuple(depth + 1 for depth in reversed(depths))
        for letter, kept, teacher_depths in (("D", self.down, depths), ("U", self.up, up_depths)):
            for stage, layers in kept.items():
                if stage >= num_stages:
                    raise PruningPlanError(f"{letter}.{stage} is not a stage of the teacher, which has {num_stages}.")
                if layers[-1] >= teacher_depths[stage]:
                    raise PruningPlanError(
                        f"{letter}.{stage}.R.{layers[-1]} is not a layer of the teacher, whose {letter}.{stage} has"
                        f" {teacher_depths[stage]}."
                    )
        num_kept = len(self.down)
        if tuple(self.down) != tuple(range(num_kept)):
            raise PruningPlanError(
                f"Only the innermost stages can go: the kept down stages {list(self.down)} leave a gap."
            )
        if tuple(self.up) != tuple(range(num_stages - num_kept, num_stages)):
            raise PruningPlanError(
                f"The up stages mirror the down stages: with {num_kept} down stages kept, the up stages"
                f" {list(range(num_stages - num_kept, num_stages))} are, not {list(self.up)}."
            )
        if self.keep_mid and teacher_config.get("mid_block_type", "") is None:
            raise PruningPlanError("The plan keeps M, which the teacher does not have.")
        for stage, layers in self.up.items():
            mirrored = num_stages - 1 - stage
            if len(layers) != len(self.down[mirrored]) + 1:
                raise PruningPlanError(
                    f"U.{stage} keeps {len(layers)} layers; it needs {len(self.down[mirrored]) + 1}, one more than"
                    f" D.{mirrored}."
                )

        skips = [widths[0]]  # conv_in
        hidden = widths[0]
        for stage, layers in self.down.items():
            for layer in layers:
                expected = widths[max(stage - 1, 0)] if layer == 0 else widths[stage]
                _check_width(f"down_blocks.{stage}.resnets.{layer}", "hidden", expected, hidden)
                hidden = widths[stage]
                skips.append(hidden)
            if stage < num_kept - 1:
                skips.append(hidden)  # the downsampler's
        if self.keep_mid:
            _check_width("mid_block.resnets.0", "hidden", widths[-1], hidden)
            # A mid block has no fields of its own: it is built like the innermost stage.
            for field in PER_STAGE_FIELDS[2:]:
                values = teacher_config.get(field)
                if isinstance(values, (list, tuple)) and values[num_kept - 1] != values[-1]:
                    raise PruningPlanError(
                        f"M was made with the `{field}` of the removed D.{num_stages - 1}, {values[-1]}; the innermost"
                        f" kept stage has {values[num_kept - 1]}."
                    )
        reversed_widths = widths[::-1]
        for stage, layers in self.up.items():
            width = reversed_widths[stage]
            for layer in layers:
                expected_hidden = reversed_widths[max(stage - 1, 0)] if layer == 0 else width
                last_skip = reversed_widths[min(stage + 1, num_stages - 1)]
                expected_skip = last_skip if layer == up_depths[stage] - 1 else width
                name = f"up_blocks.{stage}.resnets.{layer}"
                _check_width(name, "hidden", expected_hidden, hidden)
                _check_width(name, "skip", expected_skip, skips.pop())
                hidden = width


def stage_depths(teacher_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers of each down stage of a U-Net config; each up stage has one more than the down stage it mirrors."""
    depths = teacher_config["layers_per_block"]
    return (depths,) * len(teacher_config["block_out_channels"]) if isinstance(depths, int) else tuple(depths)


def _check_width(module: str, what: str, expected: int, found: int) -> None:
    if expected != found:
        raise PruningPlanError(
            f"{paper_name(module)} takes {what} features of {expected} channels, and the plan gives it {found}."
        )
