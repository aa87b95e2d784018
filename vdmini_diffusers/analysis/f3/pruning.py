"""F3-Pruning applied to a denoiser: reversible, without a change of its weights, and saved beside them."""

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from diffusers.hooks import ModelHook
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModelOutput
from torch import Tensor, nn

from vdmini_diffusers.analysis.f3.attention import attention_within_frames
from vdmini_diffusers.analysis.f3.layers import (
    APPLIED,
    ClipNotes,
    F3Error,
    attention_class,
    registry,
    replace_attention,
    temporal_denoisers,
    temporal_layers,
)
from vdmini_diffusers.analysis.f3.plan import F3Plan
from vdmini_diffusers.families.temporal_attention import TEMPORAL_ATTENTION, FactorisedAttention
from vdmini_diffusers.serialization.atomic import write_file


F3_PLAN = "f3_plan.json"


class PlanNotes(ClipNotes):
    """Holds the plan of a denoiser, and knows whether it prunes the present forward pass."""

    def __init__(self, model: nn.Module, plan: F3Plan):
        super().__init__(model, reads_timestep=plan.unit == "step")
        self.plan = plan

    @property
    def active(self) -> bool:
        return self.plan.unit == "layer" or self.plan.prunes_step(self.timestep)


class PrunedHook(ModelHook, ABC):
    """On a module of a pruned layer; a subclass says what is left of its forward pass."""

    def __init__(self, name: str, denoiser: PlanNotes):
        super().__init__()
        self.name, self.denoiser = name, denoiser

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The pruned forward pass where the plan prunes, and else the module's own."""
        forward = self.pruned_forward if self.denoiser.active else self._own_forward
        return forward(module, *args, **kwargs)

    @abstractmethod
    def pruned_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """What is left of the module's forward pass."""

    def _own_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs)


class WithinFrames(PrunedHook):
    """Joint attention: the video's tokens attend to their own frame and to the text."""

    def pruned_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = self.denoiser.tokens(*args, **kwargs)

        def within(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
            return attention_within_frames(query, key, value, mask, scale, tokens)

        return replace_attention(self.name, within, self.fn_ref.original_forward, *args, **kwargs)


class OwnFrame(PrunedHook):
    """Attention over frames: each attends to itself with all its weight, so that its value is what is left."""

    def pruned_forward(self, module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states = module.to_v(hidden_states)
        for layer in module.to_out:  # linear, dropout
            hidden_states = layer(hidden_states)
        return hidden_states


class PassThrough(PrunedHook):
    """A temporal block: what it is given is left."""

    def pruned_forward(self, module: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(module, "proj_out"):  # a single block, not the transformer of them
            return hidden_states
        if kwargs.get("return_dict", True):
            return TransformerTemporalModelOutput(sample=hidden_states)
        return (hidden_states,)


class SpatialStream(PrunedHook):
    """The mixture of both streams: that of single frames is left."""

    def pruned_forward(self, module: Any, x_spatial: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x_spatial


def apply_f3(model_or_pipeline: Any, plan: F3Plan) -> None:
    """Prune the temporal attention of a denoiser by a plan, until `remove_f3`.

    The weights and their names stay as they are, so that the model is saved, trained and given LoRAs as before.
    Attention that is pruned is computed by PyTorch's own functions; other attention backends are refused when the
    model runs.

    Args:
        model_or_pipeline: the denoiser, a teacher or a student; or a pipeline with one denoiser.

    Raises:
        F3Error: if the plan is of another model, or one is applied already. The model is then as it was.
    """
    model = _denoiser(model_or_pipeline)
    layers, where = temporal_layers(model), TEMPORAL_ATTENTION[attention_class(model)]
    if plan.model_class != attention_class(model):
        raise F3Error(f"The plan is one for a {plan.model_class}, and the model is a {type(model).__name__}.")
    if plan.unit == "layer" and (differing := sorted(plan.scores.keys() ^ layers.keys())):
        raise F3Error(
            f"The plan is one of another model, with {len(plan.scores)} layers where this has {len(layers)}; one that"
            f" differs is {differing[0]}. Measure this model's own scores."
        )
    if applied_f3_plan(model) is not None:
        raise F3Error("A plan of F3-Pruning is applied to this model already: remove it first with `remove_f3`.")
    denoiser = PlanNotes(model, plan)
    setattr(model, APPLIED, denoiser)
    for layer in plan.pruned if plan.unit == "layer" else layers:
        for name, hook in _pruned_modules(model, plan, layer, layers[layer], where):
            registry(model.get_submodule(name)).register_hook(hook(name, denoiser), APPLIED)


def _pruned_modules(
    model: nn.Module, plan: F3Plan, layer: str, attentions: tuple[str, ...], where: Any
) -> list[tuple[str, type[PrunedHook]]]:
    """The modules of a layer that compute something else when it is pruned, by name, and what."""
    if not isinstance(where, FactorisedAttention):
        return [(name, WithinFrames) for name in attentions]
    if plan.part == "attention":
        return [(name, OwnFrame) for name in attentions]
    parts = [name for name, _ in model.get_submodule(layer).named_modules() if re.fullmatch(where.block, name)]
    found: list[tuple[str, type[PrunedHook]]] = [(f"{layer}.{name}".rstrip("."), PassThrough) for name in parts]
    return found + ([(f"{layer}.{where.mixer}", SpatialStream)] if where.mixer else [])


def remove_f3(model_or_pipeline: Any) -> None:
    """Undo `apply_f3`. A model to which nothing is applied stays as it is."""
    model = _denoiser(model_or_pipeline)
    if APPLIED in vars(model):
        vars(model).pop(APPLIED).handle.remove()
        registry(model).remove_hook(APPLIED)


def applied_f3_plan(model_or_pipeline: Any) -> F3Plan | None:
    """The plan that is applied."""
    denoiser = vars(_denoiser(model_or_pipeline)).get(APPLIED)
    return None if denoiser is None else denoiser.plan


def save_f3_plan(plan: F3Plan, model_folder: str | os.PathLike) -> Path:
    """Write a plan beside a denoiser's weights, as `f3_plan.json`. It appears whole or not at all.

    Raises:
        OSError: if there is no such folder, or it cannot be written.
    """
    file = Path(model_folder) / F3_PLAN
    write_file(file, plan.to_json_string().encode())
    return file


def load_f3(model_or_pipeline: Any, folder: str | os.PathLike) -> dict[str, F3Plan]:
    """Apply the plans that `save_f3_plan` wrote.

    Args:
        model_or_pipeline: a denoiser, or a pipeline, of which every denoiser with a plan is pruned.
        folder: the denoiser's; or the pipeline's, with those of its denoisers in it.

    Returns:
        the plans that are applied now, by component; by `""` that of a model.

    Raises:
        F3Error: if there is none, or one is malformed or does not fit. Then none is applied.
        OSError: if a file cannot be read.
    """
    is_model = isinstance(model_or_pipeline, nn.Module)
    models = {"": model_or_pipeline} if is_model else temporal_denoisers(model_or_pipeline)
    files = {name: Path(folder) / name / F3_PLAN for name in models}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        raise F3Error(f"No plan of F3-Pruning is there: none of {', '.join(map(str, files.values()))} exists.")
    plans = {}
    for name, file in found.items():
        try:
            plans[name] = F3Plan.from_json_string(file.read_text(encoding="utf-8"))
        except ValueError as error:  # bytes that are no text as well
            raise F3Error(f"{file}: {error}") from error
    applied: list[nn.Module] = []
    try:
        for name, plan in plans.items():
            apply_f3(models[name], plan)
            applied.append(models[name])
    except F3Error:
        for model in applied:
            remove_f3(model)
        raise
    return plans


def _denoiser(model_or_pipeline: Any) -> nn.Module:
    """The one denoiser of a pipeline, or the model itself."""
    if isinstance(model_or_pipeline, nn.Module):
        return model_or_pipeline
    found = temporal_denoisers(model_or_pipeline)
    if len(found) != 1:
        raise F3Error(
            f"A {type(model_or_pipeline).__name__} has {len(found)} denoisers that F3-Pruning knows, {sorted(found)}:"
            " give it the one that the plan is for."
        )
    return next(iter(found.values()))
