"""A LoRA on VideoCrafter2's U-Net as T2V-Turbo's training hangs it there: by walking through the modules.

The modules are those of `original_unet.py`, in the order in which the original's constructors make them. They are only
walked through, and hold no numbers.
"""

import torch
from drawn_weights import DrawnWeights
from torch import Tensor, nn


RANK = 7
Factors = dict[str, tuple[Tensor, Tensor]]


def walk(widths: tuple[int, ...], head: int, context: int, guidance: int | None) -> list[tuple[str, nn.Module]]:
    """Name and module of each layer that gets factors."""
    with torch.device("meta"):
        network = unet(widths, head, context, guidance)
    adapted = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [(name, module) for name, module in network.named_modules() if isinstance(module, adapted)]


def draw_factors(layers: list[tuple[str, nn.Module]]) -> Factors:
    """Up and down of each; the rank is that of the layer where it has less."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 10

    factors = {}
    for name, layer in layers:
        width, *others = layer.weight.shape
        rank = min(RANK, width, others[0])
        factors[name] = (normal(width, rank, *[1] * (len(others) - 1)), normal(rank, *others))
    return factors


class AdaptedWeights(DrawnWeights):
    """Layers with factors compute `layer(x) + up(down(x))`: nothing is merged."""

    def __init__(self, factors: Factors):
        super().__init__()
        self.factors = factors

    def linear(self, name, x, width, bias=True):
        up, down = self.factors[name]
        return super().linear(name, x, width, bias) + x @ down.T @ up.T

    def conv(self, name, x, width, kernel=3, stride=1, padding=1):
        up, down = self.factors[name]
        between = torch.conv2d(x, down, stride=stride, padding=padding)
        return super().conv(name, x, width, kernel, stride, padding) + torch.conv2d(between, up)

    def temporal_conv(self, name, x):
        up, down = self.factors[name]
        return super().temporal_conv(name, x) + torch.conv3d(torch.conv3d(x, down, padding=(1, 0, 0)), up)


def tree(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def unet(widths: tuple[int, ...], head: int, context: int, guidance: int | None) -> nn.Module:
    base, wide = widths[0], 4 * widths[0]

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(base, wide), nn.SiLU(), nn.Linear(wide, wide))

    def layer(before: int, width: int, attends: bool) -> list[nn.Module]:
        transformers = [transformer(width, width, context), transformer(width, width, width)] if attends else []
        return [res_block(before, width, wide), *transformers]

    skips, width = [base], base
    inputs: list[nn.Module] = [nn.Sequential(nn.Conv2d(4, base, 3, padding=1))]
    for level, after in enumerate(widths):
        for _ in range(2):
            inputs.append(nn.Sequential(*layer(width, after, level < 3)))
            width = after
            skips.append(width)
        if level < 3:
            inputs.append(nn.Sequential(tree(op=nn.Conv2d(width, width, 3))))
            skips.append(width)
    middle = nn.Sequential(*layer(width, width, True), res_block(width, width, wide))
    outputs = []
    for level, after in reversed(list(enumerate(widths))):
        for i in range(3):
            parts = layer(width + skips.pop(), after, level < 3)
            width = after
            if level and i == 2:
                parts.append(tree(conv=nn.Conv2d(width, width, 3)))
            outputs.append(nn.Sequential(*parts))
    first = {"time_embed": mlp(), "fps_embedding": mlp()}
    if guidance is not None:
        first["time_cond_proj"] = nn.Linear(guidance, base, bias=False)
    return tree(
        **first,
        input_blocks=nn.ModuleList(inputs),
        init_attn=nn.Sequential(transformer(base, 8 * head, 8 * head, convolution=True)),
        middle_block=middle,
        output_blocks=nn.ModuleList(outputs),
        out=nn.Sequential(nn.GroupNorm(1, base), nn.SiLU(), nn.Conv2d(base, 4, 3)),
    )


def res_block(before: int, width: int, wide: int) -> nn.Module:
    def temporal(*between: nn.Module) -> nn.Module:
        return nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), *between, nn.Conv3d(width, width, (3, 1, 1)))

    return tree(
        in_layers=nn.Sequential(nn.GroupNorm(1, before), nn.SiLU(), nn.Conv2d(before, width, 3)),
        emb_layers=nn.Sequential(nn.SiLU(), nn.Linear(wide, width)),
        out_layers=nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Dropout(), nn.Conv2d(width, width, 3)),
        skip_connection=nn.Identity() if before == width else nn.Conv2d(before, width, 1),
        temopral_conv=tree(
            conv1=temporal(),
            conv2=temporal(nn.Dropout()),
            conv3=temporal(nn.Dropout()),
            conv4=temporal(nn.Dropout()),
        ),
    )


def transformer(width: int, inner: int, context: int, convolution: bool = False) -> nn.Module:
    def projection(before: int, after: int) -> nn.Module:
        return nn.Conv1d(before, after, 1) if convolution else nn.Linear(before, after)

    def attention(source: int) -> nn.Module:
        return tree(
            to_q=nn.Linear(inner, inner, bias=False),
            to_k=nn.Linear(source, inner, bias=False),
            to_v=nn.Linear(source, inner, bias=False),
            to_out=nn.Sequential(nn.Linear(inner, inner), nn.Dropout()),
        )

    block = tree(
        attn1=attention(inner),
        ff=tree(net=nn.Sequential(tree(proj=nn.Linear(inner, 8 * inner)), nn.Dropout(), nn.Linear(4 * inner, inner))),
        attn2=attention(context),
        norm1=nn.LayerNorm(inner),
        norm2=nn.LayerNorm(inner),
        norm3=nn.LayerNorm(inner),
    )
    return tree(
        norm=nn.GroupNorm(1, width),
        proj_in=projection(width, inner),
        transformer_blocks=nn.ModuleList([block]),
        proj_out=projection(inner, width),
    )
