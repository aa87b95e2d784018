"""The paper's block notation (Figures 1 and A4), for reports: `down_blocks.1.resnets.0` is `D.1.R.0`."""

import re


SUB_BLOCKS = {
    "spatial_res_block": "RB-S",
    "temporal_res_block": "RB-T",
    "transformer_blocks": "AB-S",
    "temporal_transformer_blocks": "AB-T",
}


def paper_name(module_name: str) -> str:
    """The paper's name of a module, or of the block that a parameter belongs to.

    `D`, `M`, `U` are the down, mid and up blocks, `R` and `A` ResBlock and TransformerBlock, then the layer; `RB-S`
    (printed in appendix B) and, by analogy, `RB-T`, `AB-S`, `AB-T` are the spatial and temporal parts; the temporal
    ones of text-to-video U-Nets are modules beside the spatial, `temp_convs` and `temp_attentions`. What the paper
    does not name (`conv_in`, samplers) keeps its own name.
    """
    match = re.match(
        r"(?:(down|up)_blocks\.(?P<stage>\d+)|(?P<mid>mid_block))"
        r"(?:\.(?P<kind>resnets|temp_convs|attentions|temp_attentions)\.(?P<layer>\d+))?(?:\.(?P<rest>.*))?$",
        module_name,
    )
    if match is None:
        return module_name
    name = "M" if match["mid"] else f"{module_name[0].upper()}.{match['stage']}"
    if match["kind"]:
        name += f".{'A' if match['kind'].endswith('attentions') else 'R'}.{match['layer']}"
        if match["kind"].startswith("temp_"):
            return f"{name}.{'AB-T' if match['kind'] == 'temp_attentions' else 'RB-T'}"
        first = (match["rest"] or "").split(".")[0]
        return f"{name}.{SUB_BLOCKS[first]}" if first in SUB_BLOCKS else name
    return f"{name}.{match['rest'].split('.')[0]}" if match["rest"] else name
