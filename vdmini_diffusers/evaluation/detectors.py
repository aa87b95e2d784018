"""Networks whose features of clips are compared by FVD and KVD, and the features of many clips."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import VideoMAEModel

from vdmini_diffusers.evaluation.i3d import I3D, MIN_FRAMES, NUM_LOGITS, RESOLUTION, load_i3d
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.hashes import weights_sha256
from vdmini_diffusers.serialization.repository import fetch_file


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_FRAMES_OF_TORCHSCRIPT_I3D = 9  # its last average spans two positions in time, of eight frames each


class Detector(Protocol):
    """Maps clips to features.

    Attributes:
        name: kind of network, for results.
        sha256: hash of the weights, by which results can be compared.
        min_frames, max_frames: how long clips may be; `None` is any length.
        dimension: of the features.
    """

    @property
    def name(self) -> str: ...
    @property
    def min_frames(self) -> int: ...
    @property
    def max_frames(self) -> int | None: ...
    @property
    def dimension(self) -> int: ...
    @property
    def sha256(self) -> str: ...

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """uint8 `(n, frames, height, width, 3)`, RGB, on any device, to floating `(n, dimension)`."""
        ...


class I3DDetector:
    """The logits of I3D (`load_i3d`), on the device of its weights.

    Frames are resized to 224 x 224 by plain bilinear interpolation (half-pixel centres, no antialiasing, aspect not
    kept), as StyleGAN-V does.
    """

    name, min_frames, max_frames, dimension = "i3d_kinetics_400_logits", MIN_FRAMES, None, NUM_LOGITS

    def __init__(self, model: I3D):
        self.model = model

    @property
    def sha256(self) -> str:
        return weights_sha256(self.model)

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self.model(prepare(clips, next(self.model.parameters()).device))


class TorchScriptDetector:
    """A TorchScript file with the call of StyleGAN-V's `i3d_torchscript.pt`: uint8 `(n, 3, frames, height, width)`,
    `rescale=True, resize=True, return_features=True`.

    A TorchScript file is a program. Loading and calling it runs what its author wrote: open only files that you trust.

    Args:
        file: its path.

    Attributes:
        sha256: of the file.

    Raises:
        ValueError: if it is no TorchScript file, or does not answer that call with one vector a clip.
    """

    name, min_frames, max_frames = "torchscript", MIN_FRAMES_OF_TORCHSCRIPT_I3D, None

    def __init__(self, file: str | Path, device: str | torch.device = "cpu"):
        content = Path(file).read_bytes()  # once: what is hashed is what runs
        self.sha256, self.device = hashlib.sha256(content).hexdigest(), torch.device(device)
        try:
            self.model = torch.jit.load(io.BytesIO(content), map_location=self.device).eval()
        except RuntimeError as error:
            raise ValueError(f"{file} is no TorchScript file: {short_message(error)}") from error
        try:
            answer = self(torch.zeros(1, 16, RESOLUTION, RESOLUTION, 3, dtype=torch.uint8))
        except Exception as error:  # whatever the program raises
            raise ValueError(
                f"{file} cannot be called as StyleGAN-V's detector, `f(clips, rescale=True, resize=True,"
                f" return_features=True)` with uint8 clips of 16 frames: {short_message(error)}"
            ) from error
        if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or len(answer) != 1:
            found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
            raise ValueError(f"{file} should give features (clips, dimension); for one clip it gives {found}.")
        self.dimension = answer.shape[1]

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        pixels = clips.to(self.device).permute(0, 4, 1, 2, 3).contiguous()
        return self.model(pixels, rescale=True, resize=True, return_features=True)


class VideoMAEDetector:
    """The mean over tokens of VideoMAE's last hidden states, for clips of exactly its number of frames.

    Frames are resized to its size by bilinear interpolation with antialiasing, aspect not kept, and normalised by
    ImageNet's mean and deviation. Content-debiased FVD (Ge et al., 2024) takes other weights, VideoMAE-v2's ViT-g
    after fine-tuning; distances compare with each other for equal hashes only.

    Args:
        model: `VideoMAEModel`, of any weights.
    """

    name = "videomae_mean_token"

    def __init__(self, model: VideoMAEModel):
        self.model = model.eval().requires_grad_(False)
        config: Any = model.config
        self.dimension, self.size = int(config.hidden_size), int(config.image_size)
        self.min_frames = self.max_frames = int(config.num_frames)

    @property
    def sha256(self) -> str:
        return weights_sha256(self.model)

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        device = self.model.device
        frames = clips.to(device).movedim(-1, 2).flatten(0, 1).float() / 255  # (n * frames, 3, height, width)
        frames = F.interpolate(frames, (self.size, self.size), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixel_values = ((frames - mean) / std).unflatten(0, clips.shape[:2])
        return self.model(pixel_values.to(self.model.dtype)).last_hidden_state.mean(dim=1).float()


def load_detector(kind: str, weights: str | None = None, device: str | torch.device = "cpu") -> Any:
    """A `Detector` by its kind.

    Args:
        kind: `i3d`, `torchscript` or `videomae`.
        weights: for `i3d`, as `load_i3d` takes them. For `torchscript`, a file, or one of a repository on the Hub as
            `owner/name/file.pt`: see `TorchScriptDetector`. For `videomae`, a folder or the id of a repository.

    Raises:
        FileNotFoundError, OSError: if there are no such weights.
        ValueError: if they are not of that kind.
    """
    if kind == "i3d":
        return I3DDetector(load_i3d(weights).to(device))
    if weights is None:
        raise ValueError(f"A detector of the kind {kind} needs its weights: give --detector_weights.")
    if kind == "torchscript":
        file = Path(weights)
        if not file.is_file():
            *repository, name = weights.split("/", 2)
            if len(repository) != 2 or file.is_absolute():
                raise FileNotFoundError(f"There is no file {weights}.")
            file = fetch_file("/".join(repository), name)
        return TorchScriptDetector(file, device)
    if kind == "videomae":
        model, info = VideoMAEModel.from_pretrained(weights, output_loading_info=True)
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{weights} is no VideoMAE: {len(missing)} tensors are missing, such as {missing[0]}.")
        return VideoMAEDetector(model.to(device))
    raise ValueError(f"Detectors are i3d, torchscript and videomae, not {kind!r}.")


def prepare(clips: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Clips as `I3D` takes them: float `(n, frames, 3, 224, 224)` in -1 to 1."""
    frames = clips.to(device).movedim(-1, 2).flatten(0, 1).float() / 127.5 - 1  # (n * frames, 3, height, width)
    if frames.shape[-2:] != (RESOLUTION, RESOLUTION):
        frames = F.interpolate(frames, (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
    return frames.unflatten(0, clips.shape[:2])


def feature_batches(clips: Iterable[np.ndarray], detector: Detector, batch_size: int = 8) -> Iterator[np.ndarray]:
    """Features float64 `(up to batch_size, dimension)`, of clips that come one by one. No more than a batch is held.

    Args:
        clips: uint8 `(frames, height, width, 3)` each, RGB, all of one shape.

    Raises:
        ValueError: if the clips' type or shape is wrong, clips differ in shape, or their number of frames does not
            suit the detector; or if features are not finite.
    """
    batch: list[np.ndarray] = []
    shape = None
    for clip in clips:
        check_clips(clip[None], detector)
        if shape is None:
            shape = clip.shape
        if clip.shape != shape:
            raise ValueError(f"All clips must have one shape: one is {clip.shape}, and the first is {shape}.")
        batch.append(clip)
        if len(batch) == batch_size:
            yield _features(batch, detector)
            batch = []
    if batch:
        yield _features(batch, detector)


def _features(batch: list[np.ndarray], detector: Detector) -> np.ndarray:
    features = detector(torch.from_numpy(np.stack(batch))).cpu().numpy().astype(np.float64)
    if features.shape != (len(batch), detector.dimension) or not np.isfinite(features).all():
        raise ValueError(
            f"The detector {detector.name} should give finite features of shape ({len(batch)}, {detector.dimension});"
            f" it gives {features.shape}, of which {np.isfinite(features).mean():.1%} are finite."
        )
    return features


def clip_features(
    clips: np.ndarray, detector: Detector, batch_size: int = 8, description: str | None = None
) -> np.ndarray:
    """Features of each clip, float64 `(n, dimension)`.

    Args:
        clips: uint8 `(n, frames, height, width, 3)`, RGB.
        description: shows a progress bar.

    Raises:
        ValueError: see `feature_batches`.
    """
    check_clips(clips, detector)
    total = -(-len(clips) // batch_size)
    batches = feature_batches(clips, detector, batch_size)
    return np.concatenate(list(tqdm(batches, description, total, disable=description is None, unit="batch")))


def check_clips(clips: np.ndarray, detector: Detector) -> None:
    """Raises `ValueError` if the type, the shape or the number of frames is wrong."""
    # Values of 0 to 1, the other custom, would pass as nearly black clips.
    if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
        raise ValueError(
            f"Clips are uint8 arrays (n, frames, height, width, 3), not {clips.dtype} arrays {clips.shape}."
        )
    check_num_frames(clips.shape[1], detector)


def check_num_frames(num_frames: int, detector: Detector) -> None:
    """Raises `ValueError` if clips of that many frames do not suit the detector."""
    least, most = detector.min_frames, detector.max_frames
    if num_frames < least or (most is not None and num_frames > most):
        span = f"{least} frames or more" if most is None else f"{least} to {most} frames"
        span = f"exactly {least} frames" if least == most else span
        raise ValueError(f"The detector {detector.name} takes clips of {span}, not of {num_frames}.")
