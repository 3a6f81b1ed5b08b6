"""The figure: all runs by learning rate, the best error of each search, training losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._kit import Estimate, figures
from jaxgrad.plotting.style import LINES, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = tuple(
    (colour, marker, style)
    for (colour, marker), style in zip(
        (LINES[2], LINES[0], LINES[3], (THEORY, "P"), LINES[1]),
        ("solid", "dashed", "dashdot", (0, (6, 1)), "dotted"),
        strict=True,
    )
)
"""Colour, marker and style of the lines of a panel."""


def draw(
    runs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    best: Mapping[str, np.ndarray],
    losses: Mapping[str, Mapping[str, np.ndarray]],
    works: float,
    title: str,
) -> Figure:
    """Draw the figure.

    Args:
      runs: learning rates and dev errors of each way to search, of the same shape.
      best: lowest dev error so far of each way to search, `[searches, runs]`, above 0.
      losses: by panel and name, `[seeds, epochs]`, above 0; two panels.
      works: dev error below which a run works.
      title: one or two sentences.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 6.6), layout="constrained")
    panels = figure.subplot_mosaic([["runs", "best", "a"], ["runs", "best", "b"]])
    _runs(panels["runs"], runs, works)
    _searches(panels["best"], best)
    for name, (heading, curves) in zip("ab", losses.items(), strict=True):
        ax = panels[name]
        for (label, values), look in zip(curves.items(), LOOKS, strict=False):
            # Losses span orders of magnitude, so the line is a geometric mean.
            _band(ax, Estimate.of(np.log(values)), label, look, np.exp)
        ax.set(yscale="log", ylabel="training loss")
        ax.set_title(heading, fontsize=11)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panels["b"].set_xlabel("epochs")
    figure.suptitle(title, fontsize=14)
    return figure


def _band(ax: Any, estimate: Estimate, label: str, look: Any, scale: Any) -> None:
    """Draw means against 1, 2, ... as a line, in a band of one standard error."""
    colour, marker, style = look
    x = np.arange(1, len(estimate.mean) + 1)
    low, high = (scale(estimate.mean + sign * estimate.standard_error) for sign in (-1, 1))
    line = {"c": colour, "marker": marker, "ms": 4, "linestyle": style, "label": label}
    ax.plot(x, scale(estimate.mean), **line)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _runs(ax: Any, runs: Mapping[str, tuple[np.ndarray, np.ndarray]], works: float) -> None:
    """Dev error against learning rate."""
    for (name, (rates, errors)), (colour, marker, _) in zip(runs.items(), LOOKS, strict=False):
        label = f"{name}: {np.mean(errors < works):.1%} work"
        # Transparent marks show where many runs overlap.
        look = {"linestyle": "none", "marker": marker, "ms": 4, "alpha": 0.6, "c": colour}
        ax.plot(rates.ravel(), 100 * errors.ravel(), **look, label=label)
    ax.axhline(100 * works, color=THEORY, linestyle="dashed", linewidth=1.8)
    ax.set(xscale="log", xlabel="learning rate, on a log axis")
    ax.set(ylim=(0, 103), ylabel="dev error in percent (100: diverged)")
    ax.set_title("Every run; those below the line work")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _searches(ax: Any, best: Mapping[str, np.ndarray]) -> None:
    """The lowest dev error so far against the number of runs."""
    for (name, errors), look in zip(best.items(), LOOKS, strict=False):
        _band(ax, Estimate.of(100 * errors), name, look, np.asarray)
    ax.set_yscale("log")
    # Over little more than a decade a log axis has too few labels.
    figures.ticks(ax.yaxis, [5, 10, 20, 50, 100])
    ax.set(xlabel="runs tried", ylabel="best dev error so far in percent (band: standard error)")
    ax.set_title("What a search reaches")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, ncols=2)
