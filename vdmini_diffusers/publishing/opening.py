"""Whether a pipeline folder opens for those who have diffusers, and not this package."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from vdmini_diffusers.publishing.model_info import ModelInfo
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.safetensors_reader import read_json


TINY_CLIP = (5, 64, 64)  # frames, height and width for one forward pass of the denoiser
MAX_FLOAT32_PARAMETERS = 2 * 10**9  # more are opened in bfloat16, in which CPUs compute slowly
# Tokens, and where files of them are.
SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
    *("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH"),
)

# The package may be installed in any way, so importing it is refused, to `importlib.util.find_spec` as well.
SCRIPT = """
import json, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vdmini_diffusers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPackage())
import torch
from diffusers import DiffusionPipeline

given = json.loads(sys.argv[1])
dtype = getattr(torch, given["dtype"])
pipe = DiffusionPipeline.from_pretrained(
    given["folder"],
    trust_remote_code=given["trust_remote_code"],
    variant=given["variant"],
    dtype=dtype,
    local_files_only=True,
)
shape = None
if given["inputs"]:
    torch.manual_seed(0)
    inputs = {}
    for name, (size, kind) in given["inputs"].items():
        of_kind = getattr(torch, kind)
        inputs[name] = torch.rand(size).to(dtype) if of_kind.is_floating_point else torch.ones(size, dtype=of_kind)
    with torch.no_grad():
        output = getattr(pipe, given["denoiser"])(**inputs, return_dict=False)[0]
    if not output.isfinite().all():
        raise ValueError("the output of " + given["denoiser"] + " has NaN or infinity")
    shape = list(output.shape)
print(json.dumps({"pipeline": type(pipe).__name__, "output": shape}))
"""


def check_opens(info: ModelInfo, folder: Path, variant: str | None) -> dict[str, Any]:
    """Open a pipeline in a fresh process that cannot import this package, and run its denoiser once on a tiny clip.

    The process is offline, and has neither tokens nor caches.

    Args:
        folder: the folder to open; `info` says what is in it.

    Returns:
        `pipeline`, the name of its class, and the shape of the denoiser's `output`, None where it was not run.

    Raises:
        RuntimeError: if it does not open, or the output is not finite.
    """
    family = info.family
    part = next((part for part in info.components if family and part.name in family.denoisers), None)
    inputs = {}
    if part is not None and family is not None and family.example_inputs is not None:
        with torch.device("meta"):
            example = family.example_inputs(read_json(folder / part.name / "config.json"), *TINY_CLIP)
        inputs = {
            name: (list(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in example.items()
        }
    size = sum(each.num_parameters or 0 for each in info.components)
    given = {
        "folder": str(folder),
        "trust_remote_code": info.needs_trust_remote_code,
        "variant": variant,
        "dtype": "float32" if size <= MAX_FLOAT32_PARAMETERS else "bfloat16",
        "denoiser": part.name if part else None,
        "inputs": inputs,
    }
    with tempfile.TemporaryDirectory(prefix="vdmini-opening-") as home:
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        environment |= {
            "HF_HOME": home,
            "HF_MODULES_CACHE": os.path.join(home, "modules"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-P", "-c", SCRIPT, json.dumps(given)],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise RuntimeError(
            f"{info.name} does not open without this package, so it is not uploaded: "
            f"{short_message(RuntimeError(lines[-1].replace(str(folder), info.name)))}"
        )
    return json.loads(done.stdout.splitlines()[-1])
