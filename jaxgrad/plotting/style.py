"""The style that figures share: colours that differ in grey and for the colour-blind."""

from __future__ import annotations

from typing import Any

import numpy as np

SHADES = ("#0b1f4b", "#2f5fa8", "#9dbfe0", "#fbfaf5", "#f7c27a", "#e08a2b", "#b35a12")
"""A diverging scale from vanishing to exploding; its ends differ in lightness, too."""

LINES = (("#b35a12", "^"), ("#d99a2b", "D"), ("#000000", "o"), ("#5f9ed1", "s"), ("#0b1f4b", "v"))
"""Colours and markers of lines in one panel."""

STYLES = ("dashed", "dotted", "solid", "dashdot", (0, (6, 1)))
"""Line styles, in the order of `LINES`."""

THEORY = "#b3157f"
"""The colour of predictions, drawn over measurements."""


def shades() -> Any:
    """The diverging colour map of `SHADES`, grey where there is no number."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("unchanged", SHADES).with_extremes(bad="0.5")


def halo(width: float) -> list[Any]:
    """A white border around text or lines that are drawn over colours."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="white")]


def middle(region: np.ndarray) -> tuple[int, int] | None:
    """The cell of a boolean region that is farthest from its border, for a label there."""
    if not region.any():
        return None
    padded = np.pad(region, 1)
    room = np.zeros(region.shape, int)
    # Each pass takes off the cells at the border, so that `room` counts the distance to it.
    while padded.any():
        room += padded[1:-1, 1:-1]
        inner = padded[1:-1, 1:-1]
        for shift in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            inner = inner & shift
        padded = np.pad(inner, 1)
    best = np.argwhere(room == room.max())
    row, column = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def scientific(value: float) -> str:
    """A number as one digit times a power of ten, for labels of axes."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return f"{value:.0f}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"
