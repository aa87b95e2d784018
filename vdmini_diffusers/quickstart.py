"""`python -m vdmini_diffusers.quickstart`: see `vdmini_diffusers.demo.quickstart`."""

from vdmini_diffusers.demo.quickstart import run


if __name__ == "__main__":
    run()
