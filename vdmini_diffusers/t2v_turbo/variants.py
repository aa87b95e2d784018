"""Which of the original networks a U-Net is, as far as its layers tell, and whether it is the one that was meant."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


Variant = Literal["videocrafter2", "v1", "v2-no-mg", "v2-mg"]


class Layers(NamedTuple):
    """Whether there is a layer for each; `None` for either."""

    name: str
    guidance: bool
    motion: bool | None


# Whether T2V-Turbo-v2's weights without motion guidance have the layers for it is not known: its training makes them
# on request, and its own demo loads no weights without them.
VARIANTS: dict[Variant, Layers] = {
    "videocrafter2": Layers("VideoCrafter2", False, False),
    "v1": Layers("T2V-Turbo", True, False),
    "v2-no-mg": Layers("T2V-Turbo-v2 without motion guidance", True, None),
    "v2-mg": Layers("T2V-Turbo-v2 with motion guidance", True, True),
}
# As their authors name the files. Their README has the links to the two of T2V-Turbo-v2 the wrong way round once.
FILES: dict[str, Variant] = {
    "unet_mg.pt": "v2-mg",
    "unet_no_mg.pt": "v2-no-mg",
    "t2v_turbo_vc2.pt": "v1",
    "unet_lora.pt": "v1",
}


def recognise_variant(config: Mapping[str, Any], file_name: str, expected: Variant | None) -> tuple[str, str]:
    """What a U-Net is, for people, and what is doubtful of that (or nothing).

    Args:
        config: of `unet_config`.
        expected: what it is meant to be; by default what the name of its file says, where it is one of the originals'.

    Raises:
        OriginalCheckpointError: if its layers show that it is something else.
    """
    guidance, motion = config["time_cond_proj_dim"] is not None, config["motion_cond_proj_dim"] is not None
    possible = [v.name for v in VARIANTS.values() if v.guidance == guidance and v.motion in (motion, None)]
    meant = expected or FILES.get(file_name)
    if meant is None:
        return " or ".join(possible), ""
    if VARIANTS[meant].name not in possible:
        source = "as `expect` (--expect) says" if expected else "by its name"
        layers = [name for name, there in (("guidance", guidance), ("motion guidance", motion)) if there]
        swapped = " The links to T2V-Turbo-v2's two files are swapped in one place of its README."
        raise OriginalCheckpointError(
            f"{file_name} should be {VARIANTS[meant].name}, {source}. It has {_layers(layers)}, so it is"
            f" {' or '.join(possible)}.{swapped if meant.startswith('v2') else ''}"
        )
    if meant == "v2-no-mg" and motion:
        return VARIANTS[meant].name, (
            "It has layers for motion guidance all the same. They may be there unused, or this may be the network with"
            " motion guidance: the tensors do not tell, and in one place of the original's README the two links are"
            " swapped. Compare the hash with the one on the page of the file."
        )
    return VARIANTS[meant].name, ""


def _layers(names: list[str]) -> str:
    return f"layers for {' and '.join(names)}" if names else "no layer for guidance"
