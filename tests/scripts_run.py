"""Training scripts run to their end, on one process or several, and what they leave."""

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import torch
from checkout import ROOT
from forked_scripts import start


def command_of(script: str, settings: Mapping[str, object]) -> list[object]:
    """The script's path and its flags; a setting of None is a flag left out, one of True a flag without a value."""
    flags = [
        [f"--{name}"] if value is True else [f"--{name}", value]
        for name, value in settings.items()
        if value is not None
    ]
    return [ROOT / "training" / script, *(part for flag in flags for part in flag)]


def run(arguments: list[object], log: Path, fails: bool = False, processes: int = 1) -> str:
    """To its end, in one process or in several that are joined; what the first of them printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    started = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment = (joined | place) if processes > 1 else {}
        started.append(start(arguments, environment, log.with_suffix(f".{rank}.log")))
    for process in started:
        process.join()
    output = log.with_suffix(".0.log").read_text()
    assert any(process.exitcode for process in started) == fails, output[-3000:]
    return output


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


def logged_losses(output: str) -> list[dict[str, float]]:
    return [json.loads(values) for values in re.findall(r"step \d+: (\{.*\})", output)]
