"""`python -m vdmini_diffusers`: the command `vdmini`."""

from vdmini_diffusers.cli.main import vdmini


if __name__ == "__main__":
    vdmini()
