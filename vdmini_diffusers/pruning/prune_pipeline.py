"""The folder of a video diffusion pipeline in, the folder of its VDMini student out (paper, section 3.2)."""

import hashlib
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
from vdmini_diffusers.pruning.provenance import card_fields, loading_code, merged_record, provenance, relative_names
from vdmini_diffusers.pruning.survey import Survey, check_teacher_tensors, survey_denoiser
from vdmini_diffusers.serialization.atomic import (
    check_apart,
    check_free_space,
    check_replaceable,
    new_folder,
    write_file,
)
from vdmini_diffusers.serialization.cards import write_card
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.journal import Journal
from vdmini_diffusers.serialization.original_weights import read_original_weights
from vdmini_diffusers.serialization.pickled_weights import unpickle
from vdmini_diffusers.serialization.pipeline_folder import (
    FoundWeights,
    Teacher,
    companion_files,
    find_weights,
    known_hashes,
    named_class,
    open_teacher,
    read_model_index,
    weight_stems,
)
from vdmini_diffusers.serialization.repository import model_index_entry
from vdmini_diffusers.serialization.safetensors_copy import FileHash, copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor, read_json
from vdmini_diffusers.serialization.sources import Source, fingerprint
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
    denoisers_only: bool = False,
    variant: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> dict[str, Survey]:
    """What `prune_pipeline` would do to each denoiser, from the teacher's configs alone.

    Arguments and errors are those of `prune_pipeline`. Weights need not be there, unless a variant of them is named.
    """
    name = pretrained_model_name_or_path
    family = _recognise(name, family, revision, **download_kwargs)
    plan = find_plan(plan or family.default_plan)
    wanted = family.denoisers if denoisers_only else family.layout.components
    options = {"variant": variant, "weights": wanted, "allow_pickle": allow_pickle} if variant is not None else {}
    teacher = open_teacher(name, family.layout, revision=revision, **options, **download_kwargs)
    surveys = _surveys(teacher, family, plan)
    if variant is not None:
        _find_weights(teacher, wanted, variant, allow_pickle)
    return surveys


def prune_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    plan: PruningPlan | MiddleRule | str | os.PathLike | None = None,
    *,
    family: Family | None = None,
    denoisers_only: bool = False,
    original_checkpoint: str | os.PathLike | None = None,
    variant: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Path:
    """Prune the denoiser of a video diffusion pipeline and write the whole pipeline with the student in its place.

    Pipelines with two denoisers, as Wan 2.2's, get two students by the same plan.

    The weights go from file to file, in the teacher's dtype, without ever being held in memory. From the Hub, only the
    bytes of kept tensors are fetched, and none of what is in the cache. `output_dir` appears when it is complete; on
    an error nothing is left behind. What a process has copied that was killed, stopped by Ctrl-C or cut off from the
    Hub is not copied again by the next call with the same arguments.

    Args:
        pretrained_model_name_or_path: a pipeline folder, or the id of a repository on the Hub. Its family is
            recognised by its `model_index.json`.
        output_dir: made by this function. The family's pipeline, [`VDMiniI2VPipeline`] or [`VDMiniT2VPipeline`], and
            [`DiffusionPipeline`] open it.
        plan: what to keep: a plan, a rule that makes one for the teacher, the name of either in `PLANS`, or a JSON
            file with a plan. By default the paper's for the teachers of the paper, and for others `"middle"`.
        family: the only family that is accepted.
        denoisers_only: write the denoisers without the rest of the pipeline, which the card says where to find.
        original_checkpoint: a file with the denoiser's weights as its authors published them, e.g. HunyuanVideo's
            `mp_rank_00_model_states.pt`. They take the place of those in the pipeline folder, which gives all else.
        variant: of the weight files to read, e.g. `"fp16"`; the student's files carry it as well.
        revision: branch, tag or commit on the Hub.
        max_shard_size: as in `save_pretrained`.
        overwrite: replace `output_dir` if it is what this function wrote.
        allow_pickle: read `.bin` files where there are no safetensors. They are rewritten as safetensors.
        download_kwargs: of `huggingface_hub.snapshot_download`, e.g. `token`, `cache_dir`, `local_files_only`.

    Returns:
        `output_dir`.

    Raises:
        CheckpointError: a `ValueError`; if the teacher is of another architecture, incomplete, corrupt, or holds NaN
            or infinity. The message names the file and the tensor.
        ConnectionError: if the Hub cannot be reached, or stops sending.
        FileExistsError: if `output_dir` exists and may not be replaced.
        OSError: if a file cannot be read or written, or the disk is too small.
        PruningPlanError: a `ValueError`; if the plan does not fit the teacher.
    """
    name, weight_files = pretrained_model_name_or_path, WeightFiles(variant, max_shard_size, allow_pickle)
    plan_file = plan if isinstance(plan, (str, os.PathLike)) and plan not in PLANS else None
    inputs = {"the teacher": name, "the plan": plan_file, "the original checkpoint": original_checkpoint}
    check_apart(output_dir, inputs)
    family = _recognise(name, family, revision, **download_kwargs)
    whole = {"kind": "pruned denoiser", "marker": f"{family.denoiser}/pruning_plan.json"} if denoisers_only else {}
    check_replaceable(output_dir, overwrite, **whole)

    # Open
    plan = find_plan(plan or family.default_plan)
    teacher = open_teacher(
        name,
        family.layout,
        variant=variant,
        revision=revision,
        weights=family.denoisers if denoisers_only else family.layout.components,
        allow_pickle=allow_pickle,
        **download_kwargs,
    )

    # Plan
    surveys = _surveys(teacher, family, plan)
    weights = _original_weights(Path(original_checkpoint), surveys) if original_checkpoint is not None else {}
    wanted = (family.denoisers if denoisers_only else family.layout.components).keys() - weights.keys()
    weights |= _find_weights(teacher, wanted, variant, allow_pickle)
    for component, (tensors, pickles) in weights.items():
        if not pickles:
            _check_weights(teacher, family, component, surveys.get(component), tensors)
    identity = _identity(weights, surveys, weight_files)

    with new_folder(output_dir, overwrite, **whole, resume=True) as folder, Journal(folder, identity) as journal:
        # Copy
        hashes = _copy_companions(teacher, surveys.keys(), folder, denoisers_only)
        hashes |= _copy_weights(teacher, family, weights, surveys, folder, weight_files, journal)

        # Describe
        records = {
            denoiser: _describe_student(teacher, survey, folder / denoiser, hashes, variant)
            for denoiser, survey in surveys.items()
        }
        if not denoisers_only:
            _write_index(teacher, family, surveys.keys(), folder)
        repository = Path(os.path.abspath(output_dir)).name
        _write_card(teacher, family, surveys, records, folder, repository, variant, denoisers_only)
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


def _find_weights(
    teacher: Teacher, wanted: Collection[str], variant: str | None, allow_pickle: bool
) -> dict[str, FoundWeights]:
    """Where the weights of the components in `wanted` are, of those that the teacher has. Raises as `find_weights`."""
    return {
        component: find_weights(teacher, component, part.library, variant, allow_pickle)
        for component, part in teacher.components.items()
        if part.has_weights and component in wanted
    }


def _original_weights(file: Path, surveys: Mapping[str, Survey]) -> dict[str, FoundWeights]:
    if len(surveys) > 1:
        raise ValueError(
            f"{file} holds the weights of one denoiser, and the pipeline has {' and '.join(surveys)}: convert each to"
            " diffusers' layout first."
        )
    ((denoiser, survey),) = surveys.items()
    return {denoiser: (read_original_weights(file, survey.class_name), [])}


def _check_weights(
    teacher: Teacher, family: Family, component: str, survey: Survey | None, tensors: Mapping[str, StoredTensor]
) -> None:
    folder = teacher.folder / component
    if survey is not None:
        check_teacher_tensors(survey.teacher_shapes, tensors, folder, survey.plan.network)
    else:
        class_name = teacher.index[component][1]
        classes = component_classes(family.pipeline, component, teacher.components[component].own, class_name)
        check_component(folder, tensors, class_name, classes)


def _identity(weights: Mapping[str, FoundWeights], surveys: Mapping[str, Survey], weight_files: WeightFiles) -> str:
    """A digest of all that decides which bytes of which files become those of which others."""
    digest = hashlib.sha256(repr((__version__, weight_files)).encode())
    for component, (tensors, pickles) in weights.items():
        files = dict.fromkeys([*(tensor.file for tensor in tensors.values()), *pickles])
        places = [(name, str(t.file), t.name, t.dtype, t.shape, t.ranges) for name, t in tensors.items()]
        names = surveys[component].weights if component in surveys else None
        digest.update(repr((component, [fingerprint(file) for file in files], places, names)).encode())
    return digest.hexdigest()


def _copy_companions(
    teacher: Teacher, denoisers: Collection[str], folder: Path, denoisers_only: bool
) -> dict[Source, FileHash]:
    hashes: dict[Source, FileHash] = {}
    for name in companion_files(teacher, without=teacher.components if denoisers_only else denoisers):
        source, target = teacher.folder / name, folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        hashes[source] = FileHash(source.stat().st_size, sha256_of(target))
    configs = [teacher.folder / name / "config.json" for name in denoisers]
    for source in (teacher.folder / "model_index.json", *configs):
        hashes[source] = FileHash(source.stat().st_size, sha256_of(source))
    return hashes


def _copy_weights(
    teacher: Teacher,
    family: Family,
    weights: Mapping[str, FoundWeights],
    surveys: Mapping[str, Survey],
    folder: Path,
    weight_files: WeightFiles,
    journal: Journal,
) -> dict[Source, FileHash]:
    all_pickles = [file for _, pickles in weights.values() for file in pickles]
    check_free_space(folder, sum(file.stat().st_size for file in all_pickles))
    scratch = folder / ".unpickled"
    shutil.rmtree(scratch, ignore_errors=True)
    tensors = {}
    for component, (found, pickles) in weights.items():
        tensors[component] = unpickle(pickles, scratch / component) if pickles else found
        if pickles:
            _check_weights(teacher, family, component, surveys.get(component), tensors[component])
    names = {
        name: surveys[name].weights if name in surveys else {key: key for key in tensors[name]} for name in weights
    }
    num_bytes = sum(tensors[name][key].num_bytes for name in weights for key in names[name].values())
    check_free_space(folder, num_bytes - journal.num_bytes)

    known = known_hashes(teacher, dict.fromkeys(t.file for found in tensors.values() for t in found.values()))
    hashes: dict[Source, FileHash] = {}
    for name in weights:
        hashes |= copy_checkpoint(
            tensors[name],
            names[name],
            folder / name,
            weight_stems(teacher.components[name].library)[0],
            weight_files.variant,
            weight_files.max_shard_size,
            known_sha256=known,
            journal=journal,
        )
    if all_pickles:
        hashes = {file: h for file, h in hashes.items() if not isinstance(file, Path) or scratch not in file.parents}
        hashes |= {file: FileHash(file.stat().st_size, sha256_of(file)) for file in all_pickles}
        shutil.rmtree(scratch)
    return hashes


def _write_index(teacher: Teacher, family: Family, denoisers: Collection[str], folder: Path) -> None:
    """`model_index.json`, as the pipeline's `save_pretrained` writes it, and the code files that it names."""
    entries = {name: entry for name, entry in teacher.index.items() if not name.startswith("_")}
    for name, component in teacher.components.items():
        if component.library == "transformers":  # whose older versions have no CLIPImageProcessorPil, for example
            entries[name] = (entries[name][0], entries[name][1].removesuffix("Pil"))
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
    teacher: Teacher, survey: Survey, folder: Path, hashes: Mapping[Source, FileHash], variant: str | None
) -> Mapping[str, Any]:
    """Write the student's config, plan and provenance beside its weights, and its class, where that is ours.

    The provenance is returned.
    """
    survey.student.save_config(folder)
    model_index_entry(type(survey.student), folder)
    record = provenance(teacher, survey, relative_names(teacher, hashes), variant, __version__)
    write_file(folder / "pruning_plan.json", survey.plan.to_json_string().encode())
    write_file(folder / "pruning_provenance.json", (json.dumps(record, indent=2) + "\n").encode())
    return record


def _write_card(
    teacher: Teacher,
    family: Family,
    surveys: Mapping[str, Survey],
    records: Mapping[str, Mapping[str, Any]],
    folder: Path,
    repository: str,
    variant: str | None,
    denoisers_only: bool,
) -> None:
    plans = dict.fromkeys(survey.plan.to_json_string() for survey in surveys.values())  # each once
    fields = card_fields(teacher, merged_record(records), "".join(plans))
    if denoisers_only:
        students = {name: type(survey.student) for name, survey in surveys.items()}
        stock = getattr(family.pipeline, "stands_for", None)
        pipeline = family.pipeline if stock is None else getattr(diffusers, stock)
        fields["loading"] = loading_code(teacher, pipeline, students, repository, variant)
    write_card(
        folder,
        "vdmini_denoiser.md" if denoisers_only else family.card,
        front_matter={
            "pipeline_tag": family.pipeline_tag,
            "tags": list(family.tags),
            "base_model": teacher.name if teacher.commit else None,  # the Hub wants an id of its own here
        },
        teacher_card=teacher.folder / "README.md",
        repository=repository,
        **fields,
    )
