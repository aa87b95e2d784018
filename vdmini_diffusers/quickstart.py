"""`python -m vdmini_diffusers.quickstart`: see `vdmini_diffusers.demo.quickstart`."""

from vdmini_diffusers.cli.script import parse_arguments, run
from vdmini_diffusers.demo.quickstart import Arguments, main


def command_line() -> None:
    """The command line."""
    run(lambda: main(*parse_arguments((Arguments,), "Prune and distil a demo teacher, and compare the two.")))


if __name__ == "__main__":
    command_line()
