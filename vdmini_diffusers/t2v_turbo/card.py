"""The model card of a converted teacher."""

import importlib.resources
import string
from collections.abc import Mapping
from typing import Any

import huggingface_hub


def teacher_card(record: Mapping[str, Any]) -> str:
    """`model_cards/t2v_turbo_converted.md`, filled in with what `convert_t2v_turbo` recorded."""
    template = (
        importlib.resources.files("vdmini_diffusers.model_cards").joinpath("t2v_turbo_converted.md").read_text("utf-8")
    )
    front_matter = huggingface_hub.ModelCardData(
        license="other",  # the Hub's word for a licence that goes by a name
        license_name="unknown",
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["video-diffusion", "text-to-video"],
    ).to_yaml()
    changes = "changed none of their numbers"
    if record["lora"]:
        changes = "merged the LoRA into the weights of VideoCrafter2"
    if record["time_cond_proj_seed"] is not None:
        changes += (
            f". The layer for the guidance, whose weight before the LoRA is in no file, was drawn at random from the"
            f" seed {record['time_cond_proj_seed']}, as the original's demos do: this is not quite the network that"
            " was trained"
        )
    return string.Template(template).substitute(
        front_matter=front_matter,
        title=record["unet"],
        package_version=record["package_version"],
        changes=changes,
        num_parameters=f"{record['num_parameters']:,}",
        doubt=f" **{record['doubt']}**" if record["doubt"] else "",
        tokenizer=record["tokenizer"],
        files="\n".join(f"| `{f['name']}` | {f['size']:,} | `{f['sha256']}` |" for f in record["files"].values()),
    )
