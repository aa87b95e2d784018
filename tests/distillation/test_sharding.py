"""Transformers in parts: each process reads its own rows, and only ways that keep them apart are taken."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from scripts_run import run
from tiny_hunyuan_video import tiny_hunyuan_transformer
from tiny_video_transformers import tiny_transformer, video_and_text

from vdmini_diffusers.distillation.sharding import is_sharding, load_sharded, shard_blocks


SCRIPT = Path(__file__).parent / "load_sharded.py"


@pytest.mark.slow  # two processes, which take their time to join
@pytest.mark.timeout(600)
def test_each_of_two_processes_holds_half_and_together_they_hold_the_files(tmp_path):
    tiny_hunyuan_transformer().save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    output = run([SCRIPT, tmp_path / "model"], tmp_path / "log", processes=2)
    logs = [output, (tmp_path / "log.1.log").read_text()]
    found = [json.loads(re.search(r"found (\{.*\})", log)[1]) for log in logs]
    assert all(one["differing"] == [] for one in found)
    assert sum(one["held"] for one in found) == found[0]["all"]
    # A tensor of an odd number of rows has one more on the first.
    assert max(one["held"] for one in found) < 0.52 * found[0]["all"]


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@torch.no_grad()
def test_in_half_precision_a_frozen_transformer_in_parts_computes_what_a_whole_one_does(one_process_group, tmp_path):
    """Wan keeps its norms, its tables and the embedding of timesteps in float32."""
    tiny_transformer("WanTransformer3DModel").save_pretrained(tmp_path)
    whole = WanTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    parts = load_sharded(WanTransformer3DModel, tmp_path, None, torch.bfloat16, torch.device("cpu"))
    parts.eval().requires_grad_(False)
    dtypes = [{name: p.dtype for name, p in model.named_parameters()} for model in (whole, parts)]
    assert dtypes[0] == dtypes[1] and len(set(dtypes[0].values())) == 2
    inputs = video_and_text()
    inputs = {name: value if name == "timestep" else value.bfloat16() for name, value in inputs.items()}
    assert torch.equal(parts(**inputs).sample, whole(**inputs).sample)


def test_weights_of_another_network_are_refused_before_anything_is_made(tmp_path):
    tiny_hunyuan_transformer().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.bias"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"the tensor 'proj_out\.bias' of the weights is not that of config\.json"):
        load_sharded(HunyuanVideoTransformer3DModel, tmp_path, None, torch.float32, torch.device("cpu"))


def test_one_process_divides_nothing():
    with pytest.raises(ValueError, match="several processes, and there is one"):
        shard_blocks(tiny_hunyuan_transformer())


def accelerator_of(**settings) -> SimpleNamespace:
    """What is read of one, which accelerate makes of FSDP's settings on GPUs only."""
    plugin = FullyShardedDataParallelPlugin(**settings) if settings else None
    kind = DistributedType.FSDP if settings else DistributedType.NO
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(fsdp_plugin=plugin))


def test_only_sharded_checkpoints_of_fsdp2_keep_the_parts_apart():
    assert not is_sharding(accelerator_of())
    assert is_sharding(accelerator_of(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT"))
    with pytest.raises(ValueError, match="--fsdp_state_dict_type SHARDED_STATE_DICT"):
        is_sharding(accelerator_of(fsdp_version=2, state_dict_type="FULL_STATE_DICT"))
    with pytest.raises(ValueError, match="--fsdp_version 2"):
        is_sharding(accelerator_of(fsdp_version=1, state_dict_type="SHARDED_STATE_DICT"))
