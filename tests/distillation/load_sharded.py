"""Loads a transformer's folder in parts, and prints what this process holds of it and whether the parts are right."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import HunyuanVideoTransformer3DModel

from vdmini_diffusers.distillation.sharding import load_sharded, training_policy, whole_tensors


folder = Path(sys.argv[1])
accelerator = Accelerator(cpu=True)
model = load_sharded(
    HunyuanVideoTransformer3DModel, folder, None, torch.float32, accelerator.device, training_policy(torch.float32)
)
held = sum(parameter.to_local().numel() for parameter in model.parameters())
stock = HunyuanVideoTransformer3DModel.from_pretrained(folder)
differing = [
    name
    for name, tensor in whole_tensors(model, list(stock.state_dict()))
    if not torch.equal(tensor, stock.state_dict()[name])
]
print("found", json.dumps({"held": held, "all": stock.num_parameters(), "differing": differing}))
