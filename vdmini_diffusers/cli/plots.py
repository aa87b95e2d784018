"""The plots of benchmarks."""

from typing import Any


def import_figure() -> Any:
    """matplotlib's `Figure`. A script whose plot comes after hours of work calls it at its start as well.

    Raises:
        ImportError: without matplotlib, saying what to do.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports] - extra `plot`
    except ImportError as error:
        raise ImportError("The plot needs matplotlib: run `pip install -e '.[plot]'` in a checkout.") from error
    return Figure
