"""What makes a loaded pipeline faster: rewrites of diffusers' modules that compute the same, and compilation."""

from vdmini_diffusers.inference.compilation import compile_blocks
from vdmini_diffusers.inference.rewriting import optimize, restore


__all__ = ["compile_blocks", "optimize", "restore"]
