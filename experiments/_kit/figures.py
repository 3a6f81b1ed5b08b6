"""Figures of experiments: panels, lines with error bars, legends, and how they are saved.

Colours and markers are those of `jaxgrad.plotting.style`. Figures are made without `pyplot`, so
that they need no display and no global state.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments._kit.evidence import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def panels(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
    """A figure of `size` inches and its axes, `[rows, columns]`.

    Args:
      rows, columns: number of panels.
      size: width and height.
      **options: of `Figure.subplots`, such as `sharey`.
    """
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
