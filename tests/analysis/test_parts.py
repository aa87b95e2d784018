"""A denoiser without one of its parts: what it computes, and that it is afterwards what it was."""

import copy
import functools

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading
from tiny import output_of, randomise, student_of, tiny_teacher_unet
from tiny_text_to_video import tiny_t2v_inputs, tiny_t2v_teacher
from tiny_video_transformers import TRANSFORMERS, cut_by_hand, outputs, tiny_transformer
from torch import nn

from vdmini_diffusers.analysis.parts import removable_parts, removed
from vdmini_diffusers.pruning import VDMINI_UNET, UNetPruningPlan


class Passes(nn.Module):
    """What a hand puts in the place of a layer: its input, or its trained shortcut."""

    def __init__(self, shortcut=None, as_tuple=False):
        super().__init__()
        self.shortcut, self.as_tuple = shortcut, as_tuple

    def forward(self, hidden_states, *args, **kwargs):
        hidden_states = hidden_states if self.shortcut is None else self.shortcut(hidden_states)
        return (hidden_states,) if self.as_tuple else hidden_states


class OnlySpatial(nn.Module):
    """A spatio-temporal ResBlock of which only the spatial half is left, written out."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, temb, image_only_indicator):
        return self.block.spatial_res_block(hidden_states, temb)


class OnlyOneAttention(nn.Module):
    """A spatio-temporal attention with one of its two kinds of blocks, written out without mixing factors or hooks."""

    def __init__(self, block, kind):
        super().__init__()
        self.block, self.kind = block, kind

    def forward(self, hidden_states, encoder_hidden_states, image_only_indicator, return_dict):
        block, (num_images, channels, height, width) = self.block, hidden_states.shape
        num_frames = image_only_indicator.shape[-1]
        x = block.proj_in(block.norm(hidden_states).permute(0, 2, 3, 1).reshape(num_images, height * width, channels))
        if self.kind == "spatial":
            x = block.transformer_blocks[0](x, encoder_hidden_states=encoder_hidden_states)
        else:
            first = encoder_hidden_states.unflatten(0, (-1, num_frames))[:, 0]
            context = first[:, None].expand(-1, height * width, -1, -1).flatten(0, 1)
            frames = torch.arange(num_frames).repeat(num_images // num_frames)
            embedding = block.time_pos_embed(block.time_proj(frames))[:, None]
            temporal = block.temporal_transformer_blocks[0](
                x + embedding, num_frames=num_frames, encoder_hidden_states=context
            )
            alpha = block.time_mixer.mix_factor.sigmoid()
            x = alpha * x + (1 - alpha) * temporal
        x = block.proj_out(x).reshape(num_images, height, width, channels).permute(0, 3, 1, 2)
        return (x + hidden_states,)


@functools.cache
def teacher():
    return randomise(tiny_teacher_unet()).eval()


def i2v():
    return copy.deepcopy(teacher())


def run(unet):
    if hasattr(unet.down_blocks[0], "temp_convs"):
        with torch.no_grad():
            return unet(**tiny_t2v_inputs(unet)).sample
    return output_of(unet, frames=3, batch=2)


def same_as(unet, part, by_hand):
    """With the part removed, the output of `by_hand`, and afterwards its own."""
    parts, before, hooks = removable_parts(unet), run(unet), [m._forward_hooks.copy() for m in unet.modules()]
    names, forwards = list(unet.state_dict()), ["forward" in vars(module) for module in unet.modules()]
    with removed(unet, parts[part]):
        assert list(unet.state_dict()) == names
        without = run(unet)
    assert torch.equal(run(unet), before) and not torch.equal(without, before)
    assert [m._forward_hooks for m in unet.modules()] == hooks
    assert ["forward" in vars(module) for module in unet.modules()] == forwards
    expected = run(by_hand)
    torch.testing.assert_close(without, expected, rtol=0, atol=2e-6)
    return torch.equal(without, expected)


def test_parts_have_the_paper_s_names():
    i2v_parts, t2v_parts = removable_parts(i2v()), removable_parts(tiny_t2v_teacher())
    assert list(i2v_parts) == list(t2v_parts)
    assert {"D.1", "M", "U.3", "D.1.R.0.RB-S", "U.3.A.2.AB-T", "D.0.R-A.1"} <= i2v_parts.keys()
    assert "D.3.R-A.0" not in i2v_parts and i2v_parts["D.3"].modules == tuple(
        f"down_blocks.3.resnets.{i}" for i in range(2)
    )
    kinds = [part.kind for part in i2v_parts.values()]
    # SVD has 8 + 2 + 12 ResBlocks and 6 + 1 + 9 AttentionBlocks.
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"stage": 9, "layer": 15, "block": 22 + 16, "half": 2 * (22 + 16)}


@pytest.mark.parametrize("part", ["D.1.R.0", pytest.param("U.2.R.0", marks=pytest.mark.slow)])
def test_a_res_block_leaves_its_own_trained_shortcut(part):
    by_hand = i2v()
    stage, layer = int(part[2]), int(part[-1])
    resnets = (by_hand.down_blocks if part[0] == "D" else by_hand.up_blocks)[stage].resnets
    shortcut = resnets[layer].spatial_res_block.conv_shortcut
    # With widths of 32, 32, 64 and 64, D.1.R.0 keeps its width.
    assert (shortcut is None) == (part[0] == "D")
    resnets[layer] = Passes(shortcut)
    assert same_as(i2v(), part, by_hand)


def test_a_res_block_that_widens_leaves_its_shortcut():
    by_hand = i2v()
    resnets = by_hand.down_blocks[2].resnets
    resnets[0] = Passes(resnets[0].spatial_res_block.conv_shortcut)
    assert resnets[0].shortcut.weight.shape[:2] == (64, 32)
    assert same_as(i2v(), "D.2.R.0", by_hand)


def test_an_attention_block_leaves_its_input():
    by_hand = i2v()
    by_hand.up_blocks[1].attentions[2] = Passes(as_tuple=True)
    assert same_as(i2v(), "U.1.A.2", by_hand)


def test_the_spatial_half_of_a_res_block_leaves_its_shortcut_to_the_temporal_half():
    by_hand = i2v()
    block = by_hand.down_blocks[2].resnets[0]
    block.spatial_res_block = Passes(block.spatial_res_block.conv_shortcut)
    assert same_as(i2v(), "D.2.R.0.RB-S", by_hand)


def test_the_temporal_half_of_a_res_block_goes_with_its_blender():
    by_hand = i2v()
    resnets = by_hand.up_blocks[3].resnets
    resnets[1] = OnlySpatial(resnets[1])
    assert same_as(i2v(), "U.3.R.1.RB-T", by_hand)


@pytest.mark.parametrize(("half", "left"), [("AB-S", "temporal"), ("AB-T", "spatial")])
@pytest.mark.slow
def test_halves_of_an_attention_block(half, left):
    by_hand = i2v()
    attentions = by_hand.down_blocks[0].attentions
    attentions[1] = OnlyOneAttention(attentions[1], left)
    same_as(i2v(), f"D.0.A.1.{half}", by_hand)  # not bit-equal: the blender's sum is written in another order


@pytest.mark.parametrize("part", ["D.2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("U.1", "D.3"))])
def test_of_a_stage_all_layers_go_and_its_sampler_stays(part):
    by_hand = i2v()
    stage = (by_hand.down_blocks if part[0] == "D" else by_hand.up_blocks)[int(part[2])]
    for i, resnet in enumerate(stage.resnets):
        stage.resnets[i] = Passes(resnet.spatial_res_block.conv_shortcut)
    for i in range(len(getattr(stage, "attentions", ()))):
        stage.attentions[i] = Passes(as_tuple=True)
    assert same_as(i2v(), part, by_hand)


@pytest.mark.parametrize("make", [i2v, tiny_t2v_teacher])
def test_without_the_mid_block_it_is_the_plan_s_student(make):
    whole = UNetPruningPlan.keep_everything(make().config)
    student = student_of(make(), UNetPruningPlan("no mid", whole.down, False, whole.up))
    assert same_as(make(), "M", student)


@pytest.mark.parametrize(
    ("part", "lists"),
    [
        pytest.param("U.2.R.0", ("resnets", "temp_convs"), marks=pytest.mark.slow),
        pytest.param("D.2.A.1", ("attentions", "temp_attentions"), marks=pytest.mark.slow),
        pytest.param("D.1.R.0.RB-S", ("resnets",), marks=pytest.mark.slow),
        pytest.param("D.1.R.0.RB-T", ("temp_convs",), marks=pytest.mark.slow),
        pytest.param("U.2.A.0.AB-S", ("attentions",), marks=pytest.mark.slow),
        ("U.2.A.0.AB-T", ("temp_attentions",)),
        ("U.3.R-A.1", ("resnets", "temp_convs", "attentions", "temp_attentions")),
    ],
)
def test_parts_of_a_text_to_video_unet(part, lists):
    by_hand = tiny_t2v_teacher()
    letter, stage, _, layer = part.split(".")[:4]
    block = (by_hand.down_blocks if letter == "D" else by_hand.up_blocks)[int(stage)]
    for name in lists:
        module = getattr(block, name)[int(layer)]
        getattr(block, name)[int(layer)] = Passes(getattr(module, "conv_shortcut", None), "attentions" in name)
    assert same_as(tiny_t2v_teacher(), part, by_hand)


# One list, several lists, streams by their names, and blocks of other lists that are attached.
QUICK = {f"{name}Transformer3DModel" for name in ("Wan", "HunyuanVideo", "LTX2Video", "WanVACE", "ConsisID")}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in TRANSFORMERS
        if name != "LatteTransformer3DModel"  # its frame embedding: see the next test
    ],
)
def test_a_transformer_without_blocks_is_the_one_whose_blocks_were_deleted(name):
    tiny = TRANSFORMERS[name]
    kept, transformer = tiny.kept, tiny_transformer(name)
    gone = [
        part
        for part in removable_parts(transformer).values()
        if part.kind == "block" and int(part.name.split(".")[1]) not in kept[part.name.split(".")[0]]
    ]
    assert gone
    before = outputs(transformer, tiny)
    with removed(transformer, *gone):
        without = outputs(transformer, tiny)
    by_hand = outputs(cut_by_hand(tiny_transformer(name), tiny), tiny)
    assert all(map(torch.equal, without, by_hand)) and len(without) == len(by_hand)
    assert not all(map(torch.equal, without, before))
    assert all(map(torch.equal, outputs(transformer, tiny), before))


def test_latte_without_its_last_pair_of_blocks():
    """It adds its frame embedding between the first two: there it stays without them, and in a student it moves."""
    tiny = TRANSFORMERS["LatteTransformer3DModel"]
    transformer, by_hand = (tiny_transformer("LatteTransformer3DModel") for _ in range(2))
    for name in ("transformer_blocks", "temporal_transformer_blocks"):
        setattr(by_hand, name, nn.ModuleList([*getattr(by_hand, name)][:-1]))
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}"
    with removed(transformer, removable_parts(transformer)[last]):
        without = outputs(transformer, tiny)
    assert all(map(torch.equal, without, outputs(by_hand, tiny)))


def test_a_stream_is_passed_on_and_the_other_is_computed():
    name = "HunyuanVideoTransformer3DModel"
    tiny, transformer, by_hand = TRANSFORMERS[name], tiny_transformer(name), tiny_transformer(name)
    block = by_hand.transformer_blocks[1]
    compute = block.forward
    block.forward = lambda hidden_states, encoder_hidden_states, *args, **kwargs: (
        compute(hidden_states, encoder_hidden_states, *args, **kwargs)[0],
        encoder_hidden_states,
    )
    parts = removable_parts(transformer)
    with removed(transformer, parts["transformer_blocks.1[text]"]):
        without_text = outputs(transformer, tiny)
    assert all(map(torch.equal, without_text, outputs(by_hand, tiny)))
    # Without both streams nothing of the block is left.
    with removed(transformer, parts["transformer_blocks.1[text]"], parts["transformer_blocks.1[video]"]):
        without_both = outputs(transformer, tiny)
    with removed(transformer, parts["transformer_blocks.1"]):
        assert all(map(torch.equal, outputs(transformer, tiny), without_both))


def test_blocks_that_no_plan_removes_are_no_parts():
    mochi = removable_parts(tiny_transformer("MochiTransformer3DModel"))
    last = len(tiny_transformer("MochiTransformer3DModel").transformer_blocks) - 1
    assert f"transformer_blocks.{last}" not in mochi and f"transformer_blocks.{last - 1}" in mochi
    # The first block of VACE's control stands beside `blocks.0`, which stays with it.
    assert "blocks.0" not in removable_parts(tiny_transformer("WanVACETransformer3DModel"))


@pytest.mark.parametrize("offload", ["accelerate", "groups"])
@pytest.mark.parametrize("part", ["D.2.R.0", pytest.param("U.3.A.2.AB-T", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_hooks_of_offloading_stay_and_work(part, offload):
    plain = i2v()
    offloaded = copy.deepcopy(plain)
    if offload == "accelerate":
        cpu_offload(offloaded, torch.device("cpu"), offload_buffers=True)
        assert next(offloaded.parameters()).is_meta
    else:
        onload = torch.device("cpu")
        apply_group_offloading(offloaded, onload, offload_type="block_level", num_blocks_per_group=1)
    parts = removable_parts(plain)
    with removed(plain, parts[part]):
        expected = run(plain)
    with removed(offloaded, removable_parts(offloaded)[part]):
        assert torch.equal(run(offloaded), expected)
    assert torch.equal(run(offloaded), run(plain))


def test_group_offloading_of_a_transformer_runs_its_hooks_for_a_removed_block():
    tiny = TRANSFORMERS["WanTransformer3DModel"]
    plain, offloaded = (tiny_transformer("WanTransformer3DModel") for _ in range(2))
    apply_group_offloading(offloaded, torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    part = removable_parts(offloaded)["blocks.1"]
    seen = []
    reference = offloaded.blocks[1]._diffusers_hook._fn_refs[0]
    original = reference.pre_forward
    reference.pre_forward = lambda *args, **kwargs: seen.append(1) or original(*args, **kwargs)
    with removed(plain, part):
        expected = outputs(plain, tiny)
    with removed(offloaded, part):
        assert all(map(torch.equal, outputs(offloaded, tiny), expected))
    assert seen


def test_the_denoiser_is_restored_after_an_error():
    unet = i2v()
    before = run(unet)
    with pytest.raises(KeyError, match="stop"), removed(unet, removable_parts(unet)["D.1"]):
        raise KeyError("stop")
    assert torch.equal(run(unet), before)


def test_a_network_of_another_kind_has_no_parts():
    with pytest.raises(ValueError, match="A Linear has no parts that can be removed"):
        removable_parts(nn.Linear(2, 2))


def test_a_student_without_its_mid_block_has_the_parts_that_are_left():
    student = student_of(tiny_teacher_unet(), VDMINI_UNET)
    parts = removable_parts(student)
    assert "M" not in parts and {part.name for part in parts.values() if part.kind == "stage"} == {
        *("D.0", "D.1", "D.2", "U.0", "U.1", "U.2")
    }
