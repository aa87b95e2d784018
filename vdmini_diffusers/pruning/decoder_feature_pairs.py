"""Which outputs of a pruned decoder's stages say the same as which of the original one's, channel by channel."""

from collections.abc import Mapping, Sequence
from typing import Any

from vdmini_diffusers.pruning.channels import CoupledChannels
from vdmini_diffusers.pruning.decoder_config import check_decoder_plan, folded_shortcuts
from vdmini_diffusers.pruning.plan import DecoderPruningPlan


def decoder_feature_pairs(
    plan: DecoderPruningPlan, vae_config: Mapping[str, Any], coupled: Sequence[CoupledChannels]
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Modules of the two decoders, for the mid block and each up block: `(student's, teacher's, kept channels)`.

    A stage's output is that of a layer whose channels `coupled` lists. Where a shortcut went into the upsampler before
    it, the student's upsampler does the work of both: its output is the teacher's shortcut's.

    Args:
        vae_config: the teacher's.
        coupled: of `prune_channels`, as `pruning_channels.json` holds them.

    Raises:
        PruningPlanError: if the plan does not fit the teacher.
        ValueError: if `coupled` is not of a decoder that the plan makes.
    """
    check_decoder_plan(plan, vae_config)
    spatial = "" if "norm_num_groups" in vae_config else ".spatial_res_block"
    last = len(plan.up) - 1
    kept = {layer: channels.kept for channels in coupled for layer in channels.layers}
    stages = [("mid_block", "mid_block", "conv_in")]  # what the mid block adds to runs through from there
    for i in range(last):
        shortcut = f"up_blocks.{i + 1}.resnets.0{spatial}.conv_shortcut"
        teacher = shortcut if i + 1 in folded_shortcuts(plan, vae_config) else f"up_blocks.{i}"
        stages.append((f"up_blocks.{i}", teacher, f"up_blocks.{i}.upsamplers.0.conv"))
    stages.append((f"up_blocks.{last}", f"up_blocks.{last}", f"up_blocks.{last}.resnets.0{spatial}.conv2"))
    widths = (plan.widths[0], *plan.upsampler_widths, plan.widths[-1])
    for (stage, _, layer), width in zip(stages, widths, strict=True):
        if len(kept.get(layer, ())) != width:
            raise ValueError(
                f"`pruning_channels.json` keeps {len(kept.get(layer, ()))} channels of {layer}, and the plan"
                f" {plan.name!r} {width} of {stage}: the two are not of the same pruning."
            )
    return tuple((student, teacher, kept[layer]) for student, teacher, layer in stages)
