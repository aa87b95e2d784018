"""Teacher config + plan -> student config, after checking that the plan fits the teacher."""

from collections.abc import Mapping
from typing import Any

from vdmini_diffusers.pruning.paper_names import paper_name
from vdmini_diffusers.pruning.plan import PruningPlanError, UNetPruningPlan, stage_depths


# Config fields with one value per down stage, where they are not a single value for all.
PER_STAGE_FIELDS = (
    "down_block_types",
    "block_out_channels",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "num_attention_heads",
)

# What the config of a stock class does not say, by the ending of its block types.
UNSAID = {
    "SpatioTemporal": {"mid_block_type": "UNetMidBlockSpatioTemporal"},
    "3D": {"mid_block_type": "UNetMidBlock3DCrossAttn", "fps_cond": False, "motion_cond_proj_dim": None},
}


def student_config(plan: UNetPruningPlan, teacher_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the student that `plan` makes of a U-Net teacher with `teacher_config`.

    Fields that do not depend on depth are carried over.

    Raises:
        PruningPlanError: if the plan does not fit the teacher.
    """
    check_plan_fits(plan, teacher_config)
    block_type = teacher_config["down_block_types"][0]
    unsaid = next(fields for ending, fields in UNSAID.items() if block_type.endswith(ending))
    config = unsaid | {key: value for key, value in teacher_config.items() if not key.startswith("_")}
    num_stages = len(config["block_out_channels"])
    for field in PER_STAGE_FIELDS:
        if isinstance(config.get(field), (list, tuple)):
            config[field] = tuple(config[field][stage] for stage in plan.down)
    config["up_block_types"] = tuple(config["up_block_types"][stage] for stage in plan.up)
    config["layers_per_block"] = tuple(len(layers) for layers in plan.down.values())
    if not plan.keep_mid:
        config["mid_block_type"] = None
    assert len(config["block_out_channels"]) == len(plan.down) <= num_stages
    return config


def check_plan_fits(plan: UNetPruningPlan, teacher_config: Mapping[str, Any]) -> None:
    """Refuse a plan that the teacher's stages, depths or skip widths do not allow; nothing is built for it.

    The skip connections of a U-Net are a stack: the down stages push, the up stages pop. A kept layer fits if it meets
    the hidden width and the skip width that its weights were made for.

    Raises:
        PruningPlanError: with the paper's name of the first part that does not fit.
    """
    depths, widths = stage_depths(teacher_config), tuple(teacher_config["block_out_channels"])
    num_stages = len(widths)
    up_depths = tuple(depth + 1 for depth in reversed(depths))
    for letter, kept, teacher_depths in (("D", plan.down, depths), ("U", plan.up, up_depths)):
        for stage, layers in kept.items():
            if stage >= num_stages:
                raise PruningPlanError(f"{letter}.{stage} is not a stage of the teacher, which has {num_stages}.")
            if layers[-1] >= teacher_depths[stage]:
                raise PruningPlanError(
                    f"{letter}.{stage}.R.{layers[-1]} is not a layer of the teacher, whose {letter}.{stage} has"
                    f" {teacher_depths[stage]}."
                )
    num_kept = len(plan.down)
    if tuple(plan.down) != tuple(range(num_kept)):
        raise PruningPlanError(
            f"Only the innermost stages can go: the kept down stages {list(plan.down)} leave a gap."
        )
    if tuple(plan.up) != tuple(range(num_stages - num_kept, num_stages)):
        raise PruningPlanError(
            f"The up stages mirror the down stages: with {num_kept} down stages kept, the up stages"
            f" {list(range(num_stages - num_kept, num_stages))} are, not {list(plan.up)}."
        )
    if plan.keep_mid and teacher_config.get("mid_block_type", "") is None:
        raise PruningPlanError("The plan keeps M, which the teacher does not have.")
    for stage, layers in plan.up.items():
        mirrored = num_stages - 1 - stage
        if len(layers) != len(plan.down[mirrored]) + 1:
            raise PruningPlanError(
                f"U.{stage} keeps {len(layers)} layers; it needs {len(plan.down[mirrored]) + 1}, one more than"
                f" D.{mirrored}."
            )

    skips = [widths[0]]  # conv_in
    hidden = widths[0]
    for stage, layers in plan.down.items():
        for layer in layers:
            expected = widths[max(stage - 1, 0)] if layer == 0 else widths[stage]
            _check_width(f"down_blocks.{stage}.resnets.{layer}", "hidden", expected, hidden)
            hidden = widths[stage]
            skips.append(hidden)
        if stage < num_kept - 1:
            skips.append(hidden)  # the downsampler's
    if plan.keep_mid:
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
    for stage, layers in plan.up.items():
        width = reversed_widths[stage]
        for layer in layers:
            expected_hidden = reversed_widths[max(stage - 1, 0)] if layer == 0 else width
            last_skip = reversed_widths[min(stage + 1, num_stages - 1)]
            expected_skip = last_skip if layer == up_depths[stage] - 1 else width
            name = f"up_blocks.{stage}.resnets.{layer}"
            _check_width(name, "hidden", expected_hidden, hidden)
            _check_width(name, "skip", expected_skip, skips.pop())
            hidden = width


def _check_width(module: str, what: str, expected: int, found: int) -> None:
    if expected != found:
        raise PruningPlanError(
            f"{paper_name(module)} takes {what} features of {expected} channels, and the plan gives it {found}."
        )
