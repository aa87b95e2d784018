"""The original files, which are pickles: what they hold, known by the names in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vdmini_diffusers.serialization.pickled_weights import check_dense, load_pickle, named_tensors
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError
from vdmini_diffusers.t2v_turbo import text_encoder, vae
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


UNET_PREFIX = "model.diffusion_model."
PREFIXES = {"unet": UNET_PREFIX, "vae": vae.PREFIX, "text_encoder": text_encoder.PREFIX}
# Of the noise schedule, which follows from the settings of the scheduler; the last is VideoCrafter2's scale of x0.
SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "scale_arr",
}


@dataclass(frozen=True)
class OriginalCheckpoint:
    """Args:
    components: tensors of `unet` and, of a whole checkpoint, of `vae` and `text_encoder`, without their prefixes.
    lora: factors that are merged into the U-Net of another checkpoint; then there are no components.
    """

    components: Mapping[str, Mapping[str, Tensor]]
    lora: Sequence[Tensor] = ()

    @property
    def is_whole(self) -> bool:
        return self.components.keys() == PREFIXES.keys()


def read_original(file: Path) -> OriginalCheckpoint:
    """Read a whole checkpoint (VideoCrafter2's, T2V-Turbo's merged one), a bare U-Net (T2V-Turbo-v2's) or a LoRA.

    Nothing in the file is executed. The tensors are mapped, not read, where the file allows it.

    Raises:
        OriginalCheckpointError: if it is none of them; the message says what it is, as far as that is known.
        OSError: if the file cannot be read.
    """
    try:
        state = load_pickle(file)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if isinstance(state, list) and state and all(isinstance(factor, Tensor) for factor in state):
            check_dense(dict(enumerate(state)), file)
            return OriginalCheckpoint({}, lora=state)
        state = named_tensors(state, file)
    except CheckpointError as error:
        raise OriginalCheckpointError(str(error)) from error
    if not any(name.startswith(UNET_PREFIX) for name in state):
        return OriginalCheckpoint({"unet": state})
    components = {
        component: {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for component, prefix in PREFIXES.items()
    }
    unknown = [name for name in state if not name.startswith(tuple(PREFIXES.values())) and name not in SCHEDULE]
    if unknown:
        raise OriginalCheckpointError(f"{file} has {len(unknown)} unknown tensors: {', '.join(sorted(unknown))}.")
    if absent := [component for component, tensors in components.items() if not tensors]:
        raise OriginalCheckpointError(f"{file} has a U-Net with a prefix, and no {' and no '.join(absent)}.")
    return OriginalCheckpoint(components)
