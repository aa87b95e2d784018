"""Costs of parts: numbers that are known, and that what belongs to a network adds up to it."""

from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from tiny import TINY_VAE_CONFIGS, randomise, tiny_teacher_unet, tiny_unet_inputs
from tiny_text_to_video import tiny_t2v_inputs, tiny_t2v_teacher
from tiny_video_transformers import TRANSFORMERS, tiny_transformer
from torch import nn

from vdmini_diffusers.analysis.cost_table import (
    REST,
    CostError,
    CostTable,
    FusedAttention,
    costed_parts,
    count_costs,
    decoder_parts,
    measure_times,
)
from vdmini_diffusers.analysis.parts import Part
from vdmini_diffusers.evaluation.latency import build_network
from vdmini_diffusers.evaluation.live_bytes import LiveBytes
from vdmini_diffusers.families.svd import SVD


class TwoLayers(nn.Module):
    """Every number of it is known."""

    def __init__(self):
        super().__init__()
        self.proj_in = nn.Linear(3, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8)])

    def forward(self, x):
        x = self.proj_in(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_costs_of_a_network_of_which_all_is_known():
    with torch.device("meta"):
        network, x = TwoLayers(), torch.zeros(5, 3)
        parts = {f"blocks.{i}": Part(f"blocks.{i}", "block", (f"blocks.{i}",)) for i in range(2)}
        table = count_costs(network, lambda: network(x), parts, (1, 1, 1), [x])
    first, second, rest = (table.parts[name] for name in ("blocks.0", "blocks.1", REST))
    assert (first.num_parameters, second.num_parameters, rest.num_parameters) == (144, 136, 32)
    assert (first.num_macs, second.num_macs, rest.num_macs) == (5 * 8 * 16, 5 * 16 * 8, 5 * 3 * 8)
    # The input of a layer and its output live at once: 5 x (8 + 16) numbers of 4 bytes.
    assert (first.peak_bytes, second.peak_bytes, table.whole.peak_bytes) == (480, 480, 480)
    assert rest.peak_bytes == 5 * 8 * 4
    assert table.bytes_per_parameter == 4


@torch.no_grad()
@pytest.mark.parametrize("kind", [pytest.param("i2v", marks=pytest.mark.slow), "t2v", "transformer"])
def test_blocks_samplers_and_the_rest_add_up_to_the_whole(kind):
    if kind == "transformer":
        network, inputs = (
            tiny_transformer("HunyuanVideoTransformer3DModel"),
            TRANSFORMERS["HunyuanVideoTransformer3DModel"].inputs(),
        )
    elif kind == "t2v":
        network, inputs = tiny_t2v_teacher(), tiny_t2v_inputs()
    else:
        network = randomise(tiny_teacher_unet())
        inputs = dict(
            zip(("sample", "timestep", "encoder_hidden_states", "added_time_ids"), tiny_unet_inputs(), strict=True)
        )
    table = count_costs(network, lambda: network(**inputs), costed_parts(network), (2, 64, 64), inputs.values())
    disjoint = [cost for name, cost in table.parts.items() if table.kinds.get(name) in ("block", "sampler", None)]
    assert sum(cost.num_parameters for cost in disjoint) == table.whole.num_parameters
    assert sum(cost.num_macs for cost in disjoint) == table.whole.num_macs
    assert min(cost.num_macs for cost in disjoint) > 0 or kind == "transformer"
    assert 0 < table.parts[REST].num_macs < table.whole.num_macs / 2
    with LiveBytes([*network.parameters(), *network.buffers(), *inputs.values()]) as meter, FusedAttention():
        network(**inputs)
    assert table.whole.peak_bytes == meter.peak == max(cost.peak_bytes for cost in disjoint)
    if kind != "transformer":  # a stage has its layers, and a block its halves
        pair = [table.parts[f"D.1.{name}"].num_macs for name in ("R.0", "A.0")]
        assert sum(pair) == table.parts["D.1.R-A.0"].num_macs
        halves = [table.parts[f"D.1.R.0.RB-{half}"].num_macs for half in "ST"]
        assert sum(halves) == table.parts["D.1.R.0"].num_macs


def test_attention_counts_on_the_cpu_as_on_the_meta_device():
    attention = nn.functional.scaled_dot_product_attention
    found = []
    for device in ("cpu", "meta"):
        q = torch.zeros(1, 2, 5, 8, device=device)
        found.append(count_costs(nn.Linear(1, 1), partial(attention, q, q, q), {}, (1, 1, 1)).whole.num_macs)
    assert found == [2 * 2 * 5 * 5 * 8] * 2


def test_attention_on_the_meta_device_holds_no_map_of_all_tokens():
    q = torch.zeros(1, 2, 1000, 8, device="meta")
    with FusedAttention(), LiveBytes([q]) as meter:
        output = nn.functional.scaled_dot_product_attention(q, q, q)
    assert output.shape == q.shape and meter.peak == 4 * q.numel()


@pytest.mark.slow
def test_numbers_of_stable_video_diffusion_that_are_known():
    unet = build_network(UNetSpatioTemporalConditionModel, "meta", torch.float16)
    with torch.device("meta"):
        inputs = {name: value.half() for name, value in SVD.example_inputs(unet.config, 14, 576, 1024).items()}
        table = count_costs(unet, lambda: unet(**inputs), costed_parts(unet), (14, 576, 1024), inputs.values())
    assert table.whole.num_parameters == 1_524_623_082
    parts = table.parts
    # Section 3.2: the innermost blocks have many parameters and take little time, the outermost the other way round.
    inner = [parts[name] for name in ("D.3", "M", "U.0")]
    outer = [parts[name] for name in ("D.0", "U.3")]
    assert sum(c.num_parameters for c in inner) > 7 * sum(c.num_parameters for c in outer)
    assert sum(c.num_macs for c in outer) > 10 * sum(c.num_macs for c in inner)


def test_the_decoder_of_stable_video_diffusion():
    config = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    down = ("DownEncoderBlock2D",) * 4
    vae = build_network(lambda: AutoencoderKLTemporalDecoder(**config, down_block_types=down), "meta", torch.float32)
    latents = torch.zeros(14, 4, 72, 128, device="meta")
    parts = decoder_parts(vae.decoder)
    table = count_costs(
        vae.decoder, lambda: vae.decode(latents, num_frames=14), parts, (14, 576, 1024), [latents, *vae.parameters()]
    )
    assert table.whole.num_parameters == 63_579_183
    assert round(table.whole.num_macs / 1e12, 3) == 48.601
    stages = [table.parts[f"up_blocks.{i}"] for i in range(4)]
    assert [cost.peak_bytes for cost in stages] == sorted(cost.peak_bytes for cost in stages)


def test_times_are_measured_where_it_runs(tmp_path):
    vae = randomise(
        AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, **TINY_VAE_CONFIGS["temporal"])
    )
    latents = torch.zeros(2, 4, 4, 4)

    def run():
        return vae.decode(latents, num_frames=2)

    parts = decoder_parts(vae.decoder)
    table = count_costs(vae.decoder, run, parts, (2, 32, 32), [latents])
    timed = measure_times(table, vae.decoder, run, parts, rounds=2)
    assert timed.device.startswith("CPU") and table.device is None
    times = {name: cost.milliseconds for name, cost in timed.parts.items()}
    assert min(times.values()) >= 0 and times["up_blocks.3"] > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vae.modules())
    (tmp_path / "t.json").write_text(timed.to_json_string())
    assert CostTable.read(tmp_path / "t.json").parts["mid_block"] == timed.parts["mid_block"]
    assert timed.to_csv_string().splitlines()[0] == "part,kind,num_parameters,num_macs,peak_bytes,milliseconds"
    (tmp_path / "t.json").write_text('{"parts": {}}')
    with pytest.raises(CostError, match="is no table of costs"):
        CostTable.read(tmp_path / "t.json")
