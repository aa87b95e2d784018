"""The commands that measure importance, count costs and search a plan, one after the other on a tiny teacher."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts_run import ROOT, run
from tiny import tiny_svd_pipeline

from vdmini_diffusers.data.video_writing import write_video
from vdmini_diffusers.pruning.presets import find_plan


@pytest.mark.slow
def test_from_a_teacher_to_a_plan(tmp_path):
    teacher, videos = tmp_path / "teacher", tmp_path / "videos"
    tiny_svd_pipeline().save_pretrained(teacher)
    videos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        write_video(rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8), videos / f"{i}.mp4", fps=7)
    size = ["--num_frames", 4, "--height", 16, "--width", 16]
    importance = [
        *(ROOT / "conversion" / "measure_block_importance.py", "--pretrained_model_name_or_path", teacher),
        *("--real_videos", videos, "--num_videos", 2, "--output_dir", tmp_path / "importance"),
        *(
            "--parts",
            "stage",
            "layer",
            "D.3.R.0",
            "D.3.R.1",
            "U.0.R.0",
            "U.0.R.1",
            "U.0.R.2",
            "--block_influence",
            *size,
        ),
    ]
    run(importance, tmp_path / "importance.log", processes=2)
    found = {path.name for path in (tmp_path / "importance").iterdir()}
    assert {"importance.json", "importance.csv", "first_and_last_frames.png", "importance_motion_mse.png"} <= found
    table = json.loads((tmp_path / "importance" / "importance.json").read_text())
    assert len(table["parts"]) == 9 + 15 + 5
    influence = json.loads((tmp_path / "importance" / "block_influence.json").read_text())
    assert "D.0.R.0.RB-T" in influence and all(0 <= value <= 2 for value in influence.values())
    assert Image.open(tmp_path / "importance" / "first_and_last_frames.png").width > 300
    cost = [
        *(ROOT / "conversion" / "measure_block_cost.py", "--pretrained_model_name_or_path", teacher),
        *("--measure_on", "cpu", "--rounds", 1, "--output_dir", tmp_path / "cost", *size),
    ]
    run(cost, tmp_path / "cost.log")
    costs = json.loads((tmp_path / "cost" / "cost.json").read_text())
    whole = costs["whole"]
    assert whole["milliseconds"] > 0 and costs["dtype"] == "float32"  # float16 on a CPU would be no fair clock
    search = [
        *(ROOT / "conversion" / "search_plan.py", "--importance", tmp_path / "importance" / "importance.json"),
        *("--cost", tmp_path / "cost" / "cost.json", "--plan_file", tmp_path / "plan.json", "--num_parameters"),
    ]
    run([*search, whole["num_parameters"] // 2, "--num_plans", 3], tmp_path / "search.log")
    plan = find_plan(tmp_path / "plan.json")
    assert plan.name == "searched" and len(plan.down) <= 4
    assert "importance that stays: " in (tmp_path / "search.0.log").read_text()
    plans = ["vdmini", *(tmp_path / name for name in ("plan.json", "plan-2.json", "plan-3.json"))]
    run([*importance, "--plans", *plans], tmp_path / "plans.log")
    table = json.loads((tmp_path / "importance" / "importance.json").read_text())
    assert [name for name, kind in table["kinds"].items() if kind == "plan"] == ["vdmini"] + [
        f"searched{suffix}" for suffix in ("", "-2", "-3")
    ]
    about = ["--near", tmp_path / "plan-2.json", "--max_difference", 4]
    run([*search, whole["num_parameters"] // 2, *about], tmp_path / "near.log")
    one, other = (find_plan(tmp_path / name) for name in ("plan.json", "plan-2.json"))
    stages = [(getattr(plan, way), i) for plan in (one, other) for way in ("down", "up") for i in range(4)]
    layers = [{*kept.get(i, ())} for kept, i in stages]
    assert sum(len(own ^ others) for own, others in zip(layers[:8], layers[8:], strict=True)) <= 4
    run([*search, whole["num_parameters"]], tmp_path / "whole.log")
    assert "the plan removes nothing" in (tmp_path / "whole.0.log").read_text()
    run([*search, 5], tmp_path / "nearest.log", fails=True)
    assert "The nearest that any plan comes to is" in (tmp_path / "nearest.0.log").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--rounds", 0), "`--rounds` is 1 at least"),
        (("--num_frames", 0), "`--num_frames` is 1 at least"),
        (("--height", 17, "--width", 16), "`--height` is a multiple of 8"),
        (("--measure_on", "gpu"), "`--measure_on` is cpu where there is no CUDA device"),
    ],
)
def test_bad_numbers_for_costs_are_refused_before_anything_is_counted(flags, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = ROOT / "conversion" / "measure_block_cost.py"
    command = [script, "--pretrained_model_name_or_path", "nowhere", "--output_dir", tmp_path / "cost", *flags]
    assert message in run(command, tmp_path / "cost.log", fails=True)
    assert not (tmp_path / "cost").exists()
