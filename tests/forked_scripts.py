"""Scripts in processes of their own that are forked: what they import is there already."""

import logging
import multiprocessing
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from accelerate.state import AcceleratorState


def start(
    arguments: Sequence[object], environment: Mapping[str, str] | None = None, log: Path = Path(os.devnull)
) -> BaseProcess:
    """`arguments` begin with the script's path. What it prints goes to `log`, with a traceback if it raises."""

    def run() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        logging.root.handlers.clear()
        os.environ.update(environment or {})
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # not pytest's
        sys.argv = [str(argument) for argument in arguments]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        sys.stderr.flush()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
