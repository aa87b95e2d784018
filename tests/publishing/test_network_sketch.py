"""What is drawn of a network is what its plan keeps and its provenance records."""

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

from vdmini_diffusers.pruning import DECODER_PLANS, PLANS
from vdmini_diffusers.pruning.plans import ChannelPruningPlan, DecoderPruningPlan, UNetPruningPlan
from vdmini_diffusers.publishing.network_sketch import sketch_network


@pytest.fixture(scope="module")
def svd_config():
    with torch.device("meta"):
        return dict(UNetSpatioTemporalConditionModel().config)


def states(stage):
    return {layer.name: layer.state for layer in stage.layers}


def test_the_paper_s_plan_by_the_paper_s_names(svd_config):
    plan = PLANS["vdmini"]
    gone = ["D.0.R.1", "D.0.A.1", "D.1.R.1", "D.1.A.1", "D.2.downsamplers", "D.3", "M", "U.0"]
    gone += ["U.2.R.1", "U.2.A.1", "U.3.R.1", "U.3.A.1"]
    sketch = sketch_network(plan.student_config(svd_config), plan, {name: i + 1 for i, name in enumerate(gone)})
    stages = {stage.name: stage for stage in sketch.stages}
    assert list(stages) == ["D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3"]
    assert [name for name, stage in stages.items() if stage.is_removed] == ["D.3", "M", "U.0"]
    assert states(stages["D.0"]) == {"R.0": "kept", "A.0": "kept", "R.1": "removed", "A.1": "removed"}
    assert set(states(stages["D.2"]).values()) == set(states(stages["U.1"]).values()) == {"kept"}
    assert [stages[name].channels for name in ("D.0", "D.2", "D.3", "U.1", "U.3")] == [320, 1280, None, 1280, 320]
    assert [stages[name].num_removed for name in ("D.0", "D.2", "D.3", "M", "U.0", "U.3")] == [3, 5, 6, 7, 8, 23]
    assert (sketch.count("kept"), sketch.count("removed"), sketch.is_u_shaped) == (22, 11, True)


def test_a_whole_u_net_has_every_layer_and_attention_where_its_blocks_cross(svd_config):
    sketch = sketch_network(svd_config)
    assert sketch.count("removed") == sketch.count("narrowed") == 0
    stages = {stage.name: stage for stage in sketch.stages}
    assert list(states(stages["D.3"])) == ["R.0", "R.1"] and list(states(stages["U.0"])) == ["R.0", "R.1", "R.2"]
    assert list(states(stages["M"])) == ["R.0", "A.0", "R.1"]
    assert sketch == sketch_network(svd_config, UNetPruningPlan.keep_everything(svd_config))


def test_channel_pruning_narrows_the_layers_that_it_names(svd_config):
    widths = {
        "down_blocks.1.resnets.0.spatial_res_block.conv1": (7, 320),
        "mid_block.attentions.0.proj_in": (3, 3),
        "up_blocks.3.attentions.2.proj_in": (3, 3),
        "conv_in": (3, 8),
    }
    sketch = sketch_network(svd_config, ChannelPruningPlan("narrow", widths, {"down_blocks.0": (0, 1)}))
    narrowed = {(stage.name, layer.name) for stage in sketch.stages for layer in stage.layers if layer.state != "kept"}
    assert narrowed == {("D.1", "R.0"), ("M", "A.0"), ("U.3", "A.2")}


def test_a_decoder_loses_layers_and_channels():
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    config = dict(vae.config)
    stages = {stage.name: stage for stage in sketch_network(config, DECODER_PLANS["p1"]).stages}
    assert states(stages["M"]) == {"R.0": "kept", "A.0": "removed", "R.1": "removed"}
    assert set(states(stages["U.0"]).values()) == {"kept"} and set(states(stages["U.1"]).values()) == {"narrowed"}
    assert states(stages["U.3"]) == {"R.0": "narrowed", "R.1": "removed", "R.2": "removed"}
    whole = sketch_network(config, DecoderPruningPlan.keep_everything(config))
    assert whole.count("kept") == 3 + 4 * 3 and whole.count("removed") == 0


def test_the_paper_s_counts_of_hunyuan_video():
    plan = PLANS["vdmini_hy"]
    sizes = {"transformer_blocks": 20, "single_transformer_blocks": 40}
    gone = {f"{name}.{i}": 10 for name, size in sizes.items() for i in range(size) if i not in plan.blocks[name]}
    dual, single = sketch_network({}, plan, gone).stages
    assert (dual.name, len(dual.layers), dual.num_removed) == ("transformer_blocks", 20, 80)
    assert [layer.state for layer in single.layers].count("kept") == 28
    assert [int(layer.name) for layer in single.layers if layer.state == "kept"] == list(plan.blocks[single.name])


def test_a_network_of_which_no_plan_removes_anything_is_not_drawn():
    assert sketch_network({"_class_name": "CLIPVisionModel"}) is None
    assert sketch_network({}) is None
