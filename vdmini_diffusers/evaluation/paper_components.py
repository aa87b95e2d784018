"""The components of the paper's pipelines at full width, the original ones and VDMini's, and one forward pass of each.

Their configs are in `paper_networks.json`, with what makes them tiny, to try a script.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vdmini_diffusers.evaluation.latency import build_network


NETWORK_CONFIGS: dict[str, Any] = json.loads(Path(__file__).with_name("paper_networks.json").read_text())
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ClipSize(NamedTuple):
    """Frames of a clip, and their height and width in pixels."""

    num_frames: int
    height: int
    width: int


SIZES = {"i2v": ClipSize(14, 576, 1024), "t2v": ClipSize(16, 320, 512), "hunyuan": ClipSize(93, 480, 848)}
TINY_SIZES = {"i2v": ClipSize(2, 64, 64), "t2v": ClipSize(2, 64, 64), "hunyuan": ClipSize(5, 64, 64)}
# The denoisers take multiples of these: 8 pixels of the VAE's, times what they reduce latents by.
MULTIPLES = {"i2v": 64, "t2v": 64, "hunyuan": 16}


@dataclass(frozen=True)
class Place:
    """A device and a dtype, in which networks and their inputs are made."""

    device: str
    dtype: torch.dtype
    tiny: bool = False

    def build(self, name: str, without: str | None = None) -> Any:
        """A network of `paper_networks.json` with random weights, without one of its parts."""
        return build_network(partial(self._make, name, without), self.device, self.dtype)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def fill(self, value: float, *shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
        return torch.full(shape, value, device=self.device, dtype=dtype)

    def _make(self, name: str, without: str | None) -> nn.Module:
        (library, class_name), config = NETWORK_CONFIGS[name]["class"], NETWORK_CONFIGS[name]["config"]
        cls = getattr(import_module(library), class_name)
        if self.tiny:
            config = config | NETWORK_CONFIGS[name]["tiny"]
        config_class = getattr(cls, "config_class", None)  # of transformers
        network = cls(config_class(**config)) if config_class else cls(**config)
        if without is not None:
            delattr(network, without)
        return network


def forward(network: Any, inputs: Mapping[str, Any]) -> Any:
    return network(**inputs)


@dataclass(frozen=True)
class PipelineComponent:
    """What a pipeline runs once, or once a step.

    Args:
        networks: the original one and VDMini's, or the one that both pipelines have.
        inputs: makes what `run` takes beside a network.
        without: a part of the networks that is not needed.
        paper: the milliseconds that the paper measured of both, on an A100.
    """

    name: str
    networks: tuple[str, ...]
    inputs: Callable[[Place], dict[str, Any]]
    run: Callable[[Any, Mapping[str, Any]], Any] = forward
    without: str | None = None
    paper: tuple[float, ...] = ()


def pipeline_components(
    pipeline: str, size: ClipSize, decode_chunk_size: int | None = None
) -> list[PipelineComponent]:
    """Those of "i2v", "t2v" or "hunyuan".

    Args:
        decode_chunk_size: frames that are decoded at once; by default all.
    """
    num_frames, height, width = size.num_frames, size.height // 8, size.width // 8  # of latents
    chunk_size = decode_chunk_size or num_frames

    def decoder(networks: tuple[str, ...], paper: tuple[float, float], knows_frames: bool) -> PipelineComponent:
        def run(vae: Any, inputs: Mapping[str, Any]) -> list[Any]:
            chunks = inputs["latents"].split(chunk_size)
            return [vae.decode(chunk, **({"num_frames": len(chunk)} if knows_frames else {})) for chunk in chunks]

        def inputs(place: Place) -> dict[str, Any]:
            return {"latents": place.draw(num_frames, 4, height, width)}

        return PipelineComponent("VAE decoder", networks, inputs, run, "encoder", paper)

    if pipeline == "i2v":
        vaes = ("SVD's VAE", "VDMini-I2V's VAE")
        return [
            PipelineComponent(
                "image encoder",
                ("CLIP ViT-H",),
                lambda place: {"pixel_values": place.draw(1, 3, 224, 224)},
                paper=(35, 35),
            ),
            PipelineComponent(
                "VAE encoder",
                vaes[:1],
                lambda place: {"x": place.draw(1, 3, 8 * height, 8 * width)},
                lambda vae, inputs: vae.encode(**inputs),
                "decoder",
                (75, 75),
            ),
            PipelineComponent(
                "U-Net, one step",
                ("SVD's U-Net", "VDMini-I2V's U-Net"),
                lambda place: {
                    "sample": place.draw(1, num_frames, 8, height, width),
                    "timestep": 1.6378,
                    "encoder_hidden_states": place.draw(1, 1, 16 if place.tiny else 1024),
                    "added_time_ids": place.draw(1, 3),
                },
                paper=(512, 345),
            ),
            decoder(vaes, (2832, 840.5), knows_frames=True),
        ]
    if pipeline == "t2v":
        return [
            PipelineComponent(
                "text encoder",
                ("VideoCrafter2's text encoder",),
                lambda place: {"input_ids": place.fill(0, 1, 77)},
                paper=(13.57, 13.57),
            ),
            PipelineComponent(
                "U-Net, one step",
                ("T2V-Turbo-v2's U-Net", "VDMini-T2V's U-Net"),
                lambda place: {
                    "sample": place.draw(1, 4, num_frames, height, width),
                    "timestep": 999,
                    "encoder_hidden_states": place.draw(1, 77, 16 if place.tiny else 1024),
                    "timestep_cond": place.draw(1, 256),
                    "motion_cond": place.draw(1, 256),
                    "fps": 8,
                },
                paper=(2554.05 / 16, 1662.26 / 16),
            ),
            decoder(("Stable Diffusion's VAE",), (367.66, 367.66), knows_frames=False),
        ]
    return [
        PipelineComponent(
            "transformer, one step",
            ("HunyuanVideo", "VDMini-T2V-HY"),
            lambda place: {
                "hidden_states": place.draw(1, 16, (num_frames - 1) // 4 + 1, height, width),
                "timestep": place.fill(999, 1),
                "encoder_hidden_states": place.draw(1, 256, 16 if place.tiny else 4096),
                "encoder_attention_mask": place.fill(1, 1, 256),
                "pooled_projections": place.draw(1, 16 if place.tiny else 768),
                "guidance": place.fill(6000, 1, dtype=place.dtype),
            },
            paper=(366.11, 292.89),
        )
    ]
