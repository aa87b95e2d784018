"""How the command `vdmini` ends where something is wrong: with one line, and exit status 2."""

import os
import sys
from collections.abc import Callable


DEBUG = "VDMINI_DEBUG"  # environment variable; --debug sets it


def run_command(app: Callable[..., object]) -> None:
    """Run a typer app on the command line.

    An error that a command raises becomes one line on stderr, without a traceback; with `--debug` anywhere on the
    command line, or `VDMINI_DEBUG` set, it is raised as it is, and libraries print their warnings.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments or bool(os.environ.get(DEBUG))
    if not debug:  # before the libraries read them
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], prog_name="vdmini")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"Error: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(2)


def one_line(error: Exception) -> str:
    """An error in plain words, without the name of its class unless there are no words."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.filename}: {error.strerror}."  # without the number
    if isinstance(error, (KeyError, IndexError, AttributeError, TypeError, AssertionError)) or not message:
        message = f"{type(error).__name__}: {message} (this should not happen; --debug shows where it did)"
    return message
