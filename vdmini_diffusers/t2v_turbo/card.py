"""What the model card of a converted teacher says."""

from collections.abc import Mapping
from typing import Any


def converted_card_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """For `write_card`; `record` is what `convert_t2v_turbo` wrote as provenance."""
    changes = "changed none of their numbers"
    if record["lora"]:
        changes = "merged the LoRA into the weights of VideoCrafter2"
    if record["time_cond_proj_seed"] is not None:
        changes += (
            f". The layer for the guidance, whose weight before the LoRA is in no file, was drawn at random from the"
            f" seed {record['time_cond_proj_seed']}, as the original's demos do: this is not quite the network that"
            " was trained"
        )
    return {
        "front_matter": {
            "license": "other",  # the Hub's word for a licence that goes by a name
            "license_name": "unknown",
            "pipeline_tag": "text-to-video",
            "tags": ["video-diffusion", "text-to-video"],
        },
        "title": record["unet"],
        "package_version": record["package_version"],
        "changes": changes,
        "num_parameters": f"{record['num_parameters']:,}",
        "doubt": f" **{record['doubt']}**" if record["doubt"] else "",
        "tokenizer": record["tokenizer"],
        "files": "\n".join(f"| `{f['name']}` | {f['size']:,} | `{f['sha256']}` |" for f in record["files"].values()),
    }
