"""Prune the decoder of a VAE: layers, then channels (paper, appendix A).

    python conversion/prune_vae_decoder.py \
        --pretrained_model_name_or_path stabilityai/stable-video-diffusion-img2vid --variant fp16 \
        --output_dir vdmini-vae
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from vdmini_diffusers.cli.prune_command import FolderArguments, print_command, print_parameters, print_survey
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.data.arguments import VideoDataArguments
from vdmini_diffusers.data.skipped_videos import SkipLog
from vdmini_diffusers.data.video_dataset import VideoDataset, load_video_dataset
from vdmini_diffusers.pruning import DECODER_PLANS
from vdmini_diffusers.pruning.dependency_graph import Importance
from vdmini_diffusers.pruning.prune_vae_decoder import prune_vae_decoder, survey_vae_decoder
from vdmini_diffusers.serialization.atomic import check_apart
from vdmini_diffusers.serialization.repository import push_folder


@dataclass
class PruningArguments:
    pretrained_model_name_or_path: str = field(
        metadata={"help": "The teacher: a folder with a VAE, or its id on the Hub."}
    )
    output_dir: str = field(metadata={"help": "The folder of the pruned VAE. It must not exist yet."})
    plan: str = field(
        default="p1",
        metadata={"help": f"What to keep: one of {', '.join(DECODER_PLANS)}, or a JSON file with a plan."},
    )
    importance: Importance = field(
        default="l2",
        metadata={"help": "Importance of channels: l2 (norm of weights), or taylor (effect on reconstructed clips)."},
    )
    train_data_dir: str | None = field(default=None, metadata={"help": "Folder of videos, for taylor."})
    num_clips: int = field(default=8, metadata={"help": "Number of videos to take a clip from."})
    num_frames: int = field(default=14, metadata={"help": "Frames of a clip."})
    height: int = field(default=448, metadata={"help": "Height of a clip in pixels."})
    width: int = field(default=576, metadata={"help": "Width of a clip in pixels."})
    subfolder: str = field(default="vae", metadata={"help": "Subfolder of the VAE. Empty if the VAE lies at the top."})


def main(args: PruningArguments, files: FolderArguments) -> None:
    if files.dry_run:
        survey = survey_vae_decoder(
            args.pretrained_model_name_or_path, args.plan, subfolder=args.subfolder, revision=files.revision
        )
        print_survey(survey, "'s decoder")
        return
    check_apart(args.output_dir, {"the folder of videos": args.train_data_dir})
    files.check_push(args.output_dir)
    folder = prune_vae_decoder(
        args.pretrained_model_name_or_path,
        args.output_dir,
        plan=args.plan,
        importance=args.importance,
        clips=clips(args) if args.train_data_dir else (),
        subfolder=args.subfolder,
        variant=files.variant,
        revision=files.revision,
        max_shard_size=files.max_shard_size,
        overwrite=files.overwrite,
        allow_pickle=files.allow_pickle,
    )
    print_parameters(folder, "decoder")
    print(f"The VAE is in {folder}; its README.md shows how to open it. The next step is training its decoder:")
    print_command(
        "accelerate launch training/train_vae_decoder.py",
        pretrained_vae_model_name_or_path=args.output_dir,
        pretrained_teacher_model_name_or_path=args.pretrained_model_name_or_path,
        variant=files.variant,
        teacher_variant=files.variant,
        train_data_dir="FOLDER_OF_VIDEOS",
        output_dir=f"{args.output_dir}-trained",
    )
    if files.push_to_hub:
        repository = push_folder(folder, files.hub_model_id, "VDMini VAE")
        print(f"It is on the Hub as {repository}.")


def clips(args: PruningArguments) -> Iterator[Tensor]:
    """Clips `(frames, 3, height, width)`, -1 to 1."""
    data_args = VideoDataArguments(
        train_data_dir=args.train_data_dir,
        num_frames=args.num_frames,
        height=args.height,
        width=args.width,
        max_train_samples=args.num_clips,
    )
    with tempfile.TemporaryDirectory() as skipped:
        dataset = load_video_dataset(data_args, SkipLog(skipped))
        assert isinstance(dataset, VideoDataset)  # `streaming` was not asked for
        for i in range(len(dataset)):
            yield dataset[i]["pixel_values"]


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((PruningArguments, FolderArguments))))
