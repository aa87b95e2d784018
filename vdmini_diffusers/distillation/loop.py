"""ICMD training (section 3.3, Eq. 6): the method on one page. Task, engine and data are arguments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vdmini_diffusers.distillation.adversary import Adversary, Samples
from vdmini_diffusers.distillation.batches import endless_batches, sample_generators
from vdmini_diffusers.distillation.checkpoints import Checkpoints
from vdmini_diffusers.distillation.critics import Critic, CriticFeatures
from vdmini_diffusers.distillation.feature_taps import FeatureTaps
from vdmini_diffusers.distillation.hyperparameters import keeping_hyperparameters, set_learning_rate
from vdmini_diffusers.distillation.loss_log import LossLog
from vdmini_diffusers.distillation.losses import gradient_at, icd_loss
from vdmini_diffusers.distillation.tasks.base import Task


@dataclass(frozen=True)
class LoopSettings:
    """Numbers of the loop. The scripts' arguments of the same names document the source of each."""

    seed: int
    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    lambda_icd: float = 0.1
    icd_reduction: Literal["sum", "mean"] = "sum"
    icd_normalize: bool = False
    logging_steps: int = 10
    checkpointing_steps: int = 500
    validation_steps: int = 1000


def icmd_training_loop(
    *,
    accelerator: Accelerator,
    task: Task,
    student: nn.Module,
    teacher: nn.Module,
    dataloader: DataLoader,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: Any,
    settings: LoopSettings,
    checkpoints: Checkpoints,
    pairs: Sequence[tuple[str, str]] = (),
    teacher_channels: Mapping[str, Sequence[int]] = MappingProxyType({}),
    critics: Sequence[Critic] = (),
    critic_features: CriticFeatures | None = None,
    ema: EMAModel | None = None,
    validate: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train `student` towards `teacher`, and return it bare.

    `accelerator` has prepared student, optimiser and data; the schedule counts optimiser steps and is not prepared.

    `L = L_Task + lambda_ICD L_ICD + lambda_MCA (L_gen + L_disc)`, Eq. 6, where the last term is that of each critic.
    The teacher runs once a step: its features are ICD's target, and its output is the real sample of MCA's critic. It
    does not run where neither needs it, as when SF-V itself is trained. A student that has lost channels is compared
    with the `teacher_channels` that it has, by the teacher's modules.

    Raises:
        FloatingPointError: if a loss, or a weight that is about to be saved, is not finite; the last checkpoint is
            left as it is.
    """
    adversary = Adversary(
        critics,
        critic_features or CriticFeatures(task, teacher),
        settings.gradient_accumulation_steps,
        accelerator.autocast,
    )
    bare_student = extract_model_from_parallel(student, keep_torch_compile=False)
    trained = [parameter for parameter in bare_student.parameters() if parameter.requires_grad]
    others: dict[str, Any] = {"lr_scheduler": lr_scheduler, **{critic.name: critic for critic in critics}}
    others |= {"ema": ema} if ema is not None else {}
    with keeping_hyperparameters(optimizer):
        progress = checkpoints.resume(accelerator, others)
    set_learning_rate(optimizer, lr_scheduler)
    if ema is not None:
        ema.to(accelerator.device)
    log = LossLog(accelerator)
    batches = endless_batches(dataloader, progress)
    bar = tqdm(
        initial=progress.step, total=settings.max_train_steps, desc="icmd", disable=not accelerator.is_main_process
    )

    while progress.step < settings.max_train_steps:
        uses_teacher = bool(pairs) or "teacher" in adversary.real_samples(progress.step)
        is_last = progress.step + 1 == settings.max_train_steps
        reports = is_last or (progress.step + 1) % settings.logging_steps == 0

        for micro_step in range(settings.gradient_accumulation_steps):
            batch = next(batches)
            position = (micro_step * accelerator.num_processes + accelerator.process_index) * settings.train_batch_size
            generators = sample_generators(settings.seed, progress.step, position, settings.train_batch_size)
            # For dropout: other numbers than the generators'. Only once the batch is there, because a loader that
            # begins anew, as in a resumed run, draws random numbers as well.
            torch.manual_seed(generators[0].initial_seed() ^ 1)
            with accelerator.accumulate(student):
                # Inputs of both models
                inputs = task.prepare(batch, generators)
                model_inputs = inputs.noisy_latents, inputs.noise_levels, inputs.conditioning

                # Student, and teacher once for all its uses
                with (
                    accelerator.autocast(),
                    FeatureTaps(bare_student, [name for name, _ in pairs]) as student_features,
                ):
                    denoised = task.denoise(student, *model_inputs)
                teacher_features, teacher_denoised = {}, inputs.clean_latents  # unless it runs
                if uses_teacher:
                    taps = FeatureTaps(teacher, [name for _, name in pairs], teacher_channels)
                    with torch.no_grad(), accelerator.autocast(), taps as teacher_features:
                        teacher_denoised = task.denoise(teacher, *model_inputs)

                # Losses of the student
                losses = task.losses(denoised, inputs)
                task_loss = torch.stack(list(losses.values())).sum()
                if pairs:
                    icd = icd_loss(
                        student_features, teacher_features, pairs, settings.icd_reduction, settings.icd_normalize
                    )
                    losses["icd"] = settings.lambda_icd * icd
                clean_latents = {"teacher": teacher_denoised, "data": inputs.clean_latents}
                samples = Samples(denoised, clean_latents, inputs, generators)
                losses |= adversary.losses_for_student(progress.step, samples, task_loss)
                norms = {}
                if reports:
                    with adversary.features.keeping_weights():
                        norms = gradient_norms(losses, denoised)

                # Generator step
                total = torch.stack(list(losses.values())).sum()
                refuse_nan(total, losses, progress.step)
                accelerator.backward(total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trained, settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

            # Discriminator step, on the student's output from before its step
            heads_losses, ranks = adversary.train_heads(progress.step, samples)
            for loss in heads_losses.values():
                refuse_nan(loss, losses | heads_losses, progress.step)
            log.add(losses | heads_losses | ranks | norms)

        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()
        adversary.step(progress.step, settings.max_grad_norm)
        if ema is not None:
            ema.step(trained)

        # Book-keeping
        progress.step += 1
        bar.update()
        if reports:
            log.report(progress.step, lr=learning_rate)
        if is_last or progress.step % settings.checkpointing_steps == 0:
            checkpoints.save(accelerator, progress)
        if validate is not None and (is_last or progress.step % settings.validation_steps == 0):
            validate(progress.step)
    return bare_student


def gradient_norms(losses: dict[str, torch.Tensor], denoised: torch.Tensor) -> dict[str, torch.Tensor]:
    """The norm of each loss's gradient at the student's output, the mean over clips. ICD has none there."""
    norms = {}
    for name, loss in losses.items():
        gradient = gradient_at(loss, denoised)
        if name != "icd":
            norms[f"{name}_gradient"] = len(gradient) * gradient.flatten(1).norm(dim=1).mean()
    return norms


def refuse_nan(loss: torch.Tensor, losses: dict[str, torch.Tensor], step: int) -> None:
    if not loss.isfinite():
        values = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
        raise FloatingPointError(
            f"The loss of step {step + 1} is not finite ({values}). Nothing was saved since the last checkpoint: run"
            " the same command again with a lower learning rate; on a GPU, bf16 is safer than fp16."
        )
