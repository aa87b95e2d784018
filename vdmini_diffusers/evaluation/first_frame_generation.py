"""Videos generated from the first frames of real ones, as SF-V and the paper do for FVD on UCF-101 (section 4.1)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.data.listed_files import list_files
from vdmini_diffusers.data.stored_videos import StoredVideo, resize_frame
from vdmini_diffusers.evaluation.fvd_protocol import GENERATION_MANIFEST, FVDProtocol, Start
from vdmini_diffusers.serialization.atomic import new_folder, write_file
from vdmini_diffusers.serialization.hashes import weights_sha256


def check_generation_folder(
    folder: Path, names: Sequence[str], protocol: FVDProtocol, settings: Mapping[str, Any] | None = None
) -> set[str]:
    """The names of the clips that a folder already has, all of them complete.

    Args:
        names: the clips that may be in it.
        settings: what they should have been made with.

    Raises:
        ValueError: if something else is in the folder, a clip is damaged, or it was made with other settings. Nothing
            is changed.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    if _read_manifest(folder) is None:
        raise ValueError(
            f"{folder} is not empty and has no {GENERATION_MANIFEST}: choose a new folder for the generated clips."
        )
    if settings is not None:
        check_made_with(folder, settings)
    files, skipped = list_files(folder)
    frames: dict[str, set[str]] = {}
    for file in files:
        clip, _, frame = file.rpartition("/")
        frames.setdefault(clip, set()).add(frame)
    frames.get("", set()).discard(GENERATION_MANIFEST)
    foreign = [*(f"{clip}/{sorted(frames[clip])[0]}" for clip in set(frames) - {*names, ""}), *frames.pop("", [])]
    foreign += [video.name for video in skipped if video.reason != "hidden"]
    if foreign:
        raise ValueError(
            f"{folder} holds {len(foreign)} files or folders that are no clips of these videos, such as"
            f" {min(foreign)}. Move them elsewhere, or choose a new folder."
        )
    for clip in tqdm(sorted(frames), "clips that are there", leave=False):
        if reason := _damage(folder / clip, frames[clip], protocol):
            raise ValueError(
                f"The clip {folder / clip} is damaged: {reason}. Remove that folder and run the same command again:"
                " it will be made anew."
            )
    return set(frames)


def check_made_with(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a folder's clips were made with others than these `generation_settings`."""
    made_with = _read_manifest(folder)
    if made_with is None or made_with == settings:
        return
    different = [
        f"{key} {made_with.get(key)!r} and not {settings.get(key)!r}"
        for key in sorted({*made_with, *settings})
        if made_with.get(key) != settings.get(key)
    ]
    raise ValueError(
        f"The clips in {folder} were made with {'; '.join(different)}. Choose a new folder, or the same settings."
    )


def generation_settings(pipe: Any, protocol: FVDProtocol, start: Start, call: Mapping[str, Any]) -> dict[str, Any]:
    """What the clips of `generate_from_first_frames` depend on, as their folder's record has it."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    settings = {
        "pipeline": type(pipe).__name__,
        "weights_sha256": {name: weights_sha256(network) for name, network in networks.items()},
        "call": call,
        "start": start,
        **{name: getattr(protocol, name) for name in ("num_frames", "height", "width", "jpeg_quality", "seed")},
    }
    return json.loads(json.dumps(settings))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder's clips were made with; None where nothing says so."""
    file = folder / GENERATION_MANIFEST
    if not file.is_file():
        return None
    try:
        made_with = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(made_with, dict):
            raise ValueError("it holds no settings by name")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Choose a new folder.") from error
    return made_with


def _damage(clip: Path, found: set[str], protocol: FVDProtocol) -> str | None:
    expected = set(_frame_names(protocol.num_frames))
    if found != expected:
        return f"it should have {len(expected)} frames, 000.jpg and so on; it has {len(found)} files"
    for name in sorted(expected):
        try:
            size = read_image(clip / name).size
        except ValueError as error:
            return str(error)
        if size != (protocol.width, protocol.height):
            return f"{name} has {size[0]} x {size[1]} pixels, not {protocol.width} x {protocol.height}"
    return None


def _frame_names(num_frames: int) -> list[str]:
    return [f"{index:03d}.jpg" for index in range(num_frames)]


def generate_from_first_frames(
    pipe: Any,
    videos: Sequence[StoredVideo],
    all_names: Sequence[str],
    folder: Path,
    protocol: FVDProtocol,
    start: Start = "first",
    **call: Any,
) -> None:
    """Write a clip for each video: a folder of JPEG frames of its name, which appears when it is complete.

    The first frame of the video's clip, at the protocol's size, is the condition. What the pipeline makes of it is
    resized to the protocol's size and stored as JPEG. The noise depends on the protocol's seed and the video's name.
    Clips that are there stay; processes that accelerate has launched share the others.

    Args:
        pipe: takes `image`, `num_frames`, `generator`, `output_type="np"` and `call`, as `VDMiniI2VPipeline` does.
        videos: whose clips are to be made.
        all_names: names of all videos that `folder` may have clips of, from this call or earlier ones.
        call: further arguments of the pipeline.

    Raises:
        ValueError: see `check_generation_folder`; or if the protocol stores no JPEG files, or the pipeline makes
            something else.
        OSError: if a clip cannot be written. Those before it stay.
    """
    if protocol.jpeg_quality is None:
        raise ValueError("Generated clips are stored as JPEG: give a `jpeg_quality`.")
    state = PartialState()
    settings = generation_settings(pipe, protocol, start, call)
    done = check_generation_folder(folder, all_names, protocol, settings)
    state.wait_for_everyone()  # before the first clip is written
    if state.is_main_process and not (folder / GENERATION_MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / GENERATION_MANIFEST, (json.dumps(settings, indent=1) + "\n").encode())
    missing = [video for video in videos if video.name not in done]
    mine = missing[state.process_index :: state.num_processes]
    for video in tqdm(mine, "generate", unit="clip", disable=not state.is_main_process):
        if (folder / video.name).exists():  # another run of the same command has made it meanwhile
            continue
        first = protocol.first_frame(video, start)
        condition = video.read(1, protocol.height, protocol.width, first).frames[0]
        made = np.asarray(
            pipe(
                image=Image.fromarray(condition),
                num_frames=protocol.num_frames,
                # The global one: schedulers that add noise between steps are given none by SVD's pipeline.
                generator=torch.manual_seed(_noise_seed(protocol.seed, video.name)),
                output_type="np",
                **call,
            ).frames
        )
        if made.ndim != 5 or made.shape[:2] != (1, protocol.num_frames) or not np.isfinite(made).all():
            raise ValueError(
                f"The pipeline should make one video of {protocol.num_frames} frames with finite values of"
                f" {video.name}; it made an array {made.shape}."
            )
        frames = (made[0] * 255).round().clip(0, 255).astype(np.uint8)
        with new_folder(folder / video.name, kind="clip", marker=_frame_names(1)[0]) as clip:
            for name, frame in zip(_frame_names(len(frames)), frames, strict=True):
                (clip / name).write_bytes(protocol.encode_frame(resize_frame(frame, protocol.height, protocol.width)))
    state.wait_for_everyone()


def _noise_seed(seed: int, name: str) -> int:
    """The same for a video whichever others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
