"""Every suite of diffusers' model tests that applies to the T2V student; see conftest.py for how to run them.

Left out, with the reason: caching (needs `CacheMixin`, which the parent lacks), context and tensor parallelism (need
plans that the parent lacks), IP adapters (for text-to-image U-Nets), single files (need a checkpoint on the Hub in
another layout), quantization (loads a checkpoint from the Hub).
"""

import os

import pytest
import torch

from vdmini_diffusers import VDMiniUNet3DConditionModel


if "DIFFUSERS_TESTS" not in os.environ:
    pytest.skip(
        "set DIFFUSERS_TESTS to a folder that holds the `tests` of a diffusers checkout (tests/official/conftest.py)",
        allow_module_level=True,
    )

from tests.models.testing_utils import (
    AttentionBackendTesterMixin,
    AttentionTesterMixin,
    BaseModelTesterConfig,
    LoraHotSwappingForModelTesterMixin,
    LoraTesterMixin,
    MemoryTesterMixin,
    ModelTesterMixin,
    TorchCompileTesterMixin,
    TrainingTesterMixin,
)
from tests.testing_utils import torch_device


pytestmark = pytest.mark.slow


class StudentConfig(BaseModelTesterConfig):
    """The paper's plan, narrow; batches of two clips of two frames."""

    model_class = VDMiniUNet3DConditionModel
    main_input_name = "sample"
    output_shape = (4, 2, 16, 24)  # without the batch
    different_shapes_for_compilation = ((16, 16), (16, 24), (24, 16))

    @property
    def generator(self):
        return torch.Generator("cpu").manual_seed(0)

    def get_init_dict(self):
        return {
            "block_out_channels": (16, 32, 64),
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
            "time_cond_proj_dim": 16,
            "motion_cond_proj_dim": 16,
            "sample_size": 16,
        }

    def get_dummy_inputs(self, height=16, width=24):
        generator = self.generator
        inputs = {
            "sample": torch.randn(2, 4, 2, height, width, generator=generator),
            "timestep": torch.tensor([459]),
            "encoder_hidden_states": torch.randn(2, 5, 32, generator=generator),
            "timestep_cond": torch.randn(2, 16, generator=generator),
            "motion_cond": torch.randn(2, 16, generator=generator),
            "fps": torch.tensor([8, 16]),
        }
        return {name: value.to(torch_device) for name, value in inputs.items()}


class TestModel(StudentConfig, ModelTesterMixin):
    pass


class TestTraining(StudentConfig, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(
            expected_set={
                "CrossAttnDownBlock3D",  # these two have the switch and do not look at it
                "CrossAttnUpBlock3D",
                "Transformer2DModel",
                "VDMiniResnetBlock2D",
                "VDMiniTemporalConvLayer",
                "VDMiniTransformerTemporalModel",
            }
        )


class TestMemory(StudentConfig, MemoryTesterMixin):
    pass


class TestAttention(StudentConfig, AttentionTesterMixin):
    pass


class TestAttentionBackends(StudentConfig, AttentionBackendTesterMixin):
    pass


class TestLora(StudentConfig, LoraTesterMixin):
    pass


class TestLoraHotSwapping(StudentConfig, LoraHotSwappingForModelTesterMixin):
    pass


class TestCompile(StudentConfig, TorchCompileTesterMixin):
    def test_torch_compile_repeated_blocks(self):
        super().test_torch_compile_repeated_blocks(recompile_limit=4)  # one graph for each width
