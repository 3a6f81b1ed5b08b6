"""What the figures share: colours that stay apart in grey and for the colour-blind, and ticks."""

from __future__ import annotations

from typing import Any

import numpy as np

SHADES = ("#0b1f4b", "#2f5fa8", "#9dbfe0", "#fbfaf5", "#f7c27a", "#e08a2b", "#b35a12")
"""From vanishing to exploding, lightest at "unchanged"; the ends differ in lightness."""

LINES = (("#b35a12", "^"), ("#d99a2b", "D"), ("#000000", "o"), ("#5f9ed1", "s"), ("#0b1f4b", "v"))
"""Colour and marker of lines side by side."""

STYLES = ("dashed", "dotted", "solid", "dashdot", (0, (6, 1)))

THEORY = "#b3157f"
"""What is predicted, over what is measured."""


def shades() -> Any:
    """The diverging colour map, grey where nothing is known."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("unchanged", SHADES).with_extremes(bad="0.5")


def halo(width: float) -> list[Any]:
    """A white border, for what is drawn over colours."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="white")]


def middle(where: np.ndarray) -> tuple[int, int] | None:
    """The cell of a region with the most room around it."""
    if not where.any():
        return None
    padded = np.pad(where, 1)
    room = np.zeros(where.shape, int)
    while padded.any():
        room += padded[1:-1, 1:-1]
        inner = padded[1:-1, 1:-1]
        for shift in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            inner = inner & shift
        padded = np.pad(inner, 1)
    # Among cells with as much room, the one nearest to the middle of all.
    best = np.argwhere(room == room.max())
    at = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return int(at[0]), int(at[1])


def scientific(value: float) -> str:
    """A power of ten where the first digit is 1, else one digit and the power."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return f"{value:.0f}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"
