"""Differentiable rewards from CLIP-like models: how well a video matches its text, and how much people would like it.

T2V-Turbo-v2's video reward is InternVideo2, which transformers does not have; X-CLIP takes its place.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer, XCLIPModel


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Fit = Literal["crop", "squash", "pad"]


def fit_square(
    frames: torch.Tensor, size: int, fit: Fit, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> torch.Tensor:
    """Frames `(n, 3, height, width)`, 0 to 1, as squares, with antialiasing as PIL's and so image processors'.

    Args:
        fit: `"crop"`: the short side becomes `size`, and the centre is kept, as by CLIP's processor. `"squash"`: both
            sides become `size` (T2V-Turbo's CLIP score). `"pad"`: the long side does, with black beside (HPSv2).
    """
    height, width = frames.shape[-2:]
    if fit == "squash":
        new = (size, size)
    elif fit == "crop":
        short = min(height, width)
        new = (int(size * height / short), int(size * width / short))
    else:
        long = max(height, width)
        new = (round(height * size / long), round(width * size / long))
    frames = F.interpolate(frames.float(), new, mode=mode, antialias=True).clamp(0, 1)
    below, beside = size - new[0], size - new[1]
    if fit == "crop":
        top, left = -below // 2, -beside // 2
        return frames[..., top : top + size, left : left + size]
    return F.pad(frames, (beside // 2, beside - beside // 2, below // 2, below - below // 2))


def normalize(frames: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    shape = (-1, 1, 1)
    return (frames - frames.new_tensor(mean).view(shape)) / frames.new_tensor(std).view(shape)


class CLIPReward:
    """Cosine of a CLIP model's embeddings of frame and text, the mean over frames: CLIP score, PickScore, HPSv2.1.

    Args:
        model: in eval mode, frozen.
        tokenizer: the model's tokenizer; texts are truncated to as many tokens as the model takes.
        fit: how frames become squares.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, fit: Fit):
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.fit: Fit = fit

    def __call__(self, frames: torch.Tensor, captions: list[str]) -> torch.Tensor:
        pixels = fit_square(frames.flatten(0, 1), self.model.config.vision_config.image_size, self.fit)
        pixels = normalize(pixels, CLIP_MEAN, CLIP_STD).to(self.model.dtype)
        pictures = self.model.get_image_features(pixel_values=pixels).pooler_output.float()
        with torch.no_grad():
            tokens = tokens_of(self.tokenizer, captions, self.model)
            texts = self.model.get_text_features(**tokens).pooler_output.float()
        pictures = pictures.unflatten(0, frames.shape[:2])
        return F.cosine_similarity(pictures, texts[:, None], dim=-1).mean(dim=1)


class XCLIPReward:
    """Cosine of X-CLIP's embeddings of a video and of its text, which the video prompts: a video-text reward.

    Args:
        model: in eval mode, frozen. It takes a fixed number of frames.
        tokenizer: as for [`CLIPReward`].
    """

    def __init__(self, model: XCLIPModel, tokenizer: CLIPTokenizer):
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def __call__(self, frames: torch.Tensor, captions: list[str]) -> torch.Tensor:
        size = self.model.config.vision_config.image_size
        pixels = fit_square(frames.flatten(0, 1), size, "crop", mode="bilinear")
        pixels = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD).to(self.model.dtype).unflatten(0, frames.shape[:2])
        scores = []
        for video, caption in zip(pixels, captions, strict=True):
            output = self.model(**tokens_of(self.tokenizer, [caption], self.model), pixel_values=video[None])
            video_embeds, text_embeds = output.video_embeds.float()[0], output.text_embeds.float()[0, 0]
            scores.append(F.cosine_similarity(video_embeds, text_embeds, dim=0))
        return torch.stack(scores)


def tokens_of(tokenizer: CLIPTokenizer, captions: list[str], model: Any) -> dict[str, torch.Tensor]:
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
