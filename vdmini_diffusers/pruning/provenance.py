"""Where a student came from: as JSON beside its weights, and as its model card."""

import importlib.resources
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from vdmini_diffusers.pruning.checkpoint_reader import MAX_JSON_BYTES
from vdmini_diffusers.pruning.checkpoint_writer import FileHash
from vdmini_diffusers.pruning.pipeline_kinds import PipelineKind
from vdmini_diffusers.pruning.teacher_folder import Teacher, inside
from vdmini_diffusers.pruning.unet_survey import UNetSurvey
from vdmini_diffusers.pruning.vae_survey import DecoderSurvey


# What a card says of the licence where the teacher's card says nothing: the Hub takes `other` with any name.
UNKNOWN_LICENSE = {"license": "other", "license_name": "inherited-from-the-teacher"}
TRAINING_NOTE = re.compile(r"<!-- training -->.*?<!-- /training -->", re.DOTALL)


def provenance(
    teacher: Teacher,
    survey: UNetSurvey | DecoderSurvey,
    files: Mapping[str, FileHash],
    variant: str | None,
    package_version: str,
) -> dict[str, Any]:
    """For `pruning_provenance.json`. `files` are the teacher's, by path within its folder."""
    return {
        "package_version": package_version,
        "plan": survey.plan.name,
        "teacher": {
            "name": teacher.name,
            "revision": teacher.revision,
            "commit": teacher.commit,
            "variant": variant,
            "files": {name: vars(file_hash) for name, file_hash in sorted(files.items())},
        },
        "num_parameters": {"teacher": survey.num_teacher_parameters, "student": survey.num_student_parameters},
        "dropped_blocks": survey.dropped_blocks,
    }


def model_card(teacher: Teacher, kind: PipelineKind, record: Mapping[str, Any], plan_json: str) -> str:
    """The kind's template in `model_cards/`, filled in with what `provenance` recorded and the teacher's licence."""
    front_matter = _front_matter(teacher, pipeline_tag=kind.pipeline_tag, tags=list(kind.tags))
    return _fill(kind.card, teacher, record, plan_json, front_matter=front_matter)


def vae_card(teacher: Teacher, record: Mapping[str, Any], plan_json: str, class_name: str) -> str:
    """`model_cards/vdmini_vae.md`, in the same way."""
    return _fill(
        "vdmini_vae.md",
        teacher,
        record,
        plan_json,
        front_matter=_front_matter(teacher, tags=["vdmini", "video-diffusion", "pruning", "vae"]),
        class_name=class_name,
        importance=record["importance"],
    )


def _fill(name: str, teacher: Teacher, record: Mapping[str, Any], plan_json: str, **fields: str) -> str:
    template = importlib.resources.files("vdmini_diffusers.model_cards").joinpath(name).read_text("utf-8")
    num_parameters = record["num_parameters"]
    variant = record["teacher"]["variant"]
    source = (
        f"`{teacher.name}`" if teacher.commit is None else f"[{teacher.name}](https://huggingface.co/{teacher.name})"
    )
    return string.Template(template).substitute(
        **fields,
        teacher=source + (f" at commit `{teacher.commit}`" if teacher.commit else ", a local folder"),
        plan_name=record["plan"],
        plan_json=plan_json.rstrip(),
        dropped_blocks="\n".join(f"| `{name}` | {count:,} |" for name, count in record["dropped_blocks"].items()),
        num_teacher_parameters=f"{num_parameters['teacher']:,}",
        num_student_parameters=f"{num_parameters['student']:,}",
        kept_percent=f"{100 * num_parameters['student'] / num_parameters['teacher']:.1f}",
        variant_argument=f', variant="{variant}"' if variant else "",
        package_version=record["package_version"],
    )


def _front_matter(teacher: Teacher, **fields: Any) -> str:
    return huggingface_hub.ModelCardData(
        **license_of(inside(teacher, "README.md")),
        library_name="diffusers",
        **fields,
        base_model=teacher.name if teacher.commit else None,  # the Hub wants an id of its own here
    ).to_yaml()


def with_training_note(card: str, note: str) -> str:
    """A pruned student's card that now says how it was trained."""
    return TRAINING_NOTE.sub(lambda _: f"<!-- training -->\n{note}\n<!-- /training -->", card)


def license_of(card: Path | None) -> dict[str, str]:
    """The licence fields of a teacher's card, for those of its students; without a card, a name that says so."""
    if card is None or not card.is_file() or card.stat().st_size > MAX_JSON_BYTES:
        return UNKNOWN_LICENSE
    try:
        data = huggingface_hub.metadata_load(card) or {}
    except Exception:  # of the YAML reader; a card is for people, and a broken one stops nothing
        return UNKNOWN_LICENSE
    found = {key: data[key] for key in ("license", "license_name", "license_link") if isinstance(data.get(key), str)}
    return found if "license" in found else UNKNOWN_LICENSE


def relative_names(teacher: Teacher, files: Mapping[Path, FileHash]) -> dict[str, FileHash]:
    return {file.relative_to(teacher.folder).as_posix(): file_hash for file, file_hash in files.items()}
