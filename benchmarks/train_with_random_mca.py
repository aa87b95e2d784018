#!/usr/bin/env python
"""`training/train_icmd.py` with heads of MCA that are random and never learn: a control of `recovery_ablation.py`.

If a student gains by these as much as by MCA, it is not the teacher's distribution that helps.
"""

import runpy
from pathlib import Path
from typing import Any

import torch

from vdmini_diffusers.trainers import distill
from vdmini_diffusers.trainers.critics import make_critics


def with_random_mca(*args: Any, **kwargs: Any) -> list[Any]:
    """New heads are silent, with zeros in their last layers; these are not."""
    critics = make_critics(*args, **kwargs)
    for critic in critics:
        if critic.name == "mca":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(kwargs.get("seed", 0))
                for module in critic.heads.modules():
                    reset: Any = getattr(module, "reset_parameters", None)
                    if reset is not None:
                        reset()
            for group in critic.optimizer.param_groups:
                group["lr"] = group["weight_decay"] = 0.0
    return critics


if __name__ == "__main__":
    distill.make_critics = with_random_mca
    runpy.run_path(str(Path(__file__).parents[1] / "training" / "train_icmd.py"), run_name="__main__")
