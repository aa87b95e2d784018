"""FVD of a set of videos against another by StyleGAN-V's protocol (Skorokhodov et al., CVPR 2022), as section 4.1 and
appendix B of the paper use it.

Of each set, `num_clips` videos are drawn, and of each of them `num_frames` neighbouring frames. Videos with fewer are
discarded. Frames are brought to one size and stored as JPEG. Covariances are divided by the number of clips, as
StyleGAN-V does, and not by one less.

The features of each set are cached 32 clips at a time: a run that was stopped goes on from there, and processes that
accelerate has launched share the work through the cache's folder, which all of them must see.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm.auto import tqdm

from vdmini_diffusers.data.skipped_videos import SkippedVideo, summarize
from vdmini_diffusers.data.stored_videos import StoredVideo, find_videos
from vdmini_diffusers.data.video_decoding import UnusableVideo
from vdmini_diffusers.evaluation.detectors import Detector, check_num_frames, feature_batches
from vdmini_diffusers.evaluation.distance_intervals import frechet_interval, kernel_interval
from vdmini_diffusers.evaluation.feature_statistics import FeatureStatistics
from vdmini_diffusers.evaluation.frechet_video_distance import frechet_distance_of_moments, kernel_distance
from vdmini_diffusers.evaluation.i3d import STOCK_MIN_FRAMES
from vdmini_diffusers.serialization.atomic import write_file


CLIPS_PER_FILE = 32  # of the cache: what a run that is stopped does again
DDOF = 0  # covariances are divided by the number of clips less this: StyleGAN-V's
STATISTICS = "statistics.safetensors"
GENERATION_MANIFEST = "generation.json"  # in a folder of clips that `generate_from_first_frames` has made
PACKAGES = ("vdmini_diffusers", "torch", "numpy", "pillow", "av", "transformers")

Start = Literal["first", "random"]


@dataclass(frozen=True)
class FVDProtocol:
    """What decides which pixels the detector sees.

    Args:
        num_clips: of each set; FVD depends on it. 2,048 is StyleGAN-V's; the paper's block study takes 1,200.
        num_frames: of a clip. 16 is StyleGAN-V's; SVD's clips have 14.
        height, width: of the frames; UCF-101's.
        jpeg_quality: at which frames are stored; `None` for none. Frames that come from JPEG files of this size are
            taken as they are.
        seed: of the draw of videos, and of the clips' starts where these are random.
    """

    num_clips: int = 2048
    num_frames: int = 16
    height: int = 240
    width: int = 320
    jpeg_quality: int | None = 95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_clips < 2:
            raise ValueError(f"`num_clips` must be 2 or more, not {self.num_clips}: a set of one has no covariance.")
        for name in ("num_frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, not {getattr(self, name)}.")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"`jpeg_quality` must be 1 to 100, or None, not {self.jpeg_quality}.")

    def first_frame(self, video: StoredVideo, start: Start) -> int:
        """Number of the frame that the clip of a video starts with. A random one depends on seed and name only.

        Raises:
            UnusableVideo: if the video is damaged or too short; where it starts first, reading it tells.
        """
        if start == "first":
            return 0
        found = video.num_frames()
        if found < self.num_frames:
            raise UnusableVideo("too short", f"{found} frames, and a clip takes {self.num_frames}")
        digest = hashlib.sha256(video.name.encode()).digest()
        return int(np.random.default_rng([self.seed, *digest]).integers(found - self.num_frames + 1))

    def read(self, video: StoredVideo, start: Start) -> np.ndarray:
        """The clip of a video, uint8 `(num_frames, height, width, 3)`.

        Raises:
            UnusableVideo: if the video is damaged or too short.
        """
        clip = video.read(self.num_frames, self.height, self.width, self.first_frame(video, start))
        if self.jpeg_quality is None or clip.is_jpeg:
            return clip.frames
        return np.stack([self.as_stored(frame) for frame in clip.frames])

    def as_stored(self, frame: np.ndarray) -> np.ndarray:
        """A frame as its JPEG file shows it."""
        return np.array(Image.open(io.BytesIO(self.encode_frame(frame))))

    def encode_frame(self, frame: np.ndarray) -> bytes:
        """A JPEG file of a frame `(height, width, 3)`, by Pillow: colours at half the resolution."""
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="JPEG", quality=self.jpeg_quality)
        return file.getvalue()


@dataclass(frozen=True)
class ClipSet:
    """What was measured of one set.

    Args:
        source: the folder, or the file of its statistics.
        names: the videos whose clips were taken.
        skipped: videos that were drawn and discarded, with the reasons.
        num_videos: in the folder.
        other_files: files in the folder that belong to no video.
        settings: what its features depend on.
    """

    source: str
    statistics: FeatureStatistics
    names: list[str]
    skipped: list[SkippedVideo]
    num_videos: int
    other_files: list[str]
    settings: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        reasons = [video.reason for video in self.skipped]
        return {
            "source": self.source,
            "num_videos": self.num_videos,
            "num_clips": self.statistics.num,
            "num_discarded": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "discarded": [video._asdict() for video in self.skipped],
            "num_other_files": len(self.other_files),
            "start": self.settings["start"],
            "names_sha256": hashlib.sha256("\n".join(self.names).encode()).hexdigest(),
        }


def check_set(source: str | os.PathLike, protocol: FVDProtocol, detector: Detector, start: Start = "first") -> None:
    """Raises what `measure_set` would, as far as it is known before a clip is read."""
    settings, source = _feature_settings(protocol, detector, start), Path(source)
    if source.is_file():
        _stored_set(source, settings)
    else:
        _check_enough(source, len(find_videos(source)[0]), [], protocol)


def measure_set(
    source: str | os.PathLike,
    protocol: FVDProtocol,
    detector: Detector,
    cache_dir: Path,
    start: Start = "first",
    only: Collection[str] | None = None,
    batch_size: int = 8,
) -> ClipSet:
    """The statistics of a set's features, by all processes together; each returns them.

    Args:
        source: folder as `find_videos` reads it, or a statistics file that an earlier run has left in its cache.
        cache_dir: folder of caches; each set has one of its own, by its files and all settings.
        only: names of the videos to draw from.

    Raises:
        ValueError: if the set has too few videos of that length, does not suit the detector, or the statistics were
            measured with other settings.
        OSError: if a file cannot be read or written.
    """
    settings, source = _feature_settings(protocol, detector, start), Path(source)
    if source.is_file():
        return _stored_set(source, settings)
    videos, others = find_videos(source)
    others = [name for name in others if name != GENERATION_MANIFEST]
    num_videos = len(videos)
    if only is not None:
        videos = [video for video in videos if video.name in only]
    _check_enough(source, len(videos), [], protocol)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for video in videos:
        digest.update(f"{video.fingerprint()}\n".encode())
    folder = cache_dir / f"{source.resolve().name}-{digest.hexdigest()[:16]}"
    if not (folder / STATISTICS).is_file():
        measured = _measure(source, videos, protocol, detector, folder, start, batch_size)
        if PartialState().is_main_process:
            statistics, names, skipped = measured
            notes = {"names": names, "skipped": skipped, "num_videos": num_videos, "other_files": others}
            statistics.save(folder / STATISTICS, settings | notes)
        PartialState().wait_for_everyone()
    return _stored_set(folder / STATISTICS, settings, str(source))


def _feature_settings(protocol: FVDProtocol, detector: Detector, start: Start) -> dict[str, Any]:
    """What the features of a set depend on. Raises `ValueError` if the clips do not suit the detector."""
    check_num_frames(protocol.num_frames, detector)
    return asdict(protocol) | {
        "start": start,
        "resize": "bicubic, antialiased, centre of the picture",
        "detector": detector.name,
        "detector_sha256": detector.sha256,
    }


def _stored_set(file: Path, settings: dict[str, Any], source: str | None = None) -> ClipSet:
    statistics, stored = FeatureStatistics.load(file)
    compared = set(settings) - {"seed", "start"}
    wrong = [f"{name} {stored.get(name)!r} and not {settings[name]!r}" for name in compared
             if stored.get(name) != settings[name]]  # fmt: skip
    if wrong:
        raise ValueError(f"The statistics in {file} were measured with {', '.join(sorted(wrong))}.")
    skipped = [SkippedVideo(*video) for video in stored.pop("skipped")]
    names, num_videos, others = (stored.pop(name) for name in ("names", "num_videos", "other_files"))
    return ClipSet(source or str(file), statistics, names, skipped, num_videos, others, stored)


def _measure(
    source: Path,
    videos: Sequence[StoredVideo],
    protocol: FVDProtocol,
    detector: Detector,
    folder: Path,
    start: Start,
    batch_size: int,
) -> tuple[FeatureStatistics, list[str], list[SkippedVideo]]:
    """The first `num_clips` usable videos in an order that the seed draws, whatever the number of processes."""
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [videos[i] for i in np.random.default_rng(protocol.seed).permutation(len(videos))]
    files = [folder / f"clips-{k:05d}.safetensors" for k in range(math.ceil(len(drawn) / CLIPS_PER_FILE))]
    found: dict[int, tuple[list[int], list[SkippedVideo]]] = {}
    num_usable = 0
    with tqdm(total=protocol.num_clips, desc=source.name, unit="clip", disable=not state.is_main_process) as bar:
        while num_usable < protocol.num_clips and len(found) < len(files):
            # As many as are still missing; more only once it is known that some of these cannot be used.
            stop = min(len(files), len(found) + math.ceil((protocol.num_clips - num_usable) / CLIPS_PER_FILE))
            mine = {}
            for k in range(len(found) + state.process_index, stop, state.num_processes):
                part = _read_features(files[k]) or _measure_features(
                    files[k],
                    drawn[k * CLIPS_PER_FILE : (k + 1) * CLIPS_PER_FILE],
                    k * CLIPS_PER_FILE,
                    protocol,
                    detector,
                    start,
                    batch_size,
                )
                mine[k] = part[1:]
                bar.update(min(state.num_processes * len(part[1]), bar.total - bar.n))
            for theirs in gather_object([mine]):
                found |= theirs
            num_usable = sum(len(indices) for indices, _ in found.values())
    skipped = [video for k in sorted(found) for video in found[k][1]]
    _check_enough(source, num_usable, skipped, protocol)
    usable = sorted(index for indices, _ in found.values() for index in indices)[: protocol.num_clips]
    statistics = FeatureStatistics(detector.dimension)
    for k in range(state.process_index, len(files), state.num_processes):
        if k in found and (part := _read_features(files[k])) is not None:
            chosen = [i for i, index in enumerate(part[1]) if index <= usable[-1]]
            statistics.add(part[0][chosen], np.array(part[1])[chosen])
    merged = FeatureStatistics(detector.dimension)
    for theirs in gather_object([statistics]):
        merged.merge(theirs)
    if merged.num != protocol.num_clips:
        raise RuntimeError(f"The cache {folder} has changed while it was read. Run the same command again.")
    return merged, [drawn[index].name for index in usable], skipped


def _measure_features(
    file: Path,
    videos: Sequence[StoredVideo],
    offset: int,
    protocol: FVDProtocol,
    detector: Detector,
    start: Start,
    batch_size: int,
) -> tuple[np.ndarray, list[int], list[SkippedVideo]]:
    """Features of those videos that can be used, their numbers from `offset` on, and the others. Also written."""
    indices: list[int] = []
    skipped: list[SkippedVideo] = []

    def clips() -> Any:
        for index, video in enumerate(videos, start=offset):
            try:
                clip = protocol.read(video, start)
            except UnusableVideo as why:
                skipped.append(SkippedVideo(video.name, why.reason, why.detail))
            else:
                indices.append(index)
                yield clip

    batches = list(feature_batches(clips(), detector, batch_size))
    features = np.concatenate([np.zeros((0, detector.dimension)), *batches])
    metadata = {"indices": json.dumps(indices), "skipped": json.dumps(skipped)}
    write_file(file, safetensors.numpy.save({"features": features}, metadata))
    return features, indices, skipped


def _read_features(file: Path) -> tuple[np.ndarray, list[int], list[SkippedVideo]] | None:
    """What an earlier run has written; `None` where there is nothing, or a damaged file, which is written anew."""
    try:
        with safetensors.safe_open(file, "np") as opened:
            metadata = opened.metadata()
            skipped = [SkippedVideo(*video) for video in json.loads(metadata["skipped"])]
            return opened.get_tensor("features"), json.loads(metadata["indices"]), skipped
    except (OSError, safetensors.SafetensorError):
        return None


def _check_enough(source: Path, num_usable: int, skipped: list[SkippedVideo], protocol: FVDProtocol) -> None:
    if num_usable >= protocol.num_clips:
        return
    enough = f", or ask for no more (--num_clips {num_usable}): FVD compares for equal numbers only" * (num_usable > 1)
    reasons = f" {summarize(skipped)}" if skipped else ""
    raise ValueError(
        f"{source} has {num_usable} videos for clips of {protocol.num_frames} frames, and {protocol.num_clips} are"
        f" needed.{reasons} Give more videos{enough}."
    )


def compare_sets(
    generated: ClipSet,
    real: ClipSet,
    protocol: FVDProtocol,
    detector: Detector,
    num_resamples: int = 200,
    confidence: float = 0.95,
    progress: bool = False,
) -> dict[str, Any]:
    """FVD and KVD with all that they depend on, for a JSON file.

    Clips of the same names in both sets are pairs, such as a clip and what a model has made of its first frame: KVD
    does not compare the two of a pair, and intervals resample them together.

    Args:
        num_resamples: of the bootstrap intervals; 0 leaves these out.
    """
    a, b = generated.statistics, real.statistics
    fvd = frechet_distance_of_moments(a.mean, a.covariance(DDOF), b.mean, b.covariance(DDOF))
    warnings = _warnings(generated, real, protocol, detector)
    has_all = a.has_all_features and b.has_all_features
    has_intervals = num_resamples > 0 and has_all and protocol.num_clips > 2  # two clips have one resample
    paired = has_all and sorted(generated.names) == sorted(real.names)
    order = [generated.names.index(name) for name in real.names] if paired else slice(None)
    features = a.features[order], b.features
    result: dict[str, Any] = {"fvd": fvd, "kvd": kernel_distance(*features, paired=paired), "paired": paired}
    if has_intervals:
        options: Any = {"num_resamples": num_resamples, "confidence": confidence, "seed": protocol.seed}
        result["fvd_interval"] = frechet_interval(*features, ddof=DDOF, progress=progress, paired=paired, **options)
        result["kvd_interval"] = kernel_interval(*features, paired=paired, **options)
        result["intervals"] = options
    elif not has_all:
        warnings.append(
            f"KVD is that of {len(a.features)} and {len(b.features)} clips drawn from the sets, and there are no"
            " intervals: more features would not fit into the memory that is allowed for them."
        )
    return result | {
        "protocol": asdict(protocol) | {"covariance_divisor": "num_clips", "resize": real.settings["resize"]},
        "detector": {"name": detector.name, "sha256": detector.sha256, "dimension": detector.dimension},
        "generated": generated.summary(),
        "real": real.summary(),
        "versions": {name: _version(name) for name in PACKAGES},
        "warnings": warnings,
    }


def _warnings(generated: ClipSet, real: ClipSet, protocol: FVDProtocol, detector: Detector) -> list[str]:
    found = []
    if protocol.num_clips <= detector.dimension:
        found.append(
            f"{protocol.num_clips} clips are too few for features of {detector.dimension} dimensions: covariances are"
            " singular, and FVD is far above what more clips would give. It compares with FVD of equally many clips"
            " only; KVD does not depend on the number."
        )
    if detector.name.startswith("i3d") and protocol.num_frames < STOCK_MIN_FRAMES:
        found.append(
            f"I3D is defined for {STOCK_MIN_FRAMES} frames or more: its features of {protocol.num_frames} compare"
            " with those of this implementation only."
        )
    for kind, each in (("generated", generated), ("real", real)):
        if each.skipped:
            reasons = ", ".join(f"{number} {reason}" for reason, number in each.summary()["num_discarded"].items())
            found.append(
                f"{len(each.skipped)} of the {kind} videos could not be used ({reasons}), such as"
                f" {each.skipped[0].name}: others were taken in their place."
            )
        if each.other_files:
            examples = ", ".join(each.other_files[:3])
            found.append(f"{len(each.other_files)} files in {each.source} belong to no video: {examples}.")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
