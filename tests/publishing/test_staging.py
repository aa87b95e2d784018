"""What goes up, by the list of what is allowed, and what never does."""

import json
import shutil

import pytest
from PIL import Image

from vdmini_diffusers.publishing.model_info import describe_model
from vdmini_diffusers.publishing.staging import MAX_SCANNED_BYTES, find_samples, left_out, publishable_files, stage
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError


NOT_OURS = (
    *(".env", ".git/config", ".training.lock", "notes.txt", "optimizer.bin", "unet/diffusion_pytorch_model.bin"),
    *("unet/training_state.pt", "unet/.cache", "checkpoint-10/model.safetensors", "logs/events", "evil.py"),
    *("unet/evil.py", "vae/pickle.pkl", "discriminator/config.json", "latents/latents-00000.safetensors"),
)


@pytest.fixture
def folder(student, tmp_path):
    return shutil.copytree(student, tmp_path / "student")


def test_only_files_of_the_pipeline_go_up(folder):
    whole = set(publishable_files(describe_model(folder)))
    assert whole == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"README.md"}
    for name in NOT_OURS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "LICENSE.md").write_text("terms")
    info = describe_model(folder)
    assert set(publishable_files(info)) == whole | {"LICENSE.md"}
    tops = {"checkpoint-10/", "logs/", ".git/", "latents/", "discriminator/"}
    assert set(left_out(info, [*whole, "README.md", "LICENSE.md"])) == tops | {
        name for name in NOT_OURS if not any(name.startswith(top) for top in tops)
    }


def test_a_teacher_s_discriminator_goes_up(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (folder / "discriminator").mkdir()
    (folder / "discriminator" / "config.json").write_text("{}")
    assert "discriminator/config.json" in publishable_files(describe_model(folder))


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "vae" / "secret.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="leads out"):
        publishable_files(describe_model(folder))


@pytest.mark.parametrize("name", ["training.json", "pipeline_vdmini_x.py", "samples/x.png"])
def test_links_at_the_top_and_of_samples_lead_nowhere_else_either(folder, tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    info = describe_model(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "private.png")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        find_samples(info, ()) if name.startswith("samples") else publishable_files(info)


def test_missing_code_is_named(folder):
    (folder / "pipeline_vdmini_i2v.py").unlink()
    with pytest.raises(FileNotFoundError, match="pipeline_vdmini_i2v"):
        publishable_files(describe_model(folder))


def test_staged_files_are_those_of_the_folder(folder, tmp_path):
    files = publishable_files(describe_model(folder))
    stage({**files, "README.md": b"# Card"}, tmp_path / "staged")
    for name, source in files.items():
        assert (tmp_path / "staged" / name).read_bytes() == source.read_bytes()
    assert (tmp_path / "staged" / "README.md").read_bytes() == b"# Card"


def test_large_files_are_not_copied(tmp_path):
    (tmp_path / "large.safetensors").write_bytes(bytes(MAX_SCANNED_BYTES + 1))
    stage({"unet/large.safetensors": tmp_path / "large.safetensors"}, tmp_path / "staged")
    assert (tmp_path / "staged" / "unet" / "large.safetensors").is_symlink()


def test_a_path_of_this_machine_stays_here(tmp_path):
    config = {"_class_name": "X", "_name_or_path": str(tmp_path / "teacher" / "unet"), "a": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage({"unet/config.json": tmp_path / "config.json"}, tmp_path / "staged")
    assert json.loads((tmp_path / "staged/unet/config.json").read_text()) == config | {"_name_or_path": "unet"}


def test_a_token_of_the_hub_is_refused_and_not_repeated(tmp_path):
    token = "hf_" + "a1B2" * 9
    (tmp_path / "training.json").write_text(json.dumps({"note": token}))
    with pytest.raises(ValueError, match=r"training\.json holds what looks like an access token") as caught:
        stage({"training.json": tmp_path / "training.json"}, tmp_path / "staged")
    assert token not in str(caught.value)


def test_samples_are_given_or_found(folder, tmp_path):
    picture = Image.new("RGB", (8, 8))
    (folder / "samples").mkdir()
    picture.save(folder / "samples" / "b c.png")
    (folder / "samples" / "notes.txt").write_text("x")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    info = describe_model(folder)
    assert list(find_samples(info, ())) == ["samples/b_c.png"]
    assert list(find_samples(info, (tmp_path / "clip.mp4",))) == ["samples/clip.mp4"]


@pytest.mark.parametrize("name", ["clip.mp4", "picture.gif", "script.svg"])
def test_what_a_browser_does_not_show_is_no_sample(folder, tmp_path, name):
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=name):
        find_samples(describe_model(folder), (tmp_path / name,))
