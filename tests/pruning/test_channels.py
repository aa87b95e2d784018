"""Channel pruning gives slices of the decoder, coupled channels together, and a module that its config describes."""

import sys

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from tiny import VAE_CLASSES, decode, randomise, tiny_decoder_plans, tiny_latents, tiny_teacher_vae
from torch import nn

from vdmini_diffusers.pruning import DecoderPruningPlan
from vdmini_diffusers.pruning.channels import empty_decoder, prune_channels, without_layers
from vdmini_diffusers.pruning.shortcuts import fold_shortcut


CASES = [(kind, name) for kind in VAE_CLASSES for name in ("folds", "keeps")]


class Case:
    """A tiny stock VAE, a plan for it, and its decoder without the layers that go."""

    def __init__(self, kind, name):
        self.kind, self.plan = kind, tiny_decoder_plans(kind)[name]
        self.vae = tiny_teacher_vae(kind)
        self.arguments = (type(self.vae).__name__, dict(self.vae.config))
        self.decoder = without_layers(self.plan, *self.arguments, self.vae.state_dict())

    def target(self, plan=None):
        return empty_decoder(plan or self.plan, *self.arguments)

    def student(self, decoder, plan=None):
        """A VAE of our class with that decoder, loaded strictly."""
        config = (plan or self.plan).student_config(self.arguments[1])
        student = VAE_CLASSES[self.kind][1](**{k: v for k, v in config.items() if not k.startswith("_")}).eval()
        tensors = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
        tensors |= {name: t for name, t in self.vae.state_dict().items() if not name.startswith("decoder.")}
        student.load_state_dict(tensors)
        return student

    def run(self, decoder):
        """The decoder in the place of the stock VAE's."""
        original, self.vae.decoder = self.vae.decoder, decoder
        try:
            with torch.no_grad():
                return decode(self.vae, tiny_latents())
        finally:
            self.vae.decoder = original


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return Case(*request.param)


def test_the_pruned_module_and_the_one_its_config_describes_compute_the_same(case):
    channels = prune_channels(case.decoder, case.target())
    expected = case.run(case.decoder)
    assert expected.isfinite().all() and expected.std() > 0.01
    with torch.no_grad():
        actual = decode(case.student(case.decoder), tiny_latents())
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert channels


def test_every_tensor_is_a_slice_of_what_was_there(case):
    before = {name: tensor.clone() for name, tensor in case.decoder.state_dict().items()}
    kept_of = {
        layer: torch.tensor(channels.kept)
        for channels in prune_channels(case.decoder, case.target())
        for layer in channels.layers
    }
    for name, after in case.decoder.state_dict().items():
        layer = name.rpartition(".")[0]
        sliced = before[name]
        if layer in kept_of:
            sliced = sliced[kept_of[layer]]
        dim = 1 if sliced.ndim > 1 else 0
        if sliced.shape == after.shape:
            assert torch.equal(after, sliced), name
        else:  # a norm, or the input side of a layer: the channels are those of one of the coupled sets
            candidates = [kept for kept in kept_of.values() if kept.max() < sliced.shape[dim]]
            assert any(torch.equal(after, sliced.index_select(dim, kept)) for kept in candidates), name


def test_coupled_channels_share_one_index_set_within_each_group_of_the_norms(case):
    channels = prune_channels(case.decoder, case.target())
    layers = [layer for one in channels for layer in one.layers]
    assert len(layers) == len(set(layers))
    num_groups = {"temporal": 32, "image": 8}[case.kind]
    wide = case.target(case.plan.only_layers(case.arguments[1]))
    for one in channels:
        width = wide.get_submodule(one.layers[0]).weight.shape[0]
        assert list(one.kept) == sorted(set(one.kept))
        if "attentions" not in one.layers[0] or len(one.layers) > 3:  # inside attention there is no norm
            counts = torch.bincount(torch.tensor(one.kept) * num_groups // width, minlength=num_groups)
            assert len(set(counts.tolist())) == 1
    streams = {"up_blocks.1.upsamplers.0.conv", "up_blocks.2.resnets.0.conv2"}
    if case.kind == "image":
        assert any(streams <= set(one.layers) for one in channels) == (case.plan.name == "folds")


def test_the_least_important_channels_go():
    case = Case("image", "folds")
    block = case.decoder.get_submodule("up_blocks.1.resnets.0")
    best = [4 * group + (group + i) % 4 for group in range(8) for i in range(3)]  # three of four in each group
    with torch.no_grad():
        block.conv1.weight[best] *= 100
    channels = prune_channels(case.decoder, case.target())
    (chosen,) = [one.kept for one in channels if one.layers == ("up_blocks.1.resnets.0.conv1",)]
    assert chosen == tuple(sorted(best))


@pytest.mark.parametrize("kind", VAE_CLASSES)
def test_a_plan_that_keeps_everything_changes_nothing(kind):
    case = Case(kind, "folds")
    whole = DecoderPruningPlan.keep_everything(case.arguments[1])
    decoder = without_layers(whole, *case.arguments, case.vae.state_dict())
    channels = prune_channels(decoder, case.target(whole))
    assert all(list(one.kept) == list(range(len(one.kept))) for one in channels)
    tensors = case.vae.decoder.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in decoder.state_dict().items())


def test_taylor_goes_by_the_gradients_of_all_losses():
    kept = {}
    for seeds in ((1,), (2,), (1, 2)):
        case = Case("image", "keeps")

        def losses(decoder, seeds=seeds):
            for seed in seeds:
                latents = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(seed))
                yield decoder(latents).square().mean() * 10**seed

        kept[seeds] = prune_channels(case.decoder, case.target(), "taylor", losses)
        assert all(parameter.grad is None for parameter in case.decoder.parameters())
        assert case.run(case.decoder).isfinite().all()
    l2 = Case("image", "keeps")
    assert len({*kept.values(), prune_channels(l2.decoder, l2.target())}) == 4


def test_pruning_is_reproducible(case):
    again = Case(case.kind, case.plan.name)
    assert prune_channels(case.decoder, case.target()) == prune_channels(again.decoder, again.target())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("l1",), "'l2' or 'taylor', not 'l1'"),
        (("taylor",), "needs `losses`"),
        (("l2", lambda decoder: ()), "needs `losses`"),
    ],
)
def test_an_importance_that_cannot_be_computed_is_refused(arguments, complaint):
    case = Case("image", "keeps")
    with pytest.raises(ValueError, match=complaint):
        prune_channels(case.decoder, case.target(), *arguments)


def test_without_torch_pruning_the_message_names_the_extra(monkeypatch):
    case = Case("image", "keeps")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match=r"pip install -e .*\[prune\]"):
        prune_channels(case.decoder, case.target())


class TestFoldedShortcuts:
    @pytest.fixture
    def wide(self):
        """Upsampler's convolution and ResBlock: 16 channels, and 8 after the shortcut, in 4 groups."""
        conv = nn.Conv2d(12, 16, 3, padding=1)
        block = ResnetBlock2D(in_channels=16, out_channels=8, temb_channels=None, groups=4)
        return randomise(conv, 1), randomise(block, 2)

    def folded(self, conv, block):
        tensors = {f"conv.{name}": tensor.clone() for name, tensor in conv.state_dict().items()}
        tensors |= {f"block.{name}": tensor.clone() for name, tensor in block.state_dict().items()}
        fold_shortcut(tensors, "conv", "block", 4)
        narrow = nn.Conv2d(12, 8, 3, padding=1)
        narrow_block = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=None, groups=4)
        nn.ModuleDict({"conv": narrow, "block": narrow_block}).load_state_dict(tensors)
        return narrow, narrow_block

    @torch.no_grad()
    def test_the_shortcut_s_path_is_exact(self, wide):
        conv, block = wide
        hidden_states = torch.randn(2, 12, 5, 6)
        narrow, _ = self.folded(conv, block)
        expected = block.conv_shortcut(conv(hidden_states))
        torch.testing.assert_close(narrow(hidden_states), expected, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_so_is_the_block_where_its_other_path_adds_nothing(self, wide):
        conv, block = wide
        nn.init.zeros_(block.conv2.weight)
        hidden_states = torch.randn(2, 12, 5, 6)
        narrow, narrow_block = self.folded(conv, block)
        expected = block(conv(hidden_states), None)
        torch.testing.assert_close(narrow_block(narrow(hidden_states), None), expected, rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_the_other_path_starts_from_what_it_did(self, wide):
        conv, block = wide
        nn.init.uniform_(block.norm1.weight, 0.5, 1.5)
        hidden_states = torch.randn(2, 12, 9, 9)
        narrow, narrow_block = self.folded(conv, block)

        def path(block, x):
            inner = block.conv1(block.nonlinearity(block.norm1(x)))[:, :, 1:-1, 1:-1]
            return (inner - inner.mean((0, 2, 3), keepdim=True)).flatten()

        similarity = nn.functional.cosine_similarity(
            path(block, conv(hidden_states)), path(narrow_block, narrow(hidden_states)), dim=0
        )
        assert similarity > 0.3  # of unrelated channels it would be about zero
