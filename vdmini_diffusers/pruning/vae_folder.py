"""A VAE where it lies, alone or in a pipeline, with the files that its pruning left beside the weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from vdmini_diffusers.models import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.pruning.plans import DecoderPruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import CoupledChannels
from vdmini_diffusers.pruning.presets import read_plan_file
from vdmini_diffusers.pruning.survey import build_empty, check_numbers
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.pipeline_folder import check_links
from vdmini_diffusers.serialization.repository import fetch_file
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_json, short_repr


STOCK = (AutoencoderKL, AutoencoderKLTemporalDecoder)
COMPRESSED = (VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder)
CLASSES = {cls.__name__: cls for cls in (*STOCK, *COMPRESSED)}
PRUNING_FILES = ("pruning_plan.json", "pruning_channels.json", "pruning_provenance.json", "README.md")


@dataclass(frozen=True)
class VAEFolder:
    """Made by `find_vae`.

    Args:
        name: folder or Hub id, of the VAE or of a pipeline.
        subfolder: `"vae"` in a pipeline.
        class_name: a key of `CLASSES`.
        config_file: the VAE's `config.json`.
    """

    name: str
    subfolder: str | None
    revision: str | None
    class_name: str
    config_file: Path

    def load(self, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """The VAE, frozen.

        Raises:
            OSError: if it cannot be read or downloaded.
            ValueError: if its weights are not exactly those of its class and config.
        """
        cls, config = CLASSES[self.class_name], read_json(self.config_file)
        check_numbers(self.config_file, config)
        build_empty(lambda: cls.from_config(config), self.config_file, self.class_name)
        try:
            vae, info = cls.from_pretrained(
                self.name,
                subfolder=self.subfolder,
                revision=self.revision,
                variant=variant,
                dtype=dtype,
                output_loading_info=True,
            )
        except OSError:
            raise
        except Exception as error:  # diffusers' and safetensors', for weights that do not fit or are damaged
            raise ValueError(
                f"The weights of {self.name} are not a {self.class_name}'s: {short_message(error)}"
            ) from error
        for kind in ("missing_keys", "unexpected_keys"):
            if info[kind]:
                names = ", ".join(sorted(info[kind])[:3])
                raise ValueError(f"The weights of {self.name} are not a {self.class_name}'s: {kind} {names}, ...")
        return vae.eval().requires_grad_(False)

    def companions(self) -> dict[str, Path]:
        """The `PRUNING_FILES` and licences that lie beside the VAE, and the licences of its pipeline, by name.

        Raises:
            CheckpointError: a `ValueError`; if one of them is a link that leads out of the folder.
        """
        folder = Path(self.name)
        if not folder.is_dir():
            names = [*PRUNING_FILES, "LICENSE*", "NOTICE*"]
            patterns = [f"{self.subfolder}/{name}" for name in names] + names[-2:] if self.subfolder else names
            found = huggingface_hub.snapshot_download(self.name, revision=self.revision, allow_patterns=patterns)
            folder = Path(found)
        check_links(folder, [self.subfolder or ""])
        own = folder / (self.subfolder or "")
        licences = [path for place in (folder, own) for kind in ("LICENSE*", "NOTICE*") for path in place.glob(kind)]
        beside = [own / name for name in PRUNING_FILES]
        return {path.name: path for path in (*licences, *beside) if path.is_file()}


def find_vae(name: str, revision: str | None = None) -> VAEFolder:
    """The VAE of a folder or a repository on the Hub: at its top, or in its subfolder `vae`.

    Raises:
        ValueError: if there is no VAE of a known class.
    """
    reasons = []
    for subfolder in (None, "vae"):
        try:
            file = fetch_file(name, f"{subfolder}/config.json" if subfolder else "config.json", revision)
        except OSError as error:
            reasons.append(str(error))
            continue
        class_name = read_json(file).get("_class_name")
        if not isinstance(class_name, str) or class_name not in CLASSES:
            raise ValueError(f"{file.parent} holds a {short_repr(class_name)}; a VAE is one of {', '.join(CLASSES)}.")
        return VAEFolder(name, subfolder, revision, class_name, file)
    raise ValueError(f"{name} is neither a VAE nor a pipeline with a `vae`: {' '.join(reasons)}")


def read_decoder_plan(files: dict[str, Path], name: str) -> tuple[DecoderPruningPlan, tuple[CoupledChannels, ...]]:
    """What a VAE was pruned by, from its `companions`.

    Raises:
        ValueError: if it did not come with both files, or they hold something else.
    """
    if missing := sorted({"pruning_plan.json", "pruning_channels.json"} - files.keys()):
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}: without them nobody knows which channels of the original the"
            " decoder kept. `conversion/prune_vae_decoder.py` writes them; `--feature_distillation_weight 0` does"
            " without."
        )
    plan = read_plan_file(files["pruning_plan.json"])
    if not isinstance(plan, DecoderPruningPlan):
        raise ValueError(f"The plan of {name} is a {plan.kind} plan, not one of a decoder.")
    try:
        sets = read_json(files["pruning_channels.json"], list)
    except CheckpointError as error:
        raise ValueError(f"{name} does not list sets of channels: {error}") from error
    coupled = []
    for found in sets:
        layers: Any
        kept: Any
        layers, kept = (found.get("layers"), found.get("kept")) if isinstance(found, dict) else (None, None)
        if not _is_list_of(layers, str) or not _is_list_of(kept, int):
            raise ValueError(
                f"{files['pruning_channels.json']} does not list sets of channels: {short_repr(found)} is none."
            )
        coupled.append(CoupledChannels(tuple(layers), tuple(kept)))
    return plan, tuple(coupled)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
