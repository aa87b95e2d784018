"""VAE config + plan -> config of the VAE with the pruned decoder, after checking that the plan fits (appendix A)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vdmini_diffusers.pruning.plan import DecoderPruningPlan, PruningPlanError


def decoder_config(plan: DecoderPruningPlan, vae_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the VAE that `plan` makes of a stock one with `vae_config`, whose other fields are carried over.

    Raises:
        PruningPlanError: if the plan does not fit the VAE.
    """
    check_decoder_plan(plan, vae_config)
    config = {key: value for key, value in vae_config.items() if not key.startswith("_")}
    # Configs count from the highest resolution, plans from the first up block.
    config["decoder_block_out_channels"] = plan.widths[::-1]
    config["decoder_layers_per_block"] = tuple(len(layers) for layers in plan.up.values())[::-1]
    config["decoder_upsample_out_channels"] = plan.upsampler_widths[::-1]
    config["decoder_mid_layers"] = len(plan.mid)
    config["decoder_mid_attention"] = plan.keep_mid_attention
    return config


def check_decoder_plan(plan: DecoderPruningPlan, vae_config: Mapping[str, Any]) -> None:
    """Raises `PruningPlanError`, with the name of the first part of the decoder that does not fit."""
    widths = stage_widths(vae_config)
    num_layers = vae_config["layers_per_block"] + 1
    groups = vae_config.get("norm_num_groups", 32)
    if len(plan.up) != len(widths):
        raise PruningPlanError(f"The plan has {len(plan.up)} up blocks, and the VAE {len(widths)}.")
    whole = keep_decoder(vae_config)
    if not set(plan.mid) <= set(whole.mid) or plan.keep_mid_attention > whole.keep_mid_attention:
        raise PruningPlanError("The plan keeps layers of the mid block that the VAE does not have.")
    for i, layers in plan.up.items():
        if layers[-1] >= num_layers:
            raise PruningPlanError(f"up_blocks.{i} has {num_layers} ResBlocks, of which {layers[-1]} is not one.")
        if layers[0] != 0 and i > 0 and widths[i] != widths[i - 1]:
            raise PruningPlanError(f"up_blocks.{i} keeps ResBlock 0, which alone takes {widths[i - 1]} channels.")
    for kind, kept, largest in (
        ("up block", plan.widths, widths),
        ("upsampler", plan.upsampler_widths, widths[:-1]),
    ):
        for i, (width, most) in enumerate(zip(kept, largest, strict=True)):
            if width > most or width % groups:
                raise PruningPlanError(
                    f"The width {width} of {kind} {i} is not a multiple of {groups}, the groups of its norms, up to"
                    f" {most}."
                )
    for i, (width, upsampled) in enumerate(zip(plan.widths[1:], plan.upsampler_widths, strict=True)):
        if widths[i] == widths[i + 1] and width != upsampled:
            raise PruningPlanError(
                f"Upsampler {i} hands over {upsampled} channels, and up block {i + 1} has {width}: the VAE adds one to"
                " the other, so they keep the same channels."
            )


def folded_shortcuts(plan: DecoderPruningPlan, vae_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Up blocks whose first ResBlock has a shortcut convolution in the VAE, and none under the plan."""
    widths = stage_widths(vae_config)
    pairs = zip(plan.widths[1:], plan.upsampler_widths, strict=True)
    return tuple(
        i for i, (width, upsampled) in enumerate(pairs, start=1) if widths[i - 1] != widths[i] and width == upsampled
    )


def only_layers(plan: DecoderPruningPlan, vae_config: Mapping[str, Any]) -> DecoderPruningPlan:
    """What of the plan precedes channel pruning: its layers, at the VAE's widths, with shortcuts folded away."""
    widths = stage_widths(vae_config)
    folded = folded_shortcuts(plan, vae_config)
    upsampled = tuple(widths[i] if i in folded else widths[i - 1] for i in range(1, len(widths)))
    return replace(plan, name=f"{plan.name}-layers", widths=widths, upsampler_widths=upsampled)


def keep_decoder(vae_config: Mapping[str, Any]) -> DecoderPruningPlan:
    """The plan that removes nothing, except what never runs: attention beside a single ResBlock, and a third one."""
    widths = stage_widths(vae_config)
    # `AutoencoderKL` has two ResBlocks in its mid block, whatever its `layers_per_block`.
    num_mid = 2 if "norm_num_groups" in vae_config else min(vae_config["layers_per_block"], 2)
    return DecoderPruningPlan(
        name="keep-everything",
        mid=tuple(range(num_mid)),
        keep_mid_attention=num_mid == 2 and vae_config.get("mid_block_add_attention", True),
        up={i: tuple(range(vae_config["layers_per_block"] + 1)) for i in range(len(widths))},
        widths=widths,
        upsampler_widths=widths[:-1],
    )


def stage_widths(vae_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Channels of a stock VAE's up blocks, in their order."""
    return tuple(vae_config["block_out_channels"])[::-1]
