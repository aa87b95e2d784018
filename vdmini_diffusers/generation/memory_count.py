"""What making a clip takes of memory, counted from a pipeline's networks before anything is computed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vdmini_diffusers.analysis.cost_table import FusedAttention
from vdmini_diffusers.evaluation.latency import build_network
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.families import Family
from vdmini_diffusers.generation.memory import MemoryNeed
from vdmini_diffusers.generation.pipeline_call import call_parameters


# Tensors at a decoder's full resolution while it runs: of the channels that its last stage takes, or of those that it
# makes. The first is what was counted for SVD's decoder ("Large and long clips" in pipelines/README.md), where the
# pruned ones take less; the second for one of equal widths.
TENSORS_IN, TENSORS_OUT = 4, 7
DECODER_CHANNELS = (128, 256)  # where the config does not say
GUIDANCE = ("guidance_scale", "max_guidance_scale")


def count_call(pipe: Any, family: Family | None, call: Mapping[str, Any], on_cpu: bool) -> MemoryNeed:
    """What a pipeline's call with these options takes, which have `height` and `width`. See `count_need`."""
    parameters = call_parameters(type(pipe))
    num_frames = call.get("num_frames") or parameters["num_frames"].default
    num_frames = num_frames or pipe.unet.config.num_frames  # Stable Video Diffusion's default
    scales = [call.get(name, parameters[name].default) for name in GUIDANCE if name in parameters]
    guided = any(scale is None or scale > 1 for scale in scales)  # None is for the pipeline to decide
    return count_need(pipe, family, num_frames, call["height"], call["width"], guided, on_cpu)


def count_need(
    pipe: Any, family: Family | None, num_frames: int, height: int, width: int, guided: bool, on_cpu: bool
) -> MemoryNeed:
    """What a clip of that size takes.

    Args:
        family: with its `example_inputs`, a step of the denoiser is counted on the meta device; without, it is taken
            for half of the denoiser's weights, a rule of thumb.
        guided: whether the denoiser runs on a doubled batch.
        on_cpu: whether the weights are where the clip is made, in memory that is not free any more.
    """
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    weights = {name: _num_bytes(network) for name, network in networks.items()}
    denoiser = next((name for name in (family.denoisers if family else ()) if name in networks), None)
    denoiser = denoiser or max(weights, key=lambda name: weights[name])
    denoising = weights[denoiser] // 2
    if family is not None and family.example_inputs is not None and denoiser in family.denoisers:
        scale = getattr(pipe, "vae_scale_factor", 8)  # `example_inputs` are of VAEs that downsample by 8
        size = height * 8 // scale, width * 8 // scale
        denoising = count_denoising(networks[denoiser], family.example_inputs, num_frames, *size)
    vae: Any = networks.get("vae")
    return MemoryNeed(
        weights={} if on_cpu else weights,
        denoiser=denoiser,
        denoising=denoising * (2 if guided else 1),
        vae="vae",
        decoding_per_pixel=0 if vae is None else _decoding_per_pixel(vae),
        num_frames=num_frames,
        height=height,
        width=width,
        tile=_tile(vae, num_frames),
        chunks="decode_chunk_size" in call_parameters(type(pipe)),
        tiles_in_time=hasattr(vae, "tile_sample_min_num_frames"),
    )


@torch.no_grad()
def count_denoising(network: Any, example_inputs: Any, num_frames: int, height: int, width: int) -> int:
    """The most bytes that tensors of one forward pass take at once, beside the weights; counted on the meta device.

    Raises:
        ValueError: if the clip is so small that a norm would see one value a channel, which torch refuses.
    """
    dtype = next(network.parameters()).dtype
    empty = build_network(lambda: type(network).from_config(network.config), "meta", dtype)
    with torch.device("meta"):
        inputs = example_inputs(network.config, num_frames, height, width)
        inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        with FusedAttention(), LiveBytes(empty.parameters()) as counter:
            try:
                empty(**inputs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"{num_frames} frame{'s' * (num_frames > 1)} of {width} x {height} pixels: too little for this"
                    " model, whose deepest norms would see one value each: ask for more frames or more pixels."
                ) from error
    return counter.peak


def _num_bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in [*network.parameters(), *network.buffers()])


def _decoding_per_pixel(vae: Any) -> int:
    config = vae.config
    widths = config.get("decoder_block_out_channels") or config.get("block_out_channels") or DECODER_CHANNELS
    values = max(TENSORS_OUT * widths[0], TENSORS_IN * widths[min(1, len(widths) - 1)])
    return values * next(vae.parameters()).element_size()


def _tile(vae: Any, num_frames: int) -> int | None:
    """Pixels of all frames of a tile, or None for a VAE without tiles."""
    if vae is None or not hasattr(vae, "use_tiling"):
        return None
    side = getattr(vae, "tile_sample_min_size", None) or getattr(vae, "tile_sample_min_height", 512)
    width = getattr(vae, "tile_sample_min_width", side)
    return side * width * min(num_frames, getattr(vae, "tile_sample_min_num_frames", None) or num_frames)
