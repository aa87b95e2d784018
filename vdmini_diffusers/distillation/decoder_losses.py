"""Losses of a VAE's decoder (appendix A, "as in VQGAN"). Clips are `(batch, frames, 3, height, width)`, -1 to 1."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vdmini_diffusers.distillation.losses import icd_loss


# Maps two sets of frames, (n, 3, height, width) each, -1 to 1, to n distances.
PerceptualLoss = Callable[[Tensor, Tensor], Tensor]


def pixel_loss(decoded: Tensor, target: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean distance of the values: absolute (VQGAN's), or squared."""
    return F.l1_loss(decoded, target) if kind == "l1" else F.mse_loss(decoded, target)


def perceptual_loss(decoded: Tensor, target: Tensor, distance: PerceptualLoss) -> Tensor:
    """Mean over all frames."""
    return distance(decoded.flatten(0, 1), target.flatten(0, 1)).mean()


def stage_loss(
    features: Mapping[str, Tensor],
    teacher_features: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str, tuple[int, ...]]],
) -> Tensor:
    """Mean squared error of a pruned decoder's stages, on the channels it has; the mean over stages.

    Each is divided by the teacher's mean square: a decoder's stages differ in scale by orders of magnitude.

    Args:
        pairs: as `DecoderPruningPlan.stage_pairs` returns them.
    """
    kept = {teacher: teacher_features[teacher][:, list(channels)] for _, teacher, channels in pairs}
    names = [(student, teacher) for student, teacher, _ in pairs]
    return icd_loss(features, kept, names, reduction="mean", normalize=True)


def lpips_distance(net: Literal["vgg", "alex"] = "vgg", random_trunk: bool = False) -> Any:
    """LPIPS as a frozen module, which is a `PerceptualLoss`.

    Args:
        random_trunk: do not load the network's pretrained weights.

    Raises:
        ImportError: if `lpips`, or the torchvision that it needs, is missing or does not match torch.
        RuntimeError: if the network's weights are not on this machine and cannot be downloaded.
    """
    without = "`--perceptual_loss none` trains without a perceptual loss."
    try:
        import lpips  # pyright: ignore[reportMissingImports] - extra `lpips`
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the latter
        raise ImportError(
            "`--perceptual_loss lpips` needs lpips and the torchvision that matches your torch: `pip install -e"
            f" '.[lpips]'`. {without}"
        ) from error
    try:
        distance = lpips.LPIPS(net=net, pnet_rand=random_trunk, verbose=False)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"The pretrained {net} network of LPIPS could not be loaded: {error}. It is downloaded once, to"
            f" {torch.hub.get_dir()}: run this where there is internet, or copy that folder from such a machine."
            f" `--lpips_random_trunk` leaves the network at random weights. {without}"
        ) from error
    return distance.eval().requires_grad_(False)
