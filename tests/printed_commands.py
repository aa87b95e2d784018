"""Scripts run as far as their command line is read, and the commands that documents and docstrings print."""

import contextlib
import io
import multiprocessing
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from checkout import ROOT
from transformers import HfArgumentParser


QUICKSTART = "vdmini_diffusers.quickstart"
FOLDERS = ("conversion", "training", "benchmarks")
SCRIPTS = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
SCRIPTS.append(QUICKSTART)
DOCUMENTS = [  # once each: folders of the package are links in part
    path
    for path in sorted(ROOT.rglob("*.md"))
    if path.resolve() == path and not any(part[0] == "." or part == "outputs" for part in path.relative_to(ROOT).parts)
]

COMMAND = re.compile(
    r"(?:accelerate launch(?: --config_file \S+)?|python(?: -m)?) ((?:\w+/)+\w+\.py|vdmini[\w.]+)((?: [^`\n]*)?)"
)


@dataclass(frozen=True)
class Ending:
    """How a script ended. `status` is None where its command line was read without an error and it was stopped."""

    status: object
    printed: str


class CommandLineRead(BaseException):
    """Not an `Exception`, which `script.run` would print."""


def command_lines_read(commands: Sequence[Sequence[str]]) -> list[Ending]:
    """Each command's script, run until its command line has been read. Writing a file ends it as well, with an error.

    All run in one process that is forked: what one of them imports serves the next. `...` in a command stands for the
    flags that it needs.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def read_all() -> None:
        sys.dont_write_bytecode = True
        sys.addaudithook(refuse_to_write)
        HfArgumentParser.parse_args_into_dataclasses = stop_when_read(HfArgumentParser.parse_args_into_dataclasses)
        theirs.send([read_command_line(command) for command in commands])

    process = context.Process(target=read_all)
    process.start()
    theirs.close()
    endings = ours.recv()
    process.join()
    return endings


def read_command_line(command: Sequence[str]) -> Ending:
    name, sys.argv = command[0], list(command)
    printed = io.StringIO()
    status: object = "ran to its end"
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if name == QUICKSTART:
                runpy.run_module(name, run_name="__main__")
            else:
                runpy.run_path(str(ROOT / name), run_name="__main__")
        except CommandLineRead:
            status = None
        except SystemExit as error:
            status = error.code
        except Exception as error:
            status = f"{type(error).__name__}: {error}"
    return Ending(status, printed.getvalue())


def stop_when_read(parse: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_stop(parser: HfArgumentParser, args: list[str] | None = None, **options: Any) -> None:
        args = list(sys.argv[1:] if args is None else args)
        if "..." in args:
            args.remove("...")
            for action in parser._actions:
                action.required = False
            _, left_over = parser.parse_known_args(args)
        else:
            parsed = parse(parser, args, **options)
            left_over = parsed[-1] if options.get("return_remaining_strings") else []
        if left_over:
            parser.error(f"unrecognized arguments: {' '.join(left_over)}")
        raise CommandLineRead

    return parse_and_stop


def refuse_to_write(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook."""
    if event == "open":
        path, mode, flags = arguments
        if set("wax+") & set(mode or "") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(f"it opens {path} for writing")
    if event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "socket.connect"):
        raise PermissionError(f"it calls {event}")


def printed_commands(text: str) -> list[list[str]]:
    """Commands in code blocks, code spans and docstrings: the script, and its arguments."""
    for name, value in re.findall(r'^(\w+)="([^"]+)"$', text, re.MULTILINE):  # a shell's variables
        text = text.replace(f"${name}", " ".join(value.split()))
    text = re.sub(r"\\\n[ #]*", "", text)  # one command, over several lines
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda span: " ".join(span[0].split()), text)
    text = re.sub(r"\[(--[^]]*)\]", r"\1", text)  # what may be left out
    return [[name, *shlex.split(arguments, comments=True)] for name, arguments in COMMAND.findall(text)]
