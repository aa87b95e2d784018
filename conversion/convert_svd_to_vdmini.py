"""Prune a Stable Video Diffusion pipeline to VDMini-I2V (paper, section 3.2).

    python conversion/convert_svd_to_vdmini.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid --variant fp16 \
        --output_dir vdmini-i2v-pruned
"""

from functools import partial

from vdmini_diffusers.cli.prune_command import prune_command
from vdmini_diffusers.cli.script import run
from vdmini_diffusers.families.svd import SVD


if __name__ == "__main__":
    run(partial(prune_command, "Prune Stable Video Diffusion to VDMini-I2V.", SVD))
