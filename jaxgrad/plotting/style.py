"""The style that figures share: colours that differ in grey and for the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgrad import _validate

SHADES = ("#0b1f4b", "#2f5fa8", "#9dbfe0", "#fbfaf5", "#f7c27a", "#e08a2b", "#b35a12")
"""A diverging scale from vanishing to exploding; its ends differ in lightness, too."""

LINES = (("#b35a12", "^"), ("#d99a2b", "D"), ("#000000", "o"), ("#5f9ed1", "s"), ("#0b1f4b", "v"))
"""Colours and markers of lines in one panel."""

STYLES = ("dashed", "dotted", "solid", "dashdot", (0, (6, 1)))
"""Line styles, in the order of `LINES`."""

THEORY = "#b3157f"
"""The colour of predictions, drawn over measurements."""


def check_dataset(name: str, dataset: Any, variables: Sequence[str]) -> None:
    """Raise unless `dataset` is an `xarray.Dataset` with these variables or coordinates."""
    _validate.attributes(name, dataset, ("data_vars", "sel"), "jaxgrad.sweeps.run")
    missing = [variable for variable in variables if variable not in dataset]
    if missing:
        got = f"got one without {', '.join(missing)}; see the documentation of the figure"
        raise ValueError(f"{name} must have {', '.join(variables)}, {got}")


def halo(width: float) -> list[Any]:
    """A white border around text or lines that are drawn over colours."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="white")]


def heat_map(figure: Any, ax: Any, x: Any, y: Any, values: Any, reach: float, **bar: Any) -> None:
    """Draw values from -`reach` to `reach` in the colours of `SHADES`, grey where they are NaN."""
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("unchanged", SHADES).with_extremes(bad="0.5")
    mesh = ax.pcolormesh(x, y, values, cmap=colors, vmin=-reach, vmax=reach, rasterized=True)
    figure.colorbar(mesh, ax=ax, extend="both", **bar)


def name_region(ax: Any, x: Any, y: Any, region: np.ndarray, words: str, size: float) -> None:
    """Write words in the cell of a boolean region that is farthest from its border."""
    from scipy.ndimage import distance_transform_cdt

    if not region.any():
        return
    room = np.asarray(distance_transform_cdt(np.pad(region, 1), "taxicab"))[1:-1, 1:-1]
    best = np.argwhere(room == room.max())
    row, column = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    # Near an edge the words stay within the panel.
    place = np.searchsorted([0.15, 0.85], column / max(len(x) - 1, 1))
    look = {
        "ha": ("left", "center", "right")[place],
        "va": "center",
        "fontweight": "bold",
        "path_effects": halo(4),
    }
    ax.text(x[column], y[row], words, fontsize=size, zorder=6, **look)


def scientific(value: float) -> str:
    """A number as one digit times a power of ten, for labels of axes."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return f"{value:.0f}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"
