"""How the command `vdmini` ends where something is wrong: with one line, and exit status 2."""

import io
import os
import re
import signal
import sys
from collections.abc import Mapping
from typing import Any

from typer.main import get_command


INTERRUPTED = 130  # exit status
DEBUG = "VDMINI_DEBUG"  # environment variable; --debug sets it
FLAG = re.compile(r"(?<![\w-])--([a-z]+(?:_[a-z]+)*)(?![\w-])")

# Of what scripts do as well: the script, and its flags that have another name here.
SHARED_WORK: dict[str, tuple[str, Mapping[str, str]]] = {
    "prune": (
        "conversion/prune_video_transformer.py",
        {"output_dir": "--out", "pretrained_model_name_or_path": "TEACHER"},
    ),
    "score": (
        "conversion/measure_block_importance.py",
        {"output_dir": "--out", "pretrained_model_name_or_path": "MODEL", "num_inference_steps": "--steps"},
    ),
    "evaluate": (
        "benchmarks/fvd.py",
        {"real": "REAL", "generated": "GENERATED", "pipeline": "--model", "output": "--out"}
        | {"num_inference_steps": "--steps"},
    ),
}


def run_command(app: Any) -> None:
    """Run a typer app on the command line.

    An error that a command raises becomes one line on stderr, without a traceback; with `--debug` anywhere on the
    command line, or `VDMINI_DEBUG` set, it is raised as it is, and libraries print their warnings.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get(DEBUG))
    if not debug:  # before the libraries read them
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    for stream in (sys.stdout, sys.stderr):  # names of files may be in no encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Whoever ends a job sends SIGTERM, which would leave temporary files behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], prog_name="vdmini")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer's, after Ctrl-C
            print("Stopped. Nothing is half written.", file=sys.stderr)
        raise
    except Exception as error:
        if debug:
            raise
        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        print(f"Error: {with_own_flags(one_line(error), app, command)}", file=sys.stderr, flush=True)
        sys.exit(2)


def with_own_flags(message: str, app: Any, command: str) -> str:
    """A message with the command's flags in place of those of the script that does the same work.

    A flag that the command does not have is said to be the script's.
    """
    if command not in SHARED_WORK:
        return message
    script, renamed = SHARED_WORK[command]
    group: Any = get_command(app)
    own = {"--debug", "--help", *(name for parameter in group.commands[command].params for name in parameter.opts)}

    def own_name(flag: re.Match[str]) -> str:
        dashed = f"--{flag[1].replace('_', '-')}"
        return renamed.get(flag[1]) or (dashed if dashed in own else f"{flag[0]} of {script}")

    return FLAG.sub(own_name, message)


def one_line(error: Exception) -> str:
    """An error in plain words, without the name of its class unless there are no words."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}."  # without the number
    if isinstance(error, (KeyError, IndexError, AttributeError, TypeError, AssertionError)) or not message:
        message = f"{type(error).__name__}: {message} (this should not happen; --debug shows where it did)"
    return message
