"""Push and download, through a Hub on the loopback."""

import pytest
from fake_hub import FakeHub
from fresh_python import run_python, video_digest

from vdmini_diffusers import VDMiniI2VPipeline


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    with FakeHub(tmp_path / "hub") as hub:
        yield hub


def fresh_home(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.slow
def test_a_pushed_pipeline_opens_by_its_name_with_the_package_and_without(hub, student_folder, tmp_path):
    # With a dot in it, as diffusers makes a module path of the repository's name.
    pushed = run_python(
        """
import json, sys
from fresh_python import DiffusionPipeline, refusal, torch, video_digest
from vdmini_diffusers import VDMiniI2VPipeline

pipe = VDMiniI2VPipeline.from_pretrained(sys.argv[1])
first = pipe.push_to_hub("org/vdmini-v1.0").oid
pipe.unet.conv_out.weight.data *= 2
pipe.to(torch.float16).push_to_hub("org/vdmini-v1.0", variant="fp16")
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="org/second")

# With a dtype, as transformers goes by the one in the config, which the second push has changed.
loaded = VDMiniI2VPipeline.from_pretrained("org/vdmini-v1.0", torch_dtype=torch.float32, optimize=False)
half = VDMiniI2VPipeline.from_pretrained("org/vdmini-v1.0", variant="fp16", torch_dtype=torch.float16)
old = VDMiniI2VPipeline.from_pretrained("org/vdmini-v1.0", revision=first, unet=loaded.unet)
assert (type(loaded), type(loaded.unet)) == (VDMiniI2VPipeline, type(pipe.unet)), type(loaded.unet)
assert type(half.unet) is type(pipe.unet) and half.unet.dtype == torch.float16
assert torch.equal(half.unet.conv_out.weight, pipe.unet.conv_out.weight)
assert old.unet is loaded.unet
alone = type(pipe.unet).from_pretrained("org/vdmini-v1.0", subfolder="unet")
assert torch.equal(alone.conv_out.weight, loaded.unet.conv_out.weight)
refused = refusal(DiffusionPipeline.from_pretrained, "org/second")
print(json.dumps({"first": first, "digest": video_digest(loaded), "refused": refused}))
""",
        student_folder,
        tmp_path / "second",
        home=fresh_home(tmp_path, "with"),
        endpoint=hub.endpoint,
    )
    digest = video_digest(VDMiniI2VPipeline.from_pretrained(student_folder, optimize=False))
    assert pushed["digest"] == digest
    assert "trust_remote_code" in pushed["refused"]
    assert {"README.md", "pipeline_vdmini_i2v.py", "unet/unet_spatio_temporal_vdmini.py"} <= set(
        hub.files("org/vdmini-v1.0", pushed["first"])
    )
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.files("org/vdmini-v1.0")
    assert any(method == "PUT" for method, _ in hub.requests), "weights were to go through large file storage"

    found = run_python(
        """
import json, sys
from fresh_python import DiffusionPipeline, refusal, torch, video_digest

name, first = "org/vdmini-v1.0", sys.argv[1]
refused = refusal(DiffusionPipeline.from_pretrained, name)
pipe = DiffusionPipeline.from_pretrained(name, revision=first, trust_remote_code=True)
second = DiffusionPipeline.from_pretrained("org/second", trust_remote_code=True, torch_dtype=torch.float32)
half = DiffusionPipeline.from_pretrained(name, variant="fp16", trust_remote_code=True, torch_dtype=torch.float16)
assert torch.equal(half.unet.conv_out.weight, second.unet.conv_out.weight.half())
pipe.push_to_hub("org/third")
third = DiffusionPipeline.from_pretrained("org/third", trust_remote_code=True)
assert type(pipe).__name__ == "VDMiniI2VPipeline"
print(json.dumps([refused, video_digest(pipe), video_digest(third), video_digest(second)]))
""",
        pushed["first"],
        home=fresh_home(tmp_path, "without"),
        endpoint=hub.endpoint,
        package=False,
    )
    assert "trust_remote_code" in found[0]
    assert found[1:3] == [digest, digest]
    assert found[3] != digest
