"""Write the folders of `v0_1_0.tar.xz`, by the version of the package that they are the record of: see README.md."""

import os
import runpy
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, LCMScheduler
from tiny import randomise
from tiny_text_to_video import tiny_t2v_teacher
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vdmini_diffusers.prune_pipeline import prune_t2v_pipeline

from vdmini_diffusers import VDMiniT2VPipeline
from vdmini_diffusers.data.latents import LatentShards


SCRIPT = Path(sys.modules["vdmini_diffusers"].__file__).parents[1] / "training" / "train_icmd.py"
WIDTH = 4


def write_teacher(folder: Path) -> None:
    unet = tiny_t2v_teacher(
        block_out_channels=(WIDTH,) * 4,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        time_cond_proj_dim=8,
        motion_cond_proj_dim=None,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.25,
    )
    # Every printable letter, and no longer pieces: CLIP's own vocabulary would be larger than all the rest.
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[])
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="gelu",
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )
    )
    VDMiniT2VPipeline(
        vae=randomise(vae, 1).half(),
        text_encoder=randomise(text_encoder, 2).half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=LCMScheduler(original_inference_steps=200),
    ).save_pretrained(folder, variant="fp16")


def write_latents(folder: Path) -> None:
    generator = torch.Generator().manual_seed(7)
    samples = [
        {
            "latents": torch.randn(2, 4, 8, 8, generator=generator),
            "prompt_embeds": torch.randn(77, WIDTH, generator=generator),
            "pooled_prompt_embeds": torch.randn(WIDTH, generator=generator),
            "fps": torch.tensor(8.0),
        }
        for _ in range(2)
    ]
    shards = LatentShards(folder, {"made_by": "tests"})
    shards.write(0, samples, [{"name": str(i), "caption": f"{i} cats"} for i in range(2)])
    shards.finish([])


def train() -> None:
    """Two steps with a checkpoint after each, in the working directory: paths are part of what is written."""
    settings = {
        "task": "t2v",
        "pretrained_teacher_model_name_or_path": "teacher",
        "variant": "fp16",
        "pretrained_student_model_name_or_path": "student",
        "student_variant": "fp16",
        "precomputed_data_dir": "latents",
        "output_dir": "trained",
        "max_train_steps": 2,
        "train_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpointing_steps": 1,
        "discriminator_width": 2,
        "mca_start_step": 0,
    }
    sys.argv = [str(SCRIPT), *(str(part) for name, value in settings.items() for part in (f"--{name}", value))]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def packed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Without the last checkpoint, which is not gone on from, and without what differs from machine to machine."""
    if "checkpoint-000002" in entry.name:
        return None
    entry.mode, entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0o755, 0, 0, 0, "", ""
    return entry


def main(archive: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_teacher(Path("teacher"))
        prune_t2v_pipeline("teacher", "student", variant="fp16")
        write_latents(Path("latents"))
        train()
        with tarfile.open(archive, "w:xz") as file:
            for name in ("teacher", "student", "latents", "trained"):
                file.add(name, filter=packed)
        os.chdir("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
