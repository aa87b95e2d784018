"""The first T2V-Turbo as its authors publish it, `unet_lora.pt`: what training changed of VideoCrafter2.

The file is a list without names. For each linear layer and each convolution over images or videos, in the order in
which PyTorch walks through the original's modules, it holds two factors, `up` of `(out, rank)` and `down` of
`(rank, in, ...)`, whose product is added to the weight. Established from `utils/lora.py` and `predict.py` of
`Ji4chenLi/t2v-turbo` at eaae323.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vdmini_diffusers.t2v_turbo.tensors import OriginalCheckpointError


# Modules beside each other come in this order, in which the original's constructors make them; numbers count up.
MODULES = (
    *("time_embed", "fps_embedding", "time_cond_proj", "input_blocks", "init_attn", "middle_block", "output_blocks"),
    *("out", "in_layers", "emb_layers", "out_layers", "skip_connection", "temopral_conv"),
    *("conv1", "conv2", "conv3", "conv4", "op", "conv", "proj_in", "transformer_blocks", "proj_out"),
    *("attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out", "net", "proj"),
)
ADAPTED_AXES = (2, 4, 5)  # of the weights of a linear layer, a Conv2d and a Conv3d; a Conv1d, with 3, has no factors
GUIDANCE = "time_cond_proj.weight"


def merge_lora(
    tensors: Mapping[str, Tensor], factors: Sequence[Tensor], time_cond_proj_seed: int | None = None
) -> dict[str, Tensor]:
    """The tensors of VideoCrafter2's U-Net, under their original names, with T2V-Turbo's factors merged in.

    VideoCrafter2 has no layer for the guidance, and the factors change one that training drew at random and did not
    save: nobody has its weight. The authors' own programs draw another one at every start.

    Args:
        tensors: of a U-Net that `build_unet` takes.
        factors: up, down, up, down, ...
        time_cond_proj_seed: draw that layer's weight as those programs do, `U(-1, 1) / sqrt(in)`, from this seed.

    Raises:
        OriginalCheckpointError: if the factors are not those of this network, or change a weight that it lacks
            and there is no seed.
    """
    if GUIDANCE in tensors:
        raise OriginalCheckpointError(
            "The LoRA's base has a layer for the guidance: T2V-Turbo is merged into it already. Give VideoCrafter2's"
            " `model.ckpt` as the checkpoint."
        )
    base = {name: tensors[name] for name in adapted_weights(tensors)}
    if len(factors) == 2 * (len(base) + 1):
        names = adapted_weights({**base, GUIDANCE: torch.empty(0, 0)})
        down = factors[2 * names.index(GUIDANCE) + 1]
        base[GUIDANCE] = _drawn_guidance(base["time_embed.0.weight"], down, time_cond_proj_seed)
    if len(factors) != 2 * len(base):
        raise OriginalCheckpointError(
            f"The LoRA has {len(factors)} factors, and this U-Net {len(base)} layers of two each, or one more with a"
            " layer for the guidance: it was made for another network."
        )
    pairs = dict(zip(adapted_weights(base), zip(factors[::2], factors[1::2], strict=True), strict=True))
    wrong = [
        f"{name} {list(base[name].shape)} by {list(up.shape)} and {list(down.shape)}"
        for name, (up, down) in pairs.items()
        if not _fit(base[name], up, down)
    ]
    if wrong:
        raise OriginalCheckpointError(f"Factors of the LoRA do not fit the layers: {'; '.join(wrong)}.")
    return {**tensors, **{name: _merged(base[name], *pair) for name, pair in pairs.items()}}


def adapted_weights(tensors: Mapping[str, Tensor]) -> list[str]:
    """The weights that have factors, in the order of the list."""
    return sorted((name for name, tensor in tensors.items() if tensor.ndim in ADAPTED_AXES), key=_position)


def _position(name: str) -> list[int]:
    parts = name.removesuffix(".weight").split(".")
    return [int(part) if part.isdecimal() else MODULES.index(part) for part in parts]


def _drawn_guidance(time_embed: Tensor, down: Tensor, seed: int | None) -> Tensor:
    if seed is None:
        raise OriginalCheckpointError(
            "This LoRA changes the layer for the guidance (`time_cond_proj`). VideoCrafter2 does not have it; training"
            " drew it at random, and it is in no file but the merged `t2v_turbo_vc2.pt`: convert that one. To draw"
            " another at random, as the original's demos do at every start, give a seed (--time_cond_proj_seed)."
        )
    if down.ndim != 2:
        raise OriginalCheckpointError(f"A factor of `time_cond_proj` has the shape {list(down.shape)}.")
    drawn = torch.empty(time_embed.shape[1], down.shape[1])
    bound = drawn.shape[1] ** -0.5
    return drawn.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed)).to(time_embed.dtype)


def _fit(weight: Tensor, up: Tensor, down: Tensor) -> bool:
    rank = down.shape[:1]
    return down.shape[1:] == weight.shape[1:] and up.shape == weight.shape[:1] + rank + (1,) * (weight.ndim - 2)


def _merged(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    product = up.detach().flatten(1) @ down.detach().flatten(1)
    return weight.detach() + product.view(weight.shape).to(weight.dtype)
