"""Training steps in half precision, and the 8-bit optimiser."""

import logging
import math

import pytest
import torch
from runs import forget_accelerator
from safetensors.torch import load_file
from scripts_run import logged_losses
from tiny import student_of, tiny_svd_pipeline
from tiny_text_to_video import tiny_t2v_pipeline, tiny_t2v_teacher
from written_latents import write_latents, write_text_to_video_latents

from vdmini_diffusers import distill
from vdmini_diffusers.distillation.arguments import TrainingArguments
from vdmini_diffusers.distillation.engine import make_optimizer
from vdmini_diffusers.pruning import VDMINI_UNET
from vdmini_diffusers.pruning.prune_pipeline import prune_pipeline


pytestmark = pytest.mark.gpu

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folders(task, tmp_path):
    """Teacher, pruned student, precomputed latents."""
    if task == "i2v":
        tiny_svd_pipeline().save_pretrained(tmp_path / "teacher")
        write_latents(tmp_path / "latents", num_samples=2)
    else:
        tiny_t2v_pipeline(tiny_t2v_teacher()).save_pretrained(tmp_path / "teacher")
        write_text_to_video_latents(tmp_path / "latents", num_samples=2)
    return tmp_path / "teacher", prune_pipeline(tmp_path / "teacher", tmp_path / "student"), tmp_path / "latents"


def trained(folders, out, caplog, **settings):
    """The weights after some steps with both critics, and the losses of each step."""
    teacher, student, latents = folders
    caplog.clear()
    forget_accelerator()
    with caplog.at_level(logging.INFO):
        distill(
            teacher,
            student,
            out,
            precomputed_data_dir=str(latents),
            max_train_steps=6,
            train_batch_size=1,
            gradient_accumulation_steps=1,
            logging_steps=1,
            discriminator_width=32,
            mca_start_step=0,
            critic_backbone="teacher",
            critic_warmup_steps=0,
            learning_rate=1e-3,
            **settings,
        )
    return load_file(out / WEIGHTS), logged_losses(caplog.text)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_losses_are_near_those_in_float32_and_weights_change(
    precision, device, task, folders, tmp_path, caplog
):
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("accelerate has no fp16 on a CPU")
    of_task = {"ode_teacher_model_name_or_path": "teacher"} if task == "t2v" else {}
    _, expected = trained(folders, tmp_path / "float32", caplog, **of_task)
    # Among the first steps are some that the scaler of fp16 leaves out.
    weights, losses = trained(folders, tmp_path / precision, caplog, mixed_precision=precision, **of_task)
    before = load_file(folders[1] / WEIGHTS)
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())
    assert sum(not torch.equal(weights[name], before[name]) for name in before) > 0.9 * len(before)
    assert len(losses) == len(expected) == 6
    assert all(math.isfinite(value) for step in losses for value in step.values())
    assert losses[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        assert losses[0][name] == pytest.approx(value, rel=0.05, abs=0.02), name


def test_the_8_bit_optimiser_steps_as_adamw_does(gpu, tmp_path):
    pytest.importorskip("bitsandbytes")

    def stepped(optimizer):
        model = student_of(tiny_svd_pipeline().unet, VDMINI_UNET).to(gpu).train()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        args = TrainingArguments(output_dir=tmp_path, optimizer=optimizer, learning_rate=1e-3)
        made = make_optimizer(args, model.parameters())
        for parameter in model.parameters():
            parameter.grad = parameter.detach().sign() * (1 + torch.rand_like(parameter))
        made.step()
        return made, [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]

    torch.manual_seed(0)
    _, expected = stepped("adamw")
    torch.manual_seed(0)
    made, found = stepped("adamw_8bit")
    dtypes = {value.dtype for state in made.state.values() for value in state.values() if torch.is_tensor(value)}
    assert torch.uint8 in dtypes
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=1e-4)
