"""Prune the transformer of a video pipeline: HunyuanVideo's to VDMini-T2V-HY (paper, appendix D), Wan's, and others.

    python conversion/prune_video_transformer.py \
        --pretrained_model_name_or_path hunyuanvideo-community/HunyuanVideo --output_dir vdmini-t2v-hy-pruned

From the Hub, only what is kept is fetched. A call that was interrupted goes on where it was.
"""

from functools import partial

from vdmini_diffusers.cli.prune_command import prune_command
from vdmini_diffusers.cli.script import run


if __name__ == "__main__":
    run(partial(prune_command, "Prune the transformer of a video pipeline."))
