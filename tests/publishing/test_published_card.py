"""The card that goes up: valid metadata, what is known and nothing else, and the author's own sections."""

import ast
import json
import re
import shutil

import huggingface_hub
import pytest
import torch

from vdmini_diffusers.publishing.card_sections import join_sections, split_sections, with_section
from vdmini_diffusers.publishing.evaluations import read_evaluations, results_table
from vdmini_diffusers.publishing.model_info import describe_model
from vdmini_diffusers.publishing.published_card import (
    LicenseTerms,
    check_metadata,
    license_for,
    published_card,
)


REPO = "org/vdmini-i2v"
TERMS = LicenseTerms("other", "svd", "https://example.com/licence")
FVD = {
    "fvd": 198.13,
    "kvd": 1.5,
    "fvd_interval": [190.0, 205.0],
    "protocol": {"num_clips": 2048, "num_frames": 16, "height": 240, "width": 320},
    "detector": {"name": "i3d"},
    "real": {"source": "UCF-101"},
}
VBENCH = {"suite": "t2v", "scores": {"motion_smoothness": 0.97}, "total": [80.5, 80.5], "missing": []}
QUICKSTART = {
    "num_inference_steps": 1,
    "models": {
        "pruned": {"psnr_to_teacher_db": 18.0},
        "distilled": {"unet_parameters": 5, "psnr_to_teacher_db": 20.08, "motion_cosine_to_real": 0.113},
    },
}
TRAINING = {"student": "pruned", "teacher": "sf_v", "max_train_steps": 1000, "lambda_icd": 0.1, "seed": 0}
EMISSIONS = (
    "timestamp,duration,emissions,energy_consumed,country_name,gpu_model\n"
    "2025-01-01T00:00:00,7200,0.5,1.25,France,1 x NVIDIA H100\n"
)


@pytest.fixture
def folder(student, tmp_path):
    return shutil.copytree(student, tmp_path / "student")


def card_of(folder, terms=TERMS, **options):
    return published_card(describe_model(folder), REPO, terms, **options)


def metadata(card, tmp_path):
    (tmp_path / "card.md").write_text(card)
    return huggingface_hub.metadata_load(tmp_path / "card.md")


def test_the_metadata_are_what_the_hub_reads(folder, tmp_path):
    for name, content in {"fvd": FVD, "vbench": VBENCH}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    results = read_evaluations([tmp_path / "fvd.json", tmp_path / "vbench.json"], is_distilled=True)
    found = metadata(card_of(folder, results=results), tmp_path)
    assert {key: found[key] for key in ("license", "license_name", "license_link")} == vars(TERMS)
    assert (found["library_name"], found["pipeline_tag"]) == ("diffusers", "image-to-video")
    (model,) = found["model-index"]
    metrics = [metric for result in model["results"] for metric in result["metrics"]]
    assert model["name"] == "vdmini-i2v"
    assert [(metric["type"], metric["value"]) for metric in metrics] == [
        ("fvd", 198.13),
        ("kvd", 1.5),
        ("vbench", 80.5),
        ("vbench", 0.97),
    ]
    assert model["results"][0]["dataset"] == {"name": "UCF-101", "type": "ucf-101"}
    assert "base_model" not in found  # the teacher is a folder


def test_the_base_model_is_the_teacher_on_the_hub(folder, tmp_path):
    file = folder / "unet" / "pruning_provenance.json"
    record = json.loads(file.read_text())
    record["teacher"] |= {"name": "stabilityai/svd", "commit": "0" * 40}
    file.write_text(json.dumps(record))
    assert metadata(card_of(folder), tmp_path)["base_model"] == "stabilityai/svd"


@pytest.mark.parametrize(("is_distilled", "value"), [(True, 20.08), (False, 18.0)])
def test_the_quickstart_s_report_is_read_for_the_model_that_is_meant(tmp_path, is_distilled, value):
    (tmp_path / "report.json").write_text(json.dumps(QUICKSTART))
    found = read_evaluations([tmp_path / "report.json"], is_distilled)
    assert found[0].value == value and found[0].metric == "psnr"
    assert len(found) == (2 if is_distilled else 1)


@pytest.mark.parametrize("content", [{}, {"fvd": 1.0}, {"models": {}}, {"models": {"teacher": {}}}])
def test_other_json_is_no_evaluation(tmp_path, content):
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no results"):
        read_evaluations([tmp_path / "other.json"], is_distilled=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fvd": float("nan")}, "FVD is no finite number"),
        ({"fvd": "much"}, "holds no results"),
        ({"protocol": []}, "holds no results"),
        ({"real": {"source": 3}}, "holds no results"),
    ],
)
def test_results_that_are_damaged_are_no_evaluation(tmp_path, change, message):
    (tmp_path / "fvd.json").write_text(json.dumps(FVD | change))
    with pytest.raises(ValueError, match=message):
        read_evaluations([tmp_path / "fvd.json"], is_distilled=True)


def test_a_folder_s_name_breaks_no_table_and_warnings_stand_in_it(tmp_path):
    warned = {"real": {"source": "videos/a|b\nc"}, "warnings": ["8 clips are too few."]}
    (tmp_path / "fvd.json").write_text(json.dumps(FVD | warned))
    table = results_table(read_evaluations([tmp_path / "fvd.json"], is_distilled=True))
    assert len(table.splitlines()) == 4 and "| a\\|b c |" in table
    assert table.count("8 clips are too few.") == 2


def test_a_card_in_another_encoding_is_named(folder):
    (folder / "README.md").write_bytes("# Sch\u00f6n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"README\.md is not UTF-8 text"):
        card_of(folder)


def test_every_way_to_open_it_names_the_repository_and_is_python(students):
    for kind, (_, folder) in students.items():
        use = split_sections(card_of(folder))["Use"]
        snippets = re.findall(r"```python\n(.*?)```", use, re.DOTALL)
        assert len(snippets) >= 2 and "vdmini generate --model " + REPO in use
        assert f'subfolder="{"transformer" if kind == "hy" else "unet"}"' in snippets[-1]
        for snippet in snippets:
            ast.parse(snippet)
            assert f'"{REPO}"' in snippet and "$" not in snippet
        assert ("trust_remote_code=True" in use) or kind == "hy"


@pytest.mark.parametrize("kind", ["i2v", "t2v", "hy"])
def test_the_snippet_of_the_denoiser_alone_runs(students, kind):
    folder = students[kind][1]
    snippet = re.findall(r"```python\n(.*?)```", split_sections(card_of(folder))["Use"], re.DOTALL)[-1]
    names = {}
    exec(compile(snippet.replace(f'"{REPO}"', repr(str(folder))), "README.md", "exec"), names)
    denoiser = names["transformer" if kind == "hy" else "unet"]
    assert denoiser.dtype == torch.float16
    assert denoiser.num_parameters() == describe_model(folder).pruned[0].num_parameters


def test_the_variant_is_named_where_files_have_one(folder):
    use = split_sections(card_of(folder, variant="fp16"))["Use"]
    assert use.count('variant="fp16"') == 3
    assert "variant" not in split_sections(card_of(folder))["Use"]


def test_samples_picture_and_recipe(folder):
    (folder / "training.json").write_text(json.dumps(TRAINING))
    (folder / "emissions.csv").write_text(EMISSIONS)
    card = card_of(folder, samples=["samples/a.gif", "samples/b.mp4"], has_picture=True)
    sections = split_sections(card)
    assert list(sections) == ["", "Samples", "Use", "What was removed", "Recipe", "Licence", "Limits"]
    assert "![a](samples/a.gif)" in sections["Samples"]
    assert f'src="https://huggingface.co/{REPO}/resolve/main/samples/b.mp4"' in sections["Samples"]
    assert sections["What was removed"].strip().startswith("![Blocks of the network: kept and removed](network.png)")
    for said in (
        "| steps | 1,000 |",
        "ICD x 0.1",
        "| seed | 0 |",
        "| time | 2.00 h on 1 x NVIDIA H100 |",
        "1.250 kWh",
    ):
        assert said in sections["Recipe"]
    assert huggingface_hub.ModelCard(card).data.co2_eq_emissions["emissions"] == 500


def test_what_is_not_known_is_not_said(folder):
    recipe = split_sections(card_of(folder))["Recipe"]
    assert "Not trained" in recipe and "kWh" not in recipe and "| time" not in recipe
    (folder / "emissions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="CodeCarbon"):
        card_of(folder)


def test_sections_of_the_author_stay_and_a_second_time_changes_nothing(folder):
    file = folder / "README.md"
    file.write_text(file.read_text() + "\n## Thanks\n\nTo all.\n\n```md\n## No heading\n```\n")
    (folder / "training.json").write_text(json.dumps(TRAINING))
    once = card_of(folder, has_picture=True, samples=["samples/a.gif"])
    assert "## Thanks\n\nTo all.\n\n```md\n## No heading\n```\n" in once
    file.write_text(once)
    assert card_of(folder, has_picture=True, samples=["samples/a.gif"]) == once


def test_a_folder_without_a_card_gets_one(folder, tmp_path):
    (folder / "README.md").unlink()
    card = card_of(folder, has_picture=True)
    assert metadata(card, tmp_path)["license"] == "other"
    assert list(split_sections(card)) == ["", "Use", "What was removed", "Recipe", "Limits"]


def test_a_licence_is_inherited_and_not_changed(folder):
    unknown = describe_model(folder)
    with pytest.raises(ValueError, match="--license"):
        license_for(unknown, None)
    assert license_for(unknown, TERMS) == TERMS
    (folder / "README.md").write_text("---\nlicense: other\n---\n")  # which names none
    assert license_for(describe_model(folder), TERMS) == TERMS
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    known = describe_model(folder)
    assert license_for(known, None) == license_for(known, LicenseTerms("cc-by-nc-4.0")) == LicenseTerms("cc-by-nc-4.0")
    with pytest.raises(ValueError, match="inherits"):
        license_for(known, LicenseTerms("mit"))


@pytest.mark.parametrize("arguments", [("other",), ("Apache 2.0",), ("",)])
def test_a_licence_that_the_hub_does_not_know_is_refused(arguments):
    with pytest.raises(ValueError, match="licence"):
        LicenseTerms(*arguments)


def test_broken_metadata_are_refused():
    with pytest.raises(ValueError, match="not valid"):
        check_metadata("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match="not valid"):
        check_metadata("---\nmodel-index:\n- nothing: 1\n---\n")


def test_sections_are_found_replaced_and_inserted():
    text = "# A\n\nb\n\n## C\n\nd\n\n```\n## not a heading\n```\n\n## E\n\nf\n"
    sections = split_sections(text)
    assert list(sections) == ["", "C", "E"] and join_sections(sections) == text
    assert list(with_section(sections, "X", "y", before=("Z", "E"))) == ["", "C", "X", "E"]
    assert list(with_section(sections, "X", "y")) == ["", "C", "E", "X"]
    assert with_section(sections, "E", "new")["E"] == "new"
