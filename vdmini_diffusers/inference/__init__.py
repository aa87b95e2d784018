"""What makes a loaded pipeline faster at equal output: rewrites of diffusers' modules that compute the same."""

from vdmini_diffusers.inference.rewriting import optimize, restore


__all__ = ["optimize", "restore"]
