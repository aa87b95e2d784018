#!/usr/bin/env python
"""`training/train_icmd.py` with heads of MCA that are random and never learn: a control of `recovery_ablation.py`.

If a student gains by these as much as by MCA, it is not the teacher's distribution that helps.
"""

import inspect
import runpy
from pathlib import Path
from typing import Any

import torch

from vdmini_diffusers.trainers import train_denoiser
from vdmini_diffusers.trainers.critics import make_critics


def with_random_mca(*args: Any, **kwargs: Any) -> list[Any]:
    """New heads are silent, with zeros in their last layers; these are not."""
    critics = make_critics(*args, **kwargs)
    given = inspect.signature(make_critics).bind(*args, **kwargs)
    given.apply_defaults()
    for critic in critics:
        if critic.name == "mca":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(given.arguments["seed"])
                for module in critic.heads.modules():
                    reset: Any = getattr(module, "reset_parameters", None)
                    if reset is not None:
                        reset()
            for group in critic.optimizer.param_groups:
                group["lr"] = group["weight_decay"] = 0.0
    return critics


def replace_critics() -> None:
    """Raises `AttributeError` if training makes its critics elsewhere by now: the control would be none."""
    if train_denoiser.make_critics is not make_critics:
        raise AttributeError(f"{train_denoiser.__name__} does not make its critics by `make_critics`.")
    train_denoiser.make_critics = with_random_mca


if __name__ == "__main__":
    replace_critics()
    runpy.run_path(str(Path(__file__).parents[1] / "training" / "train_icmd.py"), run_name="__main__")
