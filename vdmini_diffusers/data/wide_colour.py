"""High dynamic range and wide gamuts, brought into what every model here is trained on: BT.709, standard range.

Colours are `(3, height, width)`, RGB. A code is the nonlinear value that a file stores, from 0 to 1.
"""

import torch
from torch import Tensor


# Numbers of ITU-T H.273, as FFmpeg reports them.
PQ, HLG = 16, 18  # transfer characteristics: SMPTE ST 2084, ARIB STD-B67
NO_DISPLAY_CODE = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428"}
BT_2020, DISPLAY_P3 = 9, 12  # colour primaries

# Linear RGB of these primaries to linear RGB of BT.709, all of white point D65 (BT.2087; SMPTE EG 432-1).
TO_BT_709 = {
    BT_2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    DISPLAY_P3: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
WHITE, PEAK = 203.0, 1000.0  # cd/m2: a white page (BT.2408), and the brightest that is not clipped
GAMMA = 2.4  # of a display of standard range (BT.1886)


def is_wide(transfer: int, primaries: int) -> bool:
    return transfer in (PQ, HLG) or primaries in TO_BT_709


def to_standard_range(code: Tensor, transfer: int, primaries: int) -> Tensor:
    """Codes of PQ, HLG or a wide gamut to codes of BT.709.

    High dynamic range is tone-mapped by the curve of BT.2390 on the largest of R, G and B, which keeps hues: all up to
    85 cd/m2 stays as it is, a white page comes out slightly below white, and `PEAK` at white. What lies outside of
    BT.709's gamut is clipped.
    """
    if transfer == PQ:
        light = _tone_map(pq_to_light(code))
    elif transfer == HLG:
        light = _tone_map(_hlg_to_light(code))
    else:
        light = code**GAMMA
    # Both formats of high dynamic range are specified with the primaries of BT.2020 (BT.2100).
    if primaries not in TO_BT_709 and transfer in (PQ, HLG) and primaries != 1:
        primaries = BT_2020
    if primaries in TO_BT_709:
        light = torch.einsum("ij,jhw->ihw", light.new_tensor(TO_BT_709[primaries]), light)
    return light.clamp(0, 1) ** (1 / GAMMA)


def _tone_map(light: Tensor) -> Tensor:
    """cd/m2 to 0 to 1."""
    largest = light.amax(dim=0, keepdim=True).clamp(min=1e-6)
    peak = light_to_pq(torch.tensor(PEAK))
    target = light_to_pq(torch.tensor(WHITE)) / peak
    value = (light_to_pq(largest) / peak).clamp(max=1)
    knee = 1.5 * target - 0.5
    t = ((value - knee) / (1 - knee)).clamp(min=0)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    mapped = pq_to_light(torch.where(value < knee, value, spline) * peak)
    return light * (mapped / largest) / WHITE


M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # of SMPTE ST 2084


def pq_to_light(code: Tensor) -> Tensor:
    """In cd/m2, 0 to 10,000."""
    power = code ** (1 / M2)
    return 10_000 * ((power - C1).clamp(min=0) / (C2 - C3 * power)) ** (1 / M1)


def light_to_pq(light: Tensor) -> Tensor:
    power = (light / 10_000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def _hlg_to_light(code: Tensor) -> Tensor:
    """As BT.2100 has it for a display of 1,000 cd/m2: scene light, and the system gamma 1.2 on its luminance."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = torch.where(code <= 0.5, code**2 / 3, (((code - c) / a).exp() + b) / 12)
    luminance = (scene * scene.new_tensor((0.2627, 0.6780, 0.0593)).view(3, 1, 1)).sum(dim=0, keepdim=True)
    return 1000 * luminance**0.2 * scene
