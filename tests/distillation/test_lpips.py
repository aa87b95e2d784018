"""LPIPS itself, where `LPIPS_PACKAGES` names a folder with `lpips`, `scipy` and the torchvision that matches torch:

    pip install --target FOLDER --no-deps lpips scipy torchvision==VERSION

In a process of its own: a torchvision that does not match would break diffusers in all others.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vdmini_diffusers


PACKAGES = os.environ.get("LPIPS_PACKAGES")
CODE = """
import json, sys
import torch

# Of a torchvision built for GPUs, on a torch that is not: its compiled operators are missing, and not needed here.
library = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    library.define(f"{name}(Tensor x) -> Tensor")
for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    library.define(f"_{name}_backward(Tensor x) -> Tensor")
sys.path.append(sys.argv[1])
from vdmini_diffusers.distillation.decoder_losses import lpips_distance, perceptual_loss

torch.hub.set_dir(sys.argv[2])
try:
    lpips_distance("alex")
    message = ""
except RuntimeError as error:
    message = str(error)
torch.manual_seed(0)
distance = lpips_distance("alex", random_trunk=True)
clips = torch.rand(1, 2, 3, 64, 64) * 2 - 1
other = (clips + 0.5 * torch.randn(clips.shape)).requires_grad_()
loss = perceptual_loss(other, clips, distance)
loss.backward()
print(json.dumps({
    "message": message,
    "itself": perceptual_loss(clips, clips, distance).item(),
    "loss": loss.item(),
    "shape": list(distance(clips[0], clips[0]).shape),
    "gradient": other.grad.abs().sum().item(),
    "trained": any(p.requires_grad for p in distance.parameters()),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(PACKAGES is None, reason="LPIPS_PACKAGES names no folder with lpips")
def test_lpips_is_a_frozen_distance_of_frames_and_says_when_its_network_is_missing(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(Path(vdmini_diffusers.__file__).parents[1]),
        "https_proxy": "http://127.0.0.1:9",
    }
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(PACKAGES), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert "--lpips_random_trunk" in found["message"]  # nothing can be downloaded
    assert found["itself"] == 0 and found["shape"] == [2, 1, 1, 1]
    assert found["loss"] > 0 and found["gradient"] > 0 and not found["trained"]
