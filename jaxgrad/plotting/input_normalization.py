"""The figure of `experiments.input_normalization`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARS = (("#0b1f4b", ""), ("#5f9ed1", ".."), ("#f7c27a", ""), ("#b35a12", "//"))
"""Colour and hatch of each treatment."""

_HEIGHTS = ("#fbe6c8", "#dfe9f4", "#bdd3ea", "#94b7db", "#6f9bcb")


def input_normalization(
    bowls: Sequence[Any],
    pair: Sequence[str],
    found: Mapping[str, Any],
    treatments: Sequence[str],
    cap: int,
) -> Figure:
    """Two bowls with their descents, and how round the bowls of whole data sets are.

    Args:
      bowls: raw and standardized, each with `hessian` `[2, 2]`, `best` `[2]`, `path`
        `[steps + 1, 2]` and `condition`.
      pair: the names of the two features.
      found: for each data set `condition`, `steps` and `reached`, `[seeds, treatments]`.
      treatments: what was done to the inputs.
      cap: how many steps were taken at most.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.2), layout="constrained")
    raw, standardized, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    for ax, bowl, words in ((raw, bowls[0], "raw"), (standardized, bowls[1], "standardized")):
        _bowl(ax, bowl, pair, words)
    _bars(bars, found, treatments, cap)
    counts = [len(bowl.path) - 1 for bowl in bowls]
    figure.suptitle(
        f"Standardized inputs make the bowl round: {counts[1]} steps of gradient descent "
        f"instead of {counts[0]} (wine, two features)",
        fontsize=15,
    )
    return figure


def _bowl(ax: Any, bowl: Any, pair: Sequence[str], words: str) -> None:
    excess = _excess(bowl, bowl.path[0])
    reach = 1.15 * np.sqrt(2 * excess * np.linalg.inv(bowl.hessian).diagonal().max())
    steps = np.linspace(-reach, reach, 301)
    grid = bowl.best + np.stack(np.meshgrid(steps, steps), axis=-1)
    levels = excess * np.array([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
    x, y = np.moveaxis(grid, -1, 0)
    height = _excess(bowl, grid)
    ax.contourf(x, y, height, levels, colors=_HEIGHTS)
    ax.contour(x, y, height, levels[1:], colors="#0b1f4b", linewidths=0.6)
    ax.plot(*bowl.path.T, color=THEORY, marker="o", markersize=3.5, linewidth=1.2, zorder=3)
    for point, name, marker in ((bowl.path[0], "start", "s"), (bowl.best, "minimum", "*")):
        ax.plot(*point, marker=marker, markersize=11, color="black", markeredgecolor="white")
        ax.annotate(
            name, point, (9, 7), textcoords="offset points", fontsize=11, path_effects=halo(3)
        )
    x_name, y_name = (name.replace("_", " ") for name in pair)
    unit = "one unit" if words == "raw" else "one standard deviation"
    ax.set(
        aspect="equal",
        xlabel=f"weight of {x_name}, per {unit}",
        ylabel=f"weight of {y_name}, per {unit}",
        title=f"{words}: {len(bowl.path) - 1} steps, condition number {bowl.condition:.3g}",
    )


def _excess(bowl: Any, weights: np.ndarray) -> Any:
    offset = weights - bowl.best
    return np.einsum("...i,ij,...j->...", offset, bowl.hessian, offset) / 2


def _bars(ax: Any, found: Mapping[str, Any], treatments: Sequence[str], cap: int) -> None:
    width = 0.8 / len(treatments)
    for i, (treatment, (colour, hatch)) in enumerate(zip(treatments, _BARS, strict=True)):
        places = np.arange(len(found)) + (i - (len(treatments) - 1) / 2) * width
        condition = [10 ** np.log10(one.condition[:, i]).mean() for one in found.values()]
        ax.bar(
            places,
            condition,
            width,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"condition number, {treatment}",
        )
        for place, one in zip(places, found.values(), strict=True):
            done = one.reached[:, i].all()
            ax.plot(
                place,
                one.steps[:, i].mean() if done else cap,
                marker="o" if done else "^",
                markersize=7,
                color=THEORY,
                markeredgecolor="white",
                linestyle="none",
            )
    for marker, words in (("o", "steps taken, mean"), ("^", f"not done after {cap:,} steps")):
        ax.plot([], [], marker, color=THEORY, markersize=7, label=words)
    names = [name.replace("_", " ") for name in found]
    ax.set_xticks(range(len(found)), names)
    ax.set(
        yscale="log",
        ylabel="condition number (bars) and steps (markers)",
        title="All features, several data sets",
    )
    ax.set_ylim(0.8, ax.get_ylim()[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
