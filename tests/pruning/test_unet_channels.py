"""A U-Net with fewer channels: what the dependency graph couples, the number of parameters, and reloading."""

import copy

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from tiny import TINY_UNET_CONFIG, TWO_STAGES, assert_close, in_own_memory, randomise, tiny_unet_inputs
from torch import nn

from vdmini_diffusers import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import ChannelPruningPlan, PruningPlan, PruningPlanError
from vdmini_diffusers.pruning.dependency_graph import build_graph, coupled_groups, make_importance, prune_group
from vdmini_diffusers.pruning.unet_channels import (
    CRITERIA,
    Criterion,
    count_parameters,
    layer_widths,
    prune_unet_channels,
    stage_channels,
)


# Two stages of different width, so that a shortcut, a sampler, skips and the groups of a norm across a seam are there.
CONFIG = {
    **TINY_UNET_CONFIG,
    **TWO_STAGES,
    "block_out_channels": (64, 128),
    "num_attention_heads": (4, 4),
}
INPUTS = tiny_unet_inputs(tokens=2)
ARGUMENTS = ("sample", "timestep", "encoder_hidden_states", "added_time_ids")


def unet() -> UNetSpatioTemporalConditionModel:
    return randomise(UNetSpatioTemporalConditionModel(**CONFIG)).eval()


WHOLE = {name: tensor.clone() for name, tensor in unet().state_dict().items()}


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(*INPUTS).sample


def reconstruction_losses(model: nn.Module):
    for seed in range(2):
        target = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        yield nn.functional.mse_loss(model(*INPUTS).sample, target)


def prune(model: nn.Module, criterion: Criterion, keep: float = 0.6):
    losses = reconstruction_losses if criterion.importance == "taylor" else None
    return prune_unet_channels(model, int(keep * count_parameters(model)), criterion, losses)


@pytest.fixture(scope="module")
def pruned():
    """A U-Net pruned in place, the sets of coupled channels, and the plan."""
    model = unet()
    coupled = prune(model, Criterion("l2", ranking="uniform"), keep=0.4)
    return model, coupled, ChannelPruningPlan("a", layer_widths(unet(), model), stage_channels(model, coupled))


def rebuilt(plan: ChannelPruningPlan, model: nn.Module) -> VDMiniUNetSpatioTemporalConditionModel:
    student = VDMiniUNetSpatioTemporalConditionModel.from_config(plan.student_config(unet().config))
    student.load_state_dict(model.state_dict())
    return student.eval()


class TestPruning:
    def test_it_meets_the_number_of_parameters(self, pruned):
        model, _, _ = pruned
        assert abs(count_parameters(model) / (0.4 * count_parameters(unet())) - 1) < 0.01
        assert output(model).shape == (1, 2, 4, 8, 8)

    def test_what_stays_is_a_slice_of_the_teacher(self, pruned):
        model, coupled, _ = pruned
        (kept,) = (channels.kept for channels in coupled if "conv_in" in channels.layers)
        assert len(kept) == 32 and torch.equal(model.conv_in.weight, WHOLE["conv_in.weight"][list(kept)])
        assert sorted(i // 2 for i in kept) == list(range(32))  # one of each group of the norms

    def test_norms_keep_their_groups_and_heads_their_width(self, pruned):
        model, coupled, _ = pruned
        for channels in coupled:
            if any("resnets" in layer and "conv" in layer for layer in channels.layers):
                assert len(channels.kept) % 32 == 0
        attentions = [module for module in model.modules() if hasattr(module, "to_q")]
        assert {module.to_q.out_features // module.heads for module in attentions} <= {16, 32}
        assert {module.heads for module in attentions} <= {1, 2, 3}
        assert all(len(channels.kept) % 8 == 0 for channels in coupled)

    def test_a_geglu_loses_the_same_channels_of_both_halves(self, pruned):
        _, coupled, _ = pruned
        gates = [channels for channels in coupled if channels.layers[0].endswith("net.0.proj")]
        assert gates
        for channels in gates:
            whole, half = len(WHOLE[f"{channels.layers[0]}.weight"]), len(channels.kept) // 2
            assert half < whole // 2
            assert [i + whole // 2 for i in channels.kept[:half]] == list(channels.kept[half:])


def test_coupled_channels_in_another_order_are_the_same_network():
    """The graph's claim: what it couples, and nothing else, reads and writes these channels.

    Neighbours are swapped. They are in one group of every norm, across the seams of concatenations as well, in one
    head, and in one half of a GEGLU.
    """
    model, before = unet(), output(unet())
    names = {module: name for name, module in model.named_modules()}
    graph = build_graph(model, dict(zip(ARGUMENTS, INPUTS, strict=True)))
    groups = coupled_groups(graph, [model.conv_out])
    moved = [(dep, sorted(set(indices))) for group in groups for dep, indices in group if dep.target.module in names]
    for dep, present in moved:
        dim = 0 if graph.is_out_channel_pruning_fn(dep.handler) else 1
        for parameter in (dep.target.module.weight, dep.target.module.bias):
            if parameter is not None and dim < parameter.ndim and not (dim == 1 and parameter.ndim == 1):
                order = torch.arange(parameter.shape[dim])
                order[present] = torch.tensor(present).unflatten(0, (-1, 2)).flip(1).flatten()
                parameter.data = parameter.data.index_select(dim, order)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, WHOLE[name])}
    assert len(groups) == 63 and len(changed) > 0.9 * len(WHOLE)
    assert_close(output(model), before)


@pytest.mark.slow
def test_it_is_what_torch_pruning_makes_in_place(pruned):
    """Group by group, by Torch-Pruning's own functions, which know nothing of the class with `layer_widths`."""
    model, coupled, _ = pruned
    in_place = unet()
    graph = build_graph(in_place, dict(zip(ARGUMENTS, INPUTS, strict=True)))
    roots = {group[0].dep.target.module: group[0].dep for group in coupled_groups(graph, [in_place.conv_out])}
    modules = dict(in_place.named_modules())
    for channels in coupled:
        (root,) = (roots[modules[layer]] for layer in channels.layers if modules[layer] in roots)
        prune_group(graph, root, sorted(set(range(len(root.target.module.weight))) - set(channels.kept)))
    for name, module in in_place.named_modules():
        if hasattr(module, "to_q"):
            module.heads = model.get_submodule(name).heads
        if hasattr(module, "use_conv"):  # samplers assert the width that they were built with
            module.channels = module.conv.in_channels
    assert all(torch.equal(tensor, in_place.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(output(in_place), output(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", CRITERIA)
def test_each_row_of_table_3_opens_as_it_was_pruned(name, tmp_path):
    model = unet()
    coupled = prune(model, CRITERIA[name])
    plan = ChannelPruningPlan(name, layer_widths(unet(), model), stage_channels(model, coupled))
    rebuilt(plan, model).save_pretrained(tmp_path, variant="fp32")
    opened = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(tmp_path, variant="fp32")
    assert torch.equal(output(in_own_memory(opened).eval()), output(model))


def test_it_opens_as_it_was_pruned(pruned, tmp_path):
    model, _, plan = pruned
    rebuilt(plan, model).save_pretrained(tmp_path, variant="fp32")
    opened = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(tmp_path, variant="fp32")
    assert torch.equal(output(in_own_memory(opened).eval()), output(model))


def test_it_opens_in_half_precision(pruned, tmp_path):
    model, _, plan = pruned
    rebuilt(plan, model).save_pretrained(tmp_path)
    opened = VDMiniUNetSpatioTemporalConditionModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        inputs = [value.bfloat16() for value in INPUTS]
        assert torch.equal(opened(*inputs).sample, half(*inputs).sample)


class TestCriteria:
    def test_the_first_layer_alone_or_the_mean_of_all_that_are_coupled(self):
        model = unet()
        graph = build_graph(model, dict(zip(ARGUMENTS, INPUTS, strict=True)))
        hidden = "down_blocks.0.resnets.0.spatial_res_block"
        block = model.get_submodule(hidden)
        (group,) = (g for g in coupled_groups(graph, [model.conv_out]) if g[0].dep.target.module is block.conv1)
        own = block.conv1.weight.square().sum(dim=(1, 2, 3))
        others = block.time_emb_proj.weight.square().sum(dim=1), block.conv2.weight.square().sum(dim=(0, 2, 3))
        assert_close(make_importance("l2", "first", None)(group), own)
        assert_close(make_importance("l2", "mean", None)(group), (own + sum(others)) / 3)

    def test_a_uniform_ratio_takes_the_same_share_of_all(self, pruned):
        _, coupled, _ = pruned
        sizes = [(len(channels.kept), len(WHOLE[f"{channels.layers[0]}.weight"])) for channels in coupled]
        shares = [kept / present for kept, present in sizes if present >= 256]  # others have few steps of 8 channels
        assert len(shares) > 10 and max(shares) - min(shares) < 0.05

    @pytest.mark.slow
    def test_several_iterations_meet_the_same_number(self):
        model = unet()
        prune(model, Criterion("l2", num_iterations=2))
        assert abs(count_parameters(model) / (0.6 * count_parameters(unet())) - 1) < 0.01

    def test_the_teacher_s_own_output_tells_nothing(self):
        """A control: Taylor's scores are zero there, so that the data's reconstruction is what they are taken of."""
        model = unet()
        target = output(model)
        nn.functional.mse_loss(model(*INPUTS).sample, target).backward()
        assert all(not parameter.grad.any() for parameter in model.parameters())


class TestBadInput:
    @pytest.mark.parametrize(
        ("criterion", "losses", "message"),
        [
            (Criterion("l1"), None, "`importance` of a criterion is one of"),
            (Criterion("l2", "all"), None, "`layers` of a criterion is one of"),
            (Criterion("l2", num_iterations=0), None, "`num_iterations` is at least 1"),
            (Criterion("taylor"), None, "'taylor', and no other, needs `losses`"),
            (Criterion("l2"), reconstruction_losses, "'taylor', and no other, needs `losses`"),
        ],
    )
    def test_criteria_that_do_not_exist(self, criterion, losses, message):
        with pytest.raises(ValueError, match=message):
            prune_unet_channels(unet(), 1000, criterion, losses)

    @pytest.mark.slow
    def test_a_number_that_cannot_be_reached_names_the_nearest(self):
        with pytest.raises(ValueError, match=r"the nearest that this criterion reaches is \d"):
            prune_unet_channels(unet(), 1000, CRITERIA["depgraph_l2"])

    @pytest.mark.slow
    def test_weights_that_are_not_finite(self):
        model = unet()
        model.conv_in.weight.data[3] = float("nan")
        with pytest.raises(FloatingPointError, match="conv_in"):
            prune(model, CRITERIA["depgraph_l2"])

    @pytest.mark.parametrize(
        ("widths", "message"),
        [
            ({"nowhere": [8, 8]}, "is no layer of this U-Net"),
            ({"down_blocks": [8]}, "is no layer of this U-Net"),
            ({"conv_in": [64]}, "must be 2 whole numbers"),
            ({"conv_in": [65, 8]}, "must be 2 whole numbers from 1 up to"),
            ({"conv_in": [0, 8]}, "must be 2 whole numbers"),
            ({"conv_in": [True, 8]}, "must be 2 whole numbers"),
            ({"conv_in": "64"}, "must be 2 whole numbers"),
            ({"conv_norm_out": [40]}, "a multiple of its 32 groups"),
            ({"down_blocks.0.attentions.0.transformer_blocks.0.attn1": [3]}, "heads are of equal width"),
            ([1], "`layer_widths` maps modules to widths"),
        ],
    )
    def test_widths_of_no_such_network(self, widths, message):
        config = {**CONFIG, "mid_block_type": "UNetMidBlockSpatioTemporal", "layer_widths": widths}
        with pytest.raises(ValueError, match=message):
            VDMiniUNetSpatioTemporalConditionModel(**config)


class TestPlan:
    def test_it_comes_back_from_json(self, pruned):
        _, _, plan = pruned
        assert PruningPlan.from_json_string(plan.to_json_string()) == plan

    def test_each_stage_is_compared_on_the_channels_that_it_kept(self, pruned):
        model, _, plan = pruned
        pairs = plan.feature_pairs(unet().config)
        names = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
        assert pairs == tuple((name, name) for name in names)
        shapes = {}
        for name in names:
            model.get_submodule(name).register_forward_hook(
                lambda module, args, out, name=name: shapes.update(
                    {name: (out[0] if isinstance(out, tuple) else out).shape[1]}
                )
            )
        output(model)
        assert shapes == {name: len(channels) for name, channels in plan.feature_channels.items()}

    @pytest.mark.parametrize("widths", [{"a": []}, {"a": [1, 2, 3]}, {"a": [0]}, {"a": ["1"]}, {1: [1]}, []])
    def test_malformed_widths(self, widths):
        with pytest.raises(PruningPlanError, match="`layer_widths` maps modules"):
            ChannelPruningPlan("a", widths, {"mid_block": (0,)})

    def test_a_stage_that_the_teacher_does_not_have(self):
        with pytest.raises(PruningPlanError, match="is no stage of the teacher"):
            ChannelPruningPlan("a", {}, {"down_blocks.7": (0,)}).student_config(unet().config)
