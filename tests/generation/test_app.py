"""The page of `vdmini app`, over HTTP as its users' browsers and clients ask it. It needs the extra `app`."""

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
from checkout import ROOT
from PIL import Image
from tiny import student_of, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline


pytest.importorskip("gradio", reason="the extra `app` is not installed")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from vdmini_diffusers import VDMiniI2VPipeline
from vdmini_diffusers.generation.app import MAX_PIXELS, build_app, build_page, launch
from vdmini_diffusers.generation.clip_files import read_record, write_clip
from vdmini_diffusers.generation.opened_model import OpenedModel
from vdmini_diffusers.generation.production import ModelToOpen
from vdmini_diffusers.pruning import VDMINI_UNET


SMALL = {"num_frames": 3, "height": 16, "width": 16}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MIB = 2**20


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of a page with a student beside its teacher, and one of text to video; the models; pictures."""
    folder = tmp_path_factory.mktemp("app")
    teacher = tiny_svd_pipeline()
    teacher.save_pretrained(folder / "teacher")
    VDMiniI2VPipeline(**teacher.components | {"unet": student_of(teacher.unet, VDMINI_UNET)}).save_pretrained(
        folder / "student"
    )
    tiny_t2v_pipeline().save_pretrained(folder / "t2v")
    write_pictures(folder)

    def opened(name, options):
        return OpenedModel.open(ModelToOpen(str(folder / name), device="cpu", memory=0.5), options)

    models = {"Student": opened("student", SMALL), "Teacher": opened("teacher", {**SMALL, "num_inference_steps": 2})}
    text = {"Student": opened("t2v", {"num_frames": 2, "num_inference_steps": 2})}
    page = build_page({"Picture": models, "Prompt": text})
    address = launch(page, wait=False)
    yield address, models, folder
    page.close(verbose=False)


def write_pictures(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    Image.fromarray(noise).save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    (folder / "text.png").write_text("no picture")


WRONG = {
    "text.png": "The file cannot be read as a picture: it is none of the kinds",
    "cut.jpg": "The file cannot be read as a picture: .*truncated",
    "dot.png": "1 x 1 pixels",
    "huge.png": f"10000 x 10000 pixels, and this page takes {MAX_PIXELS // 10**6} megapixels at most",
}


def ask(client, folder, seed=0, picture="photo.png", frames=3, width=16, height=16, steps=(1, 2)):
    """Note, and of student and teacher the file and what is said of it."""
    given = None if picture is None else handle_file(folder / picture)
    return client.predict(given, "", seed, frames, width, height, *steps, api_name="/generate_picture")


@pytest.fixture(scope="module")
def client(served, tmp_path_factory):
    return Client(served[0], verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_it_listens_on_this_machine_alone_and_serves_none_of_its_files(served, monkeypatch):
    address, _, folder = served
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    listening = {c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert {at.ip for at in listening if at.port == port} == {"127.0.0.1"}
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/download="):
        for path in ("/etc/passwd", "../../../../etc/passwd", f"{ROOT}/setup.py", "setup.py", f"{folder}/photo.png"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}{route}{path}")
            assert refused.value.code in (403, 404, 405), (route, path)


def test_a_file_of_the_machine_is_no_picture_to_animate(served):
    """A client may send any path as its upload's."""
    address, _, folder = served
    body = {"data": [{"path": str(folder / "photo.png"), "meta": {"_type": "gradio.FileData"}}], "session_hash": "x"}
    request = urllib.request.Request(
        f"{address}gradio_api/call/check_picture", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(request))["event_id"]
    answer = urllib.request.urlopen(f"{address}gradio_api/call/check_picture/{event}").read().decode()
    assert "event: error" in answer and "event: complete" not in answer


def test_the_clips_are_those_that_the_models_make_alone(served, client, tmp_path):
    _, models, folder = served
    note, student, said, teacher, _ = ask(client, folder, seed=7)
    assert (
        note.startswith("The picture is scaled")
        and "1 step, 3 frames of 16 x 16" in said
        and "MiB** more at the peak" in said
    )
    for (label, model), file, steps in zip(models.items(), (student, teacher), (1, 2), strict=True):
        assert Path(file).name == f"{label.lower()}_seed7.mp4"
        record = read_record(Path(file))
        assert record is not None and (record["seed"], record["steps"], record["model"]) == (7, steps, model.name)
        alone = model.make(7, {"num_inference_steps": steps}, Image.open(folder / "photo.png"))
        write_clip(alone.frames, tmp_path / "alone.mp4", model.fps, record)
        assert Path(file).read_bytes() == (tmp_path / "alone.mp4").read_bytes()


def test_eight_people_at_once_get_each_their_own(served, tmp_path):
    address, _, folder = served
    found: dict[int, list[bytes]] = {}

    def person(seed):
        client = Client(address, verbose=False, download_files=tmp_path / str(seed))
        _, student, _, teacher, _ = ask(client, folder, seed)
        found[seed] = [Path(student).read_bytes(), Path(teacher).read_bytes()]

    threads = [threading.Thread(target=person, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    together = dict(found)
    assert sorted(together) == list(range(8)) and len({clips[0] for clips in together.values()}) == 8
    for seed in (0, 3, 7):
        person(seed)
        assert found[seed] == together[seed]


@pytest.mark.parametrize(("picture", "message"), [*WRONG.items(), (None, "There is no picture")])
def test_a_wrong_picture_is_answered_with_a_message(served, client, picture, message):
    with pytest.raises(AppError, match=message) as refused:
        ask(client, served[2], picture=picture)
    assert str(tempfile.gettempdir()) not in str(refused.value)
    if picture is not None:
        with pytest.raises(AppError, match=message):
            client.predict(handle_file(served[2] / picture), api_name="/check_picture")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "Seed should be from 0 to 4,294,967,295, not -1"),
        ({"seed": "x"}, "Seed should be a whole number from 0 to 4,294,967,295, not 'x'"),
        ({"frames": None}, "Frames should be a whole number"),
        ({"steps": (1, 201)}, "Steps should be from 1 to 200"),
        ({"frames": 999, "width": 256, "height": 256}, "GiB can be used. What fits: .* frames of that size, or 999 f"),
        ({"width": 15}, "multiples of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_before_it_is_begun(served, client, wrong, message):
    with pytest.raises(AppError, match=message):
        ask(client, served[2], **wrong)


def test_prompts_and_the_empty_one(served, client):
    def prompt(text):
        return client.predict(None, text, 1, 2, 32, 32, 2, api_name="/generate_prompt")

    for empty in ("", "  \n", None):
        with pytest.raises(AppError, match="The prompt is empty"):
            prompt(empty)
    with pytest.raises(AppError, match="2,001 characters"):
        prompt("a" * 2001)
    file = prompt("A dog")[1]
    record = read_record(Path(file))
    assert record is not None and record["prompt"] == "A dog"


def test_models_that_do_not_take_the_same_are_not_compared(served):
    folder = served[2]
    with pytest.raises(ValueError, match="student and t2v do not take the same"):
        build_app(str(folder / "student"), ModelToOpen(str(folder / "t2v"), device="cpu"))


def test_the_file_of_a_space_is_the_same_page(served, tmp_path):
    text = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8").split("## A Space")[1]
    code = text.split("```python\n")[1].split("```")[0]
    for printed, name in {
        "org/vdmini-i2v": "student",
        "stabilityai/stable-video-diffusion-img2vid": "teacher",
    }.items():
        assert printed in code
        code = code.replace(printed, str(served[2] / name))
    code = code.replace("launch(build_app(", "address = launch(wait=False, app=build_app(")
    names: dict[str, str] = {}
    exec(compile(code, "app.py", "exec"), names)
    client = Client(names["address"], verbose=False, download_files=tmp_path)
    given = handle_file(served[2] / "photo.png")
    made = client.predict(given, "", 0, 2, 16, 16, 1, 1, api_name="/generate")
    assert [Path(made[i]).name for i in (1, 3)] == ["student_seed0.mp4", "teacher_seed0.mp4"]


def test_what_was_asked_for_in_vain_leaves_no_file(served):
    assert not list(Path(tempfile.gettempdir()).glob("vdmini-clip-*"))


@pytest.mark.slow
def test_two_hundred_clips_leave_memory_and_disk_where_they_were(served, client):
    _, _, folder = served
    process, sizes = psutil.Process(), []
    for seed in range(200):
        ask(client, folder, seed, steps=(1, 1))
        sizes.append(process.memory_info().rss / MIB)
    early, late = np.median(sizes[40:70]), np.median(sizes[-30:])
    print(f"MiB after 40 to 70 clips {early:.1f}, after 170 to 200 {late:.1f}, first {sizes[0]:.1f}")
    assert late - early < 10
    assert not list(Path(tempfile.gettempdir()).glob("vdmini-clip-*"))


@pytest.mark.slow
def test_uploads_and_clips_are_deleted_when_they_are_old_and_when_the_page_ends(served, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("vdmini_diffusers.generation.app.KEPT", 6)
    _, models, folder = served
    page = build_page({"": models})
    try:
        client = Client(launch(page, wait=False), verbose=False, download_files=False)
        client.predict(handle_file(folder / "photo.png"), "", 0, 3, 16, 16, 1, 2, api_name="/generate")

        def files():
            return sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file())

        assert files().count(".mp4") == 2 and ".png" in files()
        give_up = time.monotonic() + 30
        while files() and time.monotonic() < give_up:
            time.sleep(0.5)
        assert files() == []
        client.predict(handle_file(folder / "photo.png"), "", 0, 3, 16, 16, 1, 2, api_name="/generate")
        assert files()
    finally:
        page.close(verbose=False)
    assert files() == []


@pytest.fixture
def browser_page(served):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with (
        playwright.sync_playwright() as driver,
        contextlib.closing(driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800}, accept_downloads=True)
        page.elsewhere = []
        page.on("request", lambda r: None if "127.0.0.1" in r.url or r.url[:5] in ("data:", "blob:")
                else page.elsewhere.append(r.url))  # fmt: skip
        page.goto(served[0])
        page.get_by_role("button", name="Generate").first.wait_for()
        yield page


def shot(page, name):
    """A picture of the page to look at, in the folder that VDMINI_SCREENSHOTS names."""
    if folder := os.environ.get("VDMINI_SCREENSHOTS"):
        page.wait_for_timeout(2000)  # messages glide in, over a large picture late
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.slow
def test_in_a_browser_a_picture_is_uploaded_animated_played_and_downloaded(served, browser_page):
    page, folder = browser_page, served[2]
    shot(page, "start")
    page.locator("input[type=file]").first.set_input_files(folder / "photo.png")
    page.locator("img[src*='photo.png']").wait_for()
    page.get_by_role("button", name="Generate").first.click()
    page.wait_for_function("[...document.querySelectorAll('video')].filter(v => v.duration > 0).length == 2")
    page.wait_for_function("[...document.querySelectorAll('video')].every(v => v.currentTime > 0)")
    sizes = page.evaluate("[...document.querySelectorAll('video')].map(v => [v.videoWidth, v.videoHeight])")
    assert sizes == [[16, 16]] * 2
    assert page.get_by_text("more at the peak").count() == 2
    shot(page, "made")
    with page.expect_download() as download:
        page.locator("a[download*=student]").first.click()
    record = read_record(Path(shutil.copy(download.value.path(), folder / "downloaded.mp4")))
    assert download.value.suggested_filename == "student_seed0.mp4" and record is not None and record["seed"] == 0
    assert page.elsewhere == []  # nothing is fetched from anywhere else


@pytest.mark.slow
def test_in_a_browser_what_is_wrong_is_said_on_the_page(served, browser_page):
    page, folder = browser_page, served[2]
    for picture, message in WRONG.items():
        page.locator("input[type=file]").first.set_input_files(folder / picture)
        said = page.get_by_test_id("toast-body").filter(has_text=message.split(".*")[0].rstrip(" "))
        said.wait_for()
        shot(page, f"wrong-{Path(picture).stem}")
        page.get_by_test_id("toast-close").first.click()
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.get_by_role("tab", name="Prompt").click()
    page.get_by_role("button", name="Generate").locator("visible=true").click()
    page.get_by_text("The prompt is empty").wait_for()
    shot(page, "wrong-prompt")


@pytest.mark.slow
def test_in_a_browser_stop_ends_the_work_after_a_step_and_so_does_leaving(served, browser_page):
    page, (_, models, folder) = browser_page, served
    steps: list[int] = []
    slow = threading.Event()
    pipe = models["Teacher"].pipe
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *a, **k: (steps.append(1), slow.wait(0.2), step(*a, **k))[-1]
    try:
        for leave in (False, True):
            steps.clear()
            page.locator("input[type=file]").first.set_input_files(folder / "photo.png")
            page.locator("img[src*='photo.png']").wait_for()
            page.get_by_label("Steps").nth(1).fill("100")
            page.get_by_role("button", name="Generate").first.click()
            while len(steps) < 3:
                page.wait_for_timeout(50)
            shot(page, "running")
            if leave:
                page.goto("about:blank")
            else:
                page.get_by_role("button", name="Stop").first.click()
            page.wait_for_timeout(3000)
            stopped_at = len(steps)
            page.wait_for_timeout(1000)
            assert len(steps) == stopped_at < 30, leave
            if not leave:
                page.get_by_text("Stopped.").wait_for()
                shot(page, "stopped")
                assert page.evaluate("document.querySelectorAll('video').length") == 1  # the student's is there
                page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    finally:
        pipe.scheduler.step = step
    assert not list(Path(tempfile.gettempdir()).glob("vdmini-clip-*"))
