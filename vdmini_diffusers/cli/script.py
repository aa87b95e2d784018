"""How every script reads its command line and ends: with one sentence where something is wrong."""

import itertools
import os
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser


TRACEBACK = "VDMINI_TRACEBACK"  # environment variable: set it to see where an error was raised
OUT_OF_TIME = 75  # exit status of a run that the same command goes on with: EX_TEMPFAIL of sysexits.h
# The order of the parts into which `--help` divides the flags, where dataclasses name them.
PARTS = (
    *("models", "data", "losses", "critics", "rewards", "optimisation"),
    *("memory and precision", "checkpoints and the result", "logging and validation"),
)


class ShortHelp(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Flags by one name each, with what kind of value they take, and defaults where there is one. Commands in a
    description keep their lines."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        kind = {"string_to_bool": "bool", "Path": "path", "str": "text"}
        name = getattr(action.type, "__name__", "text")
        return f"{action.option_strings[0]} {self._format_args(action, kind.get(name, name))}"

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class GroupedArgumentParser(HfArgumentParser):
    """An argument parser whose help is divided into parts.

    A dataclass names the part of its flags as its class variable `help_part`, and those of single flags in
    `help_parts`. The flags of a dataclass without either are listed as by `HfArgumentParser`.
    """

    def __init__(self, kinds: Sequence[type], description: str | None = None):
        super().__init__(description=description, formatter_class=ShortHelp)
        self.groups = {part: self.add_argument_group(part) for part in PARTS}
        for kind in kinds:
            self.kind = kind
            self._add_dataclass_arguments(kind)  # pyright: ignore[reportArgumentType] - a dataclass
        self.dataclass_types = list(kinds)  # pyright: ignore[reportAttributeAccessIssue] - dataclasses
        # It is read before the others, and listed here for the help.
        self.add_argument("--config", metavar="FILE", default=SUPPRESS, help="YAML file of settings by flags' names.")
        needed = [action.option_strings[0] for action in self._actions if action.required]
        self.usage = " ".join(
            ["%(prog)s", "[--config FILE]", *(f"{name} ..." for name in needed), "[--flag value ...]"]
        )

    def _parse_dataclass_field(self, parser: ArgumentParser, field: Field) -> None:
        part = getattr(self.kind, "help_parts", {}).get(field.name, getattr(self.kind, "help_part", None))
        group: Any = parser if part is None else self.groups[part]
        super()._parse_dataclass_field(group, field)


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
    """One object of each dataclass in `kinds`, from flags and an optional YAML file, whose values they override.

    The file is the first argument, or that of `--config`; its keys are the flags' names. A flag that does not exist, a
    missing one, and a value that the dataclass refuses end the script with its usage and exit status 2.

    Args:
        description: of the script, for `--help`.
        argv: by default the command line.
    """
    config, flags = _split(argv)
    parser = GroupedArgumentParser(kinds, description)
    known = {setting.name for kind in kinds for setting in fields(kind)}
    if unknown := sorted(set(config) - known):
        names = ", ".join(name + nearest(name, known) for name in unknown)
        parser.error(f"the YAML file names settings that do not exist: {names}")
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


def nearest(name: str, known: Collection[str]) -> str:
    """A question for the most similar of the names that are known, if one is similar."""
    return "".join(f" (did you mean {found}?)" for found in get_close_matches(name, known, n=1))


def peek_argument(name: str, default: str, argv: Sequence[str] | None = None) -> str:
    """One setting, read ahead of the others, where it decides which others there are."""
    config, flags = _split(argv)
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=config.get(name, default))
    return getattr(parser.parse_known_args(flags)[0], name)


def named_settings(argv: Sequence[str] | None = None) -> set[str]:
    """The names of all settings that the YAML file and the flags give, known or not, but `help`."""
    config, flags = _split(argv)
    named = {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}
    return {*config, *named} - {"help"}


def _split(argv: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """What the YAML file says, if there is one, and the flags.

    Raises:
        ValueError: if there are two such files, or one is not a mapping of settings.
        OSError: if it cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    is_first = bool(argv) and argv[0].endswith((".yaml", ".yml")) and not argv[0].startswith("-")
    first = [argv.pop(0)] if is_first else []
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=first)
    given, argv = parser.parse_known_args(argv)
    if not given.config:
        return {}, argv
    if len(given.config) > 1:
        raise ValueError(f"There can be one YAML file of settings, and there are {', '.join(given.config)}.")
    import yaml

    file = Path(given.config[0])
    try:
        # Text throughout: the parser checks it as it checks flags, and `no` is not False.
        config = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold settings by name, not a {type(config).__name__}.")
    return config, argv
