"""Plan -> which teacher tensor each student tensor comes from."""

from collections.abc import Iterable

from vdmini_diffusers.pruning.plan import DecoderPruningPlan, PruningPlan, TransformerPruningPlan, UNetPruningPlan


# Of a stage, in the order in which a layer runs through them: entry i of each is part of layer i. SVD has no `temp_`.
LAYER_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions")


def weight_map(plan: PruningPlan, student_keys: Iterable[str]) -> dict[str, str]:
    """`{student tensor: teacher tensor}` for the given names of a student's tensors. Injective.

    Works on names alone, so it also maps module names (`up_blocks.0` to `up_blocks.1`).
    """
    return {key: _teacher_key(plan, key) for key in student_keys}


def _teacher_key(plan: PruningPlan, key: str) -> str:
    parts = key.split(".")
    match plan:
        case TransformerPruningPlan():
            if parts[0] in plan.blocks:
                parts[1] = str(plan.blocks[parts[0]][int(parts[1])])
        case UNetPruningPlan():
            if parts[0] in ("down_blocks", "up_blocks"):
                kept = plan.down if parts[0] == "down_blocks" else plan.up
                stage = list(kept)[int(parts[1])]
                parts[1] = str(stage)
                if len(parts) > 3 and parts[2] in LAYER_LISTS:
                    parts[3] = str(kept[stage][int(parts[3])])
        case DecoderPruningPlan():
            if parts[:2] == ["decoder", "up_blocks"] and parts[3] == "resnets":
                parts[4] = str(plan.up[int(parts[2])][int(parts[4])])
            elif parts[:3] == ["decoder", "mid_block", "resnets"]:
                parts[3] = str(plan.mid[int(parts[3])])
    return ".".join(parts)
