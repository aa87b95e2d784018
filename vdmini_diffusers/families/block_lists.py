"""The blocks of diffusers' video transformers: in which lists they stand, and what the config says of them.

This is all that pruning knows of a transformer class. Plans, feature pairs, checks and the table in
`conversion/VIDEO_TRANSFORMERS.md` follow from it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Period:
    """Every n-th block of a list differs from the others.

    Args:
        field: the config field that is n. Nothing, or 0, stands for no such blocks.
        difference: of these blocks, for messages: "every n-th block " and this.
        last: whether they are the last of every n blocks. Otherwise they are the first: 0, n, 2n.
        removable: whether such a block can go.
    """

    field: str
    difference: str
    last: bool = False
    removable: bool = True


@dataclass(frozen=True)
class BlockList:
    """A `ModuleList` from which blocks can be removed.

    Args:
        name: of the list in the transformer.
        count: the config field that counts its blocks, or lists their places.
        streams: what a block returns, in this order. None stands for what is not compared in distillation.
        chain: lists of one chain run one after the other, each block on the output of the block before it.
        attached_to: a list after whose blocks those of this one run, and with which they stay or go.
        places: the config field that says after which: a list of indices, or n for every n-th block. By default block
            i follows block i.
        needs: a config field without which the list is empty.
        never_remove: blocks that differ from all others; negative indices count from the end.
        in_place: blocks whose index the code of the class names.
        leading: config fields that count the first blocks, which are of another kind than the rest. A value beyond the
            list's end, or a negative one, stands for all.
        trailing: the config field that counts the last blocks, which are a chain of their own.
        trailing_streams: what these return.
        period: every n-th block differs.
    """

    name: str
    count: str = "num_layers"
    streams: tuple[str | None, ...] = ("video",)
    chain: str = "video"
    attached_to: str | None = None
    places: str | None = None
    needs: str | None = None
    never_remove: tuple[int, ...] = ()
    in_place: tuple[int, ...] = ()
    leading: tuple[str, ...] = ()
    trailing: str | None = None
    trailing_streams: tuple[str | None, ...] = ()
    period: Period | None = None


VIDEO_AND_TEXT = ("video", "text")
# Blocks of Wan and of what was made from it, and of the many that have one list of blocks with one stream.
WAN = (BlockList("blocks"),)
ONE_LIST = (BlockList("transformer_blocks"),)
TWO_STREAMS = (BlockList("transformer_blocks", streams=VIDEO_AND_TEXT),)
# Dual-stream blocks and single-stream ones. Both return the video's tokens and the text's.
DUAL_AND_SINGLE = (
    BlockList("transformer_blocks", streams=VIDEO_AND_TEXT),
    BlockList("single_transformer_blocks", "num_single_layers", VIDEO_AND_TEXT),
)

# By the transformer's class; the lists of a chain in running order.
BLOCK_LISTS: dict[str, tuple[BlockList, ...]] = {
    "AllegroTransformer3DModel": ONE_LIST,
    "AnyFlowFARTransformer3DModel": WAN,
    "AnyFlowTransformer3DModel": WAN,
    "ChronoEditTransformer3DModel": WAN,
    "CogVideoXTransformer3DModel": TWO_STREAMS,
    "ConsisIDTransformer3DModel": (
        *TWO_STREAMS,
        BlockList(
            "perceiver_cross_attention",
            streams=(None,),
            attached_to="transformer_blocks",
            places="cross_attn_interval",
            needs="is_train_face",
        ),
    ),
    "Cosmos3OmniTransformer": (BlockList("layers", "num_hidden_layers", ("text", "video")),),
    "CosmosTransformer3DModel": (
        BlockList(
            "transformer_blocks",
            period=Period(
                "controlnet_block_every_n", "takes the output of a block of the ControlNet", removable=False
            ),
        ),
    ),
    "EasyAnimateTransformer3DModel": (
        BlockList("transformer_blocks", streams=VIDEO_AND_TEXT, leading=("mmdit_layers",)),
    ),
    "HeliosTransformer3DModel": WAN,
    "HunyuanVideo15Transformer3DModel": TWO_STREAMS,
    "HunyuanVideoFramepackTransformer3DModel": DUAL_AND_SINGLE,
    "HunyuanVideoTransformer3DModel": DUAL_AND_SINGLE,
    "JoyImageEditPlusTransformer3DModel": (BlockList("double_blocks", streams=VIDEO_AND_TEXT),),
    "JoyImageEditTransformer3DModel": (BlockList("double_blocks", streams=VIDEO_AND_TEXT),),
    "Kandinsky5Transformer3DModel": (
        BlockList("text_transformer_blocks", "num_text_blocks", ("text",), chain="text"),
        BlockList("visual_transformer_blocks", "num_visual_blocks"),
    ),
    "Kandinsky6SRTransformer3DModel": (BlockList("visual_transformer_blocks", "num_visual_blocks"),),
    "Kandinsky6Transformer3DModel": (
        BlockList("video_text_transformer_blocks", "num_text_blocks", ("text",), chain="text"),
        BlockList("audio_text_transformer_blocks", "num_text_blocks", ("text",), chain="text for audio"),
        BlockList("visual_transformer_blocks", "num_visual_blocks", ("video", "audio")),
    ),
    "LTX2VideoTransformer3DModel": (BlockList("transformer_blocks", streams=("video", "audio")),),
    "LTXVideoTransformer3DModel": ONE_LIST,
    "LatteTransformer3DModel": (  # spatial and temporal blocks alternate; a pair of them is compared as a whole
        BlockList("transformer_blocks", streams=(None,)),
        BlockList("temporal_transformer_blocks", attached_to="transformer_blocks"),
    ),
    "MiniMaxH3Transformer3DModel": (BlockList("transformer_blocks", streams=("all tokens",)),),
    "MochiTransformer3DModel": (  # the last block leaves the text as it is
        BlockList("transformer_blocks", streams=VIDEO_AND_TEXT, never_remove=(-1,)),
    ),
    "MotifVideoTransformer3DModel": (  # the decoder starts from the embedded video again, beside the encoder's output
        BlockList("transformer_blocks", streams=VIDEO_AND_TEXT),
        BlockList(
            "single_transformer_blocks",
            "num_single_layers",
            VIDEO_AND_TEXT,
            trailing="num_decoder_layers",
            trailing_streams=("video", "encoded video"),
        ),
    ),
    "SanaVideoTransformer3DModel": ONE_LIST,
    "SanaWMLTX2RefinerTransformer3DModel": ONE_LIST,
    "SanaWMTransformer3DModel": (
        BlockList(
            "blocks",
            leading=("chunk_plucker_post_attn_blocks",),
            period=Period("softmax_every_n", "has softmax attention", last=True),
        ),
    ),
    "SkyReelsV2Transformer3DModel": WAN,
    "WanAnimate2Transformer3DModel": (BlockList("blocks", in_place=(9,)),),  # left out where guidance is unconditional
    "WanAnimateTransformer3DModel": (
        BlockList("blocks"),
        BlockList("face_adapter", streams=(None,), attached_to="blocks", places="inject_face_latents_blocks"),
    ),
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": (
        BlockList("blocks"),
        BlockList(
            "vace_blocks",
            "vace_layers",
            (None, "control"),
            chain="control",
            attached_to="blocks",
            places="vace_layers",
            never_remove=(0,),  # it alone takes the control's embedding
        ),
    ),
}

# Config fields of guiders, which are components of some pipelines, that name a transformer's blocks by their index.
GUIDER_FIELDS = (
    "auto_guidance_config",
    "auto_guidance_layers",
    "perturbed_guidance_config",
    "perturbed_guidance_layers",
    "seg_guidance_config",
    "seg_guidance_layers",
    "skip_layer_config",
    "skip_layer_guidance_layers",
)

# Classes that look like video transformers and are not pruned.
NOT_PRUNED = {
    "StableAudio3DiTModel": "It makes audio; the `3D` of its name is that of StableAudio 3 and DiT.",
}
