"""Which parts of a denoiser matter, what they cost, and the plan that follows from both (paper, Figures 1, A2, A4 to A6)."""
