"""A tiny denoiser of every class with temporal attention, every weight random, and what its forward pass takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel, UNetSpatioTemporalConditionModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from tiny import TINY_UNET_CONFIG, randomise, student_of, tiny_unet_inputs
from tiny_hunyuan_video import tiny_hunyuan_transformer
from tiny_text_to_video import tiny_t2v_student
from tiny_video_transformers import COGVIDEO, WAN, frames_first, mask, normal, video_and_text
from torch import Tensor, nn

from vdmini_diffusers.analysis.f3 import temporal_layers
from vdmini_diffusers.pruning import VDMINI_UNET


FRAMES = 3


def tiny_svd_unet(layers_per_block: int = 1) -> UNetSpatioTemporalConditionModel:
    # Two blocks to a transformer where there are most, as no released model has them.
    config = TINY_UNET_CONFIG | {"layers_per_block": layers_per_block, "transformer_layers_per_block": (1, 2, 1, 1)}
    return randomise(UNetSpatioTemporalConditionModel(**config)).eval()


def svd_inputs(timestep: float) -> dict[str, Any]:
    sample, _, states, ids = tiny_unet_inputs(batch=2, frames=FRAMES)
    return {"sample": sample, "timestep": timestep, "encoder_hidden_states": states, "added_time_ids": ids}


def t2v_inputs(timestep: float) -> dict[str, Any]:
    return {
        "sample": normal(2, 4, FRAMES, 8, 8),
        "timestep": torch.tensor(timestep),
        "encoder_hidden_states": normal(2, 5, 16, seed=2),
        "timestep_cond": normal(2, 12, seed=3),
        "motion_cond": normal(2, 10, seed=4),
        "fps": torch.tensor([8, 24]),
    }


def tiny_cogvideox() -> Any:
    config = COGVIDEO | {"attention_head_dim": 16, "use_rotary_positional_embeddings": True}
    return randomise(CogVideoXTransformer3DModel(**config)).eval()


def cogvideox_inputs(timestep: float) -> dict[str, Any]:
    rope = get_3d_rotary_pos_embed(16, ((0, 0), (2, 2)), (2, 2), FRAMES)
    steps = torch.full((2,), timestep)
    return frames_first(frames=FRAMES) | {"timestep": steps, "image_rotary_emb": rope}


def hunyuan_inputs(timestep: float) -> dict[str, Any]:
    return video_and_text(
        frames=FRAMES,
        timestep=torch.full((2,), timestep),
        encoder_attention_mask=mask(),
        pooled_projections=normal(2, 8),
        guidance=torch.tensor([1000.0, 6000.0]),
    )


def wan_inputs(timestep: float) -> dict[str, Any]:
    return video_and_text(frames=FRAMES, timestep=torch.full((2,), timestep))


# By name: the denoiser, what its forward pass takes at a timestep, and where the text's tokens are in its attention.
DENOISERS: dict[str, tuple[Callable[[], Any], Callable[[float], dict[str, Any]], str]] = {
    "svd": (tiny_svd_unet, svd_inputs, ""),
    "i2v student": (lambda: student_of(tiny_svd_unet(2), VDMINI_UNET), svd_inputs, ""),
    "t2v student": (tiny_t2v_student, t2v_inputs, ""),
    "cogvideox": (tiny_cogvideox, cogvideox_inputs, "first"),
    "hunyuan video": (tiny_hunyuan_transformer, hunyuan_inputs, "last"),
    "wan": (lambda: randomise(WanTransformer3DModel(**WAN)).eval(), wan_inputs, ""),
}


@torch.no_grad()
def run(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, return_dict=False)[0]


@contextmanager
def whole_maps(
    model: nn.Module, text: str, monkeypatch: Any, within_frames: tuple[str, ...] = ()
) -> Iterator[dict[str, list[Tensor]]]:
    """Attention computed with whole maps: of each temporal layer, its attention to other frames, `(batch, heads,
    queries of the video)`. Layers in `within_frames` are masked so that no token sees another frame.
    """
    found: dict[str, list[Tensor]] = {}
    running: list[str] = []
    handles = []
    for layer, attentions in temporal_layers(model).items():
        for name in attentions:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(lambda *_, layer=layer: running.append(layer)))
            handles.append(module.register_forward_hook(lambda *_: running.clear()))
    stock = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if not running:
            return stock(query, key, value, attn_mask=attn_mask, **kwargs)
        length = query.shape[2]
        num_text = 5 if text else 0
        frame_of = torch.arange(length - num_text) // ((length - num_text) // FRAMES)
        outside = torch.full((num_text,), -1)
        frame_of = torch.cat([outside, frame_of] if text == "first" else [frame_of, outside])
        is_video = frame_of >= 0
        elsewhere = (frame_of[:, None] != frame_of) & is_video[:, None] & is_video
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        if running[0] in within_frames:
            logits = logits.masked_fill(elsewhere, -torch.inf)
        weights = logits.softmax(dim=3)
        found.setdefault(running[0], []).append((weights * elsewhere).sum(dim=3)[:, :, is_video])
        return weights @ value

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        yield found
    for handle in handles:
        handle.remove()
