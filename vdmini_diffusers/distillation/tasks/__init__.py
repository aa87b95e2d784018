"""A base model's own objective, behind the one interface that the loop knows."""
