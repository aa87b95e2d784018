"""Scripts in a process of their own, with or without our package, online with a fake Hub or offline."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image


TESTS = Path(__file__).parent

# `sys.modules[name] = None` would do for `import`; diffusers and importlib.util.find_spec must not see it either.
WITHOUT_PACKAGE = """
import sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vdmini_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPackage())
try:
    import vdmini_diffusers
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("the package is there")
"""


def run_python(script: str, *arguments: Any, home: Path, endpoint: str | None = None, package: bool = True) -> Any:
    """What `script` printed last, from JSON; its arguments are in `sys.argv`, its caches under `home`."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "0" if endpoint else "1",
        "HF_ENDPOINT": endpoint or "http://127.0.0.1:9",
        "HF_HUB_DISABLE_XET": "1",  # a protocol of its own; without it, uploads go through git's large file storage
        "HF_TOKEN": "none",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    done = subprocess.run(
        [sys.executable, "-c", ("" if package else WITHOUT_PACKAGE) + script, *map(str, arguments)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def video_digest(pipe: DiffusionPipeline) -> str:
    """The digest of one video of `pipe`, to compare bit by bit across processes."""
    for model in pipe.components.values():
        for parameter in model.parameters() if isinstance(model, torch.nn.Module) else ():
            # Loaded tensors start wherever they start in their file, and the last bits of a matrix product depend on
            # that. Clones are aligned.
            parameter.data = parameter.data.clone()
    pipe.set_progress_bar_config(disable=True)
    if "image_encoder" in pipe.components:
        inputs = {"image": Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))}
    else:
        inputs = {"prompt": "It\u2019s a corgi!", "num_frames": 2, "num_inference_steps": 4}
    frames = pipe(**inputs, generator=torch.Generator().manual_seed(0), output_type="np").frames
    return hashlib.sha256(frames.tobytes()).hexdigest()


def refusal(function: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the `ValueError` that the call raises."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")
