"""Which parts of a denoiser matter, what they cost, and plans that follow from both (paper, Figures 1, A2, A4-A6)."""
