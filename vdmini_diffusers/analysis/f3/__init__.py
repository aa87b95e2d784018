"""F3-Pruning (Su et al., AAAI 2024): temporal attention is scored while a model samples, and pruned without training.

The score of a layer, or of a denoising step, is the aggregate temporal attention: the attention of the video's tokens
to tokens of other frames. The share alpha with the lowest scores is pruned, and what is left of attention there is the
token's own frame, and the text where the layer attends to it.
"""

from vdmini_diffusers.analysis.f3.layers import F3Error, temporal_layers
from vdmini_diffusers.analysis.f3.plan import F3Plan
from vdmini_diffusers.analysis.f3.pruning import applied_f3_plan, apply_f3, load_f3, remove_f3, save_f3_plan
from vdmini_diffusers.analysis.f3.scores import TemporalScores, measure_temporal_attention


__all__ = [
    "F3Error",
    "F3Plan",
    "TemporalScores",
    "applied_f3_plan",
    "apply_f3",
    "load_f3",
    "measure_temporal_attention",
    "remove_f3",
    "save_f3_plan",
    "temporal_layers",
]
