"""How scripts read flags and YAML files of settings, and how their help is divided."""

from dataclasses import fields

import pytest

from vdmini_diffusers.cli.script import PARTS, GroupedArgumentParser, parse_arguments, peek_argument
from vdmini_diffusers.distillation.arguments import ICMDArguments, RunArguments
from vdmini_diffusers.distillation.decoder_arguments import DecoderLossArguments, DecoderTrainingArguments
from vdmini_diffusers.trainers.distill import OBJECTIVES


def parts_of(parser: GroupedArgumentParser) -> dict[str, set[str]]:
    """The flags of each part of the help, by the names that `HfArgumentParser` reads."""
    return {str(group.title): {action.dest for action in group._group_actions} for group in parser._action_groups}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_flag_of_distillation_stands_in_one_part_of_the_help(objective):
    kinds = (*OBJECTIVES[objective].arguments, *OBJECTIVES[objective].own)
    parts = parts_of(GroupedArgumentParser(kinds))
    assert parts.pop("options") == {"help", "config"}
    assert sorted(name for names in parts.values() for name in names) == sorted(
        f.name for k in kinds for f in fields(k)
    )
    assert {"gradient_checkpointing", "optimizer", "rank", "mixed_precision"} <= parts["memory and precision"]
    assert {"lambda_icd", "lambda_mca"} <= parts["losses"] and "critic_backbone" in parts["critics"]
    assert {"learning_rate", "use_ema", "seed"} <= parts["optimisation"] and "train_data_dir" in parts["data"]
    assert {"output_dir", "checkpointing_steps"} <= parts["checkpoints and the result"]
    shown = {"single_step": "validation_images"}.get(objective, "validation_prompts")
    assert {"logging_steps", "report_to", shown} <= parts["logging and validation"]


def test_the_parts_of_the_decoder_s_help_and_no_part_without_flags():
    parser = GroupedArgumentParser((DecoderTrainingArguments, DecoderLossArguments))
    assert "adversarial_weight" in parts_of(parser)["losses"] and "rewards" in PARTS
    assert "rewards:" not in parser.format_help()


def test_names_of_parts_that_settings_give_are_names_of_flags():
    kinds = [k for objective in OBJECTIVES.values() for k in (*objective.arguments, *objective.own)]
    known = {f.name for kind in kinds for f in fields(kind)}
    assert set(RunArguments.help_parts) <= known and set(RunArguments.help_parts.values()) <= set(PARTS)


def test_help_names_a_flag_once_with_the_kind_of_its_value():
    text = GroupedArgumentParser((ICMDArguments,), "What it is.").format_help()
    assert "--lambda_icd float" in text and "--lambda-icd" not in text
    assert text.startswith("usage: ") and text.index("[--flag value ...]") < text.index("What it is.")


@pytest.mark.parametrize(
    "place", [["{file}", "--lambda_mca", "2"], ["--lambda_mca", "2", "--config", "{file}"], ["--config={file}"]]
)
def test_a_yaml_file_stands_first_or_behind_config_and_flags_win(tmp_path, place):
    (tmp_path / "run.yaml").write_text("lambda_icd: 0.5\nlambda_mca: 0.25\n")
    argv = [part.format(file=tmp_path / "run.yaml") for part in place]
    (args,) = parse_arguments((ICMDArguments,), argv=argv)
    assert (args.lambda_icd, args.lambda_mca) == (0.5, 2.0 if "2" in place else 0.25)
    assert peek_argument("lambda_icd", "0", argv) == "0.5"


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("lambda_idc: 0.5\nxyzzy: 1\n")
    with pytest.raises(SystemExit) as ended:
        parse_arguments((ICMDArguments,), argv=["--config", str(tmp_path / "run.yaml")])
    assert ended.value.code == 2
    assert "do not exist: lambda_idc (did you mean lambda_icd?), xyzzy\n" in capsys.readouterr().err


def test_two_yaml_files_are_refused():
    with pytest.raises(ValueError, match=r"one YAML file of settings, and there are a\.yaml, b\.yaml"):
        parse_arguments((ICMDArguments,), argv=["a.yaml", "--config", "b.yaml"])
