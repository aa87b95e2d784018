"""`training/train_icmd.py` with the student sharded by FSDP2, on CPUs.

accelerate offers FSDP on accelerators only, though all that it calls runs on gloo as well: hence this detour. On GPUs
it is `accelerate launch --use_fsdp --fsdp_version 2 ...`.
"""

import runpy
import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from vdmini_diffusers.distillation.arguments import RunArguments
from vdmini_diffusers.trainers import train_denoiser


WRAPPED = {
    "i2v": ["TransformerSpatioTemporalModel", "SpatioTemporalResBlock"],
    "t2v": ["Transformer2DModel", "VDMiniTransformerTemporalModel"],
    "t2v_hy": None,  # divides itself
}
make_accelerator = train_denoiser.make_accelerator


def make_sharding_accelerator(args: RunArguments) -> Accelerator:
    accelerator = make_accelerator(args)
    for state in (PartialState(), accelerator.state):
        state.distributed_type = DistributedType.FSDP
    wrapped = WRAPPED[next((task for task in WRAPPED if task in sys.argv), "i2v")]
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap" if wrapped else "no_wrap",
        transformer_cls_names_to_wrap=wrapped,
        state_dict_type="SHARDED_STATE_DICT",
    )
    return accelerator


train_denoiser.make_accelerator = make_sharding_accelerator
runpy.run_path(str(Path(__file__).parents[2] / "training" / "train_icmd.py"), run_name="__main__")
