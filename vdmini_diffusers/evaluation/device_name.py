"""The device that a time was measured on, in words."""

import platform
from pathlib import Path

import torch


def device_name(device: str | torch.device) -> str:
    """What stands beside a time: the GPU, or the CPU and how many of its threads torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {_cpu_model()}, {threads} thread{'s' * (threads > 1)}"


def _cpu_model() -> str:
    """As Linux has it; elsewhere, and where the processor does not say, what Python knows of it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
