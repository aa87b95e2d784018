"""Settings that do not work are refused when they are made, not after training."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser

from vdmini_diffusers.distillation.arguments import (
    CriticArguments,
    DenoiserTrainingArguments,
    ICMDArguments,
    RunArguments,
    Settings,
    TrainingArguments,
    setting,
)
from vdmini_diffusers.distillation.consistency_arguments import (
    ConsistencyArguments,
    RewardArguments,
    TextToVideoICMDArguments,
    TextToVideoTrainingArguments,
)
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments


GROUPS = (
    *(TrainingArguments, TextToVideoTrainingArguments, DecoderTrainingArguments),
    *(CriticArguments, ICMDArguments, TextToVideoICMDArguments),
    *(ConsistencyArguments, RewardArguments, DecoderLossArguments),
)
NUMBERS = [(kind, f.name) for kind in GROUPS for f in dataclasses.fields(kind) if type(f.default) in (int, float)]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_no_number_may_be_nan_or_infinite(kind, name):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"`--{name}` must be"):
            kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        (RunArguments, "logging_steps", 0, "at least 1, not 0"),
        (RunArguments, "validation_steps", 0, "at least 1, not 0"),
        (RunArguments, "checkpointing_steps", 0, "at least 1, not 0"),
        (RunArguments, "checkpoints_total_limit", 0, "at least 1, not 0"),
        (RunArguments, "max_train_steps", -1, "at least 1, not -1"),
        (RunArguments, "lr_warmup_steps", -5, "at least 0, not -5"),
        (RunArguments, "learning_rate", 0.0, "above 0, not 0.0"),
        (RunArguments, "max_grad_norm", 0.0, "above 0, not 0.0"),
        (RunArguments, "ema_decay", 2.0, "at least 0 and below 1, not 2.0"),
        (RunArguments, "adam_beta1", 1.0, "at least 0 and below 1, not 1.0"),
        (RunArguments, "seed", -1, "at least 0 and at most 4294967295, not -1"),
        (DenoiserTrainingArguments, "rank", 0, "at least 1, not 0"),
        (ICMDArguments, "lambda_icd", -0.1, "at least 0, not -0.1"),
        (ICMDArguments, "mca_start_step", -1, "at least 0, not -1"),
        (CriticArguments, "discriminator_width", 0, "at least 1, not 0"),
        (ConsistencyArguments, "motion_percentage", 1.5, "at least 0 and at most 1, not 1.5"),
        (DecoderLossArguments, "perceptual_weight", -1.0, "at least 0, not -1.0"),
    ],
)
def test_bounds_are_said_in_the_error(kind, name, value, expected):
    with pytest.raises(ValueError, match=f"`--{name}` must be {expected}"):
        kind(**{name: value})


def test_a_light_critic_is_wide_enough_for_the_quarter_of_its_first_layer():
    CriticArguments(discriminator_width=1)
    CriticArguments(critic_backbone="none", discriminator_width=4)
    with pytest.raises(ValueError, match="at least 4 with `--critic_backbone none`, not 3"):
        CriticArguments(critic_backbone="none", discriminator_width=3)


def test_even_kernels_and_a_penalty_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="`--temporal_kernel_size` must be odd, not 2"):
        CriticArguments(temporal_kernel_size=2)
    with pytest.raises(ValueError, match="weight is 0: give `--r1_weight`"):
        CriticArguments(r1_sigma=0.1)
    CriticArguments(r1_weight=1.0, r1_sigma=0.1)


def test_a_range_of_guidance_weights_is_not_empty():
    with pytest.raises(ValueError, match=r"`--w_min` 5.0 and `--w_max` 4.0 are no range"):
        ConsistencyArguments(w_max=4.0)


def test_a_subclass_that_changes_a_default_keeps_the_bounds():
    assert DecoderTrainingArguments().train_batch_size != RunArguments().train_batch_size
    with pytest.raises(ValueError, match="`--train_batch_size` must be at least 1, not 0"):
        DecoderTrainingArguments(train_batch_size=0)
    with pytest.raises(ValueError, match="`--learning_rate` must be above 0"):
        TextToVideoTrainingArguments(learning_rate=-1.0)


def test_a_schedule_that_needs_further_arguments_is_refused_with_the_names_that_do_not():
    with pytest.raises(ValueError, match=r"`--lr_scheduler` must be one of .*cosine.*, not 'piecewise_constant'"):
        RunArguments(lr_scheduler="piecewise_constant")


@pytest.mark.parametrize(("name", "value"), [("max_train_steps", "5"), ("max_train_steps", 1.5), ("use_ema", "no")])
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`--{name}` must be .*, not {value!r}"):
        RunArguments(**{name: value})


def test_paths_may_be_given_as_strings():
    args = TrainingArguments(output_dir="out", validation_images=["picture.png"])
    assert args.output_dir.name == "out" and args.validation_images[0].name == "picture.png"
    with pytest.raises(ValueError, match="`--validation_images` must be a list"):
        TrainingArguments(validation_images="picture.png")


@dataclasses.dataclass
class Bounded(Settings):
    number: float = setting(0.5, "A number.", least=0, below=1)


@given(st.floats())
def test_a_bounded_number_is_taken_exactly_within_its_bounds(value):
    if 0 <= value < 1:
        assert Bounded(number=value).number == value
    else:
        with pytest.raises(ValueError, match="`--number` must be at least 0 and below 1"):
            Bounded(number=value)


@pytest.mark.parametrize("kind", GROUPS)
def test_every_setting_has_a_help_text_that_is_a_sentence(kind):
    for field in dataclasses.fields(kind):
        text = field.metadata["help"]
        assert text[0].isupper() or text[0] == "'", field.name
        assert text.endswith(".") and not text.startswith("Of "), field.name
    assert HfArgumentParser(kind).format_help()


def test_report_to_none_is_no_tracker():
    assert RunArguments(report_to="none").tracker is None is RunArguments().tracker
    assert RunArguments(report_to="wandb").tracker == "wandb"
