"""The card that a model has on the Hub: what is known of it, put into the card that its folder has."""

import csv
import importlib.resources
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from vdmini_diffusers.families.base import UNetFamily
from vdmini_diffusers.pruning.plans import ChannelPruningPlan
from vdmini_diffusers.publishing.card_sections import join_sections, split_sections, with_section
from vdmini_diffusers.publishing.evaluations import CardResult, eval_results, results_table
from vdmini_diffusers.publishing.model_info import ModelInfo


PICTURE = "network.png"
EMISSIONS = "emissions.csv"  # as CodeCarbon writes it beside a training
RECIPE_SETTINGS = {  # of training.json, by what a reader calls them
    "teacher": "teacher",
    "plan": "plan",
    "max_train_steps": "steps",
    "train_batch_size": "batch size per process",
    "gradient_accumulation_steps": "gradient accumulation steps",
    "learning_rate": "learning rate",
    "lr_scheduler": "learning rate schedule",
    "optimizer": "optimiser",
    "mixed_precision": "precision",
    "use_ema": "average of weights",
    "rank": "LoRA rank",
    "num_frames": "frames",
    "height": "height",
    "width": "width",
    "dataset_name": "data set",
    "train_data_dir": "data",
    "precomputed_data_dir": "precomputed data",
    "seed": "seed",
}
LIMITS = (
    "The limits of the teacher apply, and what it learned from its training videos, biases included, is still there."
)


@dataclass(frozen=True)
class LicenseTerms:
    """What a card says of the licence. `other` takes a name, and best a link."""

    license: str
    license_name: str | None = None
    license_link: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"The licence {self.license!r} is none that the Hub knows: it is an identifier such as apache-2.0, or"
                " `other` with a `license_name`."
            )
        if self.license == "other" and not self.license_name:
            raise ValueError("The licence `other` needs a `license_name` (--license-name).")


@dataclass(frozen=True)
class Consumption:
    """What a training took, as CodeCarbon measured it."""

    seconds: float
    kilowatt_hours: float
    kilograms_co2: float
    hardware: str
    country: str


def license_for(info: ModelInfo, given: LicenseTerms | None) -> LicenseTerms:
    """The licence of the model's card, which it inherits from its teacher; where that is not known, the given one.

    Raises:
        ValueError: if there is neither, or they differ.
    """
    is_known = bool(info.license) and (info.license["license"] != "other" or "license_name" in info.license)
    if not is_known and given is None:
        raise ValueError(
            f"The licence of {info.name} is not known: its teacher's card named none. Look it up on the teacher's page"
            " and give it by `license` (--license), or `license='other'` with `license_name` and `license_link`."
        )
    if not is_known and given is not None:
        return given
    inherited = LicenseTerms(**info.license)
    if given is not None and given != inherited:
        raise ValueError(
            f"{info.name} has the licence {inherited.license!r} from its teacher, and {given.license!r} was given: a"
            " student inherits its teacher's. If the card's is wrong, correct it there first."
        )
    return inherited


def published_card(
    info: ModelInfo,
    repo_id: str,
    terms: LicenseTerms,
    results: Sequence[CardResult] = (),
    samples: Sequence[str] = (),
    has_picture: bool = False,
    variant: str | None = None,
) -> str:
    """The card of the folder, completed. What its author wrote in sections of their own stays.

    Args:
        samples: paths of videos and pictures in the repository.
        has_picture: whether it has a `PICTURE` of what was removed.
        variant: of the weight files, which has to be named to open it.

    Raises:
        ValueError: if the card's metadata are not valid.
    """
    name = repo_id.rpartition("/")[2]
    file = info.folder / "README.md"
    try:
        written = file.read_text(encoding="utf-8") if file.is_file() else f"---\n{{}}\n---\n\n# {name}\n"
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: save it as such.") from error
    card = ModelCard(written)
    data: ModelCardData = card.data  # pyright: ignore[reportAssignmentType] - of a ModelCard
    data.license, data.license_name, data.license_link = terms.license, terms.license_name, terms.license_link
    data.library_name = data.library_name or "diffusers"
    if info.family is not None:
        data.pipeline_tag = data.pipeline_tag or info.family.pipeline_tag
        data.tags = list(dict.fromkeys([*(data.tags or ()), *(info.family.tags if info.pruned else ())])) or None
    source = info.provenance.get("teacher", {})
    if not data.base_model and source.get("commit"):
        data.base_model = source["name"]
    if results:
        data.model_name = name
        data.eval_results = eval_results(results, data.pipeline_tag or "text-to-video")
    used = consumption(info.folder / EMISSIONS)
    if used is not None:
        data["co2_eq_emissions"] = {
            "emissions": round(1000 * used.kilograms_co2, 3),  # grams
            "source": "CodeCarbon",
            "training_type": "fine-tuning",
            **({"geographical_location": used.country} if used.country else {}),
            **({"hardware_used": used.hardware} if used.hardware else {}),
        }

    sections = split_sections(card.text)
    later = ("What was removed", "Licence", "License", "Limits")
    sections = with_section(sections, "Use", _use(info, repo_id, variant), ("Samples", "Results", *later))
    if samples:
        sections = with_section(sections, "Samples", _samples(repo_id, samples), ("Use",))
    if results:
        sections = with_section(sections, "Results", results_table(results), ("Recipe", *later))
    if has_picture:
        picture = f"![Blocks of the network: kept and removed]({PICTURE})"
        body = sections.get("What was removed", "")
        if picture not in body:
            sections = with_section(sections, "What was removed", f"{picture}\n\n{body.strip()}", later[1:])
    sections = with_section(sections, "Recipe", _recipe(info, used), later[1:])
    if "Limits" not in sections:
        sections = with_section(sections, "Limits", LIMITS)
    text = f"---\n{data.to_yaml()}\n---\n\n{join_sections(sections)}"
    check_metadata(text)
    return text


def check_metadata(card: str) -> None:
    """Raises `ValueError` if the metadata of a card do not pass huggingface_hub's own reader."""
    try:
        data = ModelCard(card).data
        ModelCardData(**{key: value for key, value in data.to_dict().items() if key != "ignore_metadata_errors"})
    except Exception as error:  # the YAML reader's, and huggingface_hub's
        raise ValueError(f"The metadata of the card are not valid: {error}") from error


def consumption(file: Path) -> Consumption | None:
    """What the last line of a CodeCarbon file says; None without such a file.

    Raises:
        ValueError: if the file is another.
    """
    if not file.is_file():
        return None
    try:
        last = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))[-1]
        seconds, energy, emitted = (float(last[name]) for name in ("duration", "energy_consumed", "emissions"))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what CodeCarbon writes: {error}.") from error
    hardware = last.get("gpu_model") or last.get("cpu_model") or ""
    return Consumption(seconds, energy, emitted, hardware, last.get("country_name") or "")


def _use(info: ModelInfo, repo_id: str, variant: str | None) -> str:
    """Ways to open the model: those of its family's card, the command, and the denoiser alone."""
    ways = _family_ways(info, repo_id, variant)
    option = f', variant="{variant}"' if variant else ""
    if not ways:
        trust = ", trust_remote_code=True" * info.needs_trust_remote_code
        ways = (
            "```python\nimport torch\nfrom diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{repo_id}"{trust}, dtype=torch.bfloat16{option})\n```'
        )
    given = "--prompt 'a cat that surfs'"
    if info.family is not None and info.family.pipeline_tag == "image-to-video":
        given = "--image first_frame.png"
    parts = [
        ways,
        "As a command, with `vdmini_diffusers` installed:\n\n"
        f"```bash\nvdmini generate --model {repo_id} {given} --out video.mp4\n```",
    ]
    denoisers = [part for part in info.components if info.family and part.name in info.family.denoisers]
    for part in denoisers[:1]:
        package = "vdmini_diffusers" if part.class_name.startswith("VDMini") else "diffusers"
        parts.append(
            f"The {part.sketch.network if part.sketch else part.name} alone, for a pipeline of your own:\n\n"
            f"```python\nimport torch\nfrom {package} import {part.class_name}\n\n"
            f'{part.name} = {part.class_name}.from_pretrained(\n    "{repo_id}", subfolder="{part.name}"'
            f", dtype=torch.float16{option}\n)\n```"
        )
    return "\n\n".join(parts)


def _family_ways(info: ModelInfo, repo_id: str, variant: str | None) -> str:
    """The section "Use" of the template that the model's card was made from, for this repository."""
    family = info.family
    if family is None:
        return ""
    template = family.card
    if any(isinstance(part.plan, ChannelPruningPlan) for part in info.pruned):
        template = "vdmini_i2v_channels.md"
    elif not info.pruned:
        template = family.teacher_card if isinstance(family, UNetFamily) and info.needs_trust_remote_code else ""
    if not template:
        return ""
    text = importlib.resources.files("vdmini_diffusers.model_cards").joinpath(template).read_text("utf-8")
    body = split_sections(text)["Use"].strip()
    option = f', variant="{variant}"' if variant else ""
    return string.Template(body).safe_substitute(repository=repo_id, variant_argument=option)


def _samples(repo_id: str, samples: Sequence[str]) -> str:
    lines = []
    for path in samples:
        if path.endswith(".mp4"):
            url = f"https://huggingface.co/{repo_id}/resolve/main/{path}"  # players take no relative address
            lines.append(f'<video controls loop muted src="{url}"></video>')
        else:
            lines.append(f"![{Path(path).stem}]({path})")
    return "\n\n".join(lines)


def _recipe(info: ModelInfo, used: Consumption | None) -> str:
    version = info.provenance.get("package_version")
    plans = dict.fromkeys(part.plan.name for part in info.pruned if part.plan)
    steps = []
    if plans:
        by = f" with `vdmini_diffusers` {version}" if isinstance(version, str) else ""
        steps.append(f"1. Pruned by the plan {', '.join(f'`{plan}`' for plan in plans)}{by}.")
    training = info.training
    if training is None:
        steps.append(
            f"{len(steps) + 1}. Not trained." if plans else "How it was trained is not recorded in this folder."
        )
        return "\n".join(steps)
    verb = "Distilled towards its teacher" if training.is_distilled else "Trained"
    by = f", losses: {', '.join(training.losses)}" if training.losses else ""
    steps.append(f"{len(steps) + 1}. {verb}{by}. `training.json` has all settings.")
    rows = [
        f"| {label} | {_cell(value)} |"
        for key, label in RECIPE_SETTINGS.items()
        if not ((value := training.settings.get(key)) is None or value is False or value in ("", []))
        # Beside precomputed clips, whose shape is their own, earlier records have the defaults.
        and not (key in ("num_frames", "height", "width") and training.settings.get("precomputed_data_dir"))
    ]
    if used is not None:
        rows += [
            f"| time | {used.seconds / 3600:.2f} h{' on ' + used.hardware if used.hardware else ''} |",
            f"| energy | {used.kilowatt_hours:.3f} kWh (CodeCarbon) |",
            f"| emissions | {used.kilograms_co2:.3f} kg CO2 eq. |",
        ]
    return "\n".join([*steps, "", "| setting | value |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = "yes" if value is True else f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
