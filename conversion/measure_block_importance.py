"""Measure which parts of a video diffusion model matter: the paper's Figures 1a, A4 and A6.

One part of the denoiser after the other is removed, videos are made without it from the same inputs and the same
noise, and these are scored. Nothing is trained. The same command goes on where it was stopped, and several processes
share the parts:

    python conversion/measure_block_importance.py \\
        --pretrained_model_name_or_path vdmini_diffusers/demo/i2v_teacher \\
        --real_videos FOLDER_OF_VIDEOS --num_videos 64 --fvd --output_dir outputs/importance
    accelerate launch --num_processes 4 conversion/measure_block_importance.py ...

`output_dir` then holds `importance.json` and `importance.csv`, a plot of each score, and the first and last frames.
"""

from vdmini_diffusers.cli.importance_command import ImportanceArguments, importance_command
from vdmini_diffusers.cli.script import parse_arguments, run


if __name__ == "__main__":
    run(lambda: importance_command(*parse_arguments([ImportanceArguments], __doc__)))
