"""No rewrite is slower than what it stands for, on the machine that runs this: ratios side by side, no times.

Stock and rewritten modules take turns, so that other load on the machine meets both; each has its input in the memory
that it has in its network. A rewrite fails where the whole 90 % interval of its median ratio lies below 0.95.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from diffusers.models.upsampling import Upsample2D
from tiny import randomise
from torch import nn

from vdmini_diffusers.evaluation.latency import time_in_turns
from vdmini_diffusers.inference import optimize, restore
from vdmini_diffusers.inference.rewriting import REWRITE_OF, STOCK_OF


LEAST = 0.95  # of the stock module's speed
ROUNDS = 9


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 90 % interval of their median, by bootstrap."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return medians[50], medians[950]


def speed_ups(module: nn.Module, *inputs: Any) -> list[float]:
    """How many times faster the rewritten module is, round by round."""

    contiguous = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in inputs]

    def run(change: Callable[[nn.Module], Any], given: Sequence[Any]) -> None:
        change(module)
        module(*given)

    works = {"stock": lambda: run(restore, contiguous), "rewritten": lambda: run(optimize, inputs)}
    timings = time_in_turns(works, "cpu", ROUNDS, warm_ups=1)
    rounds = zip(timings["stock"].milliseconds, timings["rewritten"].milliseconds, strict=True)
    return [stock / rewritten for stock, rewritten in rounds]


def frames(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    """In the memory that a rewritten decoder's frames have: channels last."""
    x = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def clip(channels: int, count: int, height: int, width: int) -> torch.Tensor:
    """The same frames as one clip."""
    return frames(count, channels, height, width).transpose(0, 1)[None]


INDICATOR = torch.zeros(1, 4)
STAGES = ("DownEncoderBlock2D",) * 2
# Of the width and size that a stage has at 4 frames of 256 x 384 pixels, or at half of it: module and inputs.
CASES: dict[type[nn.Module], Callable[[], tuple[Any, ...]]] = {
    GEGLU: lambda: (GEGLU(320, 1280), torch.randn(1, 6144, 320)),
    nn.Conv2d: lambda: (nn.Conv2d(1280, 1280, 3, padding=1), torch.randn(4, 1280, 4, 6)),
    nn.Conv3d: lambda: (nn.Conv3d(256, 256, (3, 1, 1), padding=(1, 0, 0)), clip(256, 4, 48, 64)),
    Upsample2D: lambda: (Upsample2D(256, use_conv=True), frames(2, 256, 32, 48)),
    ResnetBlock2D: lambda: (ResnetBlock2D(in_channels=128, temb_channels=None), frames(2, 128, 96, 128), None),
    SpatioTemporalResBlock: lambda: (
        SpatioTemporalResBlock(128, 128, None, merge_strategy="learned", switch_spatial_to_temporal_mix=True),
        frames(4, 128, 64, 96),
        None,
        INDICATOR,
    ),
    TemporalConvLayer: lambda: (TemporalConvLayer(320, 320), torch.randn(8, 320, 16, 24), 8),
    TransformerSpatioTemporalModel: lambda: (
        TransformerSpatioTemporalModel(5, 64, 320, cross_attention_dim=1024),
        torch.randn(4, 320, 16, 24),
        torch.randn(4, 1, 1024),
        INDICATOR,
    ),
    Encoder: lambda: (
        Encoder(3, 4, STAGES, block_out_channels=(64, 128), layers_per_block=1, mid_block_add_attention=False),
        torch.randn(1, 3, 128, 192),
    ),
    TemporalDecoder: lambda: (TemporalDecoder(4, 3, (64, 128), 1), torch.randn(2, 4, 48, 64), INDICATOR[:, :2]),
}
# A decoder of frames is made of the classes above, and our own blocks compute as the stock ones. Norms are rewritten
# for accuracy, so that frames may lie channels last, and cost more than stock ones of contiguous frames: what that
# costs is within the blocks above.
COVERED = {"Decoder", "GroupNorm", "ClipGroupNorm", "VDMiniResnetBlock2D", "VDMiniTemporalConvLayer"}


def test_every_rewrite_is_timed():
    assert {cls.__name__ for cls in REWRITE_OF} == {cls.__name__ for cls in CASES} | COVERED


@pytest.mark.slow
@pytest.mark.parametrize("stock", CASES, ids=lambda cls: cls.__name__)
@torch.no_grad()
def test_no_rewrite_is_slower_than_the_stock_module(stock):
    module, *inputs = CASES[stock]()
    randomise(module).eval()
    optimize(module)
    assert STOCK_OF.get(type(module)) is stock  # it is rewritten at all
    ratios = speed_ups(module, *inputs)
    low, high = interval(ratios)
    print(f"\n{stock.__name__}: {statistics.median(ratios):.2f} times faster, {low:.2f} to {high:.2f}")
    assert high >= LEAST, f"the rewrite of {stock.__name__} is slower: {low:.2f} to {high:.2f} times the speed"


@pytest.mark.slow
def test_a_slower_rewrite_would_be_found():
    # A control for the test above.
    ratios = [0.9, 0.91, 0.88, 0.92, 0.9, 0.6, 1.3, 0.89, 0.9]
    assert interval(ratios)[1] < LEAST
    assert interval([*ratios[:3], 1.0, 1.02, 0.97, 1.01, 0.99, 1.0])[1] >= LEAST
