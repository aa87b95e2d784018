"""Training of a demo teacher: its settings, and what both kinds share. `training/train_demo_teacher.py` starts it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import set_seed

from vdmini_diffusers.demo.resumable_training import Deadline, cached_rows, train_steps
from vdmini_diffusers.demo.run_results import keep_settings
from vdmini_diffusers.demo.scenes import NUM_FRAMES, SIZE, draw_captioned_clip, draw_hidden_clip
from vdmini_diffusers.demo.vae_training import crops, reconstruction_loss, runs_of_frames, to_tensor


NOISE_AUG_STRENGTH = 0.02  # SVD's default
# The settings that may change between runs in one folder.
FREE = ("output_dir", "seconds", "num_workers", "mixed_precision", "compile")


@dataclass
class TeacherTrainingArguments:
    output_dir: Path = field(metadata={"help": "Where the state of each stage and the finished pipeline go."})
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})
    seconds: float | None = field(default=None, metadata={"help": "Time for this run; by default until all is done."})
    seed: int = field(default=0, metadata={"help": "Seeds the weights, the clips and the noise."})
    vae: Path | None = field(
        default=None,
        metadata={
            "help": "--task i2v: folder of a trained VAE of this kind, e.g. vdmini_diffusers/demo/i2v_teacher/vae; by"
            " default one is trained."
        },
    )
    small_vae_steps: int = field(default=2400, metadata={"help": "Optimiser steps of the VAE of three stages."})
    num_feature_clips: int = field(default=1800, metadata={"help": "Clips whose features train the fourth stage."})
    inner_steps: int = field(default=4000, metadata={"help": "Optimiser steps of the fourth stage on features."})
    inner_learning_rate: float = field(default=1.5e-3, metadata={"help": "Its peak learning rate."})
    image_to_video_teacher: Path | None = field(
        default=None, metadata={"help": "--task t2v: pipeline folder of --task i2v, whose VAE is adapted."}
    )
    decoder_steps: int = field(default=400, metadata={"help": "Optimiser steps of the VAE's decoder, at last."})
    vae_learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of a VAE on pixels."})
    vae_batch_size: int = field(default=16, metadata={"help": "Frames per step of a VAE, a multiple of 4."})
    num_clips: int = field(default=4096, metadata={"help": "Clips whose latents the U-Net is trained on."})
    unet_steps: int = field(default=4000, metadata={"help": "Optimiser steps of the U-Net and its encoder."})
    unet_learning_rate: float = field(default=1e-3, metadata={"help": "Their peak learning rate."})
    train_batch_size: int = field(default=8, metadata={"help": "Clips per step."})
    image_share: float = field(
        default=0.3, metadata={"help": "Share of the steps of --task t2v, at first, that see single frames."}
    )
    conditioning_dropout_prob: float = field(default=0.05, metadata={"help": "Share of clips without condition."})
    num_pairs: int = field(default=1536, metadata={"help": "Pairs of noise and sample (--task i2v)."})
    num_pair_steps: int = field(default=16, metadata={"help": "Sampling steps of each."})
    one_step_steps: int = field(default=1500, metadata={"help": "Optimiser steps of the one-step U-Net."})
    one_step_learning_rate: float = field(default=5e-4, metadata={"help": "Its peak learning rate."})
    ema_decay: float = field(default=0.998, metadata={"help": "Decay rate of the average of the U-Nets' weights."})
    num_workers: int = field(default=0, metadata={"help": "Processes that draw clips."})
    mixed_precision: bool = field(default=True, metadata={"help": "Autocast to bfloat16."})
    compile: bool = field(default=False, metadata={"help": "Compile the networks; worth it on a GPU."})

    def __post_init__(self) -> None:
        if self.task == "t2v" and self.image_to_video_teacher is None:
            raise ValueError("`--task t2v` needs `--image_to_video_teacher`, whose VAE it adapts.")


def draw_either(rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A clip for a VAE of both tasks."""
    return draw_hidden_clip(rng) if rng.random() < 0.7 else draw_captioned_clip(rng)


class DrawnClips(Dataset):
    """Drawn clips with captions; the same index gives the same clip."""

    def __init__(self, draw: Callable[[np.random.Generator], tuple[np.ndarray, str]], num_clips: int, seed: int):
        self.draw, self.num_clips, self.seed = draw, num_clips, seed

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.draw(np.random.default_rng((self.seed, index)))


class TeacherTraining:
    """What both kinds of teacher share: device, precision, and the latents of clips.

    Raises:
        ValueError: if it is made for a folder that was begun with other settings, for which its states are.
    """

    def __init__(self, args: TeacherTrainingArguments):
        self.args = args
        self.deadline = Deadline(args.seconds)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae: Any = None
        keep_settings(args.output_dir, {name: value for name, value in asdict(args).items() if name not in FREE})
        set_seed(args.seed)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.mixed_precision)

    def prepared(self, network: Any) -> Any:
        if self.device.type == "cpu" and hasattr(network, "set_attn_processor"):
            network.set_attn_processor(AttnProcessor())  # a fifth of a step faster than the products of PyTorch's own
        if self.args.compile:
            network.compile()
        return network.to(self.device)

    def tune_vae(self, name: str, vae: Any, num_steps: int, learning_rate: float, whole_from: float) -> None:
        """On pixels: on quarters of frames at first, which are varied and cheap, from a share of the steps on whole
        frames, four in a row."""
        args = self.args
        draw = draw_either if args.task == "i2v" else draw_captioned_clip

        def loss_at(step: int) -> Tensor:
            rng = np.random.default_rng((args.seed, 1, step, num_steps))
            whole = step >= whole_from * num_steps
            clips = [draw(rng)[0] for _ in range(args.vae_batch_size // 4)]
            frames = runs_of_frames(clips, rng) if whole else crops(clips, rng, SIZE // 2)
            pixels = to_tensor(frames).to(self.device)
            return reconstruction_loss(vae, pixels, 4 if whole else 1, self.autocast())

        train_steps(
            args.output_dir / f"{name}.pt",
            {"vae": vae},
            loss_at,
            num_steps=num_steps,
            learning_rate=learning_rate,
            deadline=self.deadline,
        )

    def tune_decoder(self) -> None:
        """On whole frames, last of all: latents depend on the encoder only."""
        self.vae.decoder.requires_grad_(True)
        self.tune_vae("decoder", self.vae, self.args.decoder_steps, self.args.vae_learning_rate, whole_from=0.0)
        self.vae.requires_grad_(False)

    def encode(self, pixels: Tensor) -> Tensor:
        """Unscaled means of frames `(n, 3, height, width)`, float32 on the CPU."""
        with torch.no_grad(), self.autocast():
            return self.vae.encode(pixels.to(self.device)).latent_dist.mean.float().cpu()

    def cache_latents(self) -> dict[str, Any]:
        """`latents` `(clips, frames, channels, height, width)`, unscaled and in half precision; `captions`; for image
        to video also `image_latents`, of noised first frames, and `first_frames`, uint8."""
        return cached_rows(
            self.args.output_dir / "latents", self.args.num_clips, self.latents_of, deadline=self.deadline
        )

    def latents_of(self, parts: Sequence[range]) -> Iterator[dict[str, Any]]:
        """Those of each part of the clips."""
        args = self.args
        draw = draw_hidden_clip if args.task == "i2v" else draw_captioned_clip
        clips = Subset(DrawnClips(draw, args.num_clips, args.seed), [row for part in parts for row in part])
        drawn = iter(DataLoader(clips, batch_size=None, num_workers=args.num_workers))
        for part in parts:
            columns: dict[str, list[Any]] = {"latents": [], "captions": []}
            for row in part:
                frames, caption = next(drawn)
                frames = np.asarray(frames)
                columns["captions"].append(caption)
                pixels = to_tensor(frames)
                if args.task == "i2v":
                    noise = torch.randn(pixels[:1].shape, generator=torch.Generator().manual_seed(args.seed + row))
                    pixels = torch.cat([pixels, pixels[:1] + NOISE_AUG_STRENGTH * noise])
                means = self.encode(pixels).half()
                columns["latents"].append(means[:NUM_FRAMES])
                if args.task == "i2v":
                    columns.setdefault("image_latents", []).append(means[-1])
                    columns.setdefault("first_frames", []).append(torch.from_numpy(frames[0]))
            yield {name: column if name == "captions" else torch.stack(column) for name, column in columns.items()}

    def set_scaling_factor(self, latents: dict[str, Any]) -> None:
        """Latents get unit variance, as the scheduler assumes. The VAE has the factor, as every one of diffusers."""
        self.vae.register_to_config(scaling_factor=1 / latents["latents"].float().std().item())
