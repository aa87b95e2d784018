"""`python -m vdmini_diffusers.quickstart`: see `vdmini_diffusers.demo.quickstart`."""

from vdmini_diffusers.demo.quickstart import command_line


if __name__ == "__main__":
    command_line()
