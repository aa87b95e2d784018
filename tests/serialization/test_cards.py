"""What a model card says after training."""

import pytest

from vdmini_diffusers.serialization.cards import render_card, trained_card


FIELDS = (
    *("teacher", "num_teacher_parameters", "num_student_parameters", "kept_percent", "dropped_blocks", "plan_name"),
    *("plan_json", "package_version", "class_name", "importance", "layers", "scores"),
)


@pytest.mark.parametrize("variant", ["", ', variant="fp16"'])
@pytest.mark.parametrize(
    "template", ["vdmini_i2v.md", "vdmini_t2v.md", "vdmini_t2v_hy.md", "vdmini_video_transformer.md"]
)
def test_the_code_opens_what_training_wrote_which_has_no_variant(template, variant):
    values = dict.fromkeys(FIELDS, "x") | {"repository": "my student", "variant_argument": variant}
    pruned = render_card(template, front_matter={"license": "mit"}, **values)
    card = trained_card(pruned, "It was trained.", "org/recovered")
    assert '"my student"' in pruned and '"my student"' not in card and "variant=" not in card
    assert card.count('"org/recovered"') == pruned.count('"my student"')
    assert "<!-- training -->\nIt was trained.\n<!-- /training -->" in card


def test_other_models_that_a_card_opens_stay():
    card = 'vae = A.from_pretrained("pruned", variant="fp16")\npipe = B.from_pretrained(\n    "path/to/it", vae=vae)\n'
    opened = trained_card(card, "", r"n\1")
    assert opened == 'vae = A.from_pretrained("n\\1")\npipe = B.from_pretrained(\n    "path/to/it", vae=vae)\n'


def test_a_card_without_code_gets_its_note_only():
    card = "<!-- training -->\nno\n<!-- /training -->\n"
    assert trained_card(card, "yes", "org/name") == "<!-- training -->\nyes\n<!-- /training -->\n"
