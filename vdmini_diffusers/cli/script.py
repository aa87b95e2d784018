"""How every script reads its command line and ends: with one sentence where something is wrong."""

import itertools
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser


TRACEBACK = "VDMINI_TRACEBACK"  # environment variable: set it to see where an error was raised


def run(main: Callable[[], object]) -> None:
    """Run a script. An error ends it with exit status 1 and one sentence as the last line, without a traceback.

    With the environment variable `VDMINI_TRACEBACK` set, the error is raised as it is.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"({TRACEBACK}=1 prints the traceback.)", file=sys.stderr)
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)


def parse_arguments(
    kinds: Sequence[type], description: str | None = None, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """One object of each dataclass in `kinds`, from flags after an optional YAML file, whose values they override.

    A flag that does not exist, a missing one, and a value that the dataclass refuses end the script with its usage and
    exit status 2.

    Args:
        description: of the script, for `--help`.
        argv: by default the command line.
    """
    config, flags = _split(argv)
    parser = HfArgumentParser(list(kinds), description=description)  # pyright: ignore[reportArgumentType] - dataclasses
    known = {setting.name for kind in kinds for setting in fields(kind)}
    if unknown := sorted(set(config) - known):
        parser.error(f"the YAML file names settings that do not exist: {', '.join(unknown)}")
    given = [
        [f"--{name}", *(value if isinstance(value, list) else [value])]
        for name, value in config.items()
        if value not in ("null", "~", "")
    ]
    try:
        *parsed, left_over = parser.parse_args_into_dataclasses(
            [*itertools.chain.from_iterable(given), *flags], return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if left_over:
        parser.error(f"unrecognized arguments: {' '.join(left_over)}")
    return tuple(parsed)


def peek_argument(name: str, default: str, argv: Sequence[str] | None = None) -> str:
    """One setting, read ahead of the others, where it decides which others there are."""
    config, flags = _split(argv)
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=config.get(name, default))
    return getattr(parser.parse_known_args(flags)[0], name)


def _split(argv: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """What the YAML file says, if there is one, and the flags.

    Raises:
        ValueError: if the file is not a mapping of settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not (argv and argv[0].endswith((".yaml", ".yml"))):
        return {}, argv
    import yaml

    file = Path(argv.pop(0))
    try:
        # Text throughout: the parser checks it as it checks flags, and `no` is not False.
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold settings by name, not a {type(config).__name__}.")
    return config, argv
