"""`vdmini prune`."""


def prune() -> None:
    """Later."""
