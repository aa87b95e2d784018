"""The importance of parts, measured on a tiny pipeline: resumed, shared by processes, and refused where it must be."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from tiny import tiny_image, tiny_svd_pipeline
from tiny_video_transformers import TRANSFORMERS, tiny_transformer

from vdmini_diffusers.analysis.block_influence import block_influence
from vdmini_diffusers.analysis.generation import FixedVideos
from vdmini_diffusers.analysis.importance import (
    ImportanceError,
    ImportanceTable,
    Measurement,
    measure_importance,
    open_folder,
    select_parts,
)
from vdmini_diffusers.analysis.parts import removable_parts, removed
from vdmini_diffusers.analysis.pictures import bars, first_and_last_frames, sheet
from vdmini_diffusers.analysis.scores import content_and_motion_error, standard_scores
from vdmini_diffusers.cli.importance_command import ImportanceArguments, digest_of_inputs, importance_command
from vdmini_diffusers.data.video_writing import write_video
from vdmini_diffusers.evaluation.continuation import MAX_PSNR
from vdmini_diffusers.models import VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning.in_memory import student_of
from vdmini_diffusers.pruning.presets import BK_SDM_BASE, VDMINI_UNET


PARTS = ["M", "D.0.R-A.0", "U.3.R.1.RB-T"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_svd_pipeline()


def videos_of(pipe, seed=0):
    settings = {"num_frames": 4, "num_inference_steps": 1, "max_guidance_scale": 1.0, "height": 16, "width": 16}
    return FixedVideos(pipe, [{"image": tiny_image()}] * 2, seed, settings)


def measurement_of(pipe, parts=PARTS, **kwargs):
    counts = {"videos": 0}
    generate = videos_of(pipe)

    def counted(num_videos=None, description=None):
        counts["videos"] += num_videos or 2
        return generate(num_videos)

    found = Measurement(
        denoiser=pipe.unet,
        generate=counted,
        scores=standard_scores(),
        losses={"size": lambda: float(pipe.unet(**inputs_of(pipe)).sample.abs().mean())},
        parts=select_parts(removable_parts(pipe.unet), parts),
        **kwargs,
    )
    return found, counts


def inputs_of(pipe):
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(1, 2, 8, 8, 8, generator=generator),
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": torch.randn(1, 1, 16, generator=generator),
        "added_time_ids": torch.ones(1, 3),
    }


@pytest.fixture(scope="module")
def done(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("importance") / "results"
    measurement, _ = measurement_of(pipe)
    return folder, measure_importance(measurement, folder)


def test_scores_are_those_of_the_videos_without_the_part(pipe, done):
    folder, table = done
    generate = videos_of(pipe)
    whole = generate()
    with removed(pipe.unet, removable_parts(pipe.unet)["D.0.R-A.0"]):
        without = generate()
        size = float(pipe.unet(**inputs_of(pipe)).sample.abs().mean())
    assert not np.array_equal(whole, without)
    scores = table.parts["D.0.R-A.0"]
    assert (scores["content_mse"], scores["motion_mse"]) == content_and_motion_error(without, whole)
    assert scores["size"] == size
    assert table.unpruned["psnr_to_unpruned"] == MAX_PSNR and table.unpruned["motion_mse"] == 0
    assert table.importance("psnr_to_unpruned")["M"] == MAX_PSNR - table.parts["M"]["psnr_to_unpruned"] > 0
    assert list(table.parts) == [name for name in removable_parts(pipe.unet) if name in PARTS]
    assert ImportanceTable.read(folder / "importance.json") == table
    lines = (folder / "importance.csv").read_text().splitlines()
    assert lines[0].startswith("part,kind,psnr_to_unpruned") and lines[1].startswith("unpruned,,100.0")
    assert len(lines) == 2 + len(PARTS)
    assert {path.name for path in (folder / "frames").iterdir()} == {f"{name}.png" for name in ("unpruned", *PARTS)}


def test_it_goes_on_where_it_was_stopped(pipe, done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "results")
    (folder / "parts" / "M.json").unlink()
    (folder / "importance.json").unlink()
    measurement, counts = measurement_of(pipe)
    assert measure_importance(measurement, folder) == done[1]
    assert counts["videos"] == 1 + 2  # one to see that the model is still the same, and those without the mid block
    again, counts = measurement_of(pipe)
    assert measure_importance(again, folder) == done[1] and counts["videos"] == 1


@pytest.mark.slow
def test_processes_share_the_parts_and_the_last_one_writes_the_table(pipe, done, tmp_path):
    first, _ = measurement_of(pipe)
    assert measure_importance(first, tmp_path / "r", process_index=0, num_processes=2) is None
    assert len(list((tmp_path / "r" / "parts").iterdir())) == 2
    second, counts = measurement_of(pipe)
    assert measure_importance(second, tmp_path / "r", process_index=1, num_processes=2) == done[1]
    assert counts["videos"] == 1 + 2 * 2
    for name in ("importance.json", "importance.csv"):
        assert (tmp_path / "r" / name).read_bytes() == (done[0] / name).read_bytes()


def test_more_parts_join_those_that_are_there(pipe, done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "results")
    measurement, counts = measurement_of(pipe, parts=["M", "U.0"])
    table = measure_importance(measurement, folder)
    assert list(table.parts) == ["M", "U.0"] and counts["videos"] == 1 + 2
    assert table.parts["M"] == done[1].parts["M"]


@pytest.mark.slow
def test_it_works_on_a_model_that_is_offloaded(done, tmp_path):
    offloaded = tiny_svd_pipeline()
    cpu_offload(offloaded.unet, torch.device("cpu"), offload_buffers=True)
    assert offloaded.unet.conv_in.weight.is_meta
    measurement, _ = measurement_of(offloaded, parts=["U.3.R.1.RB-T"])
    measurement = Measurement(**{**vars(measurement), "losses": {}})
    table = measure_importance(measurement, tmp_path / "r")
    expected = done[1].parts["U.3.R.1.RB-T"]
    assert table.parts["U.3.R.1.RB-T"] == {name: expected[name] for name in measurement.scores}


def test_other_settings_and_foreign_folders_are_refused_and_nothing_is_changed(pipe, done, tmp_path):
    folder = shutil.copytree(done[0], tmp_path / "results")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    measurement, counts = measurement_of(pipe, settings={"seed": 1})
    with pytest.raises(ImportanceError, match="measured otherwise: seed differ"):
        measure_importance(measurement, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("x")
    measurement, _ = measurement_of(pipe)
    with pytest.raises(ImportanceError, match=r"is not empty and has no settings\.json"):
        measure_importance(measurement, tmp_path / "foreign")
    (folder / "parts" / "M.json").write_text("{")
    with pytest.raises(ImportanceError, match=r"M\.json is damaged"):
        measure_importance(measurement, folder)
    (folder / "parts" / "M.json").write_text(json.dumps({"part": "M", "scores": {}, "digest": "0"}))
    with pytest.raises(ImportanceError, match=r"M\.json is not a result of this measurement"):
        measure_importance(measurement, folder)
    assert counts["videos"] == 0


def test_plans_are_scored_as_students_beside_the_parts(pipe, done, tmp_path):
    measured, _ = measurement_of(pipe)
    student_class = VDMiniUNetSpatioTemporalConditionModel
    swap = {"use": lambda unet: setattr(pipe, "unet", unet), "student_class": student_class}

    def measure(plan):
        parts = {**measured.parts, "mine": plan}
        return measure_importance(Measurement(**{**vars(measured), **swap, "parts": parts}), tmp_path / "results")

    table = measure(VDMINI_UNET)
    assert pipe.unet is measured.denoiser
    assert table.kinds["mine"] == "plan" and {name: table.parts[name] for name in PARTS} == done[1].parts
    teacher, generate = pipe.unet, videos_of(pipe)
    whole = generate()
    pipe.unet = student_of(teacher, VDMINI_UNET, student_class)
    students = generate()
    pipe.unet = teacher
    scores = table.parts["mine"]
    assert (scores["content_mse"], scores["motion_mse"]) == content_and_motion_error(students, whole)
    assert measure(VDMINI_UNET) == table
    outside = Measurement(**{**vars(measured), **swap, "parts": {"../outside": VDMINI_UNET}})
    with pytest.raises(ImportanceError, match="need a file of that name"):
        measure_importance(outside, tmp_path / "results")
    with pytest.raises(ImportanceError, match=r"mine\.json is not a result of this measurement"):
        measure(BK_SDM_BASE)


def test_processes_that_begin_at_once_share_a_folder(pipe, tmp_path):
    measurement, _ = measurement_of(pipe)
    for attempt in range(10):
        folder, barrier = tmp_path / str(attempt), threading.Barrier(8)

        def begin(_, folder=folder, barrier=barrier):
            barrier.wait()
            open_folder(folder, measurement.identity, measurement.digest)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(begin, range(8)))


def test_videos_that_are_not_finite_are_refused_of_the_whole_model_and_noted_of_a_part(pipe, done, tmp_path):
    generate = videos_of(pipe)
    broken = tiny_svd_pipeline()
    torch.nn.init.constant_(broken.unet.conv_out.bias, float("nan"))
    of_broken = videos_of(broken)

    def measurement(videos):
        whole, _ = measurement_of(pipe, parts=["M"], num_broken=lambda: videos.num_broken)
        return Measurement(**{**vars(whole), "generate": videos})

    with pytest.raises(ImportanceError, match="2 of 2 videos of the whole model have values that"):
        measure_importance(measurement(of_broken), tmp_path / "whole")
    assert not (tmp_path / "whole" / "unpruned.npy").exists()

    class BrokenOnceItIsPruned(FixedVideos):
        def __call__(self, num_videos=None, description=None):
            source = of_broken if description == "M" else generate
            videos = source(num_videos)
            self.num_broken = source.num_broken
            return videos

    table = measure_importance(
        measurement(BrokenOnceItIsPruned(pipe, generate.inputs, 0, generate.settings)), tmp_path / "part"
    )
    assert table.notes == ("Without M, 2 videos have values that are not finite, which count as black.",)
    assert not done[1].notes


@pytest.mark.parametrize("left", [[], ["M.json"]])
def test_other_weights_are_noticed(pipe, done, tmp_path, left):
    folder = shutil.copytree(done[0], tmp_path / "results")
    for name in left:
        (folder / "parts" / name).unlink()
    other = tiny_svd_pipeline()
    torch.nn.init.zeros_(other.unet.conv_out.weight)
    measurement, _ = measurement_of(other)
    with pytest.raises(ImportanceError, match="holds other videos than this denoiser makes"):
        measure_importance(measurement, folder)
    assert (folder / "parts" / "M.json").exists() == (not left)


def test_parts_of_all_kinds_are_measured_by_default(pipe):
    wanted = ImportanceArguments("model", "out").parts
    for denoiser in (pipe.unet, tiny_transformer("HunyuanVideoTransformer3DModel")):
        assert select_parts(removable_parts(denoiser), wanted) == removable_parts(denoiser)


def test_what_is_missing_is_said_before_the_pipeline_is_loaded(pipe, tmp_path):
    teacher, videos = tmp_path / "teacher", tmp_path / "videos"
    pipe.save_pretrained(teacher)
    for weights in teacher.rglob("*.safetensors"):
        weights.unlink()
    (videos / "a").mkdir(parents=True)
    tiny_image().save(videos / "a" / "0.png")

    def command(**kwargs):
        importance_command(ImportanceArguments(str(teacher), str(tmp_path / "out"), num_videos=2, **kwargs))

    with pytest.raises(ValueError, match="`component` is one of unet"):
        command(component="vae")
    with pytest.raises(ValueError, match="`--real_videos` is needed"):
        command()
    with pytest.raises(ValueError, match="has 1 videos, and 4 are needed"):
        command(real_videos=str(videos), fvd=True)
    with pytest.raises(ValueError, match="`num_frames` is 3 at least"):
        command(num_frames=2)
    assert not (tmp_path / "out").exists()


def test_guidance_goes_by_the_name_that_the_pipeline_has_for_it(tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_svd_pipeline().save_pretrained(model)
    (tmp_path / "videos").mkdir()
    for i in range(2):
        write_video(np.full((3, 16, 16, 3), 60 * i, np.uint8), tmp_path / "videos" / f"{i}.mp4", 7)
    importance_command(
        ImportanceArguments(
            str(model),
            str(out),
            real_videos=str(tmp_path / "videos"),
            num_videos=2,
            parts=["M"],
            num_frames=3,
            height=16,
            width=16,
            num_inference_steps=1,
            guidance_scale=1.5,
        )
    )
    assert json.loads((out / "importance.json").read_text())["settings"]["guidance_scale"] == 1.5


def test_results_of_other_clips_under_the_same_path_are_others():
    clips = np.zeros((1, 2, 4, 4, 3), np.uint8)
    found = {
        digest_of_inputs(inputs)
        for inputs in (
            [{"prompt": "a"}, {"real": clips}],
            [{"prompt": "b"}, {"real": clips}],
            [{"prompt": "a"}, {"real": clips + 1}],
            [{"image": tiny_image()}, {"real": None}],
        )
    }
    assert len(found) == 4


def test_bad_requests(pipe):
    with pytest.raises(ImportanceError, match=r"'D\.9' is no part of this denoiser"):
        select_parts(removable_parts(pipe.unet), ["D.9"])
    with pytest.raises(ImportanceError, match=r"has no stream; it has parts of \['stage', 'layer', 'block', 'half'\]"):
        select_parts(removable_parts(pipe.unet), ["stream"])
    with pytest.raises(ValueError, match="takes no `prompt`"):
        FixedVideos(pipe, [{"prompt": "x"}])
    with pytest.raises(ValueError, match="no inputs"):
        FixedVideos(pipe, [])


def test_content_and_motion_add_up_to_the_squared_error():
    a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4, 6, 3), dtype=np.uint8)
    content, motion = content_and_motion_error(a, b)
    assert content + motion == pytest.approx(np.mean((a.astype(float) - b) ** 2))
    frozen = np.repeat(b[:, :1], 5, axis=1)
    moving = np.clip(frozen + np.arange(5).reshape(1, 5, 1, 1, 1) - 2.0, 0, 255).astype(np.uint8)
    still = np.repeat(moving.mean(axis=1, keepdims=True).round().astype(np.uint8), 5, axis=1)
    content, motion = content_and_motion_error(still, moving)
    assert motion > 1.5 and content < 0.2 * motion  # frozen at its mean
    content, motion = content_and_motion_error(frozen // 2, frozen)
    assert motion == 0 and content > 1000  # darker
    with pytest.raises(ValueError, match="equal shapes"):
        content_and_motion_error(a, b[:2])


def test_influence_is_one_minus_the_cosine_of_what_a_part_is_given_and_makes():
    name = "HunyuanVideoTransformer3DModel"
    transformer, inputs = tiny_transformer(name), TRANSFORMERS[name].inputs
    seen = {}
    hook = transformer.transformer_blocks[1].register_forward_hook(
        lambda module, args, kwargs, output: seen.update(args=args, output=output), with_kwargs=True
    )
    found = block_influence(transformer, lambda: transformer(**inputs()))
    hook.remove()
    assert found.keys() == {part.name for part in removable_parts(transformer).values() if part.kind == "stream"}
    for k, stream in enumerate(("video", "text")):
        cosines = torch.nn.functional.cosine_similarity(seen["args"][k], seen["output"][k], dim=-1)
        assert found[f"transformer_blocks.1[{stream}]"] == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert not any(module._forward_hooks for module in transformer.modules())


def test_influence_in_a_unet_is_measured_against_the_shortcut(pipe):
    unet = pipe.unet
    seen = {}
    block = unet.down_blocks[2].resnets[0]
    hook = block.register_forward_hook(lambda module, args, output: seen.update(x=args[0], output=output))
    found = block_influence(unet, lambda: unet(**inputs_of(pipe)))
    hook.remove()
    cosines = torch.nn.functional.cosine_similarity(
        block.spatial_res_block.conv_shortcut(seen["x"]), seen["output"], dim=1
    )
    assert found["D.2.R.0"] == pytest.approx(1 - cosines.mean().item(), abs=1e-6)
    assert {part.kind for name, part in removable_parts(unet).items() if name in found} == {"block", "half"}
    with pytest.raises(ValueError, match="did not run"):
        block_influence(unet, lambda: None)


def test_pictures_show_each_part():
    picture = bars({"D.0": 2.0, "D.1": -1.0, "U.0": 0.0}, "Importance")
    columns = np.asarray(picture).reshape(picture.height, -1, 3)
    rows = [columns[30 + 18 * i + 9] for i in range(3)]
    colours = [{tuple(pixel) for pixel in row} for row in rows]
    first, second = (72, 120, 168), (209, 129, 60)
    assert first in colours[0] and second in colours[1] and first not in colours[1]
    widths = [(rows[0] == first).all(axis=-1).sum(), (rows[1] == second).all(axis=-1).sum()]
    assert widths[0] == pytest.approx(2 * widths[1], abs=3)
    clips = np.zeros((2, 3, 8, 8, 3), np.uint8)
    clips[:, -1] = 255
    strip = np.asarray(first_and_last_frames(clips, height=8))
    assert strip.shape == (8, 32, 3) and strip[4, 3].max() == 0 and strip[4, 12].min() == 255
    assert sheet([("a", first_and_last_frames(clips))] * 3).height == 2 * (96 + 22)
