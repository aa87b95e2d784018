"""The layers of a denoiser whose frames attend to each other, and what a forward pass says of them."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from vdmini_diffusers.analysis.f3.attention import AttentionFunction, ReplacedAttention, Tokens
from vdmini_diffusers.families.temporal_attention import TEMPORAL_ATTENTION, FactorisedAttention, JointAttention


APPLIED = "f3_pruning"  # the attribute of a denoiser that holds its plan, and the name of the hooks of its layers


class F3Error(ValueError):
    """A plan of F3-Pruning that is malformed, or a model that it does not fit."""


def attention_class(model: nn.Module) -> str:
    """The class of diffusers that says where a denoiser has temporal attention; a student's is its parent's.

    Raises:
        F3Error: if it is none of those that are known.
    """
    name = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in TEMPORAL_ATTENTION), None)
    if name is None:
        raise F3Error(
            f"F3-Pruning does not know where a {type(model).__name__} has temporal attention; it knows"
            f" {', '.join(TEMPORAL_ATTENTION)}. Give it the denoiser of such a pipeline."
        )
    return name


def temporal_layers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of a denoiser's temporal attentions, by the layer that they belong to, in the order of its modules.

    Raises:
        F3Error: if its class is not known, or none is left in it.
    """
    name = attention_class(model)
    layers: dict[str, tuple[str, ...]] = {}
    for module, _ in model.named_modules():
        if match := re.fullmatch(TEMPORAL_ATTENTION[name].attentions, module):
            layers[match["layer"]] = (*layers.get(match["layer"], ()), module)
    if not layers:
        raise F3Error(f"This {name} has no layer with temporal attention.")
    return layers


def temporal_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """A pipeline's components whose class is known to have temporal attention, by name."""
    return {
        name: component
        for name, component in pipe.components.items()
        if any(cls.__name__ in TEMPORAL_ATTENTION for cls in type(component).__mro__)
    }


class ClipNotes:
    """What a forward pass of a denoiser is about, for the hooks of its layers: noted whenever one begins.

    It is a hook of PyTorch's, which other wrappers of `forward`, such as those of offloading, do not touch.

    Args:
        model: the denoiser.
        reads_timestep: whether the denoising step matters. Then the samples of a batch must be at the same one.
    """

    def __init__(self, model: nn.Module, reads_timestep: bool = True):
        self.where = TEMPORAL_ATTENTION[attention_class(model)]
        self.signature = inspect.signature(type(model).forward)
        self.reads_timestep = reads_timestep
        self.num_frames = 0
        self.timestep = 0.0
        self.handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self.signature.bind(module, *args, **kwargs).arguments
        if isinstance(self.where, JointAttention):
            config: Any = module.config
            self.num_frames = self.where.num_frames(config, given["hidden_states"].shape)
        if self.reads_timestep:
            self.timestep = one_timestep(given["timestep"])

    def tokens(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tokens:
        """How the tokens of an attention are laid out, given what its forward pass takes."""
        length = hidden_states.shape[1]
        if isinstance(self.where, FactorisedAttention):
            return Tokens(num_frames=length, per_frame=1)
        num_text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        return Tokens(self.num_frames, length // self.num_frames, num_text, self.where.text_first)


def one_timestep(timestep: Any) -> float:
    """The timestep of a forward pass, given as a number or a tensor: one for all, `(batch,)`, or `(batch, tokens)`.

    Raises:
        ValueError: if the samples of a batch are at different steps.
    """
    steps = torch.as_tensor(timestep).detach().cpu().double()
    if steps.ndim == 2:  # Wan 2.2 gives the tokens of a first frame that is known the timestep 0
        steps = steps.amax(dim=1)
    values = set(steps.reshape(-1).tolist())
    if len(values) != 1:
        raise ValueError(
            f"The samples of a batch are at the timesteps {sorted(values)}: F3-Pruning measures and prunes denoising"
            " steps for a batch as a whole, so give it samples that are at the same one."
        )
    return values.pop()


def registry(module: nn.Module) -> Any:
    """The hooks of diffusers' own kind that a module has."""
    return HookRegistry.check_if_exists_or_initialize(module)


def _replace_attention(
    name: str, function: AttentionFunction, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """What an attention's `forward` returns, with `function` in the place of scaled dot product attention.

    Raises:
        RuntimeError: if it was computed by something else.
    """
    with ReplacedAttention(function) as replaced:
        output = forward(*args, **kwargs)
    if not replaced.calls:
        raise RuntimeError(
            f"The attention of {name} is computed by a backend that F3-Pruning cannot reach. It needs PyTorch's: call"
            ' `set_attention_backend("native")` of the denoiser, and turn off xFormers and sliced attention.'
        )
    return output


# The compiler cannot trace what replaces attention; the rest of the model it compiles.
replace_attention: Callable[..., Any] = torch.compiler.disable(_replace_attention)
