"""Scores that are measured while a model runs, against whole maps."""

import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from tiny import TWO_STAGES, tiny_image, tiny_svd_pipeline
from tiny_temporal_attention import DENOISERS, run, whole_maps

from vdmini_diffusers.analysis.f3 import (
    F3Error,
    F3Plan,
    TemporalScores,
    apply_f3,
    measure_temporal_attention,
    temporal_layers,
)


STUDENTS = {"i2v student", "t2v student"}  # whose attention is that of their teachers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in STUDENTS)) for name in DENOISERS]
)
def test_scores_are_those_of_whole_maps_and_the_output_stays(name, monkeypatch):
    make, inputs, text = DENOISERS[name]
    model = make()
    plain = run(model, inputs(500.0))
    expected = {}
    for timestep in (500.0, 10.0):
        with whole_maps(model, text, monkeypatch) as maps:
            run(model, inputs(timestep))
        for layer, masses in maps.items():
            expected[layer, timestep] = sum(mass.mean().item() for mass in masses) / len(masses)
    with measure_temporal_attention(model) as scores:
        assert torch.equal(run(model, inputs(500.0)), plain)
        run(model, inputs(10.0))
    layers = temporal_layers(model)
    assert list(scores.by_layer()) == list(layers) and len(layers) >= 3
    for layer, score in scores.by_layer().items():
        assert score == pytest.approx((expected[layer, 500.0] + expected[layer, 10.0]) / 2, rel=1e-5)
    assert list(scores.by_step()) == ["500.0", "10.0"]
    for step, score in scores.by_step().items():
        assert score == pytest.approx(sum(expected[layer, float(step)] for layer in layers) / len(layers), rel=1e-5)
    assert torch.equal(run(model, inputs(500.0)), plain)
    with pytest.raises(F3Error, match="run the model within the context"), measure_temporal_attention(model) as empty:
        empty.by_layer()  # the hooks are gone: a second context starts anew


def test_attention_that_is_not_finite_is_refused_and_ranks_nothing():
    make, inputs, _ = DENOISERS["svd"]
    model = make()
    weight = dict(model.named_modules())["mid_block.attentions.0.temporal_transformer_blocks.0.attn1"].to_q.weight
    weight.data[0, 0] = torch.nan
    with pytest.raises(F3Error, match=r"mid_block\.attentions\.0 is not finite"), measure_temporal_attention(model):
        run(model, inputs(500.0))


def test_one_frame_has_no_others_to_attend_to():
    pipe = tiny_svd_pipeline(**TWO_STAGES)
    size = {"num_frames": 1, "height": 16, "width": 16, "num_inference_steps": 1, "max_guidance_scale": 1.0}
    with pytest.raises(F3Error, match="one frame"), measure_temporal_attention(pipe.unet):
        pipe(tiny_image(), **size, output_type="latent")


def test_a_layer_is_the_attention_over_frames_of_one_place():
    model = DENOISERS["svd"][0]()
    layers = temporal_layers(model)
    assert layers["down_blocks.1.attentions.0"] == (
        "down_blocks.1.attentions.0.temporal_transformer_blocks.0.attn1",
        "down_blocks.1.attentions.0.temporal_transformer_blocks.1.attn1",
    )
    student = temporal_layers(DENOISERS["t2v student"][0]())
    first = "transformer_in.transformer_blocks.0"
    assert student["transformer_in"] == (f"{first}.attn1", f"{first}.attn2")


def test_a_pipeline_s_steps_are_scored_while_it_samples():
    pipe = tiny_svd_pipeline(**TWO_STAGES)
    with measure_temporal_attention(pipe.unet, max_queries_per_frame=1) as scores:
        pipe(tiny_image(), height=16, width=16, num_frames=2, num_inference_steps=3, output_type="latent")
    assert list(scores.by_step()) == [str(float(timestep)) for timestep in pipe.scheduler.timesteps]
    again = TemporalScores.from_json_object(json.loads(json.dumps(scores.to_json_object())))
    assert again.by_layer() == scores.by_layer() and again.by_step() == scores.by_step()


def test_what_cannot_be_measured_is_refused():
    make, inputs, _ = DENOISERS["wan"]
    model = make()
    with pytest.raises(ValueError, match=r"at the timesteps \[10.0, 500.0\]"), measure_temporal_attention(model):
        run(model, inputs(1.0) | {"timestep": torch.tensor([10.0, 500.0])})
    with pytest.raises(F3Error, match="at least 1"), measure_temporal_attention(model, 0):
        pass
    with (
        pytest.raises(F3Error, match="where a Linear has temporal attention"),
        measure_temporal_attention(torch.nn.Linear(1, 1)),
    ):
        pass
    apply_f3(model, F3Plan.from_scores("WanTransformer3DModel", dict.fromkeys(temporal_layers(model), 0.5), 0.5))
    with pytest.raises(F3Error, match="remove it with `remove_f3`"), measure_temporal_attention(model):
        pass


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"model_class": "x"},
        {"model_class": "x", "sums": {"a": {"1.0": [2, 1]}}},
        {"model_class": "x", "sums": {"a": {"noon": [0, 1]}}},
        {"model_class": "x", "sums": {"a": [1]}},
    ],
)
def test_damaged_scores_are_refused(value):
    with pytest.raises(F3Error, match="not scores of temporal attention"):
        TemporalScores.from_json_object(value)


def test_attention_that_cannot_be_reached_is_refused_when_the_model_runs():
    make, inputs, _ = DENOISERS["svd"]
    model = make()
    model.set_attn_processor(AttnProcessor())  # which multiplies matrices by itself
    message = r"of down_blocks.0.attentions.0 is computed by a backend that F3-Pruning cannot reach"
    with pytest.raises(RuntimeError, match=message), measure_temporal_attention(model):
        run(model, inputs(500.0))
