"""The folder of a VAE in, the folder of the same VAE with a compressed decoder out (paper, appendix A)."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vdmini_diffusers.data.vae_clips import decode_clips
from vdmini_diffusers.pruning.channels import prune_channels, without_layers
from vdmini_diffusers.pruning.dependency_graph import Importance
from vdmini_diffusers.pruning.plans import DecoderPruningPlan, PruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import CoupledChannels, channels_json
from vdmini_diffusers.pruning.presets import DECODER_PLANS, P1, find_plan
from vdmini_diffusers.pruning.provenance import card_fields, provenance, relative_names
from vdmini_diffusers.pruning.survey import Survey, check_teacher_tensors
from vdmini_diffusers.pruning.vae_survey import TEACHERS, load_tensor, survey_vae, with_present_names
from vdmini_diffusers.serialization.atomic import check_apart, check_free_space, new_folder, write_file
from vdmini_diffusers.serialization.cards import write_card
from vdmini_diffusers.serialization.hashes import sha256_of
from vdmini_diffusers.serialization.pickled_weights import unpickle
from vdmini_diffusers.serialization.pipeline_folder import (
    STEMS,
    Teacher,
    check_links,
    find_weights,
    known_hashes,
    licence_files,
    weight_patterns,
)
from vdmini_diffusers.serialization.repository import download
from vdmini_diffusers.serialization.safetensors_copy import FLOATS, FileHash, copy_checkpoint
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor, read_header
from vdmini_diffusers.serialization.sources import Source
from vdmini_diffusers.version import __version__


STEM = STEMS["diffusers"][0]
PRUNED = "pruned."  # before the names of the decoder's tensors, while the teacher's are there as well


def survey_vae_decoder(
    pretrained_model_name_or_path: str | os.PathLike,
    plan: PruningPlan | str | os.PathLike = P1,
    *,
    subfolder: str = "vae",
    revision: str | None = None,
    **download_kwargs: Any,
) -> Survey:
    """What `prune_vae_decoder` would do, from the VAE's config alone. Raises what it raises for it."""
    teacher = _open_vae(pretrained_model_name_or_path, subfolder, revision, [], **download_kwargs)
    return survey_vae(teacher.folder / subfolder, find_plan(plan, DECODER_PLANS))


def prune_vae_decoder(
    pretrained_model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    plan: PruningPlan | str | os.PathLike = P1,
    importance: Importance = "l2",
    clips: Iterable[Tensor] = (),
    subfolder: str = "vae",
    variant: str | None = None,
    revision: str | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
    allow_pickle: bool = False,
    **download_kwargs: Any,
) -> Path:
    """Prune the decoder of a VAE, layers first and then channels, and write the VAE with the narrow decoder.

    The encoder goes from file to file, bit for bit, in the teacher's dtype. The decoder is held in memory, in float32,
    as importances compare all of it; what is kept goes back to the teacher's dtype, in which slices are bit-equal.
    `output_dir` appears when it is complete; on any error nothing is left behind.

    Args:
        pretrained_model_name_or_path: a folder, or the id of a repository on the Hub.
        output_dir: made by this function; `from_pretrained` of our class opens it.
        plan: what to keep: a plan, a name in `DECODER_PLANS`, or a JSON file with a plan.
        importance: of channels: `"l2"`, or `"taylor"`, which needs `clips`.
        clips: for `"taylor"`, each `(frames, 3, height, width)` in `[-1, 1]`. The loss is the mean squared error of
            their reconstruction.
        subfolder: of the VAE; empty if it lies at the top.
        variant: of the weight files to read, e.g. `"fp16"`; those written carry it as well.
        revision: branch, tag or commit on the Hub.
        max_shard_size: as in `save_pretrained`.
        overwrite: replace `output_dir` if this function wrote it.
        allow_pickle: read `.bin` files where there are no safetensors. They are rewritten as safetensors.
        download_kwargs: of `huggingface_hub.snapshot_download`, e.g. `token`, `cache_dir`, `local_files_only`.

    Returns:
        `output_dir`.

    Raises:
        CheckpointError: a `ValueError`; if the VAE is of another architecture, incomplete, corrupt, or holds NaN or
            infinity. The message names the file and the tensor.
        FileExistsError: if `output_dir` exists and may not be replaced.
        ImportError: without the extra `prune`.
        OSError: if a file cannot be read or written, or the disk is too small.
        PruningPlanError: a `ValueError`; if the plan does not fit the VAE.
        ValueError: for an unknown importance, or `"taylor"` without clips.
    """
    name = pretrained_model_name_or_path
    plan_file = None if isinstance(plan, PruningPlan) or plan in DECODER_PLANS else plan
    check_apart(output_dir, {"the teacher": name, "the plan": plan_file})
    found_plan = find_plan(plan, DECODER_PLANS)
    with new_folder(output_dir, overwrite, kind="pruned VAE", marker="pruning_provenance.json") as folder:
        patterns = weight_patterns("diffusers", variant, allow_pickle)
        teacher = _open_vae(name, subfolder, revision, patterns, **download_kwargs)
        survey = survey_vae(teacher.folder / subfolder, found_plan)
        files: dict[Source, FileHash] = {}
        for name in licence_files(teacher):
            shutil.copyfile(teacher.folder / name, folder / name)
            files[teacher.folder / name] = _hash(folder / name)
        config_file = teacher.folder / subfolder / "config.json"
        files[config_file] = _hash(config_file)

        found, pickles = find_weights(teacher, subfolder, "diffusers", variant, allow_pickle)
        check_free_space(folder, sum(file.stat().st_size for file in pickles))
        scratch = folder / ".scratch"
        scratch.mkdir()
        tensors = with_present_names(unpickle(pickles, scratch / "unpickled") if pickles else found)
        check_teacher_tensors(survey.teacher_shapes, tensors, teacher.folder / subfolder, "VAE")
        check_free_space(folder, 2 * sum(tensor.num_bytes for tensor in tensors.values()))
        losses = _reconstruction_losses(survey, tensors, clips) if importance == "taylor" else None
        decoder, coupled = _prune(survey, tensors, importance, losses)
        hashes = _write_weights(teacher, survey, tensors, decoder, folder, scratch, variant, max_shard_size)
        files |= {file: found for file, found in hashes.items() if scratch not in Path(str(file)).parents}
        files |= {file: _hash(file) for file in pickles}
        shutil.rmtree(scratch)

        survey.student.save_config(folder)
        record = provenance(teacher, survey, relative_names(teacher, files), variant, __version__)
        record["importance"] = importance
        plan_json = survey.plan.to_json_string()
        write_file(folder / "pruning_plan.json", plan_json.encode())
        write_file(folder / "pruning_channels.json", channels_json(coupled).encode())
        write_file(folder / "pruning_provenance.json", (json.dumps(record, indent=2) + "\n").encode())
        write_card(
            folder,
            "vdmini_vae.md",
            front_matter={
                "tags": ["vdmini", "video-diffusion", "pruning", "vae"],
                "base_model": teacher.name if teacher.commit else None,
            },
            teacher_card=teacher.folder / "README.md",
            repository=Path(os.path.abspath(output_dir)).name,
            class_name=type(survey.student).__name__,
            importance=importance,
            **card_fields(teacher, record, plan_json),
        )
    return Path(output_dir)


def _open_vae(
    pretrained_model_name_or_path: str | os.PathLike,
    subfolder: str,
    revision: str | None,
    patterns: list[str],
    **download_kwargs: Any,
) -> Teacher:
    """The folder that holds `subfolder`, downloaded if need be; its config is not yet looked at."""
    if os.path.lexists(pretrained_model_name_or_path):
        folder = Path(pretrained_model_name_or_path)
        if not (folder / subfolder / "config.json").exists():
            raise CheckpointError(
                f"{folder / subfolder / 'config.json'} is missing: a teacher is a folder with a VAE in diffusers'"
                f" layout, in its subfolder {subfolder!r}. Say where it lies with `subfolder` (--subfolder), which is"
                " empty for the folder of a VAE alone."
            )
        check_links(folder, [subfolder])
        return Teacher(folder, folder.resolve().name, revision, None, {})
    name = str(pretrained_model_name_or_path)
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [f"{prefix}{pattern}" for pattern in ("*.json", *patterns)]
    folder = download(name, revision, ["LICENSE*", "NOTICE*", "README.md", *wanted], **download_kwargs)
    check_links(folder, [subfolder])
    return Teacher(folder, name, revision, folder.name, {})


def _hash(file: Path) -> FileHash:
    return FileHash(file.stat().st_size, sha256_of(file))


def _prune(
    survey: Survey,
    tensors: dict[str, StoredTensor],
    importance: Importance,
    losses: Callable[[nn.Module], Iterable[Tensor]] | None,
) -> tuple[nn.Module, tuple[CoupledChannels, ...]]:
    assert isinstance(survey.plan, DecoderPruningPlan)  # `survey_vae` takes no other
    loaded = {key: load_tensor(tensor) for key, tensor in tensors.items() if key.startswith("decoder.")}
    decoder = without_layers(survey.plan, survey.class_name, survey.config, loaded)
    del loaded
    return decoder, prune_channels(decoder, survey.student.decoder, importance, losses)


def _reconstruction_losses(
    survey: Survey, tensors: dict[str, StoredTensor], clips: Iterable[Tensor]
) -> Callable[[nn.Module], Iterable[Tensor]]:
    """Mean squared errors of a decoder on what the teacher's encoder makes of each clip."""
    with torch.device("meta"):
        teacher = TEACHERS[survey.class_name].from_config(dict(survey.config))
    teacher.load_state_dict({key: load_tensor(tensor).float() for key, tensor in tensors.items()}, assign=True)
    with torch.no_grad():
        pairs = [(teacher.encode(clip.float()).latent_dist.mode(), clip.float()) for clip in clips]
        if survey.class_name == "AutoencoderKL" and teacher.post_quant_conv is not None:
            pairs = [(teacher.post_quant_conv(latents), clip) for latents, clip in pairs]
    if not pairs:
        raise ValueError("`importance='taylor'` goes by the reconstruction of `clips`, of which there are none.")

    def loss(decoder: nn.Module, latents: Tensor, clip: Tensor) -> Tensor:
        return nn.functional.mse_loss(decode_clips(decoder, latents[None])[0], clip)

    return lambda decoder: (loss(decoder, *pair) for pair in pairs)


def _write_weights(
    teacher: Teacher,
    survey: Survey,
    tensors: dict[str, StoredTensor],
    decoder: nn.Module,
    folder: Path,
    scratch: Path,
    variant: str | None,
    max_shard_size: int | str,
) -> dict[Source, FileHash]:
    """The teacher's files of tensors and the decoder's, which takes its place among them, become those of `folder`."""
    narrow = {}
    for key, tensor in decoder.state_dict().items():
        dtype = FLOATS[tensors[survey.weights[f"decoder.{key}"]].dtype]
        narrow[f"{PRUNED}decoder.{key}"] = tensor.to(dtype).contiguous()
    safetensors.torch.save_file(narrow, scratch / "decoder.safetensors")
    source = tensors | read_header(scratch / "decoder.safetensors")
    names = {key: f"{PRUNED}{key}" if f"{PRUNED}{key}" in narrow else key for key in survey.weights}
    known = known_hashes(teacher, {tensor.file for tensor in tensors.values()})
    return copy_checkpoint(source, names, folder, STEM, variant, max_shard_size, known_sha256=known)
