#!/usr/bin/env python
"""Clips and captions of the demo's held-out scenes, for tools that take a folder of videos or a file of prompts.

    pip install -e '.[teacher]'
    python benchmarks/write_demo_clips.py --output_dir outputs/demo_clips

Writes `videos/` with one MP4 a clip, and `prompts.txt` with a caption a line. Scenes of image to video leave open by
their first frame which way things go; those of text to video are what their captions say.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.video_writing import write_video
from vdmini_diffusers.demo.measures import HeldOutImages, HeldOutPrompts
from vdmini_diffusers.serialization.atomic import write_file


FPS = 7


@dataclass
class Arguments:
    output_dir: Path = field(default=Path("outputs/demo_clips"), metadata={"help": "Where they go."})
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Whose held-out scenes."})
    num_clips: int = field(default=24, metadata={"help": "How many."})
    seed: int = field(default=2, metadata={"help": "Other seeds are other scenes; benchmarks measure on 0 and 1."})

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ValueError(f"`--num_clips` is 1 at least, not {self.num_clips}.")


def main(args: Arguments) -> None:
    scenes = (HeldOutImages if args.task == "i2v" else HeldOutPrompts)(args.num_clips, args.seed)
    videos = args.output_dir / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    for i, clip in enumerate(scenes.real.frames):
        write_video(clip, videos / f"{i:04}.mp4", FPS)
    write_file(args.output_dir / "prompts.txt", "".join(f"{caption}\n" for caption in scenes.captions).encode())
    print(f"{len(scenes.captions)} clips: {videos}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
