"""Command-line arguments about training videos, for transformers' `HfArgumentParser`."""

from dataclasses import dataclass, field
from typing import ClassVar


# Bounds of the whole-number settings: (least, most). The upper bounds catch slips such as pixels given as frames
# before memory is taken; nothing that a video model is trained on comes near them.
BOUNDS = {
    "num_frames": (1, 4096),
    "height": (16, 8192),  # as large as a source video may be
    "width": (16, 8192),
    "fps": (1, 1000),
    "motion_bucket_id": (0, 10_000),
    "max_train_samples": (1, None),
    "shuffle_buffer_size": (1, None),
    "dataloader_num_workers": (0, 1024),
}


@dataclass
class VideoDataArguments:
    """Where the training videos are, and what a clip is. The defaults are those of VDMini-I2V.

    Raises:
        ValueError: if a value makes no sense, or not exactly one source of training data is named.
    """

    help_part: ClassVar[str] = "data"
    needs_captions: ClassVar[bool] = False  # whether a video without a caption is of no use

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Dataset on the Hub, of which `datasets.load_dataset` gives the split `train`. A local folder is "
            "read as --train_data_dir is, unless dataset_config_name or train_data_dir is given as well."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with one of: a CSV file of paths and captions (as OpenVid-1M, section 4.1) with the "
            "videos beside it or in subfolders; parquet files with the videos' bytes or paths; WebDataset tars; or "
            "videos (.mp4, .webm, .mkv, .mov, .avi, .ts and so on) in any subfolders, with captions in "
            "metadata.jsonl, metadata.csv or metadata.parquet, or in clip.txt beside clip.mp4. Where there are "
            "several CSV files, give the file itself. Parquet files and tars of other splits (named "
            "validation-*, test-* and so on, or in a folder of that name) are not read if there is a train "
            "split; a folder of videos is taken to be divided in splits only if it consists of folders such as "
            "train/, validation/ and test/. Every file that is left out is listed with the reason. With "
            "dataset_name: the folder of the videos that the dataset names by path."
        },
    )
    precomputed_data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder written by training/precompute_latents.py, which is read instead of videos."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder in which `datasets` keeps downloads and its tables."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read the data in order as it comes, without a copy in the cache."}
    )
    video_column: str | None = field(
        default=None,
        metadata={"help": "Column of the videos. By default the one of type Video, or the one named `video`."},
    )
    caption_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the captions. By default the first there is of `caption`, `text`, `txt`, `prompt` and "
            "`description`. If there is none, videos have no captions, which is an error for text to video."
        },
    )
    num_frames: int = field(default=14, metadata={"help": "Frames of a clip (SVD and SF-V: 14)."})
    height: int = field(default=448, metadata={"help": "Height of a clip in pixels (section 4.2)."})
    width: int = field(default=576, metadata={"help": "Width of a clip in pixels (section 4.2)."})
    fps: int = field(default=7, metadata={"help": "Frames per second of a clip (SVD and SF-V: 7)."})
    motion_bucket_id: int = field(default=127, metadata={"help": "Motion bucket given to all clips (SVD: 127)."})
    center_crop: bool = field(
        default=False, metadata={"help": "Crop at the centre. By default the place is drawn at random."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use at most this many samples, the first ones."}
    )
    shuffle_buffer_size: int = field(
        default=100,
        metadata={"help": "Streaming: number of samples (with their bytes) in memory, from which the next is drawn."},
    )
    dataloader_num_workers: int = field(
        default=0,
        metadata={"help": "Number of workers that decode videos. Streaming uses at most one for each data file."},
    )

    def __post_init__(self) -> None:
        sources = [self.dataset_name or self.train_data_dir, self.precomputed_data_dir]
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "Training data comes from videos (--dataset_name or --train_data_dir) or from precomputed latents "
                f"(--precomputed_data_dir), one of the two; got {self.dataset_name=}, {self.train_data_dir=}, "
                f"{self.precomputed_data_dir=}.".replace("self.", "")
            )
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if value is None and name == "max_train_samples":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"--{name} must be a whole number; got {value!r}.")
            if value < least:
                raise ValueError(f"--{name} must be at least {least}; got {value}.")
            if most is not None and value > most:
                raise ValueError(f"--{name} must be at most {most}; got {value}.")


@dataclass
class TextToVideoDataArguments(VideoDataArguments):
    """The same for text to video, with the defaults of VDMini-T2V. Videos without a caption are not used."""

    needs_captions: ClassVar[bool] = True

    num_frames: int = field(default=16, metadata={"help": "Frames of a clip (T2V-Turbo-v2: 16)."})
    height: int = field(default=320, metadata={"help": "Height of a clip in pixels (section 4.2)."})
    width: int = field(default=512, metadata={"help": "Width of a clip in pixels (section 4.2)."})
    fps: int = field(default=8, metadata={"help": "Frames per second of a clip (T2V-Turbo-v2: 8)."})


@dataclass
class TransformerDataArguments(TextToVideoDataArguments):
    """The same for transformers, with the size to which FastVideo preprocesses for HunyuanVideo."""

    num_frames: int = field(
        default=93, metadata={"help": "Frames of a clip (FastVideo: 93): one more than what the VAE packs into one."}
    )
    height: int = field(default=480, metadata={"help": "Height of a clip in pixels (FastVideo: 480)."})
    width: int = field(default=848, metadata={"help": "Width of a clip in pixels (FastVideo: 848)."})
    fps: int = field(default=24, metadata={"help": "Frames per second of a clip (FastVideo: 24)."})
