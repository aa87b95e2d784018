"""Which parts of a denoiser matter, what they cost, plans that follow from both, and other ways to prune."""
