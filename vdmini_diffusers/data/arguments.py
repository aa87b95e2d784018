"""Command-line arguments about training videos, for transformers' `HfArgumentParser`."""

from dataclasses import dataclass, field


@dataclass
class VideoDataArguments:
    """Where the videos are and what a clip is. The defaults are those of VDMini-I2V.

    Raises `ValueError` when made with values that cannot be meant.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub, or a local folder that `datasets.load_dataset` takes."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub dataset."})
    train_data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with one of: videos (`videofolder`, captions in metadata.jsonl); parquet files with the "
            "videos' bytes; WebDataset tars; a CSV file of paths and captions (as OpenVid-1M, section 4.1) with the "
            "videos beside it or in subfolders. Or the CSV file itself, where there are several. With dataset_name: "
            "the folder of the videos that the dataset names by path."
        },
    )
    precomputed_data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder written by training/precompute_latents.py, read instead of videos."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where `datasets` keeps downloads and its tables."})
    streaming: bool = field(
        default=False, metadata={"help": "Read the data in order as it comes, without a copy in the cache."}
    )
    video_column: str | None = field(
        default=None, metadata={"help": "Column of the videos. By default the one of type Video, or named `video`."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={"help": "Column of the captions. By default `caption`, `text` or `txt`; if there is none, no text."},
    )
    num_frames: int = field(default=14, metadata={"help": "Frames of a clip (SVD and SF-V: 14)."})
    height: int = field(default=448, metadata={"help": "Height of a clip in pixels (section 4.2)."})
    width: int = field(default=576, metadata={"help": "Width of a clip in pixels (section 4.2)."})
    fps: int = field(default=7, metadata={"help": "Frames per second of a clip (SVD and SF-V: 7)."})
    motion_bucket_id: int = field(default=127, metadata={"help": "Motion bucket given to all clips (SVD: 127)."})
    center_crop: bool = field(default=False, metadata={"help": "Crop at the centre. By default at random."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many samples only."})
    shuffle_buffer_size: int = field(
        default=100, metadata={"help": "Streaming: samples (with their bytes) in memory, out of which one is drawn."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Workers that decode videos. Streaming uses at most one for each data file."}
    )

    def __post_init__(self) -> None:
        sources = [self.dataset_name or self.train_data_dir, self.precomputed_data_dir]
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "Training data comes from videos (--dataset_name or --train_data_dir) or from precomputed latents "
                f"(--precomputed_data_dir), one of the two; got {self.dataset_name=}, {self.train_data_dir=}, "
                f"{self.precomputed_data_dir=}.".replace("self.", "")
            )
        least = {"num_frames": 1, "height": 16, "width": 16, "fps": 1, "motion_bucket_id": 0}
        least |= {"max_train_samples": 1, "shuffle_buffer_size": 1, "dataloader_num_workers": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"--{name} must be at least {minimum}; got {value}.")


@dataclass
class TextToVideoDataArguments(VideoDataArguments):
    num_frames: int = field(default=16, metadata={"help": "Frames of a clip (T2V-Turbo-v2: 16)."})
    height: int = field(default=320, metadata={"help": "Height of a clip in pixels (section 4.2)."})
    width: int = field(default=512, metadata={"help": "Width of a clip in pixels (section 4.2)."})
    fps: int = field(default=8, metadata={"help": "Frames per second of a clip (T2V-Turbo-v2: 8)."})
