"""Plans that are applied, against a forward pass by hand; removed, saved and loaded."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL
from tiny import in_own_memory, tiny_image, tiny_svd_pipeline
from tiny_temporal_attention import DENOISERS, run, whole_maps
from tiny_text_to_video import tiny_t2v_pipeline
from tiny_wan import tiny_wan_pipeline

from vdmini_diffusers.analysis.f3 import (
    F3Error,
    F3Plan,
    applied_f3_plan,
    apply_f3,
    load_f3,
    remove_f3,
    save_f3_plan,
    temporal_layers,
)
from vdmini_diffusers.analysis.f3.layers import attention_class


def plan_for(model, alpha=0.5, part="attention", scores=None):
    scores = scores or dict.fromkeys(temporal_layers(model), 0.25)
    unit = "layer" if set(scores) == set(temporal_layers(model)) else "step"
    return F3Plan.from_scores(attention_class(model), scores, alpha, unit, part, order="random", seed=1)


@pytest.mark.parametrize("name", DENOISERS)
def test_pruned_layers_attend_within_frames_and_removing_restores_every_bit(name, monkeypatch):
    make, inputs, text = DENOISERS[name]
    model, inputs = make(), inputs(500.0)
    plain, names = run(model, inputs), list(model.state_dict())
    plan = plan_for(model)
    assert 0 < len(plan.pruned) < len(plan.scores)
    with whole_maps(model, text, monkeypatch, within_frames=plan.pruned):
        expected = run(model, inputs)
    apply_f3(model, plan)
    assert applied_f3_plan(model) == plan and list(model.state_dict()) == names
    pruned = run(model, inputs)
    torch.testing.assert_close(pruned, expected, rtol=1e-4, atol=1e-5)
    assert (pruned - plain).abs().max() > 1e-3 * plain.abs().max()
    with pytest.raises(F3Error, match="applied to this model already"):
        apply_f3(model, plan)
    remove_f3(model)
    assert torch.equal(run(model, inputs), plain) and applied_f3_plan(model) is None
    remove_f3(model)
    apply_f3(model, plan_for(model, alpha=0.0))
    assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize("name", ["svd", pytest.param("i2v student", marks=pytest.mark.slow), "t2v student"])
def test_without_temporal_blocks_the_stream_of_single_frames_is_left(name):
    make, inputs, _ = DENOISERS[name]
    model, by_hand, inputs = make(), make(), inputs(500.0)
    plain = run(model, inputs)
    plan = plan_for(model, part="block")
    with torch.no_grad():
        for layer in map(by_hand.get_submodule, plan.pruned):
            if hasattr(layer, "time_mixer"):
                layer.time_mixer.mix_factor.fill_(1e4)  # its sigmoid is 1: all of the spatial stream
            else:
                layer.proj_out.weight.zero_()  # what a residual branch adds
                layer.proj_out.bias.zero_()
    apply_f3(model, plan)
    torch.testing.assert_close(run(model, inputs), run(by_hand, inputs), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(run(by_hand, inputs), plain, rtol=1e-3)
    remove_f3(model)
    assert torch.equal(run(model, inputs), plain)


def test_where_all_temporal_attention_is_pruned_no_frame_sees_another_one():
    make, inputs, _ = DENOISERS["wan"]
    model, inputs = make(), inputs(500.0)
    apply_f3(model, plan_for(model, alpha=1.0))
    changed = inputs | {"hidden_states": inputs["hidden_states"].clone()}
    changed["hidden_states"][:, :, 0] += 1
    before, after = run(model, inputs), run(model, changed)
    assert torch.equal(before[:, :, 1:], after[:, :, 1:]) and not torch.equal(before[:, :, 0], after[:, :, 0])


@pytest.mark.parametrize("name", ["svd", "hunyuan video"])
def test_a_plan_of_steps_prunes_all_layers_at_the_nearest_of_its_steps(name):
    make, inputs, _ = DENOISERS[name]
    model = make()
    plain = {timestep: run(model, inputs(timestep)) for timestep in (900.0, 510.0, 10.0)}
    apply_f3(model, plan_for(model, alpha=1.0))
    pruned = run(model, inputs(510.0))
    remove_f3(model)
    scores = {"900.0": 0.5, "500.0": 0.2, "10.0": 0.3}
    apply_f3(model, F3Plan.from_scores(attention_class(model), scores, 0.4, unit="step"))
    assert torch.equal(run(model, inputs(510.0)), pruned)
    assert torch.equal(run(model, inputs(900.0)), plain[900.0])
    assert torch.equal(run(model, inputs(10.0)), plain[10.0])


def test_gradients_flow_through_pruned_layers_and_samples_may_be_at_different_steps():
    make, inputs, _ = DENOISERS["hunyuan video"]
    model = make()
    model.enable_gradient_checkpointing()
    apply_f3(model, plan_for(model, alpha=1.0))
    model.train()
    model(**inputs(1.0) | {"timestep": torch.tensor([10.0, 500.0])}, return_dict=False)[0].square().sum().backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "transformer_blocks.0.attn" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) and len(gradients) > 10


@pytest.mark.slow
def test_plans_are_saved_beside_weights_and_loaded_with_one_call(tmp_path):
    pipe = tiny_svd_pipeline()
    call = {"height": 16, "width": 16, "num_frames": 2, "num_inference_steps": 2, "output_type": "latent"}

    def sample(pipe):
        return pipe(tiny_image(), generator=torch.Generator().manual_seed(0), **call).frames

    plain = sample(pipe)
    plan = plan_for(pipe.unet, part="block")
    pipe.save_pretrained(tmp_path / "pipe")
    file = save_f3_plan(plan, tmp_path / "pipe" / "unet")
    assert file == tmp_path / "pipe" / "unet" / "f3_plan.json"
    apply_f3(pipe, plan)
    pruned = sample(pipe)
    assert not torch.allclose(pruned, plain, rtol=1e-3)
    opened = type(pipe).from_pretrained(tmp_path / "pipe")
    for model in (opened.unet, opened.vae, opened.image_encoder):
        in_own_memory(model)
    assert load_f3(opened, tmp_path / "pipe") == {"unet": plan}
    assert torch.equal(sample(opened), pruned)
    remove_f3(opened)
    assert torch.equal(sample(opened), plain)
    assert load_f3(opened.unet, tmp_path / "pipe" / "unet") == {"": plan} and applied_f3_plan(opened) == plan


@pytest.mark.slow
def test_the_text_to_video_pipeline_samples_with_a_plan():
    pipe = tiny_t2v_pipeline()

    def sample():
        generator = torch.Generator().manual_seed(0)
        settings = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 2, "output_type": "latent"}
        return pipe("a cat", generator=generator, **settings).frames

    plain = sample()
    apply_f3(pipe, plan_for(pipe.unet))
    assert not torch.allclose(sample(), plain, rtol=1e-3)
    remove_f3(pipe)
    assert torch.equal(sample(), plain)


def test_of_a_pipeline_with_two_denoisers_each_has_its_plan(tmp_path):
    pipe = tiny_wan_pipeline()
    plan = plan_for(pipe.transformer)
    with pytest.raises(F3Error, match=r"has 2 denoisers .* \['transformer', 'transformer_2'\]"):
        apply_f3(pipe, plan)
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
        save_f3_plan(plan, tmp_path / name)
    assert set(load_f3(pipe, tmp_path)) == {"transformer", "transformer_2"}
    remove_f3(pipe.transformer)
    remove_f3(pipe.transformer_2)
    # One that does not fit leaves the other out as well.
    save_f3_plan(F3Plan.from_scores("WanTransformer3DModel", {"blocks.7": 0.5}, 0.0), tmp_path / "transformer_2")
    with pytest.raises(F3Error, match=r"one of another model, with 1 layers where this has 4; one .* is blocks.0"):
        load_f3(pipe, tmp_path)
    assert applied_f3_plan(pipe.transformer) is None


def test_plans_that_are_missing_damaged_or_of_another_model_are_refused(tmp_path):
    model = DENOISERS["wan"][0]()
    with pytest.raises(F3Error, match=r"f3_plan\.json exists"):
        load_f3(model, tmp_path)
    (tmp_path / "f3_plan.json").write_bytes(b"\xff\xfe")
    with pytest.raises(F3Error, match=r"f3_plan\.json: .*codec"):
        load_f3(model, tmp_path)
    with pytest.raises(F3Error, match="one for a CogVideoXTransformer3DModel, and the model is a WanTransformer3D"):
        apply_f3(model, F3Plan.from_scores("CogVideoXTransformer3DModel", {"transformer_blocks.0": 0.5}, 0.5))
    with pytest.raises(F3Error, match="where a AutoencoderKL has temporal attention"):
        apply_f3(AutoencoderKL(), F3Plan.from_scores("WanTransformer3DModel", {"blocks.0": 0.5}, 0.5))
    assert applied_f3_plan(model) is None


def test_what_wraps_the_model_meanwhile_outlives_the_plan():
    make, inputs, _ = DENOISERS["wan"]
    model, inputs = make(), inputs(500.0)
    plain = run(model, inputs)
    apply_f3(model, plan_for(model))
    add_hook_to_module(model, ModelHook())  # as offloading does
    wrapped = model.forward
    remove_f3(model)
    assert model.forward is wrapped and torch.equal(run(model, inputs), plain)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same():
    make, inputs, _ = DENOISERS["wan"]
    model = make()
    apply_f3(model, plan_for(model))
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(run(compiled, inputs(500.0)), run(model, inputs(500.0)))
