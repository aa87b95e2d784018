"""The commands of `conversion/PRUNE_YOUR_MODEL.md`, one after the other, from a Hub on the loopback to a video."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from diffusers import WanPipeline, WanTransformer3DModel
from fake_hub import FakeHub
from PIL import Image
from safetensors.torch import load_file
from tiny_wan import tiny_wan_pipeline
from written_videos import write_video


TEACHER = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
# All that differs from what is printed: sizes, and the place of scripts.
SUBSTITUTES = {
    "--num_frames 81 --height 480 --width 832": "--num_frames 5 --height 16 --width 16",
    "--gradient_accumulation_steps 8": "--gradient_accumulation_steps 1 --max_train_steps 2 --mca_start_step 1"
    " --critic_warmup_steps 0 --critic_block_stride 2 --discriminator_width 32 --learning_rate 1e-2",
    "height=480, width=832, num_frames=81": "height=16, width=16, num_frames=5, num_inference_steps=2",
    '.to("cuda")': "",
    "python conversion/": f"{sys.executable} {ROOT}/conversion/",
    "accelerate launch training/": f"accelerate launch --cpu --num_processes 1 {ROOT}/training/",
}


def commands() -> list[str]:
    """The commands of the numbered sections, one each; the last one is Python."""
    text = (ROOT / "conversion" / "PRUNE_YOUR_MODEL.md").read_text(encoding="utf-8")
    _, _, numbered = text.partition("\n## 1. ")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", numbered, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["bash"] * 4 + ["python"]
    found = [block for _, block in blocks]
    for printed, substitute in SUBSTITUTES.items():
        assert any(printed in block for block in found), printed
        found = [block.replace(printed, substitute) for block in found]
    return found


@pytest.fixture
def run(tmp_path):
    """Runs a command in an empty home beside a Hub that has the teacher, and returns what it prints."""
    (tmp_path / "home").mkdir()
    tiny_wan_pipeline(("transformer",)).save_pretrained(tmp_path / "teacher")
    files = {p.relative_to(tmp_path / "teacher").as_posix(): p for p in (tmp_path / "teacher").rglob("*")}
    with FakeHub(tmp_path / "hub") as hub:
        hub.commit(TEACHER, {name: path.read_bytes() for name, path in files.items() if path.is_file()})
        environment = os.environ | {
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "none",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

        def run(*command: str) -> str:
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            return done.stdout + done.stderr

        run.hub = hub
        yield run


@pytest.mark.slow  # six processes that import everything
@pytest.mark.timeout(600)
def test_from_a_hub_id_to_a_recovered_student_in_five_commands(run, tmp_path):
    survey, prune, precompute, train, sample = commands()
    (tmp_path / "videos").mkdir()
    for i in range(2):
        write_video(tmp_path / "videos" / f"{i}.mp4", 30, 16)
    lines = [json.dumps({"file_name": f"{i}.mp4", "caption": "a cat"}) for i in range(2)]
    (tmp_path / "videos" / "metadata.jsonl").write_text("\n".join(lines))

    printed = run("bash", "-ec", survey)
    assert "removes blocks.2 (" in printed and "TFLOP" in printed and not (tmp_path / "wan-pruned").exists()

    printed = run("bash", "-ec", prune)
    assert "The next step is encoding videos" in printed and "Then comes training" in printed
    assert type(WanPipeline.from_pretrained(tmp_path / "wan-pruned").transformer) is WanTransformer3DModel

    assert "2 clips in wan-latents" in run("bash", "-ec", precompute)

    printed = run("bash", "-ec", train)
    assert "the trained pipeline is in wan-mini" in printed and "HTTP Request" not in printed
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (load_file(tmp_path / name / weights) for name in ("wan-pruned", "wan-mini"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    pushing = "--push_to_hub --hub_model_id you/wan-mini"  # after the end, as the page says
    printed = run("bash", "-ec", f"{train.rstrip()} {pushing}")
    assert "going on from wan-mini/checkpoint-000002" in printed and "on the Hub as you/wan-mini" in printed
    pushed = run.hub.files("you/wan-mini")
    assert weights in pushed and not any(name.startswith("checkpoint-") for name in pushed)

    run(sys.executable, "-c", sample)
    with Image.open(tmp_path / "video.gif") as video:
        assert video.size == (16, 16) and video.n_frames == 5
