"""Where the frames of a video attend to each other, by the denoiser's class: all that F3-Pruning knows of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vdmini_diffusers.families import cogvideox, hunyuan_video, wan
from vdmini_diffusers.families.base import TokenGrid


@dataclass(frozen=True)
class FactorisedAttention:
    """Attention over the frames alone, at each place of the picture. The tokens are the frames.

    Args:
        attentions: a pattern that matches the full name of each such attention, whose group `layer` is the name of the
            layer that it belongs to.
        block: modules of a layer that compute its temporal block, as patterns of their names within it; `""` is the
            layer itself. Without what they do, the layer returns the stream of single frames.
        mixer: the module of a layer that mixes that stream (`x_spatial`) with the temporal one, if it has one.
    """

    attentions: str
    block: str
    mixer: str | None = None


@dataclass(frozen=True)
class JointAttention:
    """Attention over all tokens of the video, and of the text where the layer takes it.

    Args:
        attentions: as for `FactorisedAttention`.
        token_grid: frames, height and width of the video's tokens, which fill the grid in this order.
        frame_axis: of the latents that the forward pass takes.
        text_first: whether the text's tokens come before the video's.
    """

    attentions: str
    token_grid: TokenGrid
    frame_axis: int = 2
    text_first: bool = False

    def num_frames(self, config: Mapping[str, Any], shape: Sequence[int]) -> int:
        """The number of frames of tokens that latents of this shape become."""
        sizes = list(shape)
        sizes.insert(1, sizes.pop(self.frame_axis))
        return self.token_grid(config, sizes)[0]


TEMPORAL_ATTENTION: dict[str, FactorisedAttention | JointAttention] = {
    "UNetSpatioTemporalConditionModel": FactorisedAttention(
        r"(?P<layer>.+\.attentions\.\d+)\.temporal_transformer_blocks\.\d+\.attn1",
        block=r"temporal_transformer_blocks\.\d+",
        mixer="time_mixer",
    ),
    "UNet3DConditionModel": FactorisedAttention(  # both attentions of a block are over the frames
        r"(?P<layer>transformer_in|.+\.temp_attentions\.\d+)\.transformer_blocks\.\d+\.attn[12]", block=""
    ),
    "CogVideoXTransformer3DModel": JointAttention(
        r"(?P<layer>transformer_blocks\.\d+)\.attn1", cogvideox.token_grid, frame_axis=1, text_first=True
    ),
    "HunyuanVideoTransformer3DModel": JointAttention(
        r"(?P<layer>(?:single_)?transformer_blocks\.\d+)\.attn", hunyuan_video.token_grid
    ),
    "WanTransformer3DModel": JointAttention(r"(?P<layer>blocks\.\d+)\.attn1", wan.token_grid),
}
