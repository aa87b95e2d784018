"""The critics of a run: the network that they stand on, the heads that they start from, and what is real to each."""

import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn

from vdmini_diffusers.distillation.arguments import CriticArguments, ICMDArguments
from vdmini_diffusers.distillation.critics import Critic, CriticSettings, Real
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator
from vdmini_diffusers.distillation.engine import make_critic
from vdmini_diffusers.pruning.survey import build_empty, check_numbers
from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.serialization.repository import fetch_file
from vdmini_diffusers.serialization.safetensors_reader import CheckpointError, read_json, short_repr


logger = logging.getLogger(__name__)

NAME = r"\w[\w.-]*"  # of a folder, a user or a repository; none that leads out of where it is
DISCRIMINATOR = "discriminator"  # the folder of a pipeline that holds the data critic's heads
HEADS: dict[str, type[Any]] = {cls.__name__: cls for cls in (DiscriminatorHeads, LatentDiscriminator)}


class ModelSource(NamedTuple):
    """A pipeline, by folder or Hub id, and which of its weights."""

    name: str
    variant: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class FoundDiscriminator:
    """The discriminator of a pipeline, before it is loaded."""

    source: ModelSource
    class_name: str
    config: Mapping[str, Any]

    def load(self) -> nn.Module:
        """Raises `ValueError` if its weights are not those of its config, or hold NaN or infinity."""
        name, _, revision = self.source
        options = {"subfolder": DISCRIMINATOR, "revision": revision, "dtype": torch.float32, "use_safetensors": True}
        try:
            heads, info = HEADS[self.class_name].from_pretrained(name, **options, output_loading_info=True)
        except OSError:
            raise
        except Exception as error:  # whatever a config or a weight file of other heads leads to
            raise ValueError(f"The `{DISCRIMINATOR}` of {name} does not open: {short_message(error)}") from error
        if problems := [*info["missing_keys"], *info["unexpected_keys"]]:
            raise ValueError(
                f"The `{DISCRIMINATOR}` of {name} does not hold the tensors of its config: {short_repr(problems)}."
            )
        if broken := next((key for key, tensor in heads.state_dict().items() if not tensor.isfinite().all()), None):
            raise ValueError(f"The `{DISCRIMINATOR}` of {name} holds NaN or infinity in the tensor {broken!r}.")
        return heads

    def check_features(self, features: str) -> None:
        """Raises `ValueError` if its heads learned on others than `features`, in words; older ones do not say."""
        learned_on = self.config.get("features")
        if learned_on not in (None, features):
            raise ValueError(
                f"The `{DISCRIMINATOR}` of {self.source.name} learned on {short_repr(learned_on)}, and critics here"
                f" see {features!r}. Give the `--critic_backbone` that it was trained with, or start from new heads by"
                " `--discriminator_model_name_or_path none`. If only the backbone's name has changed, write the new"
                f" one into `features` of {DISCRIMINATOR}/config.json."
            )


def read_origin(teacher: ModelSource) -> ModelSource | None:
    """The model that a few-step teacher was trained from, as its `training.json` names it; None without one.

    Raises:
        CheckpointError: if the file is damaged.
        OSError: if the Hub cannot be reached.
    """
    file = _file_of(teacher, "training.json")
    if file is None:
        return None
    record = read_json(file, dict)
    name, variant, revision = (record.get(field) for field in ("teacher", "teacher_variant", "teacher_revision"))
    if record.get("student") is not None or not isinstance(name, str):
        return None  # a student's record, or none of ours
    if not all(part is None or isinstance(part, str) for part in (variant, revision)):
        raise CheckpointError(f"{file}: the teacher's variant and revision are texts, or absent.")
    if name == ".":  # other weights of the same pipeline
        origin = ModelSource(teacher.name, variant, teacher.revision)
        return origin if origin != teacher else None
    if Path(teacher.name).is_dir() and re.fullmatch(NAME, name):
        beside = Path(teacher.name).resolve().parent / name
        return ModelSource(str(beside), variant) if beside.is_dir() and not beside.samefile(teacher.name) else None
    return ModelSource(name, variant, revision) if re.fullmatch(f"{NAME}/{NAME}", name) else None


def find_multi_step_model(teacher: ModelSource) -> ModelSource | None:
    """The model at the start of the line of models that a few-step teacher was made of; None if it names none.

    Of those on this disk: for one on the Hub, whose record may not be in the cache where its weights are, nothing more
    is asked.

    Raises:
        Exception: as `read_origin`.
    """
    line = [teacher]
    while (origin := read_origin(line[-1])) is not None and origin not in line:
        line.append(origin)
        if not Path(origin.name).is_dir():
            break
    return line[-1] if len(line) > 1 else None


def find_discriminator(teacher: ModelSource, args: CriticArguments) -> FoundDiscriminator | None:
    """The discriminator that the data critic starts from; None for new heads.

    Raises:
        CheckpointError: if its config is damaged.
        OSError: if the Hub cannot be reached.
        ValueError: if the pipeline that the arguments name has none.
    """
    given = args.discriminator_model_name_or_path
    if given == "none":
        found = None
    else:
        source = teacher if given is None else ModelSource(given)
        found = _read_discriminator(source)
        if found is None and given is not None:
            raise ValueError(
                f"`--discriminator_model_name_or_path`: {given} has no `{DISCRIMINATOR}` folder."
                " `training/train_sf_v.py` saves one with its result. 'none' starts from new heads."
            )
    if found is None and args.mca_from_discriminator:
        raise ValueError(
            f"`--mca_from_discriminator` needs a `{DISCRIMINATOR}` folder: the teacher's, or that of a pipeline"
            " given as `--discriminator_model_name_or_path`."
        )
    logger.info("the data critic starts from %s", f"that of {found.source.name}" if found else "new heads")
    return found


def _file_of(source: ModelSource, name: str) -> Path | None:
    try:
        return fetch_file(source.name, name, source.revision)
    except LocalEntryNotFoundError:  # the Hub cannot be reached, and the file is not cached
        raise
    except (FileNotFoundError, EntryNotFoundError):
        return None


def _read_discriminator(source: ModelSource) -> FoundDiscriminator | None:
    file = _file_of(source, f"{DISCRIMINATOR}/config.json")
    if file is None:
        return None
    config = read_json(file, dict)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or class_name not in HEADS:
        raise CheckpointError(
            f"{file} describes a {short_repr(class_name)}; a discriminator is one of {sorted(HEADS)}."
        )
    check_numbers(file, config)
    heads = build_empty(lambda: HEADS[class_name].from_config(config), file, "discriminator")
    return FoundDiscriminator(source, class_name, heads.config)  # which has the defaults as well


def make_critics(
    channels: Mapping[str, int] | None,
    latent_channels: int,
    condition_dim: int,
    critic_args: CriticArguments,
    icmd_args: ICMDArguments,
    discriminator: FoundDiscriminator | None,
    device: torch.device,
    seed: int = 0,
    features: str | None = None,
) -> list[Critic]:
    """MCA's critic and the task's own, without those whose weight is 0; or one for both.

    Args:
        channels: number of channels of each feature of the backbone, by its name; None without a backbone.
        latent_channels: those of the latents.
        condition_dim: width of the critics' condition.
        discriminator: what the data critic's heads start from.
        seed: new heads depend on it and on their critic's name, so that they are the same with and without others.
        features: what the critics see, in words.

    Raises:
        ValueError: if the discriminator is for other features.
    """
    warmup = critic_args.critic_warmup_steps
    data_start = warmup if discriminator is None else 0
    real: dict[str, tuple[dict[Real, int], float, bool]]  # samples, weight, whether it starts from the discriminator
    if icmd_args.joint_critic:
        both: dict[Real, int] = {"data": data_start, "teacher": icmd_args.mca_start_step}
        real = {"sf_v": (both, icmd_args.lambda_data_critic, True)}
    else:
        real = {
            "mca": ({"teacher": icmd_args.mca_start_step}, icmd_args.lambda_mca, critic_args.mca_from_discriminator),
            "sf_v": ({"data": data_start}, icmd_args.lambda_data_critic, True),
        }
    critics = []
    for name, (samples, weight, from_discriminator) in real.items():
        if weight == 0:
            continue
        heads: Any
        if discriminator is not None and from_discriminator:
            check_discriminator(discriminator, channels, latent_channels, condition_dim)
            heads = discriminator.load()
        else:
            heads = new_heads(channels, latent_channels, condition_dim, critic_args, (seed, name))
        heads.register_to_config(features=features)
        settings = CriticSettings(
            real=samples,
            weight=weight,
            warmup_steps=0 if discriminator is not None and name == "sf_v" else warmup,
            loss=critic_args.critic_loss,
            generator_loss=critic_args.generator_loss if name == "mca" else critic_args.data_generator_loss,
            num_discriminator_steps=critic_args.discriminator_steps,
            adaptive_weight=critic_args.adaptive_critic_weight,
            r1_weight=critic_args.r1_weight,
            r1_sigma=critic_args.r1_sigma,
        )
        critic = make_critic(
            name,
            heads,
            settings,
            device,
            learning_rate=critic_args.discriminator_learning_rate,
            adam_beta1=critic_args.discriminator_adam_beta1,
            features=features,
        )
        critics.append(critic)
    return critics


def new_heads(
    channels: Mapping[str, int] | None,
    latent_channels: int,
    condition_dim: int,
    args: CriticArguments,
    seed: Sequence[Any],
) -> nn.Module:
    """Heads with random weights, which are silent at first."""
    width, kernel = args.discriminator_width, args.temporal_kernel_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(repr(tuple(seed)).encode()))
        if channels is not None:
            return DiscriminatorHeads(dict(channels), condition_dim, width, temporal_kernel_size=kernel)
        widths = (width // 4, width // 2, width)
        return LatentDiscriminator(latent_channels, condition_dim, widths, temporal_kernel_size=kernel)


def check_discriminator(
    found: FoundDiscriminator, channels: Mapping[str, int] | None, latent_channels: int, condition_dim: int
) -> None:
    """Raises `ValueError` if a discriminator judges other features than the critics' backbone gives."""
    seen = found.config.get("channels", {"latents": found.config.get("in_channels")})
    given = dict(channels) if channels is not None else {"latents": latent_channels}
    if seen == given and found.config.get("condition_dim") == condition_dim:
        return
    raise ValueError(
        f"The `{DISCRIMINATOR}` of {found.source.name} judges {short_repr(seen)} and a condition of"
        f" {short_repr(found.config.get('condition_dim'))}; here there are {given} and {condition_dim}. Give the"
        " `--critic_backbone` and `--critic_taps` that it was trained with, or start from new heads by"
        " `--discriminator_model_name_or_path none`."
    )
