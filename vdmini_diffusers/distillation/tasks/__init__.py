"""A base model's own objective, behind the interface that the training loop uses."""
