"""How models and the code of our classes reach the Hub."""

from pathlib import Path

import huggingface_hub

# Defined there because a pipeline that was loaded without this package publishes its classes as well.
from vdmini_diffusers.pipelines.pipeline_vdmini_i2v import publish_class


__all__ = ["publish_class", "push_folder"]


def push_folder(
    folder: Path, repo_id: str | None, commit_message: str, ignore_patterns: list[str] | None = None
) -> str:
    """Upload a folder to a model repository, which is made if need be.

    Args:
        repo_id: by default the folder's name, under the user's.

    Returns:
        The repository's id, with its namespace.
    """
    repo_id = huggingface_hub.create_repo(repo_id or folder.resolve().name, exist_ok=True).repo_id
    huggingface_hub.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=commit_message, ignore_patterns=ignore_patterns
    )
    return repo_id
