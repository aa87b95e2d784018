"""The folder of a video diffusion pipeline in, the folder of its VDMini student out (paper, section 3.2)."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers.guiders.guider_utils import GUIDER_CONFIG_NAME

from vdmini_diffusers.families import Family, family_of, find_family
from vdmini_diffusers.families.block_lists import GUIDER_FIELDS
from vdmini_diffusers.pruning.components import check_component, component_classes
from vdmini_diffusers.pruning.depth import MiddleRule
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.pruning.presets import PLANS, find_plan
from vdmini_diffusers.pruning.provenance import card_fields, merged_record, provenance, relative_names
from vdmini_diffusers.pruning.survey import Survey, check_teacher_tensors, survey_denoiser
from vdmini_diffusers.serialization.atomic import check_apart, check_free_space, new_folder, write_file
from vdmini_diffusers.serialization.cards import write_card
from vdmini_diffusers.serialization.pickled_weights import unpickle
from vdmini_diffusers.serialization.pipeline_folder import (
    Teacher,
    companion_files,
    find_weights,
    known_sha256,
    named_class,
    open_teacher,
    read_model_index,
    sha256_of,
    weight_stems,
)
from vdmini_diffusers.serialization.repository import model_index_entry
from vdmini_diffusers.serialization.safetensors_copy import FileHash, copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor, read_json
from vdmini_diffusers.version import __version__


@dataclass(frozen=True)
class WeightFiles:
    """How weight files are read and written; see `prune_pipeline`."""

    variant: str | None
    max_shard_size: int | str
    allow_pickle: bool


def survey_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    plan: PruningPlan | MiddleRule | str | os.PathLike | None = None,
    *,
    family: Family | None = None,
    revision: str | None = None,
    **download_kwargs: Any,
) -> dict[str, Survey]:
    """What `prune_pipeline` would do to each denoiser, from the teacher's configs alone.

    Arguments and errors are those of `prune_pipeline`.
    """
    name = pretrained_model_name_or_path
    family = _recognise(name, family, revision, **download_kwargs)
    plan = find_plan(plan or family.default_plan)
    teacher = open_teacher(name, family.layout, revision=revision, weights=False, **download_kwargs)
    return _surveys(teacher, family, plan)


def prune_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    plan: PruningPlan | MiddleRule | str | os.PathLike | None = None,
    *,
    family: Family | None = None,
    variant: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Path:
    """Prune the denoiser of a video diffusion pipeline and write the whole pipeline with the student in its place.

    Pipelines with two denoisers, as Wan 2.2's, get two students by the same plan.

    The weights go from file to file, in the teacher's dtype, without ever being held in memory. `output_dir` appears
    when it is complete; on any error nothing is left behind.

    Args:
        pretrained_model_name_or_path: a pipeline folder, or the id of a repository on the Hub. Its family is
            recognised by its `model_index.json`.
        output_dir: made by this function. The family's pipeline, [`VDMiniI2VPipeline`] or [`VDMiniT2VPipeline`], and
            [`DiffusionPipeline`] open it.
        plan: what to keep: a plan, a rule that makes one for the teacher, the name of either in `PLANS`, or a JSON
            file with a plan. By default the paper's for the teachers of the paper, and for others `"middle"`.
        family: the only family that is accepted.
        variant: of the weight files to read, e.g. `"fp16"`; the student's files carry it as well.
        revision: branch, tag or commit on the Hub.
        max_shard_size: as in `save_pretrained`.
        overwrite: replace `output_dir` if it is a pipeline folder.
        allow_pickle: read `.bin` files where there are no safetensors. They are rewritten as safetensors.
        download_kwargs: of `huggingface_hub.snapshot_download`, e.g. `token`, `cache_dir`, `local_files_only`.

    Returns:
        `output_dir`.

    Raises:
        CheckpointError: a `ValueError`; if the teacher is of another architecture, incomplete, corrupt, or holds NaN
            or infinity. The message names the file and the tensor.
        FileExistsError: if `output_dir` exists and may not be replaced.
        OSError: if a file cannot be read or written, or the disk is too small.
        PruningPlanError: a `ValueError`; if the plan does not fit the teacher.
    """
    name, weight_files = pretrained_model_name_or_path, WeightFiles(variant, max_shard_size, allow_pickle)
    plan_file = plan if isinstance(plan, (str, os.PathLike)) and plan not in PLANS else None
    check_apart(output_dir, {"the teacher": name, "the plan": plan_file})
    with new_folder(output_dir, overwrite) as folder:
        # Open
        family = _recognise(name, family, revision, **download_kwargs)
        plan = find_plan(plan or family.default_plan)
        teacher = open_teacher(
            name, family.layout, variant=variant, revision=revision, allow_pickle=allow_pickle, **download_kwargs
        )

        # Plan
        surveys = _surveys(teacher, family, plan)

        # Copy
        hashes = _copy_companions(teacher, surveys.keys(), folder)
        hashes |= _copy_weights(teacher, family, surveys, folder, weight_files)

        # Describe
        _write_index(teacher, family, surveys.keys(), folder)
        records = {
            denoiser: _describe_student(teacher, survey, folder / denoiser, hashes, variant)
            for denoiser, survey in surveys.items()
        }
        plans = dict.fromkeys(survey.plan.to_json_string() for survey in surveys.values())  # each once
        write_card(
            folder,
            family.card,
            front_matter={
                "pipeline_tag": family.pipeline_tag,
                "tags": list(family.tags),
                "base_model": teacher.name if teacher.commit else None,  # the Hub wants an id of its own here
            },
            teacher_card=teacher.folder / "README.md",
            repository=Path(os.path.abspath(output_dir)).name,
            **card_fields(teacher, merged_record(records), "".join(plans)),
        )
    return Path(output_dir)


def _recognise(
    name: str | os.PathLike, expected: Family | None, revision: str | None, **download_kwargs: Any
) -> Family:
    """The family of a pipeline. Raises `CheckpointError` if it is a known one, but not the one that is expected."""
    if expected is None:
        return find_family(str(name), revision, **download_kwargs)
    index, file = read_model_index(name, revision, **download_kwargs)
    family = family_of(named_class(index))
    if family not in (None, expected):
        raise CheckpointError(
            f"{file} describes a {named_class(index)!r}; a teacher is a"
            f" {' or a '.join(expected.layout.class_names)} here. This is {family.name}, not {expected.name}: use the"
            " script for it in conversion/, or `vdmini_diffusers.prune_pipeline`, which takes both."
        )
    return expected


def _surveys(teacher: Teacher, family: Family, plan: PruningPlan | MiddleRule) -> dict[str, Survey]:
    denoisers = {name: kinds for name, kinds in family.denoisers.items() if name in teacher.components}
    if not denoisers:
        names = " nor ".join(family.denoisers)
        raise CheckpointError(f"{teacher.folder / 'model_index.json'} has no {names}: there is nothing to prune.")
    for name in denoisers:
        if (teacher.folder / name / "pruning_plan.json").exists():
            raise CheckpointError(
                f"{teacher.folder / name} has a pruning_plan.json: it is a student already. Give the teacher that it"
                " was pruned from."
            )
    _check_guider(teacher)
    return {name: survey_denoiser(teacher.folder / name, plan, kinds) for name, kinds in denoisers.items()}


def _check_guider(teacher: Teacher) -> None:
    """Raises `CheckpointError` if a component goes by the indices of blocks, which are others in the student."""
    for name in teacher.components:
        file = teacher.folder / name / GUIDER_CONFIG_NAME
        if file.is_file() and (fields := [field for field in GUIDER_FIELDS if read_json(file).get(field)]):
            raise CheckpointError(
                f"{file} names blocks by their index (`{fields[0]}`), and the student's have other indices. Save the"
                " pipeline with a guider that names none, and give the student's pipeline its own."
            )


def _copy_companions(teacher: Teacher, denoisers: Collection[str], folder: Path) -> dict[Path, FileHash]:
    hashes = {}
    for name in companion_files(teacher, without=denoisers):
        source, target = teacher.folder / name, folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        hashes[source] = FileHash(source.stat().st_size, sha256_of(target))
    configs = [teacher.folder / name / "config.json" for name in denoisers]
    for source in (teacher.folder / "model_index.json", *configs):
        hashes[source] = FileHash(source.stat().st_size, sha256_of(source))
    return hashes


def _copy_weights(
    teacher: Teacher, family: Family, surveys: Mapping[str, Survey], folder: Path, weight_files: WeightFiles
) -> dict[Path, FileHash]:
    libraries = {name: part.library for name, part in teacher.components.items() if part.has_weights}
    found = {
        name: find_weights(teacher, name, library, weight_files.variant, weight_files.allow_pickle)
        for name, library in libraries.items()
    }
    pickles = [file for _, files in found.values() for file in files]
    check_free_space(folder, sum(file.stat().st_size for file in pickles))
    scratch = folder / ".unpickled"
    tensors = {name: unpickle(files, scratch / name) if files else tensors for name, (tensors, files) in found.items()}
    names = {name: {key: key for key in tensors[name]} for name in libraries}
    for name, survey in surveys.items():
        check_teacher_tensors(survey.teacher_shapes, tensors[name], teacher.folder / name, survey.plan.network)
        names[name] = dict(survey.weights)
    for name in libraries.keys() - surveys.keys():
        class_name = teacher.index[name][1]
        classes = component_classes(family.pipeline, name, teacher.components[name].own, class_name)
        check_component(teacher.folder / name, tensors[name], class_name, classes)
    check_free_space(folder, sum(_num_bytes(tensors[name], names[name]) for name in libraries))

    hashes = {}
    for name, library in libraries.items():
        known = {t.file: known_sha256(teacher, t.file) for t in tensors[name].values()}
        hashes |= copy_checkpoint(
            tensors[name],
            names[name],
            folder / name,
            weight_stems(library)[0],
            weight_files.variant,
            weight_files.max_shard_size,
            known_sha256=known,
        )
    if pickles:
        hashes = {file: file_hash for file, file_hash in hashes.items() if scratch not in file.parents}
        hashes |= {file: FileHash(file.stat().st_size, sha256_of(file)) for file in pickles}
        shutil.rmtree(scratch)
    return hashes


def _num_bytes(tensors: Mapping[str, StoredTensor], names: Mapping[str, str]) -> int:
    return sum(tensors[name].num_bytes for name in names.values())


def _write_index(teacher: Teacher, family: Family, denoisers: Collection[str], folder: Path) -> None:
    """`model_index.json`, as the pipeline's `save_pretrained` writes it, and the code files that it names."""
    entries = {name: entry for name, entry in teacher.index.items() if not name.startswith("_")}
    for name, component in teacher.components.items():
        if component.own is not None and name not in denoisers and component.is_own(entries[name]):
            entries[name] = model_index_entry(component.own, folder / name)
    source, class_name = model_index_entry(family.pipeline, folder)
    index = {
        **entries,
        "_class_name": class_name if source == "diffusers" else (source, class_name),
        "_diffusers_version": diffusers.__version__,
        **{name: model_index_entry(family.denoisers[name].student, folder / name) for name in denoisers},
    }
    write_file(folder / "model_index.json", (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def _describe_student(
    teacher: Teacher, survey: Survey, folder: Path, hashes: Mapping[Path, FileHash], variant: str | None
) -> Mapping[str, Any]:
    """Write the student's config, plan and provenance beside its weights; the provenance is returned."""
    survey.student.save_config(folder)
    record = provenance(teacher, survey, relative_names(teacher, hashes), variant, __version__)
    write_file(folder / "pruning_plan.json", survey.plan.to_json_string().encode())
    write_file(folder / "pruning_provenance.json", (json.dumps(record, indent=2) + "\n").encode())
    return record
