"""Text to video with HunyuanVideo and VDMini-T2V-HY, without the padding of prompts.

This file is also published beside the weights, where it runs without the package: it imports third-party code only.
"""

import functools
import inspect
import json
import os
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel


# Files beside the weights that describe them; diffusers neither reads nor saves these.
TRANSFORMER_COMPANIONS = ("pruning_plan.json", "pruning_provenance.json")
MASK = 3  # the place of the attention mask among the blocks' arguments
# One lock for each transformer, whose blocks are hooked during a call. No attribute, so that it can be copied.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class VDMiniHunyuanVideoPipeline(HunyuanVideoPipeline):
    """[`HunyuanVideoPipeline`] with the same arguments and, up to rounding, the same videos.

    The stock pipeline pads every prompt to 256 tokens and masks what it has added, and fast attention kernels (flash,
    sage) take no mask. Here padding that all prompts of a call share is cut off. Where nothing is left of it, as for a
    single prompt, the blocks attend without a mask. It may be called from several threads: the calls take turns.

    What it saves is the folder of a stock pipeline, with this file beside it. It opens:

    - with the package installed, by `VDMiniT2VPipeline.from_pretrained` or this class;
    - by `DiffusionPipeline.from_pretrained`, as a stock pipeline;
    - without the package as this one, by `DiffusionPipeline.from_pretrained(name,
      custom_pipeline="pipeline_vdmini_hunyuan_video", trust_remote_code=True)`.

    Example:

        >>> import torch
        >>> from diffusers.utils import export_to_video
        >>> from vdmini_diffusers import VDMiniT2VPipeline

        >>> pipe = VDMiniT2VPipeline.from_pretrained("org/vdmini-t2v-hy", dtype=torch.bfloat16).to("cuda")
        >>> pipe.vae.enable_tiling()
        >>> frames = pipe("A cat walks on the grass", height=320, width=512, num_frames=61).frames[0]
        >>> export_to_video(frames, "video.mp4", fps=15)
    """

    stands_for = HunyuanVideoPipeline.__name__  # in the folders that it saves
    _pads_prompts = False  # in the present call

    @functools.wraps(HunyuanVideoPipeline.encode_prompt)
    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        prompt_embeds, pooled_prompt_embeds, mask = super().encode_prompt(*args, **kwargs)
        num_tokens = tokens_before_padding(mask)
        self._pads_prompts |= not bool(mask[:, :num_tokens].bool().all())
        return prompt_embeds[:, :num_tokens], pooled_prompt_embeds, mask[:, :num_tokens]

    @functools.wraps(HunyuanVideoPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _LOCKS.setdefault(self.transformer, threading.RLock()), self._needless_masks_left_out():
            self._pads_prompts = False
            return super().__call__(*args, **kwargs)

    @contextmanager
    def _needless_masks_left_out(self) -> Iterator[None]:
        """Within the `with` block, the transformer's blocks get no mask as long as no prompt is padded.

        The hooks stay where prompts are padded: a compiled transformer does not notice when they come or go.
        """

        def leave_out(block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return args if self._pads_prompts else (*args[:MASK], None, *args[MASK + 1 :])

        blocks = (*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks)
        if any(block._compiled_call_impl is not None for block in blocks):
            # It would be compiled by itself, for each shape that any of the blocks is compiled for.
            leave_out = torch.compiler.disable(leave_out)
        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_pre_hook(leave_out).remove)
            yield

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """As the parent's, but a `model_index.json` names the stock pipeline; this file and the plan go along."""
        index_file = Path(json_file_path)
        if index_file.name != self.config_name:
            super().to_json_file(json_file_path)
            return
        index = json.loads(self.to_json_string())
        index["_class_name"] = self.stands_for
        if isinstance(self.transformer, HunyuanVideoTransformer3DModel):  # or a subclass, whose folder says the same
            index["transformer"] = ["diffusers", HunyuanVideoTransformer3DModel.__name__]
        folder = index_file.parent
        sources = [Path(inspect.getsourcefile(type(self)) or "")] if type(self).__module__ != "__main__" else []
        if self.name_or_path and not (folder / "README.md").exists():  # a card that is there may have been edited
            sources.append(Path(self.name_or_path) / "README.md")
        targets = [(source, folder / source.name) for source in sources]
        model_folder = self.transformer.config.get("_name_or_path") if self.transformer is not None else None
        if model_folder:
            names = TRANSFORMER_COMPANIONS
            targets += [(Path(model_folder) / name, folder / "transformer" / name) for name in names]
        for source, target in targets:
            if source.is_file():
                _replace_file(target, source.read_bytes())
        _replace_file(index_file, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def tokens_before_padding(mask: torch.Tensor) -> int:
    """How many tokens of a mask `(batch, tokens)` come before the padding that all prompts share; 1 at least."""
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return max(1, int((positions * mask.bool().any(dim=0)).max()))


def _replace_file(path: Path, content: bytes) -> None:
    """Write `path` in one move: interrupted, it leaves the file that was there."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
