"""The folder of a video diffusion pipeline in, the folder of its VDMini student out (paper, section 3.2)."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers

from vdmini_diffusers import __version__
from vdmini_diffusers.hub import publish_class
from vdmini_diffusers.pruning.checkpoint_reader import StoredTensor
from vdmini_diffusers.pruning.checkpoint_writer import FileHash, copy_checkpoint
from vdmini_diffusers.pruning.output_folder import check_free_space, new_folder
from vdmini_diffusers.pruning.paper_plans import VDMINI_UNET
from vdmini_diffusers.pruning.pickled_weights import unpickle
from vdmini_diffusers.pruning.pipeline_kinds import SVD, TEXT_TO_VIDEO, PipelineKind
from vdmini_diffusers.pruning.plan import PruningPlan
from vdmini_diffusers.pruning.provenance import model_card, provenance, relative_names
from vdmini_diffusers.pruning.teacher_folder import (
    STEMS,
    Teacher,
    companion_files,
    find_weights,
    inside,
    known_sha256,
    open_teacher,
    sha256_of,
)
from vdmini_diffusers.pruning.unet_survey import UNetSurvey, check_teacher_tensors, survey_unet


def survey_svd_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    plan: PruningPlan = VDMINI_UNET,
    *,
    revision: str | None = None,
    **download_kwargs: Any,
) -> UNetSurvey:
    """What `prune_svd_pipeline` would do, from the teacher's configs alone. Raises what it raises for them."""
    return _survey(SVD, pretrained_model_name_or_path, plan, revision, download_kwargs)


def survey_t2v_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    plan: PruningPlan = VDMINI_UNET,
    *,
    revision: str | None = None,
    **download_kwargs: Any,
) -> UNetSurvey:
    """As `survey_svd_pipeline`, for `prune_t2v_pipeline`."""
    return _survey(TEXT_TO_VIDEO, pretrained_model_name_or_path, plan, revision, download_kwargs)


def prune_svd_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    plan: PruningPlan = VDMINI_UNET,
    variant: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Path:
    """Prune the U-Net of a Stable Video Diffusion pipeline and write the whole pipeline with the student in its place.

    The weights go from file to file, in the teacher's dtype, without ever being held in memory. `output_dir` appears
    when it is complete; on any error nothing is left behind.

    Args:
        pretrained_model_name_or_path: a pipeline folder, or the id of a repository on the Hub.
        output_dir: made by this function; both [`VDMiniI2VPipeline`] and [`DiffusionPipeline`] open it.
        plan: what to keep.
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
    source = dict(revision=revision, **download_kwargs)
    files = FileOptions(variant, max_shard_size, allow_pickle)
    return _prune(SVD, pretrained_model_name_or_path, output_dir, plan, files, overwrite, source)


def prune_t2v_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    plan: PruningPlan = VDMINI_UNET,
    variant: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Path:
    """As `prune_svd_pipeline`, for a text-to-video pipeline; [`VDMiniT2VPipeline`] opens what it writes.

    Args:
        pretrained_model_name_or_path: a [`VDMiniT2VPipeline`], such as `convert_t2v_turbo` writes, or a
            [`TextToVideoSDPipeline`] (ModelScope's).
    """
    source = dict(revision=revision, **download_kwargs)
    files = FileOptions(variant, max_shard_size, allow_pickle)
    return _prune(TEXT_TO_VIDEO, pretrained_model_name_or_path, output_dir, plan, files, overwrite, source)


class FileOptions(NamedTuple):
    """Of the weight files; see `prune_svd_pipeline`."""

    variant: str | None
    max_shard_size: int | str
    allow_pickle: bool


def _survey(
    kind: PipelineKind, name: str | os.PathLike, plan: PruningPlan, revision: str | None, download_kwargs: Any
) -> UNetSurvey:
    teacher = open_teacher(name, kind, revision=revision, weights=False, **download_kwargs)
    return survey_unet(teacher.folder / "unet", plan, kind)


def _prune(
    kind: PipelineKind,
    name: str | os.PathLike,
    output_dir: str | os.PathLike,
    plan: PruningPlan,
    options: FileOptions,
    overwrite: bool,
    source: Mapping[str, Any],
) -> Path:
    with new_folder(output_dir, overwrite) as folder:
        teacher = open_teacher(name, kind, variant=options.variant, allow_pickle=options.allow_pickle, **source)
        if teacher.folder.resolve().is_relative_to(Path(output_dir).resolve()):
            raise ValueError(f"{output_dir} is or holds the teacher, which would be replaced by its student.")
        survey = survey_unet(teacher.folder / "unet", plan, kind)
        files = _copy_companions(teacher, kind, folder)
        files |= _copy_weights(teacher, kind, survey, folder, options)
        _write_index(teacher, kind, folder)
        survey.student.save_config(folder / "unet")
        record = provenance(teacher, survey, relative_names(teacher, files), options.variant, __version__)
        plan_json = plan.to_json_string()
        (folder / "unet" / "pruning_plan.json").write_text(plan_json, encoding="utf-8")
        text = json.dumps(record, indent=2) + "\n"
        (folder / "unet" / "pruning_provenance.json").write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(model_card(teacher, kind, record, plan_json), encoding="utf-8")
    return Path(output_dir)


def _copy_companions(teacher: Teacher, kind: PipelineKind, folder: Path) -> dict[Path, FileHash]:
    hashes = {}
    for name in companion_files(teacher, kind):
        source, target = inside(teacher, name), folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        hashes[source] = FileHash(source.stat().st_size, sha256_of(target))
    for source in (teacher.folder / "model_index.json", teacher.folder / "unet" / "config.json"):
        hashes[source] = FileHash(source.stat().st_size, sha256_of(source))
    return hashes


def _copy_weights(
    teacher: Teacher, kind: PipelineKind, survey: UNetSurvey, folder: Path, options: FileOptions
) -> dict[Path, FileHash]:
    libraries = {name: kind.components[name].library for name in kind.with_weights}
    found = {
        name: find_weights(teacher, name, library, options.variant, options.allow_pickle)
        for name, library in libraries.items()
    }
    pickles = [file for _, files in found.values() for file in files]
    check_free_space(folder, sum(file.stat().st_size for file in pickles))
    scratch = folder / ".unpickled"
    tensors = {name: unpickle(files, scratch / name) if files else tensors for name, (tensors, files) in found.items()}
    check_teacher_tensors(survey.teacher_shapes, tensors["unet"], teacher.folder / "unet")
    names = {name: survey.weights if name == "unet" else {key: key for key in tensors[name]} for name in libraries}
    check_free_space(folder, sum(_num_bytes(tensors[name], names[name]) for name in libraries))

    hashes = {}
    for name, library in libraries.items():
        known = {t.file: known_sha256(teacher, t.file) for t in tensors[name].values()}
        hashes |= copy_checkpoint(
            tensors[name],
            names[name],
            folder / name,
            STEMS[library][0],
            options.variant,
            options.max_shard_size,
            known_sha256=known,
        )
    if pickles:
        hashes = {file: file_hash for file, file_hash in hashes.items() if scratch not in file.parents}
        hashes |= {file: FileHash(file.stat().st_size, sha256_of(file)) for file in pickles}
        shutil.rmtree(scratch)
    return hashes


def _num_bytes(tensors: Mapping[str, StoredTensor], names: Mapping[str, str]) -> int:
    return sum(tensors[name].num_bytes for name in names.values())


def _write_index(teacher: Teacher, kind: PipelineKind, folder: Path) -> None:
    """`model_index.json`, as the pipeline's `save_pretrained` writes it, and the code files that it names."""
    entries = {name: entry for name, entry in teacher.index.items() if not name.startswith("_")}
    published = {name: kind.published_class(name, entry) for name, entry in entries.items()}
    index = {
        **entries,
        **{name: publish_class(cls, folder / name) for name, cls in published.items() if cls},
        "_class_name": publish_class(kind.pipeline, folder),
        "_diffusers_version": diffusers.__version__,
        "unet": publish_class(kind.student_unet, folder / "unet"),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
