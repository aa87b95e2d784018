"""Training of the multi-step text-to-video demo teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from transformers import CLIPTokenizer, set_seed

from vdmini_diffusers.demo import networks
from vdmini_diffusers.demo.resumable_training import train_steps
from vdmini_diffusers.demo.scenes import NUM_FRAMES, all_captioned_scenes
from vdmini_diffusers.demo.teacher_training import TeacherTraining
from vdmini_diffusers.pipelines import VDMiniT2VPipeline


FPS = 8  # the default of T2V-Turbo's pipeline
# Timesteps are drawn as Stable Diffusion 3 shifts its noise levels: what moves which way is settled at the high ones.
TIMESTEP_SHIFT = 3.0


class TextToVideoTraining(TeacherTraining):
    """VideoCrafter2's kind."""

    def train(self) -> None:
        args = self.args
        self.train_vae()
        latents = self.cache_latents()
        self.set_scaling_factor(latents)
        set_seed(args.seed)
        tokenizer = networks.build_tokenizer(scene.caption for scene in all_captioned_scenes())
        unet = self.prepared(networks.build_t2v_unet())
        text_encoder = self.prepared(networks.build_text_encoder(tokenizer))
        self.train_multi_step(unet, text_encoder, tokenizer, latents)
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
        self, unet: Any, text_encoder: Any, tokenizer: CLIPTokenizer, latents: dict[str, Any]
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
            x_0 = (
                (x_0.float() * self.vae.config.scaling_factor).transpose(1, 2).to(self.device)
            )  # (batch, channels, frames, ...)
            no_condition = torch.rand(len(rows), 1) < args.conditioning_dropout_prob
            ids = torch.where(no_condition, no_words, input_ids[rows]).to(self.device)
            share = torch.rand(len(rows))
            share = TIMESTEP_SHIFT * share / (1 + (TIMESTEP_SHIFT - 1) * share)
            timesteps = (share * noise_scheduler.config.num_train_timesteps).long().to(self.device)
            noise = torch.randn(x_0.shape).to(self.device)
            noisy = noise_scheduler.add_noise(x_0, noise, timesteps)
            with self.autocast():
                prompt_embeds = text_encoder(ids).last_hidden_state
                prediction = unet(noisy, timesteps, prompt_embeds, fps=FPS).sample
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


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids = [torch.tensor(tokenizer(caption).input_ids) for caption in captions]
    return torch.stack([F.pad(row, (0, tokenizer.model_max_length - len(row))) for row in ids])
