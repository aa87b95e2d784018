"""A VAE where it lies, alone or in a pipeline, with the files that its pruning left beside the weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

from vdmini_diffusers.models import VDMiniAutoencoderKL, VDMiniAutoencoderKLTemporalDecoder
from vdmini_diffusers.pruning.plans import DecoderPruningPlan, PruningPlan
from vdmini_diffusers.pruning.plans.vae_decoder import CoupledChannels


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
    """

    name: str
    subfolder: str | None
    revision: str | None
    class_name: str

    def load(self, variant: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """The VAE, frozen. Raises `ValueError` if its weights are not exactly those of its class and config."""
        vae, info = CLASSES[self.class_name].from_pretrained(
            self.name,
            subfolder=self.subfolder,
            revision=self.revision,
            variant=variant,
            dtype=dtype,
            output_loading_info=True,
        )
        for kind in ("missing_keys", "unexpected_keys"):
            if info[kind]:
                names = ", ".join(sorted(info[kind])[:3])
                raise ValueError(f"The weights of {self.name} are not a {self.class_name}'s: {kind} {names}, ...")
        return vae.eval().requires_grad_(False)

    def companions(self) -> dict[str, Path]:
        """What else is there of `PRUNING_FILES`, `LICENSE*` and `NOTICE*`, by name; licences of the pipeline too."""
        folder = Path(self.name)
        if not folder.is_dir():
            names = [*PRUNING_FILES, "LICENSE*", "NOTICE*"]
            patterns = [f"{self.subfolder}/{name}" for name in names] + names[-2:] if self.subfolder else names
            found = huggingface_hub.snapshot_download(self.name, revision=self.revision, allow_patterns=patterns)
            folder = Path(found)
        own = folder / (self.subfolder or "")
        licences = [path for place in (folder, own) for kind in ("LICENSE*", "NOTICE*") for path in place.glob(kind)]
        beside = [own / name for name in PRUNING_FILES]
        return {path.name: path for path in (*licences, *beside) if path.is_file()}


def find_vae(name: str, revision: str | None = None) -> VAEFolder:
    """
    Raises:
        ValueError: if there is no VAE of a known class.
    """
    reasons = []
    for subfolder in (None, "vae"):
        try:
            config: Any = AutoencoderKL.load_config(name, subfolder=subfolder, revision=revision)
        except OSError as error:
            reasons.append(str(error))
            continue
        class_name = config.get("_class_name")
        if class_name not in CLASSES:
            raise ValueError(f"{name} holds a {class_name!r}; a VAE is one of {', '.join(CLASSES)}.")
        return VAEFolder(name, subfolder, revision, class_name)
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
    plan = PruningPlan.from_json_string(files["pruning_plan.json"].read_text("utf-8"))
    if not isinstance(plan, DecoderPruningPlan):
        raise ValueError(f"The plan of {name} is a {plan.kind} plan, not one of a decoder.")
    try:
        sets = json.loads(files["pruning_channels.json"].read_text("utf-8"))
        return plan, tuple(CoupledChannels(tuple(found["layers"]), tuple(found["kept"])) for found in sets)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{files['pruning_channels.json']} does not list sets of channels: {error!r}.") from error
