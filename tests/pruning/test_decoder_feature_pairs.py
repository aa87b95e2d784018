"""Pairs of stages say the same, channel by channel: exactly so where nothing but channels at the end was pruned."""

import json
import shutil

import pytest
import torch
from tiny import VAE_CLASSES, tiny_decoder_plans, tiny_latents, tiny_teacher_vae

from vdmini_diffusers.data.vae_clips import decode_clips
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.pruning import DecoderPruningPlan, PruningPlanError
from vdmini_diffusers.pruning.channels import empty_decoder, prune_channels, without_layers
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder
from vdmini_diffusers.pruning.vae_folder import find_vae, read_decoder_plan


CASES = [(kind, name) for kind in VAE_CLASSES for name in ("folds", "keeps")]


def pruned(kind, plan):
    """Teacher, decoder pruned by the plan, and the pairs."""
    teacher = tiny_teacher_vae(kind)
    arguments = (type(teacher).__name__, dict(teacher.config))
    decoder = without_layers(plan, *arguments, teacher.state_dict())
    coupled = prune_channels(decoder, empty_decoder(plan, *arguments))
    return teacher, decoder.eval(), plan.stage_pairs(teacher.config, coupled)


def features(teacher, decoder, pairs):
    latents = tiny_latents(frames=3)[None]
    taps = FeatureTaps(decoder, [p[0] for p in pairs]), FeatureTaps(teacher.decoder, [p[1] for p in pairs])
    with torch.no_grad(), taps[0] as ours, taps[1] as theirs:
        decode_clips(decoder, latents)
        decode_clips(teacher.decoder, latents)
    return ours, theirs


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_pair_s_features_have_one_shape_at_every_stage(kind, name):
    teacher, decoder, pairs = pruned(kind, tiny_decoder_plans(kind)[name])
    assert [student for student, _, _ in pairs] == ["mid_block", *(f"up_blocks.{i}" for i in range(4))]
    shortcuts = [source for _, source, _ in pairs if source.endswith("conv_shortcut")]
    assert len(shortcuts) == {"folds": 2, "keeps": 0}[name]
    ours, theirs = features(teacher, decoder, pairs)
    for student, source, kept in pairs:
        assert ours[student].shape == theirs[source][:, list(kept)].shape


@pytest.mark.parametrize("kind", VAE_CLASSES)
def test_where_all_is_kept_the_features_are_equal(kind):
    plan = DecoderPruningPlan.keep_everything(tiny_teacher_vae(kind).config)
    ours, theirs = features(*(parts := pruned(kind, plan)))
    for student, source, kept in parts[2]:
        torch.testing.assert_close(ours[student], theirs[source][:, list(kept)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", VAE_CLASSES)
def test_the_kept_channels_of_a_first_stage_that_lost_nothing_before_it_equal_the_teacher_s(kind):
    # Only the first upsampler's outputs are pruned: what remains of them is bit for bit computed as before.
    config = tiny_teacher_vae(kind).config
    whole, n = DecoderPruningPlan.keep_everything(config), {"temporal": 32, "image": 8}[kind]
    plan = type(whole)(
        "narrow-later",
        whole.mid,
        whole.keep_mid_attention,
        whole.up,
        (whole.widths[0], 3 * n, 2 * n, n),
        (3 * n, 3 * n, 2 * n),
    )
    teacher, decoder, pairs = pruned(kind, plan)
    ours, theirs = features(teacher, decoder, pairs)
    student, source, kept = pairs[1]
    assert len(kept) == 3 * n and source == "up_blocks.0"
    torch.testing.assert_close(ours[student], theirs[source][:, list(kept)], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours[student], theirs[source][:, : 3 * n], atol=1e-3)  # the choice matters


@pytest.mark.parametrize("kind", VAE_CLASSES)
def test_folded_shortcuts_answer_to_the_teacher_s_shortcut(kind):
    # With layers removed and shortcuts folded, but no channel pruned, the first folded upsampler is exact.
    teacher = tiny_teacher_vae(kind)
    plan = tiny_decoder_plans(kind)["folds"].only_layers(teacher.config)
    whole = DecoderPruningPlan.keep_everything(teacher.config)
    up = {**whole.up, 3: (0,)}
    plan = type(plan)("folded", whole.mid, whole.keep_mid_attention, up, plan.widths, plan.upsampler_widths)
    teacher, decoder, pairs = pruned(kind, plan)
    ours, theirs = features(teacher, decoder, pairs)
    student, source, kept = next(pair for pair in pairs if pair[1].endswith("conv_shortcut"))
    torch.testing.assert_close(ours[student], theirs[source][:, list(kept)], rtol=1e-4, atol=1e-5)


def test_pairs_are_read_from_a_pruned_vae_s_folder(tmp_path):
    teacher, plan = tiny_teacher_vae("image"), tiny_decoder_plans("image")["folds"]
    teacher.save_pretrained(tmp_path / "pipeline" / "vae")
    student = prune_vae_decoder(tmp_path / "pipeline", tmp_path / "student", plan=plan)
    source = find_vae(str(student))
    assert (source.subfolder, source.class_name) == (None, "VDMiniAutoencoderKL")
    read, coupled = read_decoder_plan(source.companions(), str(student))
    assert read == plan
    assert read.stage_pairs(teacher.config, coupled) == pruned("image", plan)[2]
    assert find_vae(str(tmp_path / "pipeline")).subfolder == "vae"

    sets = json.loads((student / "pruning_channels.json").read_text())
    other = shutil.copytree(student, tmp_path / "other")
    (other / "pruning_channels.json").write_text(json.dumps([{**found, "kept": found["kept"][1:]} for found in sets]))
    with pytest.raises(ValueError, match="not of the same pruning"):
        plan.stage_pairs(teacher.config, read_decoder_plan(find_vae(str(other)).companions(), "other")[1])
    (other / "pruning_channels.json").write_text('{"layers": 3}')
    with pytest.raises(ValueError, match="does not list sets of channels"):
        read_decoder_plan(find_vae(str(other)).companions(), "other")
    (other / "pruning_channels.json").unlink()
    with pytest.raises(ValueError, match=r"has no pruning_channels\.json"):
        read_decoder_plan(find_vae(str(other)).companions(), "other")
    with pytest.raises(PruningPlanError):
        plan.stage_pairs({**teacher.config, "block_out_channels": (8, 8, 8, 8)}, coupled)


def test_a_folder_without_a_vae_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a VAE nor a pipeline"):
        find_vae(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a 'UNet2DModel'"):
        find_vae(str(tmp_path))
