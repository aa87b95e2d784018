"""Parameters and floating point operations of HunyuanVideo and of its student, on the meta device."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch import nn

from vdmini_diffusers.families import family_of
from vdmini_diffusers.families.hunyuan_video import HUNYUAN_VIDEO
from vdmini_diffusers.pruning import VDMINI_HY
from vdmini_diffusers.pruning.cost import count_tmacs, forward_cost


def hunyuan_cost(num_frames, height, width, **config):
    with torch.device("meta"):
        network = HunyuanVideoTransformer3DModel.from_config(config)
        inputs = HUNYUAN_VIDEO.example_inputs(network.config, num_frames, height, width)
        return forward_cost(network, inputs)


def test_a_dual_and_a_single_stream_block_cost_the_same_time_and_not_the_same_memory():
    costs = hunyuan_cost(125, 720, 1280, num_layers=1, num_single_layers=2)
    dual, single, another = (
        costs[name] for name in ("transformer_blocks.0", "single_transformer_blocks.0", "single_transformer_blocks.1")
    )
    assert dual.num_parameters == 339_831_296 and single.num_parameters == 141_591_808
    assert single == another and single.num_flops == pytest.approx(dual.num_flops, rel=1e-5)
    assert dual.num_flops / 1e12 == pytest.approx(189.95, abs=0.005)


@pytest.mark.slow
def test_the_student_takes_two_thirds_of_the_operations():
    """40 of 60 blocks: the bound of the speed-up is 1.5."""
    teacher, student = hunyuan_cost(125, 720, 1280), None
    student = hunyuan_cost(125, 720, 1280, **VDMINI_HY.student_config({"num_layers": 20, "num_single_layers": 40}))
    assert (teacher[""].num_parameters, student[""].num_parameters) == (12_821_012_544, 8_403_260_480)
    assert teacher[""].num_flops / 1e12 == pytest.approx(11_397.2, abs=0.05)
    assert student[""].num_flops / 1e12 == pytest.approx(7_598.2, abs=0.05)
    assert len(teacher) == 1 + 60 and len(student) == 1 + 40


def test_wan_s_operations_are_those_that_the_documents_have():
    """Wan 2.1 with 1.3 billion parameters, and 20 of its 30 blocks."""
    own = {"num_attention_heads": 12, "ffn_dim": 8960}
    found = []
    for num_layers in (30, 20):
        with torch.device("meta"):
            network = WanTransformer3DModel(**own, num_layers=num_layers)
            inputs = family_of("WanPipeline").example_inputs(network.config, 125, 720, 1280)
            found.append(forward_cost(network, inputs)[""])
    assert [cost.num_parameters for cost in found] == [1_418_996_800, 954_589_760]
    assert [round(cost.num_flops / 1e12, 1) for cost in found] == [2745.3, 1830.2]


def test_attention_counts_on_the_cpu_as_on_the_meta_device():
    class Network(nn.Module):
        def forward(self, query):
            return nn.functional.scaled_dot_product_attention(query, query, query)

    costs = {
        device: forward_cost(Network(), {"query": torch.zeros(1, 2, 5, 8, device=device)})
        for device in ("cpu", "meta")
    }
    assert costs["cpu"] == costs["meta"] == {"": (0, 2 * 2 * 2 * 5 * 5 * 8)}


def test_operations_are_those_of_the_whole_and_of_each_block():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj_in = nn.Linear(3, 8)
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, hidden_states):
            hidden_states = self.proj_in(hidden_states)
            for block in self.blocks:
                hidden_states = block(hidden_states)
            return hidden_states

    with torch.device("meta"):
        costs = forward_cost(Network(), {"hidden_states": torch.zeros(5, 3)})
    block = (72, 2 * 5 * 8 * 8)
    assert costs == {"": (32 + 144, 2 * 5 * 3 * 8 + 2 * block[1]), "blocks.0": block, "blocks.1": block}


def test_multiplications_of_any_work_are_counted_without_memory():
    weight, given = (torch.empty(2000, n, device="meta", dtype=torch.bfloat16) for n in (1000, 500))
    assert count_tmacs(lambda: weight.T @ given) == pytest.approx(500 * 1000 * 2000 / 1e12)
