"""How the code of our classes travels beside their weights, so that the Hub can serve both."""

import inspect
import os
import tempfile
from pathlib import Path


def publish_class(cls: type, folder: str | os.PathLike) -> tuple[str, str]:
    """Copy the source file of `cls` into `folder`, made if need be, and return its entry for `model_index.json`.

    The entry is `(file stem, class name)`, such as `("unet_spatio_temporal_vdmini",
    "VDMiniUNetSpatioTemporalConditionModel")`: what diffusers reads as "this class is in that file beside the weights".
    An older copy is replaced in one move, never in part.

    Raises:
        OSError: if `folder` cannot be written.
        TypeError: if `cls` was not defined in a Python file.
    """
    source = Path(inspect.getsourcefile(cls))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=source.stem, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(source.read_bytes())
        os.replace(partial, folder / source.name)
    except BaseException:
        os.unlink(partial)
        raise
    return source.stem, cls.__name__
