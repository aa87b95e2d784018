"""Which parts of a model matter, what they cost, and other ways to prune them."""
