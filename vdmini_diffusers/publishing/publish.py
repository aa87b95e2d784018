"""A pipeline folder to the Hub: checked, with a complete card, in one commit or as a pull request."""

import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from vdmini_diffusers.publishing.evaluations import read_evaluations
from vdmini_diffusers.publishing.model_info import ModelInfo, describe_model
from vdmini_diffusers.publishing.model_picture import draw_model
from vdmini_diffusers.publishing.opening import check_opens
from vdmini_diffusers.publishing.published_card import PICTURE, LicenseTerms, license_for, published_card
from vdmini_diffusers.publishing.staging import find_samples, left_out, publishable_files, stage
from vdmini_diffusers.publishing.upload import Upload, upload_files
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """What `publish` did, or with `dry_run` would do.

    Args:
        files: sizes by path in the repository.
        left_out: what else is in the folder.
        card: the text of its README.md.
        opened: what `check_opens` found.
        upload: None before it is uploaded.
    """

    repo_id: str
    files: Mapping[str, int]
    left_out: tuple[str, ...]
    card: str
    opened: Mapping[str, Any]
    upload: Upload | None = None


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    terms: LicenseTerms | None = None,
    evaluations: Iterable[str | os.PathLike] = (),
    samples: Iterable[str | os.PathLike] = (),
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """Upload a pipeline folder in one commit, with its code files, plan, provenance and a complete card.

    Before, it is opened in a fresh process that cannot import this package, from exactly the files that go up. The
    folder itself is not changed. What the repository has already is not sent again, so an upload that was cut off goes
    on with the same call, and the same content makes no new commit.

    Args:
        folder: of a pipeline, as `prune_pipeline` and `distill` write it. What goes up is stated in `staging.py`.
        repo_id: `org/name`. It is made if there is none.
        private: make it private. One that is there and public is refused.
        revision: the branch to commit to, made if there is none; `refs/pr/N` adds to a pull request.
        create_pr: open a pull request. The repository has to be there.
        terms: the licence, where the teacher's card names none. Otherwise the student inherits it.
        evaluations: JSON files with results, for the card: see `read_evaluations`.
        samples: videos and pictures for the card. By default those in the folder's `samples`.
        token: of the Hub. By default the one of `hf auth login` or `HF_TOKEN`.
        dry_run: do all of it but the upload; the Hub is not asked.

    Raises:
        CheckpointError: a `ValueError`; if the folder is no pipeline, or is damaged.
        ConnectionError: if the Hub cannot be reached, or stops answering.
        OSError: if a file cannot be read, or the Hub refuses: the message says why and what to do.
        RuntimeError: if the folder does not open without this package.
        ValueError: if the licence is not known, an argument cannot be used, or a file holds what looks like a token.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"{os.fspath(folder)} is no folder: what is published is the folder of a pipeline.")
    _check_repo_id(repo_id)
    if create_pr and revision is not None:
        raise ValueError("`create_pr` opens a pull request to the main branch; a `revision` is committed to directly.")
    info = describe_model(folder)
    if not info.is_pipeline:
        raise CheckpointError(
            f"{info.name} is a model alone, {info.class_name}. What is published is the folder of a pipeline with its"
            f" model_index.json; `hf upload {repo_id} {info.name}` uploads any folder as it is."
        )
    resolved = license_for(info, terms)
    results = read_evaluations(map(Path, evaluations), bool(info.training and info.training.is_distilled))
    shown = find_samples(info, tuple(map(Path, samples)))
    picture = draw_model(info, repo_id.rpartition("/")[2]) if info.pruned else None
    variant = _variant(info)
    card = published_card(info, repo_id, resolved, results, list(shown), picture is not None, variant)
    files: dict[str, Path | bytes] = {**publishable_files(info), **shown, "README.md": card.encode()}
    if picture is not None:
        files[PICTURE] = picture

    with tempfile.TemporaryDirectory(prefix="vdmini-publish-") as temporary:
        staged = Path(temporary) / "model"
        stage(files, staged)
        logger.info("opening it in a fresh process without this package")
        publication = Publication(
            repo_id=repo_id,
            files={name: (staged / name).stat().st_size for name in sorted(files)},
            left_out=tuple(left_out(info, files)),
            card=card,
            opened=check_opens(info, staged, variant),
        )
        if dry_run:
            return publication
        upload = upload_files(
            staged,
            publication.files,
            repo_id,
            commit_message or f"{info.class_name}, published with vdmini_diffusers",
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
        )
        return replace(publication, upload=upload)


def _check_repo_id(repo_id: str) -> None:
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository on the Hub: {short_message(error)}") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} lacks its owner: a repository is named org/name.")


def _variant(info: ModelInfo) -> str | None:
    """The variant of weight files that has to be named to open the pipeline."""
    denoisers = info.family.denoisers if info.family else {}
    stored = [part for part in info.components if part.variants]
    first = next((part for part in stored if part.name in denoisers), stored[0] if stored else None)
    return None if first is None or None in first.variants else first.variants[0]
