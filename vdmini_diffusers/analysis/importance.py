"""Block importance: what becomes of the videos when a part of the denoiser is removed (paper, section 3.2, Fig. A4).

One part at a time, with the same inputs and the same noise, and without training.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from vdmini_diffusers.analysis.parts import MEASURED_KINDS, Part, plain_config, removable_parts, removed
from vdmini_diffusers.analysis.pictures import first_and_last_frames, png
from vdmini_diffusers.analysis.scores import Clips, Score, notes_on
from vdmini_diffusers.analysis.shared_states import SharedStates
from vdmini_diffusers.evaluation.continuation import psnr
from vdmini_diffusers.evaluation.detectors import Detector
from vdmini_diffusers.pruning.in_memory import student_of
from vdmini_diffusers.pruning.plans import PruningPlan
from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.safetensors_reader import read_json


PLAN = "plan"  # the kind of a row that is a whole plan's
UNPRUNED = "unpruned"  # in the place of a part's name
WORTH_RECORDING = 4  # parts, from which on states save more than making the whole denoiser's videos again takes
SAME_PSNR = 40.0  # dB: arithmetic in another order stays above, other weights, inputs or seeds do not


class ImportanceError(ValueError):
    """Scores that are incomplete, damaged, or of something else."""


@dataclass(frozen=True)
class ImportanceTable:
    """The scores of a denoiser without each of its parts.

    Args:
        class_name, config: of the denoiser.
        settings: what the scores depend on besides.
        higher_is_better: of each score.
        unpruned: the scores of the whole denoiser.
        parts: the scores without each part, by its name.
        kinds: the kind of each part.
        notes: what a reader has to know.
    """

    class_name: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    higher_is_better: Mapping[str, bool]
    unpruned: Mapping[str, float]
    parts: Mapping[str, Mapping[str, float]]
    kinds: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def importance(self, score: str) -> dict[str, float]:
        """How much worse the score is without each part than with all of them.

        Raises:
            ImportanceError: if there is no such score.
        """
        if score not in self.higher_is_better:
            raise ImportanceError(f"There is no score {score!r}; there are {', '.join(self.higher_is_better)}.")
        sign = -1 if self.higher_is_better[score] else 1
        return {part: sign * (scores[score] - self.unpruned[score]) for part, scores in self.parts.items()}

    def to_json_string(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_csv_string(self) -> str:
        """One row a part, after that of the whole denoiser."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["part", "kind", *self.higher_is_better])
        for part, scores in {UNPRUNED: self.unpruned, **self.parts}.items():
            table.writerow([part, self.kinds.get(part, ""), *(scores[name] for name in self.higher_is_better)])
        return text.getvalue()

    @classmethod
    def read(cls, file: Path) -> "ImportanceTable":
        """Raises `ImportanceError` for a file that `measure_importance` has not written."""
        try:
            fields = read_json(file)
            table = cls(**{**fields, "notes": tuple(fields.get("notes", ()))})
            for name, scores in {UNPRUNED: table.unpruned, **table.parts}.items():
                if missing := [each for each in table.higher_is_better if type(scores.get(each)) not in (int, float)]:
                    raise TypeError(f"the score {missing[0]} of {name} is no number")
            if not isinstance(table.config, dict):
                raise TypeError("its config is none")
        except (AttributeError, TypeError, ValueError) as error:
            raise ImportanceError(f"{file} is no table of importance: {error}.") from error
        return table


@dataclass(frozen=True)
class Measurement:
    """How the importance of the parts of a denoiser is measured.

    Args:
        denoiser: the bare module, part of the pipeline that makes the videos. It may be offloaded.
        generate: `(num_videos=None, description=None)`: the videos, the same at each call; see `FixedVideos`.
        scores: by name.
        losses: numbers of the denoiser itself, such as its training loss on fixed clips, by name. Less is better.
        parts: those to measure; by default all. A plan among them stands for all that it removes.
        use: puts another denoiser in the place of `denoiser` in the pipeline, where there are plans.
        student_class: of the students by plans.
        detector: for scores that take features.
        settings: all that the scores depend on and that is not the denoiser's class and config. JSON.
        num_broken: how many videos of the last call of `generate` had values that are not finite.
    """

    denoiser: Any
    generate: Callable[..., np.ndarray]
    scores: Mapping[str, Score]
    losses: Mapping[str, Callable[[], float]] = field(default_factory=dict)
    parts: Mapping[str, Part | PruningPlan] | None = None
    use: Callable[[Any], None] | None = None
    student_class: type[Any] | None = None
    detector: Detector | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_broken: Callable[[], int] = lambda: 0

    @property
    def all_parts(self) -> Mapping[str, Part | PruningPlan]:
        return removable_parts(self.denoiser) if self.parts is None else self.parts

    @contextmanager
    def without(self, part: Part | PruningPlan | None) -> Iterator[None]:
        """Within the block, videos are made without a part, or by the student of a plan."""
        if isinstance(part, PruningPlan):
            assert self.use is not None and self.student_class is not None
            self.use(student_of(self.denoiser, part, self.student_class))
            try:
                yield
            finally:
                self.use(self.denoiser)
        else:
            with removed(self.denoiser, *([] if part is None else [part])):
                yield

    @property
    def identity(self) -> dict[str, Any]:
        """What results of one folder must agree in."""
        return {
            "class_name": type(self.denoiser).__name__,
            "config": plain_config(self.denoiser),
            "scores": sorted([*self.scores, *self.losses]),
            "settings": dict(self.settings),
        }

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True, default=list).encode()).hexdigest()

    def digest_of(self, name: str) -> str:
        """What the result of a part must agree in: of a plan, which its name does not tell, in that as well."""
        part = self.all_parts.get(name)
        if not isinstance(part, PruningPlan):
            return self.digest
        return hashlib.sha256(f"{self.digest} {part.to_json_string()}".encode()).hexdigest()


def measure_importance(
    measurement: Measurement, output_dir: Path, process_index: int = 0, num_processes: int = 1
) -> ImportanceTable | None:
    """Remove one part after the other, and score the videos that are made without it.

    Each part is a file in `output_dir`, so that the same call goes on where it was stopped, and each process measures
    every n-th part; they need not wait for one another. The first process to see that all is measured, which is the
    last one to end, writes `importance.json` and `importance.csv`. What one-step sampling computes before the removed
    part is computed once (`SharedStates`).

    Returns:
        The table; `None` while other processes are at work.

    Raises:
        ImportanceError: if the folder holds results of something else or damaged ones, or a name is no file's. Nothing
            in it is changed.
    """
    parts = measurement.all_parts
    if wrong := [name for name in parts if Path(name).name != name]:  # of plans, which come from others
        raise ImportanceError(f"The results of {wrong[0]!r} need a file of that name: give it another.")
    open_folder(output_dir, measurement.identity, measurement.digest)
    names = [UNPRUNED, *parts]
    mine = [name for name in names[process_index::num_processes] if _done(output_dir, name, measurement) is None]
    shared = SharedStates(measurement.denoiser)
    videos = _unpruned_videos(measurement, output_dir, shared, len(mine))
    if mine:
        unpruned = Clips(videos, measurement.detector)
        for name in tqdm(mine, desc="parts", unit="part", disable=process_index > 0):
            result, picture = _measure(measurement, name, parts.get(name), unpruned, shared)
            write_file(output_dir / "frames" / f"{name}.png", picture)
            content = json.dumps({**result, "digest": measurement.digest_of(name)}, indent=1)
            write_file(_file(output_dir, name), f"{content}\n".encode())
    return collect(measurement, output_dir)


def collect(measurement: Measurement, output_dir: Path) -> ImportanceTable | None:
    """The table of all parts, which is written as well; `None` if not all of them are measured."""
    parts = measurement.all_parts
    results = {name: _done(output_dir, name, measurement) for name in (UNPRUNED, *parts)}
    scores = {name: result["scores"] for name, result in results.items() if result is not None}
    if len(scores) < len(results):
        return None
    directions = {name: score.higher_is_better for name, score in measurement.scores.items()}
    directions |= dict.fromkeys(measurement.losses, False)
    num_clips = next(result["num_videos"] for result in results.values() if result is not None)
    table = ImportanceTable(
        class_name=measurement.identity["class_name"],
        config=measurement.identity["config"],
        settings=measurement.settings,
        higher_is_better=directions,
        unpruned=scores.pop(UNPRUNED),
        parts=scores,
        kinds={name: PLAN if isinstance(part, PruningPlan) else part.kind for name, part in parts.items()},
        notes=(*notes_on(num_clips, measurement.detector, directions), *_notes_on_broken(results)),
    )
    write_file(output_dir / "importance.json", table.to_json_string().encode())
    write_file(output_dir / "importance.csv", table.to_csv_string().encode())
    return table


def _notes_on_broken(results: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    counts = {name: result.get("num_broken", 0) for name, result in results.items() if result is not None}
    return [
        f"Without {name}, {count} videos have values that are not finite, which count as black."
        for name, count in counts.items()
        if count
    ]


@torch.no_grad()
def _measure(
    measurement: Measurement, name: str, part: Part | PruningPlan | None, unpruned: Clips, shared: SharedStates
) -> tuple[dict[str, Any], bytes]:
    start = time.perf_counter()
    replayed = shared.replayed(part) if isinstance(part, Part) else nullcontext()
    with measurement.without(part):
        losses = {loss: float(compute()) for loss, compute in measurement.losses.items()}
        clips = unpruned
        if part is not None:
            with replayed:
                clips = Clips(measurement.generate(None, name), measurement.detector)
    generated = time.perf_counter()
    scores = {score: float(how.compute(clips, unpruned)) for score, how in measurement.scores.items()} | losses
    if broken := [score for score, value in scores.items() if not np.isfinite(value)]:
        raise ImportanceError(f"Without {name}, {broken[0]} is {scores[broken[0]]}: importance needs finite numbers.")
    result = {
        "part": name,
        "scores": scores,
        "num_videos": len(clips.frames),
        "num_broken": 0 if part is None else measurement.num_broken(),
        "generation_seconds": round(generated - start, 3),
        "scoring_seconds": round(time.perf_counter() - generated, 3),
    }
    return result, png(first_and_last_frames(clips.frames))


def open_folder(folder: Path, identity: Mapping[str, Any], digest: str) -> None:
    settings = folder / "settings.json"
    # Listed before one looks for the settings: another process that begins as well writes them first.
    others = folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir())
    if settings.exists():
        found = _read(settings)
        if found.get("digest") != digest:
            before, now = found.get("identity", {}), json.loads(json.dumps(identity, default=list))
            differs = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            if differs == ["settings"]:
                one, other = before["settings"], now["settings"]
                differs = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
            raise ImportanceError(
                f"{folder} holds importance that was measured otherwise: {', '.join(differs)} differ. Choose another"
                " folder, or delete this one."
            )
    elif others:
        raise ImportanceError(f"{folder} is not empty and has no settings.json of such a measurement: choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"digest": digest, "identity": identity}, indent=1, default=list)
    write_file(settings, f"{content}\n".encode())
    for name in ("parts", "frames"):
        (folder / name).mkdir(exist_ok=True)


def _unpruned_videos(measurement: Measurement, folder: Path, shared: SharedStates, num_left: int) -> np.ndarray:
    """The whole denoiser's: made once, and kept. What is kept is compared with its first video, made anew.

    Args:
        shared: for the states of the videos that are made.
        num_left: how many parts are to be measured with them.

    Raises:
        ImportanceError: if they are not the same, as the weights are others, say; or if some are not finite.
    """

    def generate(num_videos: int | None = None) -> np.ndarray:
        videos = shared.record(lambda: measurement.generate(num_videos, UNPRUNED))
        if broken := measurement.num_broken():
            raise ImportanceError(
                f"{broken} of {len(videos)} videos of the whole model have values that are not finite."
            )
        return videos

    file = folder / "unpruned.npy"
    if not file.exists():
        videos = generate()
        content = io.BytesIO()
        np.save(content, videos)
        write_file(file, content.getvalue())
        return videos
    try:
        videos = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImportanceError(f"{file} cannot be read: {error}. Delete it, and it is made again.") from error
    again = generate(1)
    if videos.shape[1:] != again.shape[1:] or psnr(videos[:1], again) < SAME_PSNR:
        raise ImportanceError(
            f"{file} holds other videos than this denoiser makes: its weights or inputs have changed since. Choose"
            " another folder."
        )
    if shared.calls and num_left >= WORTH_RECORDING:
        generate()
    return videos


def _file(folder: Path, name: str) -> Path:
    return folder / "parts" / f"{name}.json"


def _done(folder: Path, name: str, measurement: Measurement) -> dict[str, Any] | None:
    file = _file(folder, name)
    if not file.exists():
        return None
    result = _read(file)
    if (
        result.get("digest") != measurement.digest_of(name)
        or result.get("part") != name
        or not isinstance(result.get("scores"), dict)
    ):
        raise ImportanceError(f"{file} is not a result of this measurement. Delete it, and it is measured again.")
    return result


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError as error:
        raise ImportanceError(f"{file} is damaged: {error} Delete it, and it is made again.") from error


def select_parts(parts: Mapping[str, Part], wanted: Iterable[str]) -> dict[str, Part]:
    """Parts by their kinds or their names. Kinds that this denoiser has no parts of are passed over.

    Raises:
        ImportanceError: for what is neither, or if nothing is left.
    """
    wanted = list(wanted)
    kinds = list(dict.fromkeys(part.kind for part in parts.values()))
    if unknown := [name for name in wanted if name not in MEASURED_KINDS and name not in parts]:
        raise ImportanceError(f"{unknown[0]!r} is no part of this denoiser, and no kind of its parts: {kinds}.")
    selected = {name: part for name, part in parts.items() if name in wanted or part.kind in wanted}
    if not selected:
        raise ImportanceError(f"This denoiser has no {' and no '.join(wanted) or 'parts'}; it has parts of {kinds}.")
    return selected
