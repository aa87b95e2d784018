"""`vdmini score`."""


def score() -> None:
    """Later."""
