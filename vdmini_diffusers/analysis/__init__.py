"""Tools that show which parts of a denoiser matter, what they cost, and how pruning methods compare."""
