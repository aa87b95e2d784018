"""The script, as its users run it; also killed, and by two processes."""

import json
import runpy
import shutil
import signal
import socket
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from checkout import ROOT
from diffusers import AutoencoderKLTemporalDecoder
from forked_scripts import start
from tiny_hunyuan_video import tiny_hunyuan_pipeline
from tiny_text_to_video import tiny_t2v_pipeline
from written_videos import write_video

from vdmini_diffusers.data.latents import PrecomputedLatents, lock_for_writing
from vdmini_diffusers.data.skipped_videos import TooFewUsableVideos


SCRIPT = ROOT / "training/precompute_latents.py"
NUM_VIDEOS = 12


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(NUM_VIDEOS):
        write_video(folder / f"{index:02}.mp4", 10 + index, 7)
    (folder / "05.mp4").write_bytes(b"nothing")
    return folder


@pytest.fixture
def command(videos, teacher_folder):
    def command(output_dir, **options):
        options = {
            "pretrained_model_name_or_path": teacher_folder,
            "train_data_dir": videos,
            "output_dir": output_dir,
            **{"height": 16, "width": 16, "num_frames": 4, "samples_per_shard": 2, "batch_size": 2},
            **options,
        }
        return [str(SCRIPT), *(f"--{name}={value}" for name, value in options.items() if value is not None)]

    return command


@pytest.fixture
def run(command, monkeypatch):
    def run(output_dir, **options):
        monkeypatch.setattr(sys, "argv", command(output_dir, **options))
        monkeypatch.setenv("VDMINI_TRACEBACK", "1")
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return output_dir

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def reference(videos, teacher_folder, tmp_path_factory):
    """The shards of one undisturbed run."""
    folder = tmp_path_factory.mktemp("reference") / "latents"
    arguments = [
        *(f"--pretrained_model_name_or_path={teacher_folder}", f"--train_data_dir={videos}", f"--output_dir={folder}"),
        *("--height=16", "--width=16", "--num_frames=4", "--samples_per_shard=2", "--batch_size=2"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_it_writes(reference):
    data = PrecomputedLatents(reference)
    names = [f"{index:02}.mp4" for index in range(NUM_VIDEOS) if index != 5]
    assert [data.info(index)["name"] for index in range(len(data))] == names
    sample = data[3]
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in sample.items()} == {
        "latents": ((4, 4, 8, 8), torch.float16),
        "image_latents": ((4, 8, 8), torch.float16),
        "image_embeds": ((1, 16), torch.float16),
        "added_time_ids": ((3,), torch.float32),
    }
    assert sample["added_time_ids"].tolist() == pytest.approx([6, 127, 0.02])
    manifest = json.loads((reference / "manifest.json").read_text())
    assert [(video["name"], video["reason"]) for video in manifest["skipped"]] == [("05.mp4", "broken")]
    assert data.settings["num_frames"] == 4 and data.settings["num_videos"] == NUM_VIDEOS


def test_killed_at_any_moment_it_goes_on(reference, command, run, tmp_path):
    output = tmp_path / "latents"
    process = start(command(output))
    while len(list(output.glob("latents-*.json"))) < 2:
        assert process.is_alive()
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in output.glob("latents-*.safetensors")}
    complete = [path for path in finished if path.with_suffix(".json").exists()]
    assert 2 <= len(complete) < NUM_VIDEOS // 2
    with pytest.raises(ValueError, match="not finished"):
        PrecomputedLatents(output)
    run(output)
    assert all(path.stat().st_mtime_ns == finished[path] for path in complete)
    assert {k: v for k, v in content(output).items() if ".tmp-" not in k} == content(reference)


def test_running_it_again_changes_nothing(reference, run, tmp_path):
    output = shutil.copytree(reference, tmp_path / "latents")
    times = {path: path.stat().st_mtime_ns for path in output.glob("latents-*")}
    run(output)
    assert {path: path.stat().st_mtime_ns for path in output.glob("latents-*")} == times
    assert content(output) == content(reference)


def test_other_settings_are_refused(reference, run, tmp_path):
    output = shutil.copytree(reference, tmp_path / "latents")
    with pytest.raises(ValueError, match="fps was 7 and is 6"):
        run(output, fps=6)


def test_threads_and_dtype(reference, run, tmp_path):
    run(tmp_path / "latents", dataloader_num_workers=2, save_dtype="fp32")
    found, expected = PrecomputedLatents(tmp_path / "latents"), PrecomputedLatents(reference)
    for index in range(len(expected)):
        for name, tensor in expected[index].items():
            assert torch.equal(found[index][name].to(tensor.dtype), tensor)


def test_for_a_vae_s_decoder_it_writes_the_frames_beside_their_unscaled_latents(run, teacher_folder, tmp_path):
    data = PrecomputedLatents(run(tmp_path / "clips", latents_for="vae_decoder", save_dtype="fp32"))
    assert len(data) == NUM_VIDEOS - 1 and set(data[0]) == {"latents", "pixel_values"}
    frames = data[2]["pixel_values"]
    assert (frames.dtype, frames.shape) == (torch.uint8, (4, 3, 16, 16))
    vae = AutoencoderKLTemporalDecoder.from_pretrained(teacher_folder, subfolder="vae")
    with torch.no_grad():
        expected = vae.encode(2 * (frames.float() / 255) - 1).latent_dist.mode()
    torch.testing.assert_close(data[2]["latents"], expected)


def test_streaming_gives_the_same_samples(reference, run, tmp_path):
    run(tmp_path / "latents", streaming=True)
    assert (tmp_path / "latents/latents-00000.safetensors").read_bytes() == content(reference)[
        "latents-00000.safetensors"
    ]
    assert len(PrecomputedLatents(tmp_path / "latents")) == NUM_VIDEOS - 1
    before = content(tmp_path / "latents")
    (tmp_path / "latents/latents-00002.json").unlink()
    run(tmp_path / "latents", streaming=True)
    assert content(tmp_path / "latents") == before


def test_two_processes_divide_the_shards(reference, command, tmp_path):
    output = tmp_path / "latents"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    processes = [start(command(output), {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    for process in processes:
        process.join(timeout=200)
        assert process.exitcode == 0
    assert content(output) == content(reference)


def test_a_damaged_shard_is_made_again(reference, run, tmp_path):
    output = shutil.copytree(reference, tmp_path / "latents")
    (output / "latents-00001.safetensors").write_bytes(b"cut")
    (output / "latents-00003.safetensors").unlink()
    run(output)
    assert content(output) == content(reference)


def test_a_second_run_in_the_same_folder_is_refused_before_it_touches_anything(reference, run, tmp_path):
    output = shutil.copytree(reference, tmp_path / "latents")
    before = content(output)
    with lock_for_writing(output), pytest.raises(ValueError, match="Another run is writing into"):
        run(output, fps=6)
    assert content(output) == before


def test_text_to_video_without_captions_is_refused(run, tmp_path, videos):
    with pytest.raises(ValueError, match=r"Text to video is trained on captions, and .* has none"):
        run(tmp_path / "latents", latents_for="text_to_video")
    assert not list((tmp_path / "latents").glob("latents-*"))


def test_an_error_ends_it_with_one_sentence(command, tmp_path):
    (tmp_path / "bad").mkdir()
    log = tmp_path / "log"
    process = start(command(tmp_path / "latents", train_data_dir=tmp_path / "bad"), log=log)
    process.join()
    assert process.exitcode == 1 and "Traceback" not in log.read_text()
    assert log.read_text().splitlines()[-1].startswith("ValueError: ") and "no training data" in log.read_text()


def test_bad_data(run, tmp_path, capsys):
    with pytest.raises(ValueError, match="is for training"):
        run(tmp_path / "a", train_data_dir=None, precomputed_data_dir="b")
    with pytest.raises(SystemExit):
        run(tmp_path / "a", batch_size=0)
    assert "--batch_size must be at least 1; got 0." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "a", noise_aug_strength="nan")
    assert "--noise_aug_strength must be finite and not negative; got nan." in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_bytes(b"nothing")
    with pytest.raises(TooFewUsableVideos, match="1 broken"):
        run(tmp_path / "b", train_data_dir=tmp_path / "bad")


def test_for_text_to_video_it_writes_text_embeddings_and_draws_the_latents(run, videos, tmp_path):
    pipe = tiny_t2v_pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    captioned = shutil.copytree(videos, tmp_path / "videos")
    lines = [json.dumps({"file_name": f"{i:02}.mp4", "caption": f"a photo of {i} cats"}) for i in range(NUM_VIDEOS)]
    (captioned / "metadata.jsonl").write_text("\n".join(lines))
    settings = {"pretrained_model_name_or_path": tmp_path / "pipe", "train_data_dir": captioned, "save_dtype": "fp32"}
    output = run(tmp_path / "latents", latents_for="text_to_video", **settings)
    data = PrecomputedLatents(output, captions=True)
    assert data.settings["fps"] == 8 and len(data) == NUM_VIDEOS - 1
    sample = data[6]  # the broken one is left out
    assert sample["caption"] == "a photo of 7 cats" and sample["fps"].item() == 8
    with torch.no_grad():
        ids = pipe.tokenize(["a photo of 7 cats"])
        expected = pipe.text_encoder(ids)[0][0]
    torch.testing.assert_close(sample["prompt_embeds"], expected)
    (end,) = (ids[0] == 49407).nonzero()
    torch.testing.assert_close(sample["pooled_prompt_embeds"], expected[end.item()])
    assert sample["latents"].shape == (4, 4, 8, 8)
    assert "caption" not in PrecomputedLatents(output)[0]


def test_for_a_transformer_clips_have_its_defaults_and_prompts_keep_their_padding(run, videos, tmp_path):
    tiny_hunyuan_pipeline().save_pretrained(tmp_path / "pipe")
    captioned = tmp_path / "videos"
    captioned.mkdir()
    write_video(captioned / "0.mp4", 10, 24)
    (captioned / "metadata.jsonl").write_text(json.dumps({"file_name": "0.mp4", "caption": "a cat"}))
    settings = {"pretrained_model_name_or_path": tmp_path / "pipe", "train_data_dir": captioned, "num_frames": 5}
    output = run(tmp_path / "latents", latents_for="text_to_video", **settings)
    data = PrecomputedLatents(output)
    assert data.settings["fps"] == 24  # FastVideo's, and not T2V-Turbo's 8
    shapes = {name: tuple(tensor.shape) for name, tensor in data[0].items()}
    assert shapes == {
        "latents": (2, 4, 2, 2),
        "prompt_embeds": (256, 16),
        "prompt_attention_mask": (256,),
        "pooled_prompt_embeds": (8,),
        "fps": (),
    }
    with pytest.raises(ValueError, match="with one frame more than a multiple of 4"):
        run(tmp_path / "other", latents_for="text_to_video", **{**settings, "num_frames": 4})
