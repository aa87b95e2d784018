"""Bars of what the parts of a network cost (Fig. 1b, A2, A5)."""

from PIL import Image

from vdmini_diffusers.analysis.cost_table import CostTable
from vdmini_diffusers.analysis.pictures import bars


COLUMNS = {  # what a plot shows, and in which unit
    "num_parameters": (1e6, " M"),
    "num_macs": (1e9, " G"),
    "peak_bytes": (2**20, " MiB"),
    "milliseconds": (1.0, " ms"),
}


def cost_plots(table: CostTable) -> dict[str, Image.Image]:
    """A picture for each column that the table has, by its name."""
    plots = {}
    for column, (scale, unit) in COLUMNS.items():
        if getattr(table.whole, column) is None:
            continue
        values = {name: getattr(cost, column) / scale for name, cost in table.parts.items()}
        where = f", {table.dtype}" if column != "num_parameters" else ""
        where += f" on {table.device}" if column == "milliseconds" else ""
        title = f"{column} of {table.class_name}, {' x '.join(map(str, table.clip))}{where}"
        plots[column] = bars(values, title, unit)
    return plots
