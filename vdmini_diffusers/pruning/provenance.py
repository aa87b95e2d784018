"""Where a student came from: as JSON beside its weights, and in its model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdmini_diffusers.pruning.survey import Survey
from vdmini_diffusers.serialization.pipeline_folder import Teacher
from vdmini_diffusers.serialization.safetensors_copy import FileHash


def provenance(
    teacher: Teacher,
    survey: Survey,
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


def merged_record(records: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the records of all students of one pipeline say together.

    Args:
        records: what `provenance` returned, by component.
    """
    first, *others = records.values()
    if not others:
        return first
    num_parameters = [record["num_parameters"] for record in records.values()]
    return {
        **first,
        "num_parameters": {network: sum(n[network] for n in num_parameters) for network in ("teacher", "student")},
        "dropped_blocks": {
            f"{component}.{block}": count
            for component, record in records.items()
            for block, count in record["dropped_blocks"].items()
        },
    }


def card_fields(teacher: Teacher, record: Mapping[str, Any], plan_json: str) -> dict[str, str]:
    """What the cards of all students say, for `render_card`; `record` is what `provenance` returned."""
    num_parameters = record["num_parameters"]
    variant = record["teacher"]["variant"]
    if teacher.commit is None:
        source = f"`{teacher.name}`, a local folder"
    else:
        source = f"[{teacher.name}](https://huggingface.co/{teacher.name}) at commit `{teacher.commit}`"
    return {
        "teacher": source,
        "plan_name": record["plan"],
        "plan_json": plan_json.rstrip(),
        "dropped_blocks": "\n".join(f"| `{name}` | {count:,} |" for name, count in record["dropped_blocks"].items()),
        "num_teacher_parameters": f"{num_parameters['teacher']:,}",
        "num_student_parameters": f"{num_parameters['student']:,}",
        "kept_percent": f"{100 * num_parameters['student'] / num_parameters['teacher']:.1f}",
        "variant_argument": f', variant="{variant}"' if variant else "",
        "package_version": record["package_version"],
    }


def relative_names(teacher: Teacher, files: Mapping[Path, FileHash]) -> dict[str, FileHash]:
    return {file.relative_to(teacher.folder).as_posix(): file_hash for file, file_hash in files.items()}
