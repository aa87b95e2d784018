"""All that the rest of the package needs to know about a kind of video diffusion pipeline, in one object."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from vdmini_diffusers.serialization.pipeline_folder import PipelineLayout


Predict = Callable[[Any, torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
TokenGrid = Callable[[Mapping[str, Any], Sequence[int]], tuple[int, int, int]]


@dataclass(frozen=True)
class ClipShape:
    """The clips that a model is trained on; height and width in pixels.

    Args:
        motion_bucket_id: for models that are conditioned on it.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    motion_bucket_id: int | None = None


class Denoiser(NamedTuple):
    """A component that is pruned.

    Args:
        plan_kind: the kind of plan that prunes it: `"unet"` or `"transformer"`.
        teachers: the classes that a teacher's may have.
        student: the student's class.
    """

    plan_kind: str
    teachers: tuple[type[Any], ...]
    student: type[Any]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of pipeline: how it is recognised and pruned.

    A pipeline is recognised by the class in its `model_index.json`, its denoisers by the class in their configs.
    Nothing outside `vdmini_diffusers.families` asks which family it has.

    Args:
        name: the name that people read.
        layout: the pipeline classes that are pruned, and their components.
        denoisers: the components to prune, by name. One that is trained comes first. A pipeline may lack those that
            are nullable in the layout, but not all.
        pipeline: class of the student's pipeline. It also opens every teacher.
        default_plan: a name in `vdmini_diffusers.pruning.PLANS`. It prunes each of the denoisers.
        card: template in `model_cards/` for a pruned student.
        pipeline_tag: the Hub's name of the task, e.g. `"image-to-video"`.
        tags: the tags of a pruned student's card.
        example_inputs: `(config, num_frames, height, width)`: what the denoiser's forward pass takes for one clip of
            that many pixels, on torch's default device. Where it is there, reports count floating point operations.
        evaluated_clip: frames, height and width of the clips that they are counted for, those of the paper's results.
    """

    name: str
    layout: PipelineLayout
    denoisers: Mapping[str, Denoiser]
    pipeline: type[Any]
    default_plan: str
    card: str
    pipeline_tag: str
    tags: tuple[str, ...]
    example_inputs: Callable[[Mapping[str, Any], int, int, int], dict[str, Any]] | None = None
    evaluated_clip: tuple[int, int, int] = (125, 720, 1280)

    @property
    def denoiser(self) -> str:
        """The component that is trained."""
        return next(iter(self.denoisers))


@dataclass(frozen=True, kw_only=True)
class TrainableFamily(Family):
    """A family with an objective: how its denoiser is trained and sampled as well.

    Args:
        given: the kind of input that a video is made from.
        task: the objective, a key of `OBJECTIVES` in `vdmini_diffusers.trainers.distill`.
        sample_tensors: the tensors that every precomputed sample holds.
        exact_tensors: those of them that are stored in float32 whatever the dtype of the others.
        encode: `(batch, pipe, generators, encode_chunk_size, ...)`: the denoiser's training inputs from a
            batch of clips.
        predict: `(denoiser, latents, timesteps, conditioning)`: the denoiser's raw output, float32, for
            `(batch, frames, channels, height, width)` latents that are scaled as the denoiser expects them.
        critic_condition: the critics' conditioning, `(batch, width)`, from that of the denoiser.
        critic_condition_dim: the width of `critic_condition`, given the pipeline.
        clip_shape: the shape of the clip that a precomputed sample was made from, given the sample and the pipeline.
        sample: `(pipe, image path or prompt, clip_shape, generator)`: the frames of one video.
        encode_prompts: `(prompts, pipe)`: their embeddings `(batch, tokens, width)` and pooled ones
            `(batch, width)`, if the objective needs those of other prompts than the captions.
    """

    given: Literal["image", "text"]
    task: Literal["single_step", "consistency", "flow_matching"]
    sample_tensors: tuple[str, ...]
    exact_tensors: tuple[str, ...]
    encode: Callable[..., dict[str, Any]]
    predict: Predict
    critic_condition: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    critic_condition_dim: Callable[[Any], int]
    clip_shape: Callable[[Mapping[str, torch.Tensor], Any], ClipShape]
    sample: Callable[[Any, str, ClipShape, torch.Generator], list[Any]]
    encode_prompts: Callable[[list[str], Any], tuple[torch.Tensor, torch.Tensor]] | None = None


@dataclass(frozen=True, kw_only=True)
class UNetFamily(TrainableFamily):
    """A family of U-Nets, whose teachers were distilled to few steps.

    Args:
        teacher_card: template in `model_cards/` for a teacher that was distilled to few steps.
        teacher_tags: the tags of that card.
        critic_taps: modules of a teacher's denoiser whose outputs the critics receive, in the order in which they run:
            its down blocks (`"blocks"`), or the last layers of these before they downsample (`"before_downsampling"`).
        critic_channels: the number of channels of each of them, given the denoiser's config.
        recomputed_layers: classes of the denoiser's layers, which keep their inputs only with gradient checkpointing.
        add_guidance: `(denoiser, *widths)`: the denoiser with embeddings of guidance, if the family has them.
    """

    teacher_card: str
    teacher_tags: tuple[str, ...]
    critic_taps: Mapping[Literal["blocks", "before_downsampling"], tuple[str, ...]]
    critic_channels: Callable[[Mapping[str, Any]], tuple[int, ...]]
    recomputed_layers: tuple[type[torch.nn.Module], ...]
    add_guidance: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TransformerFamily(TrainableFamily):
    """A family of transformers, which predict velocities. Their blocks are in `BLOCK_LISTS`.

    Args:
        token_grid: `(config, shape of latents)`: frames, height and width of the grid that the video's tokens fill in
            this order, for latents `(batch, frames, channels, height, width)`.
        lora_targets: names of the linear layers that LoRA is added to.
        from_fastvideo: `(latents, text embedding, config of the transformer, config of the VAE)`: a precomputed
            sample's tensors but `fps`, from latents `(channels, frames, h, w)` that are not scaled and embeddings
            `(tokens, width)` without padding, as FastVideo stores them; None if it has no such model.
    """

    token_grid: TokenGrid
    lora_targets: tuple[str, ...]
    from_fastvideo: Callable[[torch.Tensor, torch.Tensor, Any, Mapping[str, Any]], dict[str, torch.Tensor]] | None = (
        None
    )
