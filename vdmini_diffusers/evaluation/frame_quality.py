"""How near frames are to others, one by one: PSNR, SSIM and LPIPS (Table A2)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


# Maps two sets of frames, (n, 3, height, width) each, -1 to 1, to n distances.
FrameDistance = Callable[[Tensor, Tensor], Tensor]
MIN_SIDE = 11  # pixels: SSIM's window


@torch.no_grad()
def frame_quality(
    frames: np.ndarray, target: np.ndarray, lpips: FrameDistance | None = None
) -> dict[str, list[float]]:
    """One figure of each kind for each frame.

    - `psnr`: peak signal-to-noise ratio in dB over the frame's values; infinite where the two are equal.
    - `ssim`: structural similarity (Wang et al., 2004) with a Gaussian window of 11 x 11 pixels and deviation 1.5, the
      mean over channels. scikit-image's default, a uniform window of 7 x 7, gives other values.
    - `lpips`: where it is given, e.g. `lpips_distance("alex")`.

    Args:
        frames, target: uint8 `(frames, height, width, 3)`, RGB.

    Raises:
        ValueError: if types or shapes are wrong, the two differ in shape, or frames are smaller than SSIM's window.
        ImportError: without torchmetrics.
    """
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            "PSNR and SSIM need torchmetrics: run `pip install -e '.[evaluate]'` in a checkout."
        ) from error
    if frames.shape != target.shape or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"Frames are (frames, height, width, 3) of equal shape, not {frames.shape} and {target.shape}."
        )
    if not frames.dtype == target.dtype == np.uint8:
        raise ValueError(f"Frames are of uint8, 0 to 255, not of {frames.dtype} and {target.dtype}.")
    if min(frames.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"SSIM needs frames of {MIN_SIDE} x {MIN_SIDE} pixels or more, not {frames.shape[1:3]}.")
    pairs = [torch.from_numpy(np.ascontiguousarray(each)).movedim(-1, 1).double() for each in (frames, target)]
    found: dict[str, Any] = {
        "psnr": peak_signal_noise_ratio(*pairs, data_range=255.0, reduction="none", dim=(1, 2, 3)),
        "ssim": structural_similarity_index_measure(pairs[0], pairs[1], data_range=255.0, reduction="none"),
    }
    if lpips is not None:
        found["lpips"] = lpips(*(values.float() / 127.5 - 1 for values in pairs))
    return {name: values.double().flatten().tolist() for name, values in found.items()}
