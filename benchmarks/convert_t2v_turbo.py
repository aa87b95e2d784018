"""Memory and time of converting a full-size `model.ckpt` of VideoCrafter2's form.

    python benchmarks/convert_t2v_turbo.py --work_dir DIR --tokenizer DIR_OR_ID

Writes a checkpoint of 7.4 GB in single precision (random numbers, with T2V-Turbo-v2's U-Net and the tensors of
VideoCrafter2's VAE and text encoder), converts it in a process of its own, and removes both. Printed are the peaks,
beyond what was there before, of all resident memory, in which the mapped pages of the files are counted, and of what
the process has of its own; the latter is looked at every 10 ms.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from vdmini_diffusers import VDMiniUNet3DConditionModel
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.t2v_turbo import text_encoder, vae
from vdmini_diffusers.t2v_turbo.checkpoint import UNET_PREFIX
from vdmini_diffusers.t2v_turbo.tensors import Source
from vdmini_diffusers.t2v_turbo.text_encoder import original_text_encoder_key
from vdmini_diffusers.t2v_turbo.unet import original_unet_key
from vdmini_diffusers.t2v_turbo.vae import original_vae_key


MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
from vdmini_diffusers.t2v_turbo.convert import convert_t2v_turbo

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

own = [resident("RssAnon")]

def watch():
    while not done.wait(0.01):
        own.append(resident("RssAnon"))

done = threading.Event()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before, start = resident("VmRSS"), time.perf_counter()
watcher = threading.Thread(target=watch)
watcher.start()
convert_t2v_turbo(sys.argv[1], sys.argv[2], tokenizer=sys.argv[3])
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps([seconds, resident("VmHWM") - before, max(own) - own[0]]))
"""


@dataclass
class BenchmarkArguments:
    work_dir: str = field(metadata={"help": "A folder with 16 GB free."})
    tokenizer: str = field(metadata={"help": "CLIP's tokenizer: a folder, or an id on the Hub."})


def original_tensors(
    model: nn.Module, source_of: Callable[[str], Source], prefix: str, numbers: Path
) -> dict[str, Tensor]:
    """Under the original names; each a mapping of the same random numbers, which takes no memory.

    Without the further axes of length 1 that some originals have.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        key, third = source_of(name)
        shape = tensor.shape if third is None else (3 * tensor.shape[0], *tensor.shape[1:])
        tensors[prefix + key] = mapped(torch.Size(shape), numbers)
    return tensors


def mapped(shape: torch.Size, numbers: Path) -> Tensor:
    return torch.from_file(str(numbers), shared=False, size=shape.numel(), dtype=torch.float32).view(shape)


def write_checkpoint(file: Path) -> None:
    numbers = file.with_suffix(".numbers")
    with torch.device("meta"):
        unet = VDMiniUNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
            up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            mid_block_type="UNetMidBlock3DCrossAttn",
        )
        config: dict[str, Any] = {  # diffusers annotates these as tuples of one
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
        }
        autoencoder = AutoencoderKL(**config)
        # All 24 layers, of which 23 are used.
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
            )
        )
    largest = max(t.numel() for model in (unet, autoencoder, text) for t in model.state_dict().values())
    (0.02 * torch.randn(3 * largest, generator=torch.Generator().manual_seed(0))).numpy().tofile(numbers)
    state = original_tensors(unet, original_unet_key, UNET_PREFIX, numbers)
    state |= original_tensors(autoencoder, original_vae_key, vae.PREFIX, numbers)
    state |= original_tensors(text, original_text_encoder_key, text_encoder.PREFIX, numbers)
    torch.save({"state_dict": state}, file)
    numbers.unlink()


def main(args: BenchmarkArguments) -> None:
    work = (Path(args.work_dir) / "convert_t2v_turbo_benchmark").absolute()
    work.mkdir(parents=True)
    try:
        write_checkpoint(work / "model.ckpt")
        command = [sys.executable, "-c", MEASURE, work / "model.ckpt", work / "out", args.tokenizer]
        done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
        seconds, peak, own = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{(work / 'model.ckpt').stat().st_size / 1e9:.2f} GB in {seconds:.1f} s; peak of resident memory"
            f" {peak / 2**20:.0f} MiB, of the process's own {own / 2**20:.0f} MiB, beyond the interpreter"
        )
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((BenchmarkArguments,))))
