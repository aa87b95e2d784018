"""Prune a Stable Video Diffusion pipeline to VDMini-I2V (paper, section 3.2).

    python conversion/convert_svd_to_vdmini.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid --variant fp16 \
        --output_dir vdmini-i2v
"""

from vdmini_diffusers.prune_command import prune_command
from vdmini_diffusers.prune_pipeline import prune_svd_pipeline, survey_svd_pipeline


if __name__ == "__main__":
    prune_command("Prune Stable Video Diffusion to VDMini-I2V.", survey_svd_pipeline, prune_svd_pipeline)
