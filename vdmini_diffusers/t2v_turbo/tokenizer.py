"""The tokenizer of VideoCrafter2's text encoder, which its files do not hold: CLIP's, the same for all of CLIP."""

import json
import os
from collections.abc import Mapping
from typing import Any

from transformers import CLIPTokenizer

from vdmini_diffusers.serialization.checkpoint_error import short_message
from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


# The repository of the network that the text encoder was taken from.
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def read_tokenizer(name: str | os.PathLike, text_encoder_config: Mapping[str, Any]) -> CLIPTokenizer:
    """CLIP's tokenizer of a folder or of a repository on the Hub, made anew from its vocabulary and merges.

    What else it says is left behind: in Stable Diffusion 2's, whose text encoder is the same, `!` is the padding, and
    so every exclamation mark of a prompt becomes padding.

    Args:
        text_encoder_config: as `text_encoder_config` makes it.

    Raises:
        OriginalCheckpointError: if it is not the tokenizer of that text encoder.
        OSError: if it cannot be read or downloaded.
    """
    try:
        found = CLIPTokenizer.from_pretrained(name)
        model = json.loads(found.backend_tokenizer.to_str())["model"]
        vocabulary, merges = model["vocab"], [tuple(pair) for pair in model["merges"]]
    except OSError:
        raise
    except Exception as error:  # transformers' and tokenizers', for files that hold something else
        raise OriginalCheckpointError(f"{name} is not a tokenizer of CLIP: {short_message(error)}") from error
    size = text_encoder_config["vocab_size"]
    # Without files, transformers makes a tokenizer of the two marks alone.
    if len(vocabulary) != size:
        raise OriginalCheckpointError(
            f"The text encoder has a vocabulary of {size} tokens, and the tokenizer {name} {len(vocabulary)}. It must"
            f" be CLIP's, such as {TOKENIZER!r}; a folder needs `tokenizer.json`, or `vocab.json` and `merges.txt`"
            " (--tokenizer)."
        )
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,  # pyright: ignore[reportArgumentType] - it takes pairs
        model_max_length=text_encoder_config["max_position_embeddings"],
    )
    for mark in ("bos_token_id", "eos_token_id"):
        if getattr(tokenizer, mark) != text_encoder_config[mark]:
            raise OriginalCheckpointError(
                f"The tokenizer {name} has the `{mark}` {getattr(tokenizer, mark)}, and the text encoder"
                f" {text_encoder_config[mark]}: it is not CLIP's."
            )
    return tokenizer
