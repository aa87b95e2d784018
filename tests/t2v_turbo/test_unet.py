"""The original U-Net's tensors, renamed, compute what the original's description says."""

import pytest
import torch
from accelerate import init_empty_weights
from drawn_weights import DrawnWeights
from original_unet import GROUPS, unet

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError, convert_tensors
from vdmini_diffusers.t2v_turbo.unet import original_unet_key, unet_config


KINDS = {
    "VideoCrafter2": (),
    "T2V-Turbo": ("guidance",),
    "T2V-Turbo-v2": ("guidance", "motion"),
}


def drawn_inputs(kind, size=16):
    """Two samples, each with its own conditions. At 16 pixels the mid block has four tokens: with one, attention there
    would not depend on its queries and keys."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "latents": normal(2, 4, 3, size, size),
        "timesteps": torch.tensor([999, 459]),
        "context": normal(2, 5, 24),
        "fps": torch.tensor([8, 24]),
    }
    return inputs | {name: normal(2, 12) for name in KINDS[kind]}


def ours(model, inputs):
    return model(
        inputs["latents"],
        inputs["timesteps"],
        inputs["context"],
        fps=inputs["fps"],
        timestep_cond=inputs.get("guidance"),
        motion_cond=inputs.get("motion"),
    ).sample


def converted_model(tensors):
    config = unet_config(tensors) | {"norm_num_groups": GROUPS}  # the original's is 32, as is our default
    model = VDMiniUNet3DConditionModel(**config).double().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(convert_tensors(tensors, shapes, original_unet_key, network="U-Net"))
    return model


@pytest.mark.parametrize("kind", ["VideoCrafter2", "T2V-Turbo"])
@torch.no_grad()
def test_the_converted_u_net_computes_what_the_original_computes(kind):
    inputs, weights = drawn_inputs(kind, size=8), DrawnWeights()
    expected = unet(weights, **inputs)
    output = ours(converted_model(weights), inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


def test_output_and_gradients_of_all_1487_tensors_equal_the_original_s():
    # A gradient that is not zero says that changing the tensor changes the output; equal ones that it has its place.
    inputs, weights = drawn_inputs("T2V-Turbo-v2"), DrawnWeights()
    with torch.no_grad():
        unet(weights, **drawn_inputs("T2V-Turbo-v2", size=8))  # draws them
    assert len(weights) == 1487
    model = converted_model(weights)
    for tensor in weights.values():
        tensor.requires_grad_()
    expected, output = unet(weights, **inputs), ours(model, inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    for result in (expected, output):
        result.square().mean().backward()
    originals = {name: original_unet_key(name).key for name, _ in model.named_parameters()}
    assert sorted(originals.values()) == sorted(weights)
    for name, parameter in model.named_parameters():
        gradient = weights[originals[name]].grad
        assert gradient.any(), name
        error = (parameter.grad - gradient.reshape(parameter.shape)).abs().max()
        assert error <= 1e-9 * gradient.abs().max() + 1e-14, name


def test_two_tensors_swapped_are_noticed():
    # A control of the comparison: of equal shapes, in the same layer.
    inputs, weights = drawn_inputs("VideoCrafter2", size=8), DrawnWeights()
    with torch.no_grad():
        expected = unet(weights, **inputs)
        first, second = (f"output_blocks.8.2.transformer_blocks.0.attn{i}.to_q.weight" for i in (1, 2))
        weights[first], weights[second] = weights[second], weights[first]
        assert (ours(converted_model(weights), inputs) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("conditions", "num_tensors"),
    [
        ({"time_cond_proj_dim": None, "motion_cond_proj_dim": None}, 1484),
        ({"motion_cond_proj_dim": None}, 1485),
        ({}, 1487),
    ],
    ids=KINDS,
)
def test_at_full_size_the_config_is_known_from_the_shapes(conditions, num_tensors):
    with init_empty_weights():
        model = VDMiniUNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            mid_block_type="UNetMidBlock3DCrossAttn",
            **conditions,
        )
    tensors = {original_unet_key(name).key: tensor for name, tensor in model.state_dict().items()}
    assert len(tensors) == num_tensors
    config = unet_config(tensors)
    assert config == {name: model.config[name] for name in config}


@pytest.fixture(scope="module")
def originals():
    weights = DrawnWeights()
    with torch.no_grad():
        unet(weights, **drawn_inputs("VideoCrafter2", size=8))
    return dict(weights)


def test_missing_and_unknown_tensors_are_all_listed(originals):
    tensors = dict(originals)
    for name in ("out.2.bias", "middle_block.3.in_layers.0.weight"):
        del tensors[name]
    tensors["motion_projection.weight"] = torch.zeros(1)
    with pytest.raises(OriginalCheckpointError) as error:
        converted_model(tensors)
    assert "2 missing: middle_block.3.in_layers.0.weight, out.2.bias" in str(error.value)
    assert "1 unknown: motion_projection.weight" in str(error.value)


def test_a_tensor_of_another_shape_is_named(originals):
    tensors = {**originals, "input_blocks.3.0.op.weight": torch.zeros(16, 16, 3, 1)}
    with pytest.raises(OriginalCheckpointError, match=r"input_blocks\.3\.0\.op\.weight has \[16, 16, 3, 1\]"):
        converted_model(tensors)


def test_a_tensor_of_whole_numbers_is_named(originals):
    tensors = {**originals, "out.2.bias": torch.zeros(4, dtype=torch.int8)}
    with pytest.raises(OriginalCheckpointError, match=r"out\.2\.bias is torch\.int8, expected floating point"):
        converted_model(tensors)


def test_a_tensor_without_the_axis_that_is_a_size_is_named():
    with pytest.raises(OriginalCheckpointError, match=r"'input_blocks\.0\.0\.weight' has the shape \[320\]"):
        unet_config({"input_blocks.0.0.weight": torch.zeros(320)})


def test_something_else_is_no_u_net():
    with pytest.raises(OriginalCheckpointError, match="no U-Net of VideoCrafter2 or T2V-Turbo: it has no 'input_bl"):
        unet_config({"conv_in.weight": torch.zeros(320, 4, 3, 3)})
