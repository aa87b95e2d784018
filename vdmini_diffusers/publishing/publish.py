"""A pipeline folder to the Hub: checked, with a complete card, in one commit or as a pull request."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from vdmini_diffusers.publishing.evaluations import read_evaluations
from vdmini_diffusers.publishing.model_info import WEIGHTS, ModelInfo, describe_model
from vdmini_diffusers.publishing.model_picture import draw_model
from vdmini_diffusers.publishing.opening import check_opens
from vdmini_diffusers.publishing.published_card import PICTURE, LicenseTerms, license_for, published_card
from vdmini_diffusers.publishing.staging import find_samples, left_out, publishable_files, stage
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


MAX_TRIES = 5  # of a request that the Hub refuses because there were too many
FIRST_WAIT_SECONDS = 1.0  # doubles, unless the Hub says how long

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Publication:
    """What `publish` did, or with `dry_run` would do.

    Args:
        files: sizes by path in the repository.
        left_out: what else is in the folder.
        card: the text of its README.md.
        opened: what `check_opens` found.
        commit: that the repository is at; None before it is uploaded.
        is_new: whether it took a commit: the same content does not.
        url: of the commit or the pull request.
    """

    repo_id: str
    files: Mapping[str, int]
    left_out: tuple[str, ...]
    card: str
    opened: Mapping[str, Any]
    commit: str | None = None
    is_new: bool = False
    url: str | None = None


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
        private: make it private. One that is there already stays what it is.
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
        ValueError: if the licence is not known, or an argument cannot be used.
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
    measurements = read_evaluations(map(Path, evaluations), bool(info.training and info.training.is_distilled))
    shown = find_samples(info, tuple(map(Path, samples)))
    picture = draw_model(info, repo_id.rpartition("/")[2]) if info.pruned else None
    variant = _variant(info)
    card = published_card(info, repo_id, resolved, measurements, list(shown), picture is not None, variant)
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
        message = commit_message or f"{info.class_name}, published with vdmini_diffusers"
        try:
            return _upload(HfApi(token=token), publication, staged, private, revision, create_pr, message)
        except HfHubHTTPError as error:
            raise _explained(error, repo_id, revision) from error
        except httpx.TransportError as error:
            raise ConnectionError(
                f"The connection to the Hub broke: {short_message(error)}. Run the same command again: what is there"
                " already is not sent again."
            ) from error


def _check_repo_id(repo_id: str) -> None:
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository on the Hub: {short_message(error)}") from error
    if "/" not in repo_id:
        raise ValueError(f"{repo_id!r} lacks its owner: a repository is named org/name.")


def _variant(info: ModelInfo) -> str | None:
    """The variant of weight files that has to be named to open the pipeline."""
    found = [part.variants for part in info.components if part.variants]
    if not found or any(None in variants for variants in found if len(found) == 1):
        return None
    denoisers = info.family.denoisers if info.family else {}
    first = next((part.variants for part in info.components if part.name in denoisers and part.variants), found[0])
    return None if None in first else first[0]


def _upload(
    api: HfApi,
    publication: Publication,
    staged: Path,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> Publication:
    repo_id = publication.repo_id
    try:
        state = _patiently(lambda: api.model_info(repo_id))
    except RepositoryNotFoundError:
        if create_pr:
            raise
        _patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        state = _patiently(lambda: api.model_info(repo_id))
    if private and state.private is False:
        raise ValueError(f"{repo_id} is there, and public: make it private in its settings first.")
    if revision is not None:
        try:
            state = _patiently(lambda: api.model_info(repo_id, revision=revision))
        except RevisionNotFoundError:
            if revision.startswith("refs/pr/"):
                raise
            _patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
            state = _patiently(lambda: api.model_info(repo_id, revision=revision))
    there = [file.rfilename for file in state.siblings or ()]
    # One commit, and not `upload_folder`, which makes several where the Hub is slow. Files that have not changed are
    # left out of it by huggingface_hub, which compares their hashes; large ones that are stored are not sent.
    additions = [CommitOperationAdd(name, str(staged / name)) for name in publication.files]
    deletions = [CommitOperationDelete(name) for name in stale_weights(there, publication.files)]
    commit = _patiently(
        lambda: api.create_commit(
            repo_id,
            [*deletions, *additions],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=state.sha,
        )
    )
    return Publication(
        **{**vars(publication), "commit": commit.oid, "is_new": commit.oid != state.sha},
        url=commit.pr_url or commit.commit_url,
    )


def stale_weights(there: Iterable[str], files: Iterable[str]) -> list[str]:
    """Weight files of a repository in place of which others come: shards after a single file, or the other way round.

    Those of other variants stay.
    """
    published = set(files)
    replaced = {_weights_of(name) for name in published} - {None}
    return sorted(name for name in there if name not in published and _weights_of(name) in replaced)


def _weights_of(path: str) -> tuple[str, str, str | None] | None:
    """Component, stem and variant of a weight file or of an index of shards."""
    folder, _, name = path.rpartition("/")
    stem, mark, dotted = name.partition(".safetensors.index")
    if mark and dotted.endswith(".json"):
        return folder, stem, dotted.removesuffix("json").strip(".") or None
    match = WEIGHTS.match(name)
    return (folder, match["stem"], match["variant"] or match["variant_after"]) if match else None


def _patiently(request: Callable[[], T]) -> T:
    """The answer to a request that may be refused because there were too many; others of the client wait by themselves."""
    for attempt in range(1, MAX_TRIES + 1):
        try:
            return request()
        except HfHubHTTPError as error:
            if error.response.status_code != HTTPStatus.TOO_MANY_REQUESTS or attempt == MAX_TRIES:
                raise
            asked = error.response.headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdecimal() else FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            logger.warning("the Hub asks to wait: trying again in %.0f s", seconds)
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _explained(error: HfHubHTTPError, repo_id: str, revision: str | None) -> OSError:
    """What the Hub's refusal means here, and what to do. Its own words come last; they never hold the token."""
    status = error.response.status_code
    said = short_message(error)
    if status == HTTPStatus.UNAUTHORIZED:
        return PermissionError(f"The Hub does not know you: `hf auth login`, or set HF_TOKEN. It says: {said}")
    if status == HTTPStatus.FORBIDDEN:
        return PermissionError(
            f"Your token may not write to {repo_id}: use one with write access. The Hub says: {said}"
        )
    if status == HTTPStatus.NOT_FOUND:
        where = f"{repo_id} at {revision}" if revision else repo_id
        return FileNotFoundError(f"{where} is not there, or private and not yours. The Hub says: {said}")
    if status in (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED):
        return OSError(
            f"{repo_id} has changed while this was uploaded. Look at what came in and run the same command again:"
            f" nothing was committed, and large files are not sent again. The Hub says: {said}"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return ConnectionError(
            f"The Hub refuses more requests for now. Run the same command again later. It says: {said}"
        )
    return OSError(f"The Hub refused the upload to {repo_id}: {said}")
