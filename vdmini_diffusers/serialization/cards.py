"""Model cards: templates in `model_cards/`, filled in, with front matter that the Hub understands."""

import importlib.resources
import re
import string
from pathlib import Path
from typing import Any

import huggingface_hub

from vdmini_diffusers.serialization.atomic import write_file


MAX_CARD_BYTES = 2**20  # the YAML reader takes a minute for more
# The licence in a card where the teacher's card names none: the Hub takes `other` with any name.
UNKNOWN_LICENSE = {"license": "other", "license_name": "inherited-from-the-teacher"}
TRAINING_NOTE = re.compile(r"<!-- training -->.*?<!-- /training -->", re.DOTALL)
OPENED = re.compile(r'(?<=from_pretrained\()(\s*)"([^"\n]*)"')
VARIANT = re.compile(r',\s*variant="[^"\n]*"')


def write_card(
    folder: Path, template: str, *, front_matter: dict[str, Any], teacher_card: Path | None = None, **fields: str
) -> None:
    """Write `folder/README.md` from a template. See `render_card`."""
    text = render_card(template, front_matter=front_matter, teacher_card=teacher_card, **fields)
    write_file(folder / "README.md", text.encode())


def render_card(
    template: str, *, front_matter: dict[str, Any], teacher_card: Path | None = None, **fields: str
) -> str:
    """A model card.

    Args:
        template: a file of `model_cards/`, whose `$names` are replaced by `fields`.
        front_matter: arguments of `huggingface_hub.ModelCardData`; entries of None are left out.
        teacher_card: the card whose licence is repeated, unless `front_matter` has one.
    """
    text = importlib.resources.files("vdmini_diffusers.model_cards").joinpath(template).read_text("utf-8")
    license_fields = {} if "license" in front_matter else license_of(teacher_card)
    data = huggingface_hub.ModelCardData(**license_fields, library_name="diffusers", **front_matter)
    return string.Template(text).substitute(front_matter=data.to_yaml(), **fields)


def trained_card(card: str, note: str, repository: str, keeps_variant: bool = False) -> str:
    """A pruned student's card for what training made of it.

    Args:
        card: its code opens the pruned student first, and may open other models after it.
        note: how it was trained, in place of the note that it was not.
        repository: what the code shall open instead.
        keeps_variant: whether the weights there are of the pruned student's variant; else they have none.
    """
    card = TRAINING_NOTE.sub(lambda _: f"<!-- training -->\n{note}\n<!-- /training -->", card)
    if (opened := OPENED.search(card)) is None:
        return card
    pruned = opened[2]
    renamed = OPENED.sub(lambda match: f'{match[1]}"{repository}"' if match[2] == pruned else match[0], card)
    return renamed if keeps_variant else VARIANT.sub("", renamed)


def license_of(card: Path | None) -> dict[str, str]:
    """The licence fields of a teacher's card, for its students' cards; `UNKNOWN_LICENSE` if it has none."""
    if card is None or not card.is_file() or card.stat().st_size > MAX_CARD_BYTES:
        return UNKNOWN_LICENSE
    try:
        data = huggingface_hub.metadata_load(card) or {}
    except Exception:  # the YAML reader's; a card is for people, and a broken one need not stop a conversion
        return UNKNOWN_LICENSE
    found = {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}
    return found if "license" in found else UNKNOWN_LICENSE
