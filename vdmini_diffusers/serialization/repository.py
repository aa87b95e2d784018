"""Repositories on the Hub: what is read from them, and what is uploaded."""

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import build_hf_headers, httpx

# Defined there because a pipeline that was loaded without this package publishes its classes as well.
from vdmini_diffusers.pipelines import pipeline_vdmini_i2v
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.sources import RemoteFile


__all__ = ["download", "fetch_file", "list_remote_files", "model_index_entry", "push_folder"]


def model_index_entry(cls: type, folder: str | os.PathLike) -> tuple[str, str]:
    """The entry of a class in `model_index.json`: `("diffusers", class name)`, or `(file stem, class name)` for ours.

    The source file of a class of ours is copied into `folder`. One that `stands_for` a class of diffusers has the
    entry of that: what it opens is a folder of the stock class.

    Raises:
        OSError: if `folder` cannot be written.
    """
    if cls.__module__.partition(".")[0] == "diffusers":
        return "diffusers", cls.__name__
    entry = pipeline_vdmini_i2v.publish_class(cls, folder)
    stock = getattr(cls, "stands_for", None)
    return entry if stock is None else ("diffusers", stock)


def download(name: str, revision: str | None, patterns: list[str], **download_kwargs: Any) -> Path:
    """A snapshot of a repository on the Hub, in a folder named by its commit.

    Args:
        download_kwargs: of `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        OSError: if it cannot be downloaded.
        ValueError: if the name is neither that of a folder nor one that the Hub could have.
    """
    if "local_dir" in download_kwargs:
        raise ValueError("`local_dir` is not an argument here: download into it first, and give that folder.")
    try:
        snapshot = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, **download_kwargs
        )
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor the id of a repository on the Hub.") from error
    return Path(snapshot)


def list_remote_files(name: str, commit: str, patterns: list[str], **download_kwargs: Any) -> dict[str, RemoteFile]:
    """Files of a repository on the Hub, by their path in it; none of them where only the cache may be used.

    Args:
        download_kwargs: as for `download`.

    Raises:
        OSError: if the Hub cannot be reached.
    """
    if download_kwargs.get("local_files_only") or huggingface_hub.is_offline_mode():
        return {}
    token, endpoint = download_kwargs.get("token"), download_kwargs.get("endpoint")
    headers = build_hf_headers(token=token, library_name="vdmini_diffusers", headers=download_kwargs.get("headers"))
    try:
        listed = huggingface_hub.HfApi(endpoint).list_repo_tree(name, recursive=True, revision=commit, token=token)
        files = [file for file in listed if any(fnmatchcase(file.path, pattern) for pattern in patterns)]
    except httpx.TransportError as error:
        raise ConnectionError(
            f"The files of {name} cannot be listed: {short_message(error)}. If they are all in the cache,"
            f" HF_HUB_OFFLINE=1 does without the Hub."
        ) from error
    remote = {}
    for file in files:
        if isinstance(file, huggingface_hub.hf_api.RepoFile):
            url = huggingface_hub.hf_hub_url(name, file.path, revision=commit, endpoint=endpoint)
            sha256 = file.lfs.sha256 if file.lfs else None
            remote[file.path] = RemoteFile(name, file.path, url, file.size, sha256, headers)
    return remote


def fetch_file(name: str, file: str, revision: str | None = None, **download_kwargs: Any) -> Path:
    """A file of a folder, or of a repository on the Hub.

    Args:
        download_kwargs: of `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: if the folder does not have it.
        OSError: if it cannot be downloaded.
        ValueError: if the name is neither that of a folder nor one that the Hub could have.
    """
    local = Path(name) / file
    if local.is_file():
        return local
    if Path(name).is_dir():
        raise FileNotFoundError(f"{local} is missing.")
    try:
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision, **download_kwargs))
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"{name!r} is neither a folder nor the id of a repository on the Hub.") from error


def check_push(repo_id: str) -> None:
    """Make the repository that will be uploaded to.

    Raises:
        OSError: if the Hub cannot be reached or does not let the user in.
        ValueError: if the repository's name is not one that the Hub takes.
    """
    advice = "Log in with `hf auth login`, choose another `--hub_model_id`, or leave out `--push_to_hub`."
    try:
        huggingface_hub.create_repo(repo_id, exist_ok=True)
    except huggingface_hub.errors.HFValidationError as error:
        raise ValueError(f"`--push_to_hub`: {repo_id!r} is no name of a repository on the Hub. {advice}") from error
    except OSError as error:  # all of huggingface_hub's and its HTTP client's
        raise OSError(f"`--push_to_hub`: {repo_id} cannot be written to ({error}). {advice}") from error


def push_folder(
    folder: Path, repo_id: str | None, commit_message: str, ignore_patterns: list[str] | None = None
) -> str:
    """Upload a folder to a model repository, which is made if need be. Temporary files are left out.

    Args:
        repo_id: by default the folder's name, under the user's.

    Returns:
        The repository's id, with its namespace.
    """
    repo_id = huggingface_hub.create_repo(repo_id or folder.resolve().name, exist_ok=True).repo_id
    huggingface_hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message,
        ignore_patterns=[*(ignore_patterns or ()), ".*.tmp-*", "*/.*.tmp-*"],
    )
    return repo_id
