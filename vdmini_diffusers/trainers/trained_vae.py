"""The results of fine-tuning a VAE's decoder: validation pictures, and the VAE with its card."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from vdmini_diffusers.data.images import read_image
from vdmini_diffusers.data.vae_clips import decode_clips
from vdmini_diffusers.distillation.arguments import RunArguments
from vdmini_diffusers.evaluation.continuation import psnr
from vdmini_diffusers.serialization.cards import trained_card
from vdmini_diffusers.trainers.trained_pipeline import finished_files
from vdmini_diffusers.version import __version__


def decoder_inputs(vae: Any, latents: Tensor) -> Tensor:
    """The decoder's inputs for `(batch, frames, channels, h, w)` latents, which are not scaled."""
    if getattr(vae, "post_quant_conv", None) is None:
        return latents
    return vae.post_quant_conv(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])


@torch.no_grad()
def write_validation_pictures(
    paths: Sequence[Path], vae: Any, decoders: Sequence[nn.Module], size: tuple[int, int], output: Path
) -> list[float]:
    """Write a row for each picture: the picture, then its reconstruction by each decoder.

    Args:
        vae: the VAE that encodes; its own decoder is not used.
        size: height and width in pixels.

    Returns:
        The PSNR of the last decoder's reconstructions, in dB.

    Raises:
        ValueError: if a file cannot be read as a picture.
    """
    rows, values = [], []
    for path in paths:
        picture = np.asarray(ImageOps.fit(read_image(path), (size[1], size[0])))
        clip = torch.from_numpy(picture.copy()).movedim(-1, 0)[None] / 127.5 - 1
        latents = decoder_inputs(vae, vae.encode(clip.to(vae.device)).latent_dist.mode()[None])
        columns = [picture, *(to_uint8(decode_clips(decoder, latents))[0, 0] for decoder in decoders)]
        rows.append(np.concatenate(columns, axis=1))
        values.append(psnr(columns[-1], picture))
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(output)
    return values


def with_decoder(vae: Any, decoder: Mapping[str, Tensor]) -> Any:
    """A VAE like `vae` with whole weights of its decoder, however that is wrapped or divided."""
    made = type(vae).from_config(vae.config)
    rest = {name: tensor for name, tensor in vae.state_dict().items() if not name.startswith("decoder.")}
    made.load_state_dict(rest | {f"decoder.{name}": tensor for name, tensor in decoder.items()})
    return made


def to_uint8(clips: Tensor) -> np.ndarray:
    """`(..., 3, height, width)`, -1 to 1, to `(..., height, width, 3)`."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(-3, -1).cpu().numpy()


def save_trained_vae(
    args: RunArguments, vae: Any, decoder: Mapping[str, Tensor], companions: Mapping[str, Path]
) -> None:
    """Write the VAE with these weights of its decoder to `args.output_dir`.

    Args:
        companions: files of the pruned VAE's folder to copy: plan, channels, licences, card.
    """
    with finished_files(args.output_dir, "config.json") as aside:
        with_decoder(vae, decoder).save_pretrained(aside)
        for name, path in companions.items():
            shutil.copyfile(path, aside / name)
        if "README.md" in companions:
            note = (
                f"**The decoder was fine-tuned** (appendix A) for {args.max_train_steps:,} steps with"
                f" `vdmini_diffusers` {__version__}; `training.json` has the settings and the names of teacher and"
                " data."
            )
            card = (aside / "README.md").read_text(encoding="utf-8")
            (aside / "README.md").write_text(trained_card(card, note, args.repository), encoding="utf-8")
