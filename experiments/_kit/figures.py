"""Figures of experiments: panels, lines with error bars, legends, and how they are saved.

Colours and markers are those of `jaxgrad.plotting.style`. Figures are made without `pyplot`, so
that they need no display and no global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._kit.evidence import Estimate
from jaxgrad.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LOOKS = [
    {"color": color, "marker": marker, "linestyle": line}
    for (color, marker), line in zip(style.LINES, style.STYLES, strict=True)
]
"""Colour, marker and line of each curve, so that they differ in grey, too."""


def panels(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches and its axes `[rows, columns]`, with options of `subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def error_bars(ax: Any, x: Any, estimate: Estimate, **style: Any) -> None:
    """Means with bars of two standard errors."""
    ax.errorbar(x, estimate.mean, yerr=2 * estimate.standard_error, **{"capsize": 3, **style})


def error_band(ax: Any, x: Any, estimate: Estimate, *, color: Any, **style: Any) -> None:
    """A line through means, in a band of two standard errors."""
    low, high = (estimate.mean + sign * 2 * estimate.standard_error for sign in (-1, 1))
    ax.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)
    ax.plot(x, estimate.mean, color=color, **style)


def curves(ax: Any, x: Any, estimates: Mapping[str, Estimate], **options: Any) -> None:
    """Lines with bands of two standard errors in the looks of `LOOKS`, labelled by name.

    A line ends where its mean is not finite; `options` are those of `Axes.plot`.
    """
    for (name, estimate), look in zip(estimates.items(), LOOKS, strict=False):
        error_band(ax, x, estimate, label=name, **{**look, "markersize": 6, **options})


def dots(ax: Any, estimates: Mapping[str, Mapping[str, Estimate]], **options: Any) -> None:
    """Rows from top to bottom, with a dot with error bars for each series that the legend names.

    `estimates` are by the name of the row, then by that of the series.
    """
    series = list(dict.fromkeys(name for row in estimates.values() for name in row))
    # Dots of one row lie at slightly different heights, so that bars do not cover each other, and
    # nearer to each other than to the next row.
    shifts = min(0.3, 0.1 * (len(series) - 1)) * np.linspace(1, -1, len(series))
    for name, look, shift in zip(series, LOOKS, shifts, strict=False):
        rows = {y: row[name] for y, row in enumerate(estimates.values()) if name in row}
        means = [estimate.mean for estimate in rows.values()]
        bars = [2 * estimate.standard_error for estimate in rows.values()]
        look = {**look, "linestyle": "none", "capsize": 3, "label": name, **options}
        ax.errorbar(means, np.array(list(rows)) - shift, xerr=bars, **look)
    ax.set_yticks(range(len(estimates)), list(estimates))
    ax.invert_yaxis()


def ticks(axis: Any, values: Any, labels: Any = None) -> None:
    """Ticks of an x or y axis at these values and nowhere else, for logarithmic axes, too."""
    labels = [f"{value:g}" for value in values] if labels is None else labels
    axis.set_ticks(values, labels)
    axis.set_ticks([], minor=True)


def percent(axis: Any) -> None:
    """Label the ticks of an axis of shares in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def legend_below(figure: Figure, ax: Any, columns: int) -> None:
    """One legend for all panels, below them, with the labels of one panel."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the path's suffix."""
    figure.savefig(path, dpi=DPI)
