"""Whatever is done to a network after `optimize`, it computes what the stock one does to which the same was done."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.models.attention_processor import Attention, AttnProcessor
from test_rewrites import compressed_vae, image_unet, rewritten
from tiny import decode, randomise, student_of, tiny_latents, tiny_unet_inputs
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from vdmini_diffusers.inference import optimize, restore
from vdmini_diffusers.inference.conditions import is_inference
from vdmini_diffusers.pruning import VDMINI_UNET


pytestmark = pytest.mark.usefixtures("frames_of_any_size")


class DoubledConv2d(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


class DoubledConv3d(nn.Conv3d):
    def forward(self, input):
        return 2 * super().forward(input)


class Doubled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return 2 * self.inner(*args, **kwargs)


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def doubled_convolutions(network):
    """Convolutions of a user's own in the place of all."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            for cls in (DoubledConv2d, DoubledConv3d):
                stock = cls.__mro__[1]
                if isinstance(child, stock) and not isinstance(child, cls):
                    mine = cls(
                        child.in_channels,
                        child.out_channels,
                        child.kernel_size,
                        child.stride,
                        child.padding,
                        bias=child.bias is not None,
                    )
                    mine.load_state_dict(child.state_dict())
                    setattr(module, name, mine.to(child.weight.dtype))


def wrapped_values(network):
    """Linear layers that attention and the feed-forward call, inside of a module of a user's own."""
    for name, module in list(network.named_modules()):
        if name.endswith((".attn2.to_v", ".attn1.to_q", ".ff.net.2")):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Doubled(module))


def wrapped_norms(network):
    for name, module in list(network.named_modules()):
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, Doubled(module))


def parametrised_weights(network):
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            parametrize.register_parametrization(module, "weight", Half())


def other_forward(network):
    """A forward pass put in the place of the class's, as offloading does."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.LayerNorm)):
            module.forward = lambda x, forward=module.forward: forward(x) / 2


def hooks_that_change_outputs(network):
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            module.register_forward_hook(lambda module, args, output: output / 2)


def attention_of_another_scale(network):
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())  # torch's own attention does not ask the module for its scale
            module.scale *= 2


def other_mixing(network):
    for name, module in network.named_modules():
        if name.endswith("time_mixer"):
            module.mix_factor.data.fill_(0.3)


def removed_norms(network):
    for module in network.modules():
        if hasattr(module, "norm1"):
            module.norm1 = nn.Identity()


def other_activations(network):
    for module in network.modules():
        if hasattr(module, "nonlinearity"):
            module.nonlinearity = nn.GELU()


def other_scale(network):
    for module in network.modules():
        if hasattr(module, "output_scale_factor"):
            module.output_scale_factor = 2.0


class Exchanged(nn.Module):
    """A blend of a user's own."""

    def forward(self, x_spatial, x_temporal, image_only_indicator=None):
        return 0.25 * x_spatial + 0.5 * x_temporal


def other_temporal_parts(network):
    for module in list(network.modules()):
        if hasattr(module, "time_mixer"):
            module.time_mixer = Exchanged()
        if hasattr(module, "temporal_res_block"):
            module.temporal_res_block = Doubled(module.temporal_res_block)


def other_direction_of_the_blend(network):
    for module in network.modules():
        if hasattr(module, "switch_spatial_to_temporal_mix"):
            module.switch_spatial_to_temporal_mix = not module.switch_spatial_to_temporal_mix


def one_more_block(network):
    """A block from elsewhere, stock, among rewritten ones."""
    other = randomise(compressed_vae() if hasattr(network, "decoder") else image_unet(), 5)
    other.to(next(network.parameters()).dtype)
    place = "decoder.up_blocks.1.resnets.0" if hasattr(network, "decoder") else "up_blocks.1.attentions.0"
    parent, _, child = place.rpartition(".")
    network.get_submodule(parent)[int(child)] = other.get_submodule(place)


def run(network):
    dtype = next(network.parameters()).dtype
    if hasattr(network, "decoder"):
        return decode(network, tiny_latents(3, 5, 4).to(dtype))
    return network(*[x.to(dtype) for x in tiny_unet_inputs(frames=3)]).sample


CHANGES = [
    doubled_convolutions,
    wrapped_values,
    wrapped_norms,
    parametrised_weights,
    other_forward,
    hooks_that_change_outputs,
    attention_of_another_scale,
    other_mixing,
    removed_norms,
    other_activations,
    other_scale,
    other_temporal_parts,
    other_direction_of_the_blend,
    one_more_block,
]
QUICK = (wrapped_values, attention_of_another_scale, one_more_block)


@pytest.fixture(scope="module")
def networks():
    return {"u-net": image_unet().double(), "vae": compressed_vae().double()}


@pytest.mark.parametrize(
    "kind, change",
    [
        *(("vae", change) for change in CHANGES),
        *(("u-net", change) for change in QUICK),
        *(pytest.param("u-net", change, marks=pytest.mark.slow) for change in CHANGES if change not in QUICK),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@torch.no_grad()
def test_modules_replaced_later(kind, change, networks):
    stock, fast = (copy.deepcopy(networks[kind]) for _ in range(2))
    before = run(optimize(fast))
    for network in (stock, fast):
        change(network)
    expected = run(stock)
    torch.testing.assert_close(run(fast), expected, rtol=1e-11, atol=1e-11)
    same = kind == "vae" and change in (wrapped_values, attention_of_another_scale)  # which has no such layers
    assert torch.allclose(before, expected) == same


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("kind", ["u-net", "vae"])
@torch.no_grad()
def test_a_network_moved_to_another_dtype_later(kind, dtype, networks):
    stock, fast = (nn.Module.to(copy.deepcopy(networks[kind]), torch.float32) for _ in range(2))
    run(optimize(fast))
    stock, fast = (nn.Module.to(network, dtype) for network in (stock, fast))
    output, expected = run(fast), run(stock)
    assert output.dtype == dtype
    error = {torch.float64: 1e-11, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(output, expected, rtol=error, atol=error)


def test_training_on_an_optimised_network_changes_what_it_computes():
    networks = [image_unet(), optimize(image_unet())]
    with torch.no_grad():
        before = run(networks[1])
    for network in networks:
        network.train()
        network.enable_gradient_checkpointing()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
        for _ in range(2):
            run(network).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        network.eval()
    assert all(map(torch.equal, networks[0].parameters(), networks[1].parameters()))
    with torch.no_grad():
        expected, output = map(run, networks)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output, before, atol=1e-3)


@torch.no_grad()
def test_group_offloading_later_loads_what_is_called(networks):
    for kind, network in networks.items():
        fast = optimize(copy.deepcopy(network))
        expected = run(fast)
        cpu = torch.device("cpu")
        part = fast.decoder if kind == "vae" else fast
        apply_group_offloading(part, cpu, offload_type="leaf_level")
        torch.testing.assert_close(run(fast), expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_hooks_that_kept_a_rewritten_forward_pass_call_the_stock_one_after_restore(networks):
    stock, fast = networks["vae"], optimize(copy.deepcopy(networks["vae"]))
    apply_group_offloading(fast.decoder, torch.device("cpu"), offload_type="leaf_level")
    assert not torch.equal(run(fast), run(stock))
    assert torch.equal(run(restore(fast)), run(stock))


@pytest.mark.parametrize("kind", ["u-net", "vae"])
@torch.no_grad()  # as consistency distillation takes the derivative of a teacher in time
def test_derivatives_in_forward_mode_are_those_of_the_stock_network(kind, networks):
    stock = copy.deepcopy(networks[kind])
    if kind == "u-net":
        stock.set_attn_processor(AttnProcessor())  # torch's kernel of attention has no such derivative
    fast = optimize(copy.deepcopy(stock))
    if kind == "vae":
        inputs = (tiny_latents(2, 3, 4).double(),)
        calls = [lambda x, network=network: decode(network, x) for network in (stock, fast)]
    else:
        inputs = tuple(x.double() for x in tiny_unet_inputs(frames=2))
        calls = [lambda *x, network=network: network(*x).sample for network in (stock, fast)]
    along = tuple(torch.ones_like(x) for x in inputs)
    expected, output = (torch.func.jvp(call, inputs, along) for call in calls)
    assert all(map(torch.equal, output, expected))


@torch.no_grad()
def test_vmap_computes_as_before(networks):
    x = tiny_latents(2, 3, 4).double()[:, None]
    stock, fast = networks["vae"], optimize(copy.deepcopy(networks["vae"]))
    expected, output = (torch.func.vmap(lambda x, each=each: decode(each, x))(x) for each in (stock, fast))
    assert torch.equal(output, expected)


@torch.no_grad()
def test_active_dropout_after_cross_attention_drops_each_position_on_its_own(networks):
    outputs = []
    for network in (copy.deepcopy(networks["u-net"]), optimize(copy.deepcopy(networks["u-net"]))):
        for name, module in network.named_modules():
            if name.endswith("attn2.to_out.1"):
                module.p = 0.5
                module.train()
        torch.manual_seed(0)
        outputs.append(run(network))
    torch.testing.assert_close(*outputs, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_a_copy_that_is_restored_leaves_its_original_optimised(networks):
    fast = optimize(copy.deepcopy(networks["u-net"]))
    expected, other = run(fast), restore(copy.deepcopy(fast))
    assert rewritten(fast) and not rewritten(other)
    assert torch.equal(run(fast), expected)
    assert torch.equal(run(other), run(networks["u-net"]))


@torch.no_grad()
def test_hooks_of_all_modules_see_the_stock_ones(networks):
    outputs = []
    for network in (networks["u-net"], optimize(copy.deepcopy(networks["u-net"]))):
        handle = register_module_forward_hook(lambda module, args, y: y / 2 if isinstance(module, nn.Linear) else None)
        outputs.append(run(network))
        handle.remove()
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-11)
    assert not torch.allclose(outputs[0], run(networks["u-net"]))


@torch.no_grad()
def test_operations_are_counted_of_what_computes(networks):
    counted = []
    for network in (networks["vae"], optimize(copy.deepcopy(networks["vae"]))):
        with FlopCounterMode(display=False) as counter:  # whose hooks of all modules only note which one runs
            run(network)
        counted.append(counter.get_total_flops())
    assert counted[1] < 0.95 * counted[0]


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "mps", "xpu"])
@torch.no_grad()
def test_under_autocast_of_any_device_nothing_is_rewritten(device_type):
    assert is_inference()
    torch.set_autocast_enabled(device_type, True)
    try:
        assert not is_inference()
    finally:
        torch.set_autocast_enabled(device_type, False)


@torch.no_grad()
def test_once_hooks_are_removed_rewrites_compute_again(networks):
    fast = optimize(copy.deepcopy(networks["u-net"]))
    expected = run(fast)
    cpu_offload(fast, torch.device("cpu"))
    assert not torch.equal(run(fast), expected)
    remove_hook_from_module(fast, recurse=True)
    assert torch.equal(run(fast), expected)
    assert torch.equal(run(restore(fast)), run(networks["u-net"]))


class Counting(ModelHook):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("kind", [pytest.param("u-net", marks=pytest.mark.slow), "vae"])
@torch.no_grad()
def test_hooks_of_diffusers_are_called_as_often_as_in_the_stock_network(kind, networks):
    counts, outputs = [], []
    for first in (None, "optimize", "hooks"):
        network = copy.deepcopy(networks[kind])
        if first == "optimize":
            optimize(network)
        hooks = {name: Counting() for name, _ in network.named_modules() if name}
        for name, hook in hooks.items():
            module = network.get_submodule(name)
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "counting")
        if first == "hooks":
            optimize(network)
        outputs.append(run(network))
        counts.append({name: hook.calls for name, hook in hooks.items()})
    assert counts[0] == counts[1] == counts[2] and sum(counts[0].values()) > 50
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-11)


@torch.no_grad()
def test_restore_leaves_stock_classes_though_weights_were_parametrised_since(networks):
    stock, fast = copy.deepcopy(networks["vae"]), optimize(copy.deepcopy(networks["vae"]))
    for network in (stock, fast):
        parametrised_weights(network)
    assert torch.equal(run(restore(fast)), run(stock))
    for network in (stock, fast):
        for module in network.modules():
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight")
    assert torch.equal(run(fast), run(stock))
    assert [type(module) for module in fast.modules()] == [type(module) for module in stock.modules()]


@pytest.mark.slow
@torch.no_grad()
def test_restore_while_an_adapter_is_there_and_when_it_is_gone():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["to_v", "conv1", "conv", "proj"], init_lora_weights=False)
    stock, fast = student_of(image_unet(), VDMINI_UNET), optimize(student_of(image_unet(), VDMINI_UNET))
    for step in ("add", "fuse", "unfuse", "unload"):
        for network in (stock, fast):
            torch.manual_seed(0)
            if step == "add":
                network.add_adapter(config)
            else:
                getattr(network, f"{step}_lora")()
        assert torch.equal(run(restore(fast)), run(stock)), step
        states = [network.state_dict() for network in (stock, fast)]
        assert list(states[0]) == list(states[1]) and all(map(torch.equal, states[0].values(), states[1].values()))
        optimize(fast)


def test_what_is_neither_pipeline_nor_network_is_refused():
    for change in (optimize, restore):
        with pytest.raises(TypeError, match="Pass a pipeline of diffusers, or a network, but not dict"):
            change({"unet": image_unet()})
