"""Files of a folder to a repository on the Hub, in one commit or as a pull request."""

import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx

from vdmini_diffusers.publishing.model_info import WEIGHTS
from vdmini_diffusers.serialization.checkpoint_error import short_message


MAX_TRIES = 5  # of a request that the Hub refuses because there were too many
FIRST_WAIT_SECONDS = 1.0  # doubles, unless the Hub says how long
QUERY = re.compile(r"(?<=\S)\?\S+=\S*")  # of an address: those that large files are sent to are signed there

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """Where files are after `upload_files`.

    Args:
        commit: that they are in.
        is_new: whether it took a commit: the same content does not.
        url: of the commit or the pull request.
    """

    commit: str
    is_new: bool
    url: str


def upload_files(
    folder: Path,
    names: Iterable[str],
    repo_id: str,
    message: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> Upload:
    """Upload files of a folder in one commit. What the repository has already is not sent again.

    Arguments are those of `publish`.

    Raises:
        ConnectionError: if the Hub cannot be reached, or stops answering.
        OSError: if the Hub refuses: the message says why and what to do.
        ValueError: if `private` is asked for, and the repository is there and public.
    """
    try:
        return _upload(HfApi(token=token), folder, list(names), repo_id, message, private, revision, create_pr)
    except HfHubHTTPError as error:
        raise _explained(error, repo_id, revision) from error
    except httpx.TransportError as error:
        said = QUERY.sub("", short_message(error))
        raise ConnectionError(
            f"The connection to the Hub broke: {said}. Run the same command again: large files that are there already"
            " are not sent again."
        ) from error


def _upload(
    api: HfApi,
    folder: Path,
    names: list[str],
    repo_id: str,
    message: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
) -> Upload:
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
    additions = [CommitOperationAdd(name, str(folder / name)) for name in names]
    deletions = [CommitOperationDelete(name) for name in stale_weights(there, names)]
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
    # Without a change, huggingface_hub makes neither commit nor pull request, and returns the latest commit.
    return Upload(commit.oid, commit.oid != state.sha, commit.pr_url or commit.commit_url)


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
    """The answer to a request for which the client does not wait by itself when the Hub has had too many."""
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
    said = QUERY.sub("", short_message(error))
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
