"""`python -m vdmini_diffusers`: the command `vdmini`."""

from vdmini_diffusers.cli.main import main


if __name__ == "__main__":
    main()
