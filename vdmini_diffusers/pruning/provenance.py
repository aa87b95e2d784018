"""Where a student came from: as JSON beside its weights, and in its model card."""

from collections.abc import Mapping
from typing import Any

from vdmini_diffusers.pruning.survey import Survey
from vdmini_diffusers.serialization.pipeline_folder import Teacher
from vdmini_diffusers.serialization.safetensors_copy import FileHash
from vdmini_diffusers.serialization.sources import RemoteFile, Source


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


def loading_code(
    teacher: Teacher, pipeline: type, students: Mapping[str, type], repository: str, variant: str | None
) -> str:
    """Python that puts students into the pipeline of their teacher."""
    classes = {cls.__name__: cls.__module__.partition(".")[0] for cls in (pipeline, *students.values())}
    packages = sorted(set(classes.values()))
    imports = [
        f"from {package} import {', '.join(sorted(name for name in classes if classes[name] == package))}"
        for package in packages
    ]
    options = f', dtype=torch.bfloat16, variant="{variant}"' if variant else ", dtype=torch.bfloat16"
    loads = [
        f'{name} = {cls.__name__}.from_pretrained("{repository}", subfolder="{name}"{options})'
        for name, cls in students.items()
    ]
    given = "".join(f", {name}={name}" for name in students)
    revision = f', revision="{teacher.commit}"' if teacher.commit else ""
    opened = f'pipe = {pipeline.__name__}.from_pretrained("{teacher.name}"{revision}{given}{options})'
    return "\n".join(["import torch", *imports, "", *loads, opened])


def relative_names(teacher: Teacher, files: Mapping[Source, FileHash]) -> dict[str, FileHash]:
    """By path in the teacher's folder or repository; by name alone for a file from elsewhere."""
    names = {}
    for file, file_hash in files.items():
        if isinstance(file, RemoteFile):
            names[file.path] = file_hash
        else:
            inside = file.is_relative_to(teacher.folder)
            names[file.relative_to(teacher.folder).as_posix() if inside else file.name] = file_hash
    return names
