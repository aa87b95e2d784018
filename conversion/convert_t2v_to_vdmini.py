"""Prune a text-to-video pipeline to VDMini-T2V (paper, section 3.2): T2V-Turbo's, VideoCrafter2's or ModelScope's.

    python conversion/convert_t2v_to_vdmini.py \
        --pretrained_model_name_or_path t2v-turbo-v2 --output_dir vdmini-t2v-pruned

T2V-Turbo's and VideoCrafter2's own files are converted first, by `conversion/convert_t2v_turbo_to_diffusers.py`.
"""

from functools import partial

from vdmini_diffusers.cli.prune_command import prune_command
from vdmini_diffusers.cli.script import run
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER


if __name__ == "__main__":
    run(partial(prune_command, "Prune a text-to-video pipeline to VDMini-T2V.", VIDEOCRAFTER))
