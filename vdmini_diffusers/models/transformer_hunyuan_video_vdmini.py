"""VDMini-T2V-HY's transformer: HunyuanVideo's, with 12 of 20 dual-stream and 28 of 40 single-stream blocks.

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import functools
import inspect
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers import HunyuanVideoTransformer3DModel
from diffusers.configuration_utils import register_to_config

# Not used below: diffusers takes a pipeline's component for a model if the module of its class holds `ModelMixin`.
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - see above


PLAN, PROVENANCE = "pruning_plan.json", "pruning_provenance.json"


def _stock_constructor(**defaults: Any) -> Callable[..., None]:
    """The stock class's `__init__` with other defaults."""
    stock = HunyuanVideoTransformer3DModel.__init__
    parameters = inspect.signature(stock).parameters.values()
    signature = inspect.Signature([p.replace(default=defaults.get(p.name, p.default)) for p in parameters])

    @functools.wraps(stock)
    def init(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        stock(*bound.args, **bound.kwargs)

    init.__signature__ = signature
    return init


class VDMiniHunyuanVideoTransformer3DModel(HunyuanVideoTransformer3DModel):
    """A [`HunyuanVideoTransformer3DModel`] whose default depth is the paper's: 8,403,260,480 parameters.

    A student is the stock class with fewer blocks, and nothing else. So its saved config names the stock class, and
    its folder opens by that, by `AutoModel`, by the stock pipeline and by FastVideo. This class opens teachers and
    students of any depth. It takes the files that describe the pruning along when it is saved, as diffusers does not.

    Args:
        num_layers (`int`, defaults to 12): The number of dual-stream blocks.
        num_single_layers (`int`, defaults to 28): The number of single-stream blocks.
    """

    __init__ = register_to_config(_stock_constructor(num_layers=12, num_single_layers=28))

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """As the parent's, but the depth of a stock model's config is taken even if it is the stock class's default,
        which diffusers would replace by that of this class."""
        config = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(config, **kwargs)

    @property
    def pruning_plan(self) -> dict[str, Any] | None:
        """The plan by which the student was pruned, if it was opened from a folder that has it."""
        return self._read_companion(PLAN)

    @property
    def pruning_provenance(self) -> dict[str, Any] | None:
        """Where the student's weights come from, if it was opened from a folder that says so."""
        return self._read_companion(PROVENANCE)

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string())
        config["_class_name"] = HunyuanVideoTransformer3DModel.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As the parent's, with plan and provenance beside it."""
        os.makedirs(save_directory, exist_ok=True)
        for name in (PLAN, PROVENANCE):
            source, target = self._companion(name), Path(save_directory) / name
            if source is not None and not (target.exists() and source.samefile(target)):
                shutil.copyfile(source, target)
        super().save_config(save_directory, *args, **kwargs)

    def _read_companion(self, name: str) -> dict[str, Any] | None:
        file = self._companion(name)
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))

    def _companion(self, name: str) -> Path | None:
        """A file of the folder that the weights came from: a model's, or a pipeline's with the model in it."""
        folder = self.config.get("_name_or_path")
        files = [Path(folder) / name, Path(folder) / "transformer" / name] if folder else []
        return next((file for file in files if file.is_file()), None)
