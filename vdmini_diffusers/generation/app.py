"""The page of `vdmini app` and of a Space: a student and its teacher side by side, on one picture or prompt.

Gradio is imported inside the functions: it comes with the extra `app`.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.generation.clip_files import write_clip
from vdmini_diffusers.generation.memory import GIB
from vdmini_diffusers.generation.opened_model import ClipStoppedError, MadeClip, OpenedModel
from vdmini_diffusers.generation.production import ModelToOpen, say_what_fitting_does
from vdmini_diffusers.version import __version__


if TYPE_CHECKING:
    import gradio as gr  # pyright: ignore[reportMissingImports] - extra `app`

MAX_UPLOAD = "50mb"
MAX_PIXELS = 2**26  # of a picture, above the 64 megapixels of phones: several people's are read in one process
MAX_STEPS, MAX_FRAMES, MAX_SIDE, MAX_PROMPT = 200, 1000, 8192, 2000
QUEUE = 32  # people who wait; further ones are told that it is full
STOP_HINT = "Stop ends the work after the step that runs."
HINT = {
    True: f"The picture is scaled until it covers the video, and cut around its centre. {STOP_HINT}",
    False: STOP_HINT,
}
KEPT = 3600  # seconds that uploads and clips are kept


def build_app(model: str | ModelToOpen, teacher: str | ModelToOpen | None = None) -> "gr.Blocks":
    """The page for a student and, beside it, its teacher: folders or Hub ids. `launch` serves it.

    Raises:
        ValueError, OSError: if a model cannot be opened, or the two do not take the same.
        ImportError: without Gradio.
    """
    import_gradio()
    models = [OpenedModel.open(each if isinstance(each, ModelToOpen) else ModelToOpen(each))
              for each in (model, teacher) if each is not None]  # fmt: skip
    return build_page({"": dict(zip(("Student", "Teacher"), models, strict=False))})


def launch(app: "gr.Blocks", host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Serve a page; its address.

    Args:
        host: by default the loopback device, 127.0.0.1, which no other machine reaches, or what the environment
            variable GRADIO_SERVER_NAME says, as it does in a Space.
        port: by default the first that is free from 7860 on.
        wait: return only when the server ends.

    Raises:
        OSError: if the port is taken.
    """
    gr = import_gradio()
    app.queue(max_size=QUEUE, api_open=False)
    _, address, _ = app.launch(
        server_name=host,
        server_port=port,
        share=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        # Fonts of the system: the theme's own are fetched from Google.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    if wait:
        # Whoever ends a service sends SIGTERM, which would leave the temporary files behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"It is at {address} (Ctrl-C ends it).", flush=True)
        app.block_thread()
    return address


def import_gradio() -> Any:
    """Gradio. Raises `ImportError` without it, with what to install."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio  # pyright: ignore[reportMissingImports] - extra `app`
    except ImportError as error:
        raise ImportError("The page needs Gradio: pip install 'gradio>=6', or this package's extra `app`.") from error
    return gradio


def build_page(tabs: Mapping[str, Mapping[str, OpenedModel]]) -> "gr.Blocks":
    """A page with a tab for each kind of input, and in it one or two models with what they are called.

    Raises:
        ValueError: if the models of a tab do not take the same.
    """
    gr = import_gradio()
    _keep_files_apart()
    stops = Stops()
    with gr.Blocks(title="VDMini", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT), fill_width=True) as page:
        gr.Markdown("# VDMini\nPruned and distilled video diffusion models.")

        def stop_running(request: gr.Request) -> None:  # pyright: ignore[reportInvalidTypeForm] - Gradio reads it
            stops.stop(request.session_hash)

        for name, models in tabs.items():
            with gr.Tab(name) if len(tabs) > 1 else gr.Column():
                _build_tab(f"_{name.lower()}" if len(tabs) > 1 else "", models, stops, stop_running)
        page.unload(stop_running)
    return page


class Stops:
    """What each open page has running, so that it can be stopped."""

    def __init__(self) -> None:
        self.running: dict[str | None, list[threading.Event]] = defaultdict(list)

    def begin(self, session: str | None) -> threading.Event:
        event = threading.Event()
        self.running[session].append(event)
        return event

    def end(self, session: str | None, event: threading.Event) -> None:
        self.running[session].remove(event)
        if not self.running[session]:
            del self.running[session]

    def stop(self, session: str | None) -> None:
        """Stop them, and return when they have ended."""
        events = list(self.running.get(session, ()))
        for event in events:
            event.set()
        while any(event in self.running.get(session, ()) for event in events):
            time.sleep(0.05)


def check_picture(path: str | None) -> Image.Image:
    """An uploaded picture. Raises `ValueError`, without the server's path, if it cannot be used."""
    if not path:
        raise ValueError("There is no picture: upload one.")
    try:
        with Image.open(path) as header:
            width, height = header.size
    except Exception:
        width = height = 0  # `read_image` says what is wrong
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"The picture has {width} x {height} pixels, and this page takes {MAX_PIXELS // 10**6} megapixels at most:"
            " make it smaller."
        )
    if 0 < min(width, height) < 8:
        raise ValueError(f"The picture has {width} x {height} pixels: there is nothing in it to animate.")
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError(str(error).replace(repr(path), "The file")) from error


def check_number(name: str, value: Any, low: int, high: int) -> int:
    """A whole number of a field. Raises `ValueError` if it is none, or out of range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError(f"{name} should be a whole number from {low:,} to {high:,}, not {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} should be from {low:,} to {high:,}, not {value:,.0f}.")
    return int(value)


def _build_tab(
    suffix: str, models: Mapping[str, OpenedModel], stops: Stops, stop_running: Callable[..., None]
) -> None:
    gr = import_gradio()
    first = next(iter(models.values()))
    takes = first.takes_image, first.needs_image, first.takes_prompt
    for other in models.values():
        if (other.takes_image, other.needs_image, other.takes_prompt) != takes:
            raise ValueError(
                f"{first.name} and {other.name} do not take the same: {type(first.pipe).__name__} and"
                f" {type(other.pipe).__name__} cannot be compared on one input."
            )
    own, hint = first.options, HINT[first.takes_image]
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = gr.Image(
                label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=240,
                visible=first.takes_image,
            )  # fmt: skip
            prompt = gr.Textbox(label="Prompt", lines=2, max_length=MAX_PROMPT, visible=first.takes_prompt)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
            with gr.Accordion("Size", open=False):
                frames = gr.Number(own["num_frames"], label="Frames", precision=0, minimum=1)
                width = gr.Number(own["width"], label="Width", precision=0, minimum=1)
                height = gr.Number(own["height"], label="Height", precision=0, minimum=1)
            with gr.Row():
                run = gr.Button("Generate", variant="primary")
                halt = gr.Button("Stop")
            note = gr.Markdown(hint, min_height=100, container=True)
        steps, outputs = [], []
        for label, model in models.items():
            with gr.Column(scale=1, min_width=280):
                video = gr.Video(
                    label=f"{label}: {model.name}", height=320, autoplay=True, loop=True, interactive=False,
                    buttons=["download"],
                )  # fmt: skip
                outputs += [video, gr.Markdown(f"{_weights(model)} of weights, on {model.device}")]
                steps.append(gr.Number(model.num_steps, label="Steps", precision=0, minimum=1, maximum=MAX_STEPS))

    def check_upload(given: Any) -> str:
        """What is wrong with a picture is said when it is chosen, not after everything else was filled in."""
        try:
            return _said_of(check_picture((given or {}).get("path")), own) or hint
        except ValueError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    shown_progress = gr.Progress()

    # Gradio fills in the first two, by annotation and default, and the rest in the order of the event's inputs.
    def generate(
        request: gr.Request,  # pyright: ignore[reportInvalidTypeForm]
        progress: Any = shown_progress, given: Any = None, prompt: Any = None, seed: Any = 0,
        frames: Any = None, width: Any = None, height: Any = None, *num_steps: Any,
    ) -> Iterator[list[Any]]:  # fmt: skip
        session = request.session_hash
        stop = stops.begin(session)
        try:
            seed = check_number("Seed", seed, 0, 2**32 - 1)
            size = {
                "num_frames": check_number("Frames", frames, 1, MAX_FRAMES),
                "height": check_number("Height", height, 1, MAX_SIDE),
                "width": check_number("Width", width, 1, MAX_SIDE),
            }
            each = [None if n is None else check_number("Steps", n, 1, MAX_STEPS) for n in num_steps]
            prompt = _check_prompt(prompt) if first.takes_prompt else None
            needed = first.needs_image or (first.takes_image and given)
            image = check_picture((given or {}).get("path")) if needed else None
            for model in models.values():
                model.check_fits(**size)
            said = hint if image is None else _said_of(image, size) or hint
            shown: list[Any] = [None, ""] * len(models)
            yield ["", *shown]  # progress is shown there
            # Gradio copies each file to its own folder before it asks for what comes next.
            with tempfile.TemporaryDirectory(prefix="vdmini-clip-") as made:
                for i, ((label, model), n) in enumerate(zip(models.items(), each, strict=True)):
                    progress(0, desc=label)
                    call = size if n is None else {**size, "num_inference_steps": n}
                    clip = model.make(
                        seed, call, image, prompt, stop,
                        lambda step, num_steps, label=label: progress(
                            step / num_steps, desc=f"{label}, step {step} of {num_steps}"
                        ),
                    )  # fmt: skip
                    path = Path(made) / f"{label.lower().replace(' ', '_')}_seed{seed}.mp4"
                    write_clip(clip.frames, path, model.fps, _record(model, clip, seed, prompt))
                    shown[2 * i : 2 * i + 2] = [str(path), _measured(model, clip)]
                    yield [said if i == len(models) - 1 else "", *shown]
        except ClipStoppedError:
            yield ["Stopped.", *[gr.skip()] * len(outputs)]
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        finally:
            stops.end(session, stop)

    picture.upload(
        check_upload,
        picture,
        note,
        preprocess=False,
        concurrency_limit=1,
        show_progress="hidden",
        api_name=f"check{suffix}",
    )
    # `preprocess=False` leaves reading the picture to `check_picture`, which has a word for each thing that is wrong.
    # Gradio has checked by then that the path is that of an upload.
    running = run.click(
        generate, [picture, prompt, seed, frames, width, height, *steps], [note, *outputs], preprocess=False,
        concurrency_limit=1, concurrency_id="models", show_progress_on=note, api_name=f"generate{suffix}",
    )  # fmt: skip
    # Work that runs has ended, with what was made so far, when that which still waits is taken out of the queue.
    halting = halt.click(stop_running, queue=False, api_visibility="private")
    halting.then(None, cancels=[running], api_visibility="private")


def _check_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("The prompt is empty: say what the video should show.")
    if len(prompt) > MAX_PROMPT:
        raise ValueError(f"The prompt has {len(prompt):,} characters, and {MAX_PROMPT:,} are taken: make it shorter.")
    return prompt


def _said_of(image: Image.Image, size: Mapping[str, Any]) -> str:
    said: list[str] = []
    say_what_fitting_does(image.size, (size["width"], size["height"]), said.append)
    return " ".join(said).split(" --width")[0]


def _record(model: OpenedModel, clip: MadeClip, seed: int, prompt: str | None) -> dict[str, Any]:
    """What the file says it was made with."""
    frames, height, width, _ = clip.frames.shape
    return {
        "made_by": f"vdmini_diffusers {__version__}",
        "model": model.name,
        **({} if prompt is None else {"prompt": prompt}),
        "seed": seed,
        "steps": clip.num_steps,
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def _measured(model: OpenedModel, clip: MadeClip) -> str:
    frames, height, width, _ = clip.frames.shape
    lines = [
        f"**{clip.seconds:.2f} s** on {model.device}, {clip.num_steps} step{'s' * (clip.num_steps > 1)},"
        f" {frames} frames of {width} x {height}",
        f"{_weights(model)} of weights",
    ]
    if clip.peak is not None:
        beside = " more" if model.device == "cpu" else ", weights included,"
        lines.append(f"**{_in_words(clip.peak)}**{beside} at the peak")
    if clip.is_first:
        lines.append("The first of this size: later ones are faster.")
    return "  \n".join(lines)


def _weights(model: OpenedModel) -> str:
    return _in_words(model.weight_bytes)


def _in_words(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"


def _keep_files_apart() -> None:
    """Give Gradio a folder for uploads and clips that is deleted when the process ends."""
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = folder = tempfile.mkdtemp(prefix="vdmini-app-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
