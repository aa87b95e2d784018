#!/usr/bin/env python
"""Memory of an ICMD step per GPU at full size, by recipe, without a GPU; and a real step that checks the count.

    python benchmarks/icmd_memory.py
    python benchmarks/icmd_memory.py --recipes training/configs/icmd_i2v_24gb.yaml --divided False

Per GPU, with precomputed latents:

    (4 + 4 + m + 4) P_student     weights, gradients, the optimiser's moments (AdamW 8, in 8 bits 2.03, Adafactor next
                                  to none), their average if there is one; float32
    + 4 P_student                 DDP's buckets of gradients, on several GPUs that do not divide the student
    + b (P_teacher + P_seen)      the teacher, and the part of the critics' backbone that they see; b bytes a weight, 2
                                  in bf16. For text to video the backbone is the whole ODE teacher
    + 16 P_heads                  the critics' heads, gradients and moments; float32
    + what lives besides          activations, features, what backward makes on its way

Where FSDP2 divides the student over N GPUs, its first term is divided by N, and so is the teacher's if it is divided
(the backbone is whole then, and divided as well); gathered blocks come to it: the student's largest, and the next, in
float32; likewise the teacher's.

The last term is counted while a step runs with fake tensors, which have shapes and no memory; norms in float32, as
autocast has them on GPUs. The same count of a real step, of the demo teacher's size, is printed beside it, and what
the process grew by. GPUs hold besides: CUDA's context, kernels' workspaces, and what the allocator cannot use.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import LCMScheduler, UNetSpatioTemporalConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, peek_argument, run
from vdmini_diffusers.demo.teachers import I2V_TEACHER, T2V_TEACHER
from vdmini_diffusers.distillation.critics import CriticFeatures, InstanceNoise
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.losses import discriminator_loss, generator_loss, icd_loss
from vdmini_diffusers.distillation.ode_teacher import DiffusionSchedule, ODETeacher
from vdmini_diffusers.distillation.recomputation import recompute_layers
from vdmini_diffusers.distillation.tasks.base import ModelInputs
from vdmini_diffusers.distillation.tasks.consistency import ConsistencyInputs, ConsistencyTask
from vdmini_diffusers.distillation.tasks.single_step import SingleStepTask
from vdmini_diffusers.evaluation.live_bytes import LiveBytes, grown_by
from vdmini_diffusers.evaluation.paper_components import NETWORK_CONFIGS
from vdmini_diffusers.families.svd import SVD
from vdmini_diffusers.families.videocrafter import VIDEOCRAFTER
from vdmini_diffusers.models import VDMiniUNet3DConditionModel, VDMiniUNetSpatioTemporalConditionModel
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.trainers.distill import OBJECTIVES


GIB = 2**30
ROOT = Path(__file__).parents[1]
RECIPES = ("icmd_i2v_24gb", "icmd_i2v_80gb", "icmd_i2v_paper_8x80gb", "icmd_t2v_24gb")
STUDENT_UNITS = ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel")  # what FSDP wraps
SVD_CONFIG = NETWORK_CONFIGS["SVD's U-Net"]["config"]
# Named, although they are our class's defaults: a plan takes what is absent for the stock class's.
CONDITIONS = {"time_cond_proj_dim": 256, "motion_cond_proj_dim": 256, "fps_cond": True}
T2V_TURBO_V2_CONFIG = NETWORK_CONFIGS["T2V-Turbo-v2's U-Net"]["config"] | CONDITIONS
VIDEOCRAFTER2 = {"time_cond_proj_dim": None, "motion_cond_proj_dim": None}
NUM_TOKENS = 77  # of a prompt
# Bytes for each weight: bitsandbytes has two of 8 bits, and for every 256 of each a scale in float32.
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "adafactor": 0.0}


@dataclass
class Arguments:
    recipes: list[Path] = field(
        default_factory=lambda: [ROOT / "training" / "configs" / f"{name}.yaml" for name in RECIPES],
        metadata={"help": "Settings of training/train_icmd.py; a name that ends in 8x80gb is of 8 GPUs."},
    )
    divided: bool = field(default=True, metadata={"help": "Count 1, 8 and 64 GPUs that divide the student as well."})
    tiny_batch_size: int = field(default=4, metadata={"help": "Clips of the step that checks the count."})


@dataclass
class RecipeTask:
    task: str = field(default="i2v", metadata={"help": "As of training."})


class Recipe(NamedTuple):
    """What settings say about memory. `clip` is the shape of its latents."""

    name: str
    task: str
    num_gpus: int
    gradient_checkpointing: bool
    optimizer: str
    use_ema: bool
    clip: tuple[int, ...]


def read_recipe(file: Path) -> Recipe:
    """Read by the parser and the checks of the training script.

    Raises:
        ValueError: for a recipe that the formula is not for.
    """
    argv = ["--config", str(file), "--precomputed_data_dir", "path/to/latents"]
    task = peek_argument("task", "i2v", argv)
    if task not in PARTS:
        raise ValueError(f"{file}: recipes for {', '.join(PARTS)} are counted here, not for {task}.")
    objective = OBJECTIVES[{"i2v": "single_step", "t2v": "consistency"}[task]]
    kinds = (RecipeTask, *objective.arguments, *objective.own)
    _, args, critics, losses, data, *own = parse_arguments(kinds, argv=argv)
    counted = (args.rank, args.mixed_precision, critics.critic_backbone, losses.joint_critic)
    if counted != (None, "bf16", None, False):
        raise ValueError(f"{file}: all weights are counted, in bf16 and with the critics on the multi-step model.")
    if task == "t2v":
        consistency, rewards = own
        is_shared = consistency.ode_teacher_model_name_or_path != "teacher"
        if not is_shared or losses.lambda_data_critic or rewards.image_rewards or rewards.video_rewards:
            raise ValueError(f"{file}: MCA's critic alone is counted, on VideoCrafter2 as ODE teacher; no rewards.")
    gpus = re.search(r"_(\d+)x\d+gb$", file.stem)
    clip = (args.train_batch_size, data.num_frames, 4, data.height // 8, data.width // 8)
    num_gpus = int(gpus[1]) if gpus else 1
    return Recipe(file.stem, task, num_gpus, args.gradient_checkpointing, args.optimizer, args.use_ema, clip)


class Parts(ABC):
    """What takes part in a step of a family's students, on one device, in the current tensor mode."""

    student_class: type[Any]
    family: Any
    full_size: Mapping[str, Any]  # of the teacher's U-Net, where it is not its class's default
    tiny_teacher: Path
    num_critics: int
    backbone_row: str
    task: Any

    def __init__(self, teacher_config: Mapping[str, Any], teacher_dtype: torch.dtype, gradient_checkpointing: bool):
        self.student = self.student_class(**VDMINI_UNET.student_config(teacher_config)).train()
        torch.set_default_dtype(teacher_dtype)  # fake weights cannot be converted
        self.teacher = self.teacher_class(**teacher_config).requires_grad_(False)
        self.backbone = self.make_backbone(teacher_config).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        self.pairs = VDMINI_UNET.feature_pairs(self.teacher.config)
        if gradient_checkpointing:
            for model in (self.student, self.backbone):
                recompute_layers(model, self.family.recomputed_layers)
        channels = dict(zip(self.family.critic_taps["blocks"], self.teacher.config.block_out_channels, strict=True))
        self.width = self.teacher.config.cross_attention_dim
        self.critics = nn.ModuleList(DiscriminatorHeads(channels, self.width) for _ in range(self.num_critics))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), fused=False, foreach=False)

    @property
    def teacher_class(self) -> type[Any]:
        return UNetSpatioTemporalConditionModel

    @abstractmethod
    def make_backbone(self, teacher_config: Mapping[str, Any]) -> Any:
        """The frozen network that the critics see."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...]) -> ModelInputs:
        """Inputs of a step, for latents of that shape."""


class ImageToVideo(Parts):
    """VDMini-I2V: the critics of the teacher and of the data, on the down blocks of SVD."""

    student_class, family, num_critics = VDMiniUNetSpatioTemporalConditionModel, SVD, 2
    full_size, tiny_teacher = SVD_CONFIG, I2V_TEACHER
    backbone_row = "critics' backbone, its down blocks"
    task = SingleStepTask(SVD)  # with its distribution of noise levels in real tensors, as it is checked

    def make_backbone(self, teacher_config: Mapping[str, Any]) -> Any:
        backbone: Any = self.teacher_class(**teacher_config)
        backbone.mid_block, backbone.up_blocks = None, nn.ModuleList()  # as in training
        return backbone

    def draw(self, shape: tuple[int, ...]) -> ModelInputs:
        latents = torch.randn(shape)
        conditioning = {
            "image_latents": latents[:, 0].clone(),
            "image_embeds": torch.randn(len(latents), 1, self.width),
            "added_time_ids": torch.randn(len(latents), 3),
        }
        return ModelInputs(latents, latents + torch.randn(shape), torch.ones(len(latents)), conditioning)


class TextToVideo(Parts):
    """VDMini-T2V: MCA's critic, on VideoCrafter2, which also solves the ODE."""

    student_class, family, num_critics = VDMiniUNet3DConditionModel, VIDEOCRAFTER, 1
    full_size, tiny_teacher = T2V_TURBO_V2_CONFIG, T2V_TEACHER
    backbone_row = "ODE teacher, which the critic stands on"

    @property
    def teacher_class(self) -> type[Any]:
        return VDMiniUNet3DConditionModel

    def make_backbone(self, teacher_config: Mapping[str, Any]) -> Any:
        return self.teacher_class(**{**teacher_config, **VIDEOCRAFTER2})

    def make_task(self, schedule: DiffusionSchedule, uncond_prompt_embeds: torch.Tensor) -> None:
        """With real tensors, as its noise levels are checked."""
        ode_teacher = ODETeacher(self.family.predict, self.backbone, schedule, uncond_prompt_embeds)
        self.task = ConsistencyTask(self.family, self.student, schedule, ode_teacher)

    def draw(self, shape: tuple[int, ...]) -> ModelInputs:
        num, latents = shape[0], torch.randn(shape)
        conditioning = {
            "prompt_embeds": torch.randn(num, NUM_TOKENS, self.width),
            "pooled_prompt_embeds": torch.randn(num, self.width),
            **{name: torch.ones(num) for name in ("fps", "guidance", "motion_guidance")},
        }
        timesteps, guided = torch.full((num,), 499), torch.ones(num, dtype=torch.bool)
        return ConsistencyInputs(latents, latents + torch.randn(shape), timesteps, conditioning, None, guided)


PARTS: dict[str, type[Parts]] = {"i2v": ImageToVideo, "t2v": TextToVideo}


def make_parts(
    task: str, config: Mapping[str, Any] | None, dtype: torch.dtype, gradient_checkpointing: bool, mode: Any
) -> Parts:
    """The parts of a step in a tensor mode; without a config, of full size."""
    kind = PARTS[task]
    with mode:
        full = kind.student_class if task == "t2v" else UNetSpatioTemporalConditionModel
        config = dict(full(**kind.full_size).config) if config is None else config
        config = {name: value for name, value in config.items() if not name.startswith("_")}
        parts = kind(config, dtype, gradient_checkpointing)
    if isinstance(parts, TextToVideo):
        parts.make_task(DiffusionSchedule.of(LCMScheduler()), torch.zeros(1, NUM_TOKENS, parts.width))
    return parts


def step(parts: Parts, inputs: ModelInputs, autocast: bool) -> None:
    """Student, teacher, both critics and backward, as `icmd_training_loop` has them; no optimiser step."""
    given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    noise = InstanceNoise(torch.randn_like(inputs.clean_latents), torch.ones_like(inputs.noise_levels))
    task = parts.task
    critic_features = CriticFeatures(task, parts.backbone)
    with mixed, FeatureTaps(parts.student, [name for name, _ in parts.pairs]) as student_features:
        denoised = task.denoise(parts.student, *given)
    taps = FeatureTaps(parts.teacher, [name for _, name in parts.pairs])
    with torch.no_grad(), mixed, taps as teacher_features:
        teacher_denoised = task.denoise(parts.teacher, *given)
    with mixed:  # as accelerate has it within the student, which makes its own target for text to video
        losses = list(task.losses(denoised, inputs).values())
    losses.append(icd_loss(student_features, teacher_features, parts.pairs))
    critic_condition = task.critic_condition(noise.levels, inputs.conditioning)
    with mixed:
        fake = critic_features(denoised, noise, inputs)
    for critic in parts.critics:
        critic.requires_grad_(False)
        losses.append(generator_loss(critic(fake, *critic_condition)))
    torch.stack(losses).sum().backward()
    with torch.no_grad(), mixed:
        clean = (teacher_denoised, inputs.clean_latents)[: len(parts.critics)]
        real = [critic_features(latents, noise, inputs) for latents in clean]
    fake = {name: feature.detach() for name, feature in fake.items()}
    for critic, features in zip(parts.critics, real, strict=True):
        critic.requires_grad_(True)
        discriminator_loss(critic(features, *critic_condition), critic(fake, *critic_condition)).backward()


def peak_besides(parts: Parts, inputs: ModelInputs, autocast: bool) -> int:
    """Bytes that live at the peak of a step, beside weights and the gradients of the U-Net, which the formula has."""
    for parameter in parts.student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    known = [p for model in (parts.student, parts.teacher, parts.backbone, parts.critics) for p in model.parameters()]
    with LiveBytes(known) as counter:
        step(parts, inputs, autocast)
    return counter.peak


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """As on GPUs, whose autocast computes norms in float32."""

    def upcast(norm: Callable[..., Any]) -> Callable[..., Any]:
        def of(*args: Any, **kwargs: Any) -> Any:
            args = tuple(arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args)
            return norm(*args, **{k: v.float() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})

        return of

    kept = F.layer_norm, F.group_norm
    F.layer_norm, F.group_norm = map(upcast, kept)
    try:
        yield
    finally:
        F.layer_norm, F.group_norm = kept


def num_values(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def of_recipe(recipe: Recipe, parts: Parts, besides: int) -> dict[str, float]:
    """GiB by what they are for, and their sum; the student whole on every GPU."""
    num_student = num_values(parts.student)
    rows = {
        "student: weights and gradients": 8 * num_student,
        "moments": MOMENTS[recipe.optimizer] * num_student,
        "average": 4 * num_student * recipe.use_ema,
        "buckets of DDP": 4 * num_student * (recipe.num_gpus > 1),
        "teacher": 2 * num_values(parts.teacher),
        parts.backbone_row: 2 * num_values(parts.backbone),
        "critics": 16 * num_values(parts.critics),
        "activations and the like": besides,
    }
    return in_gib(rows)


def of_divided(parts: Parts, besides: int, num_gpus: int, shard_teacher: bool) -> dict[str, float]:
    """The same with AdamW and the average, where FSDP2 divides the student, and the teacher and the whole backbone if
    wanted."""
    divided = num_gpus > 1
    student_blocks = [m for m in parts.student.modules() if type(m).__name__ in STUDENT_UNITS]
    teacher_blocks = [
        block for child in parts.teacher.children() if isinstance(child, nn.ModuleList) for block in child
    ]
    frozen = num_values(parts.teacher) + (num_values(parts.teacher if shard_teacher else parts.backbone))
    rows = {
        "student: weights, gradients, moments, average": 20 * num_values(parts.student) / num_gpus,
        "teacher and critics' backbone": 2 * frozen / (num_gpus if shard_teacher else 1),
        "critics": 16 * num_values(parts.critics),
        "gathered blocks": divided * 2 * 4 * max(map(num_values, student_blocks))
        + divided * shard_teacher * 2 * 2 * max(map(num_values, teacher_blocks)),
        "activations and the like": besides,
    }
    return in_gib(rows)


def in_gib(rows: Mapping[str, float]) -> dict[str, float]:
    return {name: value / GIB for name, value in rows.items()} | {"sum": sum(rows.values()) / GIB}


def write_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    names = dict.fromkeys(name for column in columns.values() for name in column if name != "sum")
    return markdown_table(
        [
            {"GiB per GPU": name, **{head: f"{column.get(name, 0):.2f}" for head, column in columns.items()}}
            for name in [*names, "sum"]
        ]
    )


def count_full_size(task: str, clip: tuple[int, ...], gradient_checkpointing: bool) -> tuple[Parts, int]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # such as the table of noise levels
    parts = make_parts(task, None, torch.bfloat16, gradient_checkpointing, mode)
    with mode, norms_in_float32():
        return parts, peak_besides(parts, parts.draw(clip), True)


def check_count(task: str, batch_size: int) -> str:
    """What a tiny step takes, measured in three ways: fake, real, and real without the counter."""
    kind, mode = PARTS[task], FakeTensorMode(allow_non_fake_inputs=True)
    config = kind.student_class.load_config(kind.tiny_teacher / "unet")
    side = config["sample_size"]
    shape = (batch_size, config.get("num_frames", 8), config["out_channels"], side, side)
    parts = make_parts(task, config, torch.float32, True, mode)
    with mode:
        fake = peak_besides(parts, parts.draw(shape), False)
    parts = make_parts(task, config, torch.float32, True, nullcontext())
    inputs = parts.draw(shape)
    grown = grown_by(lambda: step(parts, inputs, False))
    parts.student.zero_grad()
    real = peak_besides(parts, inputs, False)
    grown -= 4 * num_values(parts.student)  # its gradients, which the count leaves out
    return (
        f"demo teacher of {task}, {batch_size} clips: counted {fake / 2**20:.1f} MiB of fake and"
        f" {real / 2**20:.1f} MiB of real tensors; the process grew by {grown / 2**20:.1f} MiB"
    )


def main(args: Arguments) -> None:
    recipes = [read_recipe(file) for file in args.recipes]  # all, before anything is counted
    for task in dict.fromkeys(recipe.task for recipe in recipes):
        print(check_count(task, args.tiny_batch_size), flush=True)
        columns = {}
        for recipe in recipes:
            if recipe.task == task:
                parts, besides = count_full_size(task, recipe.clip, recipe.gradient_checkpointing)
                columns[recipe.name] = of_recipe(recipe, parts, besides)
                print(f"{recipe.name}: {columns[recipe.name]['sum']:.2f} GiB per GPU", flush=True)
        print(f"\n{PARTS[task].family.name}, by recipe\n\n{write_table(columns)}\n", flush=True)
    if args.divided:
        parts, besides = count_full_size("i2v", (1, 14, 4, 56, 72), True)
        columns = {}
        for num_gpus, shard in ((1, False), (8, False), (8, True), (64, False), (64, True)):
            head = f"{num_gpus} GPU{'s' * (num_gpus > 1)}{', teacher divided' * shard}"
            columns[head] = of_divided(parts, besides, num_gpus, shard)
        print(f"\nSVD, a clip of 14 x 448 x 576 a GPU, gradient checkpointing\n\n{write_table(columns)}")


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,), (__doc__ or "").partition("\n")[0])))
