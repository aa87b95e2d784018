"""Training of the image-to-video demo teachers, multi-step and one-step."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, StableVideoDiffusionPipeline
from torch import Tensor
from transformers import CLIPImageProcessor, set_seed

from vdmini_diffusers.demo import networks
from vdmini_diffusers.demo.resumable_training import cached_rows, quick_attention, train_steps
from vdmini_diffusers.demo.scenes import NUM_FRAMES
from vdmini_diffusers.demo.teacher_training import NOISE_AUG_STRENGTH, TeacherTraining, draw_either
from vdmini_diffusers.demo.teachers import MULTI_STEP
from vdmini_diffusers.demo.vae_training import InnerStage, feature_loss, features_of, to_tensor
from vdmini_diffusers.distillation.losses import pseudo_huber_loss
from vdmini_diffusers.distillation.noise import SIGMA_MAX, edm_coefficients, per_sample
from vdmini_diffusers.serialization.atomic import write_file


FPS, MOTION_BUCKET_ID = 7, 127  # the defaults of SVD's pipeline


class ImageToVideoTraining(TeacherTraining):
    """SVD's kind, and a one-step U-Net made of it."""

    def train(self) -> None:
        args = self.args
        self.train_vae()
        latents = self.cache_latents()
        self.set_scaling_factor(latents)
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
        if args.vae is not None:
            self.vae = load_vae(args.vae).to(self.device).requires_grad_(False)
            return
        small: Any = networks.build_i2v_vae(networks.NUM_VAE_STAGES - 1)
        small.to(self.device)
        self.tune_vae("small_vae", small, args.small_vae_steps, args.vae_learning_rate, whole_from=0.75)
        small.eval().requires_grad_(False)
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
        found = cached_rows(
            self.args.output_dir / "features",
            self.args.num_feature_clips,
            lambda parts: (self.features_of_clips(small, part) for part in parts),
            self.deadline,
        )
        return found["encoded"], found["wanted"]

    def features_of_clips(self, small: Any, clips: range) -> dict[str, Tensor]:
        columns = []
        for i in clips:
            rng = np.random.default_rng((self.args.seed, 2, i))
            frames = draw_either(rng)[0][rng.permutation(NUM_FRAMES)[:6]]
            with self.autocast():
                columns.append([part.half().cpu() for part in features_of(small, to_tensor(frames).to(self.device))])
        encoded, wanted = (torch.cat(parts) for parts in zip(*columns, strict=True))
        return {"encoded": encoded, "wanted": wanted}

    def condition(self, latents: dict[str, Any], rows: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image latents repeated over the frames, image embeddings, and added time ids; clips without `keep` have no
        image."""
        processor = CLIPImageProcessor()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        first = latents["first_frames"][rows].movedim(-1, -3).float() / 255
        pixel_values = F.interpolate(first, size=(224, 224), mode="bicubic", align_corners=True).clamp(0, 1)
        embeds = self.image_encoder(((pixel_values - mean) / std).to(self.device)).image_embeds
        image_latents = latents["image_latents"][rows].float() * keep.view(-1, 1, 1, 1)
        time_ids = torch.tensor([FPS - 1.0, MOTION_BUCKET_ID, NOISE_AUG_STRENGTH]).expand(len(rows), 3)
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
            x_0 = (latents["latents"][rows].float() * self.vae.config.scaling_factor).to(self.device)
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

    def cache_pairs(self, unet: Any, latents: dict[str, Any]) -> dict[str, Tensor]:
        """Standard normal `noise`, the scaled `samples` that the U-Net makes of it, and the `rows` of their images."""
        return cached_rows(
            self.args.output_dir / "pairs",
            self.args.num_pairs,
            lambda parts: (self.sample_pairs(unet, latents, part) for part in parts),
            self.deadline,
        )

    @torch.no_grad()
    def sample_pairs(self, unet: Any, latents: dict[str, Any], pairs: range) -> dict[str, Tensor]:
        args = self.args
        generator = torch.Generator().manual_seed(args.seed + pairs.start)
        rows = torch.randint(len(latents["latents"]), (len(pairs),), generator=generator)
        noise = torch.randn(len(pairs), *latents["latents"].shape[1:], generator=generator)
        scheduler: EulerDiscreteScheduler = networks.build_i2v_scheduler()
        scheduler.set_timesteps(args.num_pair_steps)
        sample = (noise * scheduler.sigmas[0]).to(self.device)
        with self.autocast(), quick_attention(self.device):
            condition = self.condition(latents, rows, torch.ones(len(rows)))
            for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
                prediction = self.predict(unet, sample, sigma.expand(len(rows)), condition)
                sample = scheduler.step(prediction, t, sample, return_dict=False)[0]
        return {"noise": noise.half(), "samples": sample.half().cpu(), "rows": rows}

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


def load_vae(folder: Path) -> Any:
    """A VAE in single precision. Raises `ValueError` if it is of another kind than the demo teachers'."""
    vae = networks.build_i2v_vae()
    stages, channels = list(vae.config.block_out_channels), vae.config.latent_channels
    found: Any = vae.load_config(folder)
    kind = found["_class_name"], list(found["block_out_channels"]), found["latent_channels"]
    if kind != (type(vae).__name__, stages, channels):
        raise ValueError(
            f"`--vae` {folder} is an {kind[0]} of the stages {kind[1]} with {kind[2]} latent channels; here it must be"
            f" an {type(vae).__name__} of {stages} with {channels}. Give vdmini_diffusers/demo/i2v_teacher/vae, or"
            " leave it out, and one is trained."
        )
    return AutoencoderKLTemporalDecoder.from_pretrained(folder, dtype=torch.float32)


def sample_sigmas(num: int) -> Tensor:
    """SVD's log-normal (0.7, 1.6); a quarter spread evenly over ln 10 to ln 700, where sampling starts."""
    log_sigmas = 0.7 + 1.6 * torch.randn(num)
    high = math.log(10) + (math.log(SIGMA_MAX) - math.log(10)) * torch.rand(num)
    return torch.where(torch.rand(num) < 0.25, high, log_sigmas).exp()
