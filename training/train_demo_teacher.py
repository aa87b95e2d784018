#!/usr/bin/env python
"""Train a small teacher like those that ship with the package, from nothing, on a CPU or a GPU.

    python training/train_demo_teacher.py --task i2v --output_dir outputs/i2v_teacher --seconds 3600
    python training/train_demo_teacher.py --task t2v --image_to_video_teacher outputs/i2v_teacher/pipeline \\
        --output_dir outputs/t2v_teacher --seconds 3600

Stages, in order: the VAE; the latents of a fixed set of clips; the U-Net with the image or text encoder, by denoising;
for image to video, pairs of a noise and the sample that this multi-step U-Net makes of it, and a one-step U-Net that
learns these pairs; the VAE's decoder a while longer. Each saves its state. When the seconds are over the script ends;
the same command goes on. The pipeline folder appears in `OUTPUT_DIR/pipeline` when all stages are done:
`train_sf_v.py` or `train_t2v_turbo.py` continues from it. Data: `vdmini_diffusers.demo.scenes` (extra `teacher`).
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, StableVideoDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPImageProcessor, CLIPTokenizer, set_seed

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo import networks
from vdmini_diffusers.demo.resumable_training import (
    Deadline,
    OutOfTimeError,
    quick_attention,
    train_steps,
    write_tensors,
)
from vdmini_diffusers.demo.scenes import (
    NUM_FRAMES,
    SIZE,
    all_captioned_scenes,
    draw_captioned_clip,
    draw_hidden_clip,
)
from vdmini_diffusers.demo.teachers import MULTI_STEP
from vdmini_diffusers.demo.vae_training import (
    InnerStage,
    crops,
    feature_loss,
    features_of,
    reconstruction_loss,
    runs_of_frames,
    to_tensor,
)
from vdmini_diffusers.distillation.losses import pseudo_huber_loss
from vdmini_diffusers.distillation.noise import SIGMA_MAX, edm_coefficients, per_sample
from vdmini_diffusers.pipelines import VDMiniT2VPipeline
from vdmini_diffusers.serialization.atomic import write_file


logger = logging.getLogger(__name__)

I2V_FPS, T2V_FPS = 7, 8  # the defaults of SVD's and T2V-Turbo's pipelines
MOTION_BUCKET_ID, NOISE_AUG_STRENGTH = 127, 0.02  # SVD's defaults
# Timesteps are drawn as Stable Diffusion 3 shifts its noise levels: what moves which way is settled at the high ones.
TIMESTEP_SHIFT = 3.0
PAIRS_PER_FILE = 64


@dataclass
class Arguments:
    output_dir: Path = field(metadata={"help": "Where the state of each stage and the finished pipeline go."})
    task: Literal["i2v", "t2v"] = field(default="i2v", metadata={"help": "Image or text to video."})
    seconds: float | None = field(default=None, metadata={"help": "Time for this run; by default until all is done."})
    seed: int = field(default=0, metadata={"help": "Seeds the weights, the clips and the noise."})
    small_vae: Path | None = field(
        default=None, metadata={"help": "--task i2v: a VAE of three stages to start from; by default one is trained."}
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


class Clips(Dataset):
    """Drawn clips with captions; the same index gives the same clip."""

    def __init__(self, draw: Callable[[np.random.Generator], tuple[np.ndarray, str]], num_clips: int, seed: int):
        self.draw, self.num_clips, self.seed = draw, num_clips, seed

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        return self.draw(np.random.default_rng((self.seed, index)))


class Teacher:
    """What both kinds of teacher share: device, precision, and the latents of clips."""

    def __init__(self, args: Arguments):
        self.args = args
        self.deadline = Deadline(args.seconds)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae: Any = None
        set_seed(args.seed)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.mixed_precision)

    def prepared(self, network: nn.Module) -> Any:
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
        path = self.args.output_dir / "latents.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        args = self.args
        draw = draw_hidden_clip if args.task == "i2v" else draw_captioned_clip
        loader = DataLoader(Clips(draw, args.num_clips, args.seed), batch_size=None, num_workers=args.num_workers)
        rows: dict[str, list[Any]] = {"latents": [], "captions": []}
        generator = torch.Generator().manual_seed(args.seed)
        for frames, caption in tqdm(loader, desc="latents", unit="clip"):
            frames = np.asarray(frames)
            rows["captions"].append(caption)
            pixels = to_tensor(frames)
            if args.task == "i2v":
                noise = torch.randn(pixels[:1].shape, generator=generator)
                pixels = torch.cat([pixels, pixels[:1] + NOISE_AUG_STRENGTH * noise])
            means = self.encode(pixels).half()
            rows["latents"].append(means[:NUM_FRAMES])
            if args.task == "i2v":
                rows.setdefault("image_latents", []).append(means[-1])
                rows.setdefault("first_frames", []).append(torch.from_numpy(frames[0]))
            self.deadline.check()
        latents = {name: torch.stack(row) if isinstance(row[0], Tensor) else row for name, row in rows.items()}
        write_tensors(latents, path)
        return latents


class ImageToVideo(Teacher):
    """SVD's kind, and a one-step U-Net made of it."""

    def train(self) -> None:
        args = self.args
        self.train_vae()
        latents = self.cache_latents()
        # Latents of unit variance, as the scheduler assumes; the factor is the VAE's own, as in every diffusers VAE.
        self.scaling_factor = 1 / latents["latents"].float().std().item()
        self.vae.register_to_config(scaling_factor=self.scaling_factor)
        set_seed(args.seed)
        unet = self.prepared(networks.build_i2v_unet())
        self.image_encoder = self.prepared(networks.build_image_encoder())
        self.train_multi_step(unet, latents)
        self.image_encoder.requires_grad_(False)
        self.save_multi_step(unet)
        pairs = self.cache_pairs(unet, latents)
        self.train_one_step(unet, latents, pairs)
        self.tune_decoder()
        self.save(unet)

    def train_vae(self) -> None:
        """A VAE of a stage less, then the stage inside it on its features (see `demo.vae_training`)."""
        args = self.args
        small: Any = networks.build_i2v_vae(networks.NUM_VAE_STAGES - 1)
        small.to(self.device)
        if args.small_vae is None:
            self.tune_vae("small_vae", small, args.small_vae_steps, args.vae_learning_rate, whole_from=0.75)
        else:
            small = AutoencoderKLTemporalDecoder.from_pretrained(args.small_vae, dtype=torch.float32)
        small.to(self.device).eval().requires_grad_(False)
        vae: Any = networks.build_i2v_vae()
        vae.to(self.device)
        networks.grow_vae(vae, small)
        encoded, wanted = self.cache_features(small)
        scale = wanted[:2000].float().std(dim=(0, 2, 3), keepdim=True)

        def loss_at(step: int) -> Tensor:
            rows = torch.randint(len(encoded), (args.vae_batch_size,))
            with self.autocast():
                return feature_loss(
                    inner, encoded[rows].float().to(self.device), wanted[rows].float().to(self.device), scale
                )

        inner = InnerStage(vae)
        train_steps(
            args.output_dir / "vae_inner.pt",
            {"inner": inner},
            loss_at,
            num_steps=args.inner_steps,
            learning_rate=args.inner_learning_rate,
            deadline=self.deadline,
        )
        self.vae = vae.requires_grad_(False)

    def cache_features(self, small: Any) -> tuple[Tensor, Tensor]:
        """`features_of` six frames of each of some clips, in half precision."""
        path = self.args.output_dir / "features.pt"
        if not path.exists():
            rows = []
            for i in tqdm(range(self.args.num_feature_clips), desc="features", unit="clip"):
                rng = np.random.default_rng((self.args.seed, 2, i))
                frames = draw_either(rng)[0][rng.permutation(NUM_FRAMES)[:6]]
                with self.autocast():
                    rows.append([part.half().cpu() for part in features_of(small, to_tensor(frames).to(self.device))])
                self.deadline.check()
            encoded, wanted = (torch.cat(parts) for parts in zip(*rows, strict=True))
            write_tensors({"encoded": encoded, "wanted": wanted}, path)
        features = torch.load(path, weights_only=True)
        return features["encoded"], features["wanted"]

    def condition(self, latents: dict[str, Any], rows: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image latents repeated over the frames, image embeddings, and added time ids; clips without `keep` have no
        image."""
        processor = CLIPImageProcessor()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        first = latents["first_frames"][rows].movedim(-1, -3).float() / 255
        pixel_values = F.interpolate(first, size=(224, 224), mode="bicubic", align_corners=True).clamp(0, 1)
        embeds = self.image_encoder(((pixel_values - mean) / std).to(self.device)).image_embeds
        image_latents = latents["image_latents"][rows].float() * keep.view(-1, 1, 1, 1)
        time_ids = torch.tensor([I2V_FPS - 1.0, MOTION_BUCKET_ID, NOISE_AUG_STRENGTH]).expand(len(rows), 3)
        return (
            image_latents[:, None].expand(-1, NUM_FRAMES, -1, -1, -1).to(self.device),
            (embeds * keep.view(-1, 1).to(self.device))[:, None],
            time_ids.to(self.device),
        )

    def predict(self, unet: Any, noisy: Tensor, sigmas: Tensor, condition: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """`f_theta` of Eq. 2, float32."""
        coefficients = edm_coefficients(sigmas)
        image_latents, embeds, time_ids = condition
        model_input = torch.cat([per_sample(coefficients.in_, noisy) * noisy, image_latents], dim=2)
        return unet(model_input, coefficients.noise.to(self.device), embeds, time_ids, return_dict=False)[0].float()

    def train_multi_step(self, unet: Any, latents: dict[str, Any]) -> None:
        """EDM denoising with SVD's preconditioning; the image encoder learns along, through its one token."""
        args = self.args

        def loss_at(step: int) -> Tensor:
            rows = torch.randint(len(latents["latents"]), (args.train_batch_size,))
            keep = (torch.rand(len(rows)) >= args.conditioning_dropout_prob).float()
            x_0 = (latents["latents"][rows].float() * self.scaling_factor).to(self.device)
            sigmas = sample_sigmas(len(rows))
            noise = torch.randn(x_0.shape).to(self.device)
            noisy = x_0 + per_sample(sigmas, x_0) * noise
            coefficients = edm_coefficients(sigmas)
            target = (x_0 - per_sample(coefficients.skip, x_0) * noisy) / per_sample(coefficients.out, x_0)
            with self.autocast():
                prediction = self.predict(unet, noisy, sigmas, self.condition(latents, rows, keep))
            # On f_theta, plain MSE equals the weight (1 + sigma^2) / sigma^2 on the denoised latents.
            return F.mse_loss(prediction, target)

        train_steps(
            args.output_dir / "unet.pt",
            {"unet": unet, "image_encoder": self.image_encoder},
            loss_at,
            num_steps=args.unet_steps,
            learning_rate=args.unet_learning_rate,
            deadline=self.deadline,
            ema_decay=args.ema_decay,
        )

    @torch.no_grad()
    def cache_pairs(self, unet: Any, latents: dict[str, Any]) -> dict[str, Tensor]:
        """Standard normal `noise`, the scaled `samples` that the U-Net makes of it, and the `rows` of their images."""
        args = self.args
        folder = args.output_dir / "pairs"
        folder.mkdir(exist_ok=True)
        files = [folder / f"{i:05}.pt" for i in range(math.ceil(args.num_pairs / PAIRS_PER_FILE))]
        scheduler: EulerDiscreteScheduler = networks.build_i2v_scheduler()
        for i, file in enumerate(tqdm(files, desc="pairs", unit=f"{PAIRS_PER_FILE} pairs")):
            if file.exists():
                continue
            generator = torch.Generator().manual_seed(args.seed + i)
            rows = torch.randint(len(latents["latents"]), (PAIRS_PER_FILE,), generator=generator)
            noise = torch.randn(PAIRS_PER_FILE, *latents["latents"].shape[1:], generator=generator)
            scheduler.set_timesteps(args.num_pair_steps)
            sample = (noise * scheduler.sigmas[0]).to(self.device)
            with self.autocast(), quick_attention(self.device):
                condition = self.condition(latents, rows, torch.ones(len(rows)))
                for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
                    prediction = self.predict(unet, sample, sigma.expand(len(rows)), condition)
                    sample = scheduler.step(prediction, t, sample, return_dict=False)[0]
            write_tensors({"noise": noise.half(), "samples": sample.half().cpu(), "rows": rows}, file)
            self.deadline.check()
        pairs = [torch.load(file, weights_only=True) for file in files]
        return {name: torch.cat([part[name] for part in pairs]) for name in pairs[0]}

    def train_one_step(self, unet: Any, latents: dict[str, Any], pairs: dict[str, Tensor]) -> None:
        """Go on from the multi-step weights: the sample in one step from its noise, at SVD's highest noise level."""
        args = self.args

        def loss_at(step: int) -> Tensor:
            chosen = torch.randint(len(pairs["rows"]), (args.train_batch_size,))
            noisy = SIGMA_MAX * pairs["noise"][chosen].float().to(self.device)
            samples = pairs["samples"][chosen].float().to(self.device)
            sigmas = torch.full((len(chosen),), SIGMA_MAX)
            coefficients = edm_coefficients(sigmas)
            with self.autocast():
                condition = self.condition(latents, pairs["rows"][chosen], torch.ones(len(chosen)))
                prediction = self.predict(unet, noisy, sigmas, condition)
            denoised = per_sample(coefficients.skip, noisy) * noisy + per_sample(coefficients.out, noisy) * prediction
            return pseudo_huber_loss(denoised, samples)

        train_steps(
            args.output_dir / "one_step.pt",
            {"unet": unet},
            loss_at,
            num_steps=args.one_step_steps,
            learning_rate=args.one_step_learning_rate,
            deadline=self.deadline,
            ema_decay=args.ema_decay,
        )

    def save_multi_step(self, unet: Any) -> None:
        unet.save_pretrained(self.args.output_dir / "pipeline" / "unet", variant=MULTI_STEP)

    def save(self, unet: Any) -> None:
        pipeline = StableVideoDiffusionPipeline(
            vae=self.vae,
            image_encoder=self.image_encoder,
            unet=unet,
            scheduler=networks.build_i2v_scheduler(),
            feature_extractor=CLIPImageProcessor(),
        )
        folder = self.args.output_dir / "pipeline"
        pipeline.save_pretrained(folder)
        # As distillation records what it made a few-step model of, so that critics find the multi-step one.
        origin = {"teacher": ".", "teacher_variant": MULTI_STEP, "student": None}
        write_file(folder / "training.json", (json.dumps(origin, indent=2) + "\n").encode())


class TextToVideo(Teacher):
    """VideoCrafter2's kind."""

    def train(self) -> None:
        args = self.args
        self.train_vae()
        latents = self.cache_latents()
        scaling_factor = 1 / latents["latents"].float().std().item()
        self.vae.register_to_config(scaling_factor=scaling_factor)
        set_seed(args.seed)
        tokenizer = networks.build_tokenizer(scene.caption for scene in all_captioned_scenes())
        unet = self.prepared(networks.build_t2v_unet())
        text_encoder = self.prepared(networks.build_text_encoder(tokenizer))
        self.train_multi_step(unet, text_encoder, tokenizer, latents, scaling_factor)
        self.tune_decoder()
        scheduler: Any = networks.build_t2v_scheduler()
        VDMiniT2VPipeline(
            vae=self.vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler
        ).save_pretrained(args.output_dir / "pipeline")

    def train_vae(self) -> None:
        """The image-to-video teacher's, without layers in time."""
        args = self.args
        assert args.image_to_video_teacher is not None  # Arguments have seen to it
        of_clips = AutoencoderKLTemporalDecoder.from_pretrained(
            args.image_to_video_teacher, subfolder="vae", dtype=torch.float32
        )
        self.vae = networks.frame_by_frame(of_clips)
        self.vae.to(self.device)
        self.vae.requires_grad_(False)

    def train_multi_step(
        self, unet: Any, text_encoder: Any, tokenizer: CLIPTokenizer, latents: dict[str, Any], scaling_factor: float
    ) -> None:
        """Denoising, by v-prediction, of single frames at first and then of clips; the text encoder learns along."""
        args = self.args
        noise_scheduler = networks.build_t2v_scheduler()
        input_ids, no_words = (tokenize(tokenizer, texts) for texts in (latents["captions"], [""]))

        def loss_at(step: int) -> Tensor:
            images = step < args.image_share * args.unet_steps
            rows = torch.randint(len(latents["latents"]), (args.train_batch_size * (NUM_FRAMES if images else 1),))
            x_0 = latents["latents"][rows]
            if images:
                x_0 = x_0[torch.arange(len(rows)), torch.randint(NUM_FRAMES, rows.shape)][:, None]
            x_0 = (x_0.float() * scaling_factor).transpose(1, 2).to(self.device)  # (batch, channels, frames, ...)
            no_condition = torch.rand(len(rows), 1) < args.conditioning_dropout_prob
            ids = torch.where(no_condition, no_words, input_ids[rows]).to(self.device)
            share = torch.rand(len(rows))
            share = TIMESTEP_SHIFT * share / (1 + (TIMESTEP_SHIFT - 1) * share)
            timesteps = (share * noise_scheduler.config.num_train_timesteps).long().to(self.device)
            noise = torch.randn(x_0.shape).to(self.device)
            noisy = noise_scheduler.add_noise(x_0, noise, timesteps)
            with self.autocast():
                prompt_embeds = text_encoder(ids).last_hidden_state
                prediction = unet(noisy, timesteps, prompt_embeds, fps=T2V_FPS).sample
            return F.mse_loss(prediction.float(), noise_scheduler.get_velocity(x_0, noise, timesteps))

        for network in (unet, text_encoder):
            network.eval()  # without dropout
        train_steps(
            args.output_dir / "unet.pt",
            {"unet": unet, "text_encoder": text_encoder},
            loss_at,
            num_steps=args.unet_steps,
            learning_rate=args.unet_learning_rate,
            deadline=self.deadline,
            ema_decay=args.ema_decay,
        )


def sample_sigmas(num: int) -> Tensor:
    """SVD's log-normal (0.7, 1.6); a quarter spread evenly over ln 10 to ln 700, where sampling starts."""
    log_sigmas = 0.7 + 1.6 * torch.randn(num)
    high = math.log(10) + (math.log(SIGMA_MAX) - math.log(10)) * torch.rand(num)
    return torch.where(torch.rand(num) < 0.25, high, log_sigmas).exp()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids = [torch.tensor(tokenizer(caption).input_ids) for caption in captions]
    return torch.stack([F.pad(row, (0, tokenizer.model_max_length - len(row))) for row in ids])


def main(args: Arguments) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        {"i2v": ImageToVideo, "t2v": TextToVideo}[args.task](args).train()
    except OutOfTimeError:
        logger.info("The time is over; the same command goes on from here.")
    else:
        logger.info("saved %s", args.output_dir / "pipeline")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), __doc__)))
