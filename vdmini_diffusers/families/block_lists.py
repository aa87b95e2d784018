"""The blocks of diffusers' video transformers: in which lists they stand, and what the config says of them.

This is all that pruning knows of a transformer class. Plans, feature pairs and tests follow from it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockList:
    """A `ModuleList` from which blocks can be removed one by one.

    Args:
        name: of the list in the transformer.
        count: the config field that counts its blocks.
        streams: what a block returns, in this order.
        chain: lists of one chain run one after the other, each block on the output of the block before it.
    """

    name: str
    count: str
    streams: tuple[str, ...] = ("video",)
    chain: str = "video"


# By the transformer's class; the lists of a chain in running order.
BLOCK_LISTS: dict[str, tuple[BlockList, ...]] = {
    "HunyuanVideoTransformer3DModel": (
        BlockList("transformer_blocks", "num_layers", ("video", "text")),
        BlockList("single_transformer_blocks", "num_single_layers", ("video", "text")),
    ),
}
