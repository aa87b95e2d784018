#!/usr/bin/env python
"""Memory and cost of training VDMini-T2V-HY at full size, per GPU of 1, 8 and 64, without one; and a real step.

    python benchmarks/transformer_memory.py
    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/transformer_memory.py --mid_size

Per GPU of N, with precomputed latents and the student divided by FSDP2, in bf16 with gradient checkpointing:

    (4 + 4 + 8 + 4) P_student / N      weights, gradients, AdamW's moments, their average; float32
    + 2 P_teacher, or / N if divided
    + 16 P_heads                       the critic's heads, gradients and moments; float32, on every GPU
    + gathered blocks, if N > 1        in bf16: the student's largest and the next, and its gradient in bf16 and
                                       float32; likewise the teacher's, without gradients; and what is in no block
    + what lives besides               activations, features, what backward makes on its way

The last is counted while a step runs with fake tensors, which have shapes and no memory: once with the student's
weights in float32 and their copies in bf16 that autocast makes, for one GPU, and once with weights in bf16, as FSDP
gathers them. The operations are counted in the same step. With `--mid_size`, a smaller HunyuanVideo makes real steps,
with optimiser and average, and the sum of the formula for one GPU stands beside what the process grew by.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vdmini_diffusers.cli.markdown_table import markdown_table
from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.distillation.adversary import Adversary, Samples
from vdmini_diffusers.distillation.averaging import ShardedEMA
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures, CriticSettings
from vdmini_diffusers.distillation.discriminator import DiscriminatorHeads, LatentDiscriminator
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.flow_matching_arguments import (
    FlowMatchingArguments,
    FlowMatchingCriticArguments,
)
from vdmini_diffusers.distillation.losses import icd_loss
from vdmini_diffusers.distillation.tasks.flow_matching import FlowMatchingTask
from vdmini_diffusers.evaluation.live_bytes import LiveBytes, grown_by
from vdmini_diffusers.families.hunyuan_video import GUIDANCE_UNIT, HUNYUAN_VIDEO
from vdmini_diffusers.pruning import PLANS
from vdmini_diffusers.trainers.flow_matching import FlowMatchingPair, pairs_after_removed_runs


GIB = 2**30
CLIPS = {"the paper's": (125, 720, 1280), "FastVideo's": (93, 480, 848)}
CLASS = "HunyuanVideoTransformer3DModel"
MID_SIZE = {
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "num_layers": 4,
    "num_single_layers": 8,
    "text_embed_dim": 512,
    "pooled_projection_dim": 128,
    "rope_axes_dim": (16, 24, 24),
}
MID_SIZE_CLIP = (33, 256, 384)
ATTENTION = {  # which the counter of operations does not know: by the shapes of query, key and value
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *_, **__: (
        sdpa_backward_flop_count(out, q, k, v)
    ),
}


@dataclass
class Arguments:
    mid_size: bool = field(default=False, metadata={"help": "Compare the formula with real steps of a small model."})
    critic_backbone: Literal["teacher", "none"] = field(
        default="none", metadata={"help": "As of training: the critic stands on the teacher, or sees the latents."}
    )


class CountedTask(FlowMatchingTask):
    """The task for prompts without padding, and tensors that may be fake: these have no values to find padding by, and
    are a class of their own, which cannot be `Denoised` as well."""

    def denoise(
        self, model: nn.Module, noisy_latents: Tensor, noise_levels: Tensor, conditioning: Mapping[str, Tensor]
    ) -> Any:
        dtype = next(model.parameters()).dtype
        (output,) = model(
            hidden_states=noisy_latents.movedim(1, 2).to(dtype),
            timestep=self.path.timesteps(noise_levels),
            encoder_hidden_states=conditioning["prompt_embeds"].to(dtype),
            encoder_attention_mask=conditioning["prompt_attention_mask"].bool(),
            pooled_projections=conditioning["pooled_prompt_embeds"].to(dtype),
            guidance=GUIDANCE_UNIT * conditioning["guidance"],
            return_dict=False,
        )
        velocity = output.movedim(2, 1).float()
        denoised: Any = self.path.clean_latents(noisy_latents, velocity, noise_levels)
        denoised.raw_output = velocity
        return denoised


class Parts:
    """What takes part in a step, in the current tensor mode: on its own or divided, which decides on the weights."""

    def __init__(self, config: Mapping[str, Any], plan: Any, critic_backbone: str, divided: bool):
        torch.set_default_dtype(torch.bfloat16 if divided else torch.float32)
        student = HunyuanVideoTransformer3DModel.from_config(plan.student_config(config))
        torch.set_default_dtype(torch.bfloat16)  # fake weights cannot be converted
        self.teacher = HunyuanVideoTransformer3DModel.from_config(dict(config)).requires_grad_(False).eval()
        torch.set_default_dtype(torch.float32)
        for model in (student, self.teacher):  # which is the critic's backbone as well
            model.enable_gradient_checkpointing()
        self.student: Any = student.train()
        self.task: Any = CountedTask(HUNYUAN_VIDEO)
        self.pairs = pairs_after_removed_runs(plan, config)
        pair = FlowMatchingPair("teacher", "student", FlowMatchingArguments())
        if critic_backbone == "none":
            self.heads: nn.Module = LatentDiscriminator(config["out_channels"], config["pooled_projection_dim"])
            self.features = CriticFeatures(self.task, None)
        else:
            channels = pair.critic_channels(FlowMatchingCriticArguments(), config)
            self.heads = DiscriminatorHeads(channels, config["pooled_projection_dim"])
            self.features = CriticFeatures(self.task, self.teacher, tuple(channels), HUNYUAN_VIDEO.token_grid)
        optimizer = torch.optim.AdamW(self.heads.parameters(), foreach=False)
        self.critic = Critic("mca", self.heads, optimizer, CriticSettings({"teacher": 0}))


def draw(config: Mapping[str, Any], clip: tuple[int, int, int]) -> dict[str, Tensor]:
    """A batch of one clip, as the data set gives it."""
    inputs = HUNYUAN_VIDEO.example_inputs(config, *clip)
    return {
        "latents": torch.randn(inputs["hidden_states"].movedim(1, 2).shape),
        "prompt_embeds": torch.randn(inputs["encoder_hidden_states"].shape),
        "prompt_attention_mask": torch.ones(inputs["encoder_attention_mask"].shape),
        "pooled_prompt_embeds": torch.randn(inputs["pooled_projections"].shape),
        "fps": torch.tensor([24.0]),
    }


def step(parts: Parts, batch: Mapping[str, Tensor], note: Callable[[str], None] = lambda part: None) -> None:
    """Student, teacher, critic and backward, as `icmd_training_loop` has them; no optimiser step."""
    mixed = torch.autocast("cpu", torch.bfloat16)
    task, adversary = parts.task, Adversary([parts.critic], parts.features, 1, lambda: mixed)
    generators = [torch.Generator().manual_seed(0)]
    inputs = task.prepare(batch, generators)
    given = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning
    with mixed, FeatureTaps(parts.student, [name for name, _ in parts.pairs]) as student_features:
        denoised = task.denoise(parts.student, *given)
    note("student")
    taps = FeatureTaps(parts.teacher, [name for _, name in parts.pairs])
    with torch.no_grad(), mixed, taps as teacher_features:
        teacher_denoised = task.denoise(parts.teacher, *given)
    note("teacher")
    losses = task.losses(denoised, inputs)
    losses["icd"] = 0.1 * icd_loss(student_features, teacher_features, parts.pairs, normalize=True)
    samples = Samples(denoised, {"teacher": teacher_denoised, "data": inputs.clean_latents}, inputs, generators)
    losses |= adversary.losses_for_student(0, samples, losses["velocity"])
    note("critic")
    torch.stack(list(losses.values())).sum().backward()
    note("backward")
    adversary.train_heads(0, samples)
    note("heads")


def num_values(*models: nn.Module) -> int:
    return sum(parameter.numel() for model in models for parameter in model.parameters())


class Bytes(NamedTuple):
    """What lives at the peak beside weights and the student's gradients: before the backward pass, and from it on."""

    before: int
    backward: int


def count_bytes(parts: Parts, batch: Mapping[str, Tensor]) -> Bytes:
    for parameter in parts.student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    known = [p for model in (parts.student, parts.teacher, parts.heads) for p in model.parameters()]
    peaks: dict[str, int] = {}

    def note(part: str) -> None:
        peaks[part] = max(peaks.get(part, 0), counter.peak)
        counter.peak = counter.live

    with LiveBytes(known) as counter:
        step(parts, batch, note)
    return Bytes(max(peaks["student"], peaks["teacher"], peaks["critic"]), max(peaks["backward"], peaks["heads"]))


def count_operations(parts: Parts, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """By part of the step."""
    flops: dict[str, int] = {}

    def note(part: str) -> None:
        flops[part] = counter.get_total_flops() - sum(flops.values())

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step(parts, batch, note)
    return flops


def gathered(model: nn.Module, gradient_bytes: int) -> int:
    """Bytes of what FSDP gathers: two blocks and what is in no block, and of one block gradients of so many bytes."""
    blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
    largest = max(map(num_values, blocks))
    return 2 * (2 * largest + num_values(model) - num_values(*blocks)) + gradient_bytes * largest


def per_gpu(parts: Parts, living: Bytes, num_gpus: int, shard_teacher: bool) -> dict[str, float]:
    """Bytes by what they are for."""
    is_divided, num_student = num_gpus > 1, num_values(parts.student) / num_gpus
    return {
        "student: weights, moments, average": 16 * num_student,
        "teacher": 2 * num_values(parts.teacher) / (num_gpus if shard_teacher else 1),
        "critic": 16 * num_values(parts.heads),
        "gathered student blocks": is_divided * gathered(parts.student, gradient_bytes=2 + 4),
        "gathered teacher blocks": shard_teacher * gathered(parts.teacher, gradient_bytes=0),
        "activations, features, gradients, at the peak": max(living.before, living.backward + 4 * num_student),
    }


def write_table(parts: Parts, living: Mapping[bool, Bytes]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for num_gpus, shard_teacher in ((1, False), (8, False), (8, True), (64, False), (64, True)):
        found = per_gpu(parts, living[num_gpus > 1], num_gpus, shard_teacher)
        head = f"{num_gpus} GPU{'s' * (num_gpus > 1)}{', teacher divided' * shard_teacher}"
        for name, value in {**found, "sum": sum(found.values())}.items():
            rows.setdefault(name, {"GiB per GPU": name})[head] = f"{value / GIB:.2f}"
    return markdown_table(list(rows.values()))


def full_size(args: Arguments) -> None:
    with torch.device("meta"):
        config = {**HunyuanVideoTransformer3DModel().config, "_class_name": CLASS}
    for whose, clip in CLIPS.items():
        living, parts = {}, None
        with FakeTensorMode():
            for divided in (False, True):
                parts = Parts(config, PLANS["vdmini_hy"], args.critic_backbone, divided)
                living[divided] = count_bytes(parts, draw(config, clip))
            flops = count_operations(parts, draw(config, clip))
        frames, height, width = clip
        print(
            f"\n{whose} clips, {height} x {width} x {frames}, one a GPU; critic on"
            f" {'the latents' if args.critic_backbone == 'none' else 'the teacher'}\n\n{write_table(parts, living)}\n"
        )
        words = ", ".join(f"{part} {value / 1e15:.2f}" for part, value in flops.items())
        print(f"operations of a step for one clip, PFLOP: {sum(flops.values()) / 1e15:.2f} ({words})", flush=True)


def mid_size(args: Arguments) -> None:
    with torch.device("meta"):
        config = {**HunyuanVideoTransformer3DModel(**MID_SIZE).config, "_class_name": CLASS}
    plan = PLANS["middle"].for_teacher(CLASS, config)
    with FakeTensorMode():
        parts = Parts(config, plan, args.critic_backbone, divided=False)
        fake = count_bytes(parts, draw(config, MID_SIZE_CLIP))
        total = sum(per_gpu(parts, fake, 1, False).values())
    kept: list[Any] = []

    def train() -> None:
        parts, batch = Parts(config, plan, args.critic_backbone, divided=False), draw(config, MID_SIZE_CLIP)
        parameters = list(parts.student.parameters())
        optimizer = torch.optim.AdamW(parameters, foreach=False)
        ema = ShardedEMA(parameters)
        for _ in range(2):
            step(parts, batch)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)
            parts.critic.step(max_grad_norm=1.0)
        kept.append(parts)

    grown = grown_by(train)
    real = count_bytes(kept[0], draw(config, MID_SIZE_CLIP))
    print(
        f"HunyuanVideo of width 512, {num_values(kept[0].teacher):,} to {num_values(kept[0].student):,} parameters:"
        f" at the peak of a step {max(fake) / 2**20:.1f} MiB of fake and {max(real) / 2**20:.1f} MiB of real tensors;"
        f" all in all {total / 2**20:.1f} MiB by the formula, and the process grew by {grown / 2**20:.1f} MiB"
        f" ({grown / total - 1:+.1%})"
    )


def main(args: Arguments) -> None:
    (mid_size if args.mid_size else full_size)(args)


if __name__ == "__main__":
    run(lambda: main(*parse_arguments((Arguments,))))
