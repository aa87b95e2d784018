"""The attention backends of a GPU compute what the default one does."""

import pytest
import torch
from runs import forward


pytestmark = pytest.mark.gpu

ON_CPU = ("_native_math", "_native_flash", "flex")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("backend", ["_native_math", "_native_flash", "_native_efficient", "flex"])
def test_a_backend_is_near_the_default_one(backend, dtype, device, student):
    if device.type == "cpu" and backend not in ON_CPU:
        pytest.skip(f"{backend} is a GPU's")
    exact = forward(student)
    student.to(device, dtype)
    expected = forward(student)
    student.set_attention_backend(backend)
    found = forward(student)
    tolerance = {torch.float16: 0.01, torch.bfloat16: 0.08}[dtype] * exact.std().item()
    assert (found - expected).abs().max() < 3 * tolerance
    assert (found - exact).abs().mean() < tolerance
