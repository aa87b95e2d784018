#!/usr/bin/env python
"""Train a small teacher like those that ship with the package, from nothing, on a CPU or a GPU.

    python training/train_demo_teacher.py --task i2v --output_dir outputs/i2v_teacher --seconds 3600
    python training/train_demo_teacher.py --task t2v --image_to_video_teacher outputs/i2v_teacher/pipeline \\
        --output_dir outputs/t2v_teacher --seconds 3600

Stages, in order: the VAE; the latents of a fixed set of clips; the U-Net with the image or text encoder, by denoising;
for image to video, pairs of a noise and the sample that this multi-step U-Net makes of it, and a one-step U-Net that
learns these pairs; the VAE's decoder a while longer. Each saves its state. When the seconds are over the script ends
with exit status 75: run the same command again, and it goes on. Other settings are refused in the same folder. The
pipeline folder appears in `OUTPUT_DIR/pipeline` when all stages are done: `train_sf_v.py` or `train_t2v_turbo.py`
continues from it. Data: `vdmini_diffusers.demo.scenes` (extra `teacher`).
"""

import logging
import sys

from vdmini_diffusers.cli.script import OUT_OF_TIME, parse_arguments, run
from vdmini_diffusers.demo.image_to_video_training import ImageToVideoTraining
from vdmini_diffusers.demo.resumable_training import OutOfTimeError
from vdmini_diffusers.demo.teacher_training import TeacherTrainingArguments
from vdmini_diffusers.demo.text_to_video_training import TextToVideoTraining


logger = logging.getLogger(__name__)


def main(args: TeacherTrainingArguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        {"i2v": ImageToVideoTraining, "t2v": TextToVideoTraining}[args.task](args).train()
    except OutOfTimeError:
        logger.info("The time is over; the same command goes on from here.")
        sys.exit(OUT_OF_TIME)
    logger.info("saved %s", args.output_dir / "pipeline")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((TeacherTrainingArguments,), __doc__)))
