"""Means and covariances of features, summed up batch by batch in bounded memory, merged and stored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vdmini_diffusers.serialization.atomic import write_file


# Of features that are kept for KVD and for intervals: 2,048 clips of I3D's 400 float64 logits are 6.5 MB, so that up
# to 41,943 of them are all kept. Beyond, a sample of that size is kept.
MAX_KEPT_BYTES = 2**27


class FeatureStatistics:
    """What is known of a set of features: number, mean and scatter matrix in float64, and the features themselves as
    far as memory allows.

    Args:
        dimension: of the features.
        max_kept_bytes: bound on the features that are kept.

    Attributes:
        num: number of features.
        mean: `(dimension,)`.
        scatter: `(dimension, dimension)`, the sum of outer products of deviations from the mean.
    """

    def __init__(self, dimension: int, max_kept_bytes: int = MAX_KEPT_BYTES):
        self.dimension = dimension
        self.max_kept = max(2, max_kept_bytes // (8 * dimension))
        self.num = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []  # indices and features

    def add(self, features: np.ndarray, indices: np.ndarray) -> None:
        """Add features `(n, dimension)` of the clips with these numbers in their set.

        The numbers decide which features are kept where not all can be. The same ones are then kept whatever the
        batches, and however many processes have shared the clips.

        Raises:
            ValueError: if shapes do not fit, values are not finite, or a clip was there before.
        """
        if features.shape != (len(indices), self.dimension):
            raise ValueError(f"Features of {len(indices)} clips are ({len(indices)}, {self.dimension}) values, not"
                             f" {features.shape}.")  # fmt: skip
        if not np.isfinite(features).all():
            raise ValueError("Some features are not finite.")
        if len(features):
            features = features.astype(np.float64)
            mean = features.mean(axis=0)
            self._add_moments(len(features), mean, (features - mean).T @ (features - mean))
            self._keep(np.asarray(indices, np.int64), features)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add those of another process, which has seen other clips of the same set.

        Raises:
            ValueError: if dimensions differ, or both have seen a clip.
        """
        if (other.dimension, other.max_kept) != (self.dimension, self.max_kept):
            raise ValueError(f"Features of {self.dimension} and {other.dimension} dimensions cannot be merged.")
        self._add_moments(other.num, other.mean, other.scatter)
        for indices, features in other._kept:
            self._keep(indices, features)

    def covariance(self, ddof: int = 1) -> np.ndarray:
        """The scatter matrix over `num - ddof`."""
        if self.num < 2:
            raise ValueError(f"A covariance needs two clips or more, not {self.num}.")
        return self.scatter / (self.num - ddof)

    @property
    def features(self) -> np.ndarray:
        """Those that are kept, `(min(num, max_kept), dimension)`, in the order of the clips' numbers."""
        self._prune()
        (_, features) = self._kept[0] if self._kept else (None, np.zeros((0, self.dimension)))
        return features

    @property
    def has_all_features(self) -> bool:
        return self.num <= self.max_kept

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Write a safetensors file, with `settings` as JSON in its metadata. It appears when it is complete."""
        self._prune()
        indices, features = self._kept[0] if self._kept else (np.zeros(0, np.int64), self.features)
        tensors = {"mean": self.mean, "scatter": self.scatter, "indices": indices, "features": features}
        metadata = {"num": str(self.num), "max_kept": str(self.max_kept), "settings": json.dumps(settings)}
        write_file(path, safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> tuple["FeatureStatistics", dict[str, Any]]:
        """What `save` has written, and its settings.

        Raises:
            ValueError: if it is another file, or damaged.
            OSError: if it cannot be read.
        """
        try:
            with safetensors.safe_open(path, "np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = file.metadata()
            loaded = cls(len(tensors["mean"]))
            loaded.num, loaded.max_kept = int(metadata["num"]), int(metadata["max_kept"])
            loaded.mean, loaded.scatter = tensors["mean"], tensors["scatter"]
            loaded._kept = [(tensors["indices"], tensors["features"])]
            shapes = loaded.scatter.shape, loaded.features.shape
            expected = (loaded.dimension,) * 2, (min(loaded.num, loaded.max_kept), loaded.dimension)
            if shapes != expected:
                raise ValueError(f"shapes {shapes} are not {expected}")
            return loaded, json.loads(metadata["settings"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no statistics of features: {error}") from error

    def _add_moments(self, num: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque's update: unlike a difference of sums of squares, it does not cancel."""
        if num == 0:
            return
        total = self.num + num
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(shift, shift) * (self.num * num / total)
        self.mean = self.mean + shift * (num / total)
        self.num = total

    def _keep(self, indices: np.ndarray, features: np.ndarray) -> None:
        self._kept.append((indices, features))
        if sum(len(each) for each, _ in self._kept) > 2 * self.max_kept:
            self._prune()

    def _prune(self) -> None:
        """Keep those whose numbers have the least hashes: a uniform sample that any process would take."""
        if not self._kept:
            return
        indices = np.concatenate([each for each, _ in self._kept])
        features = np.concatenate([each for _, each in self._kept])
        order = np.argsort(indices, kind="stable")
        if repeated := int((np.diff(indices[order]) == 0).sum()):
            raise ValueError(f"{repeated} clips were counted twice.")
        chosen = np.sort(np.argsort(_hashes(indices[order]), kind="stable")[: self.max_kept])
        self._kept = [(indices[order][chosen], features[order][chosen])]


def _hashes(indices: np.ndarray) -> np.ndarray:
    """SplitMix64's output for each number."""
    z = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
