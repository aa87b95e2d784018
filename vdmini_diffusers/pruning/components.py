"""Components that are copied as they are: their weights must be those of the class and the config beside them.

`from_pretrained` draws the tensors that a file lacks at random, and only warns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import diffusers
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from vdmini_diffusers.pruning.survey import build_empty, check_numbers, check_tensor, with_article
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, StoredTensor, read_json


# How diffusers named the layers of a VAE's attention before 2023.
FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def check_component(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    class_name: str,
    classes: Mapping[str, type[Any]],
) -> None:
    """Check the `tensors` of a component against its class, built on the meta device from `folder/config.json`.

    Tensors that the class does not have are fine: loading leaves them out.

    Args:
        class_name: the component's class, as `model_index.json` names it.
        classes: those that the pipeline takes, by name.

    Raises:
        CheckpointError: if the class is another, or a tensor is missing, has another shape, or is no floating point.
    """
    if class_name not in classes:
        raise CheckpointError(
            f"model_index.json says that {folder.name!r} is {with_article(class_name)}; this pipeline takes"
            f" {' or '.join(map(with_article, classes))}."
        )
    config_file = folder / "config.json"
    config = read_json(config_file)
    cls = classes[class_name]
    if issubclass(cls, transformers.PreTrainedModel):
        model = _empty_transformers_model(cls, config, config_file)
        tensors, merged = _as_transformers_loads(model, tensors)
    else:
        check_numbers(config_file, config)
        if config.get("_class_name", class_name) != class_name:
            raise CheckpointError(f"{config_file} does not describe a {class_name}, as model_index.json says.")
        model = build_empty(lambda: cls.from_config(config), config_file, class_name)
        tensors, merged = _renamed(model, tensors), set()
    names: dict[int, list[str]] = {}  # of each parameter: weights that are tied have several, of which one is stored
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    for tied in names.values():
        if merged.intersection(tied):
            continue
        stored = [name for name in tied if name in tensors]
        if not stored:
            raise CheckpointError(f"{folder}: the weights lack tensor {tied[0]!r} of the {class_name} in config.json.")
        for name in stored:
            check_tensor(name, shapes[name], tensors[name])


def _empty_transformers_model(cls: type[Any], config: Mapping[str, Any], config_file: Path) -> Any:
    # An implementation of attention can be the name of code on the Hub; the type of the model is its class's.
    ignored = ("attn_implementation", "quantization_config", "auto_map", "model_type")
    settings = {key: value for key, value in config.items() if not key.startswith("_") and key not in ignored}
    # Numbers of tokens may be -1, for none.
    check_numbers(config_file, {key: value for key, value in settings.items() if not key.endswith("_token_id")})
    return build_empty(lambda: cls(cls.config_class(**settings)).to("meta"), config_file, cls.__name__)


def _as_transformers_loads(
    model: Any, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], set[str]]:
    """The tensors by the names that transformers gives them, and the names of those that it makes of several.

    Its versions disagree on names: those of models with several parts have changed with release 5.
    """
    tensors, merged = _without_prefix(model, tensors), set()
    shapes = model.state_dict()
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    found = {}
    for name, tensor in tensors.items():
        new, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, shapes)
        if pattern is not None:
            merged.add(new)
        found[new if new in shapes or name not in shapes else name] = tensor
    return found, merged


def _without_prefix(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """As transformers does when it loads: its versions disagree on whether `text_model.` is part of the names."""
    names = [name for name, _ in model.named_parameters()]
    prefixes = {name.partition(".")[0] for name in tensors}
    for prefix in sorted(prefixes):
        if names[0] not in tensors and f"{prefix}.{names[0]}" in tensors:
            return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _renamed(model: Any, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """As diffusers does when it loads: in attentions that were of another class, and from single files only."""
    former = {
        f"{path}.{old}": f"{path}.{new}"
        for path, module in model.named_modules()
        if getattr(module, "_from_deprecated_attn_block", False)
        for old, new in FORMER_NAMES.items()
    }
    if len({tensor.file for tensor in tensors.values()}) > 1:
        return dict(tensors)
    layers = {name: name.rpartition(".") for name in tensors}
    return {f"{former.get(layer, layer)}.{kind}": tensors[name] for name, (layer, _, kind) in layers.items()}


def component_classes(
    pipeline: type[Any], name: str, own: type[Any] | None, class_name: str | None = None
) -> dict[str, type[Any]]:
    """The classes that a component of `pipeline` may have, by name: those that it declares, and ours.

    Args:
        class_name: that of the component. It is one of them if it is that of a subclass in transformers or diffusers.
    """
    declared = get_type_hints(pipeline.__init__)[name]
    allowed = [cls for cls in (*(get_args(declared) or (declared,)), own) if isinstance(cls, type)]
    allowed = [cls for cls in allowed if cls is not type(None)]
    named = getattr(transformers, class_name or "", None) or getattr(diffusers, class_name or "", None)
    if isinstance(named, type) and issubclass(named, tuple(allowed)):
        allowed.append(named)
    return {cls.__name__: cls for cls in allowed}
