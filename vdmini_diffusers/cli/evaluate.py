"""`vdmini evaluate`."""


def evaluate() -> None:
    """Later."""
