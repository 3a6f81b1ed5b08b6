"""The figure: two bowls with their descents, and condition numbers of whole data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments._kit import figures
from experiments.input_normalization.measurement import (
    TREATMENTS,
    Bowl,
    Measurement,
    Options,
)
from jaxgrad.plotting import style

BARS = (("#0b1f4b", ""), ("#5f9ed1", ".."), ("#f7c27a", ""), ("#b35a12", "//"))
"""Colour and hatch of each treatment."""
HEIGHTS = ("#fbe6c8", "#dfe9f4", "#bdd3ea", "#94b7db", "#6f9bcb")


def figure(pair: tuple[Bowl, Bowl], results: dict[str, Measurement], options: Options) -> Any:
    """Two bowls with their descents, and how round the bowls of whole data sets are."""
    result, axes = figures.panels(1, 3, (16, 6.2), width_ratios=(1, 1, 1.5))
    # Feature names of scikit-learn have underscores.
    names = [name.replace("_", " ") for name in options.pair]
    for ax, shape, words in zip(axes[0], pair, ("raw", "standardized"), strict=False):
        draw_bowl(ax, shape, names, words)
    draw_bars(axes[0, 2], results, options.cap)
    raw, standardized = (len(shape.path) - 1 for shape in pair)
    result.suptitle(
        f"Standardized inputs make the bowl round: {standardized} steps of gradient descent "
        f"instead of {raw} (wine, two features)",
        fontsize=15,
    )
    return result


def draw_bowl(ax: Any, shape: Bowl, names: list[str], words: str) -> None:
    """Level lines of the loss, and the path of descent."""

    def excess(weights):
        offset = weights - shape.best
        return np.einsum("...i,ij,...j->...", offset, shape.hessian, offset) / 2

    first = excess(shape.path[0])
    # The level line of the start, (w - best)' H (w - best) = 2 excess, fits into the panel.
    reach = 1.15 * np.sqrt(2 * first * np.linalg.inv(shape.hessian).diagonal().max())
    steps = np.linspace(-reach, reach, 301)
    grid = shape.best + np.stack(np.meshgrid(steps, steps), axis=-1)
    levels = first * np.array([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
    x, y = np.moveaxis(grid, -1, 0)
    ax.contourf(x, y, excess(grid), levels, colors=HEIGHTS)
    ax.contour(x, y, excess(grid), levels[1:], colors="#0b1f4b", linewidths=0.6)
    ax.plot(*shape.path.T, color=style.THEORY, marker="o", markersize=3.5, linewidth=1.2, zorder=3)
    for point, name, marker in ((shape.path[0], "start", "s"), (shape.best, "minimum", "*")):
        ax.plot(*point, marker=marker, markersize=11, color="black", markeredgecolor="white")
        place = {"xytext": (9, 7), "textcoords": "offset points", "fontsize": 11}
        ax.annotate(name, point, path_effects=style.halo(3), **place)
    unit = "one unit" if words == "raw" else "one standard deviation"
    ax.set(aspect="equal", xlabel=f"weight of {names[0]}, per {unit}")
    ax.set_ylabel(f"weight of {names[1]}, per {unit}")
    count = len(shape.path) - 1
    ax.set_title(f"{words}: {count} steps, condition number {shape.condition:.3g}")


def draw_bars(ax: Any, results: dict[str, Measurement], cap: int) -> None:
    """Condition numbers as bars, steps as markers, for every data set and treatment."""
    width, sets = 0.8 / len(TREATMENTS), np.arange(len(results))
    for i, (treatment, (color, hatch)) in enumerate(zip(TREATMENTS, BARS, strict=True)):
        places = sets + (i - (len(TREATMENTS) - 1) / 2) * width
        # A geometric mean, since condition numbers differ by powers of ten.
        heights = [10 ** np.log10(one.condition[:, i]).mean() for one in results.values()]
        look = {"color": color, "hatch": hatch, "edgecolor": "white"}
        ax.bar(places, heights, width, label=f"condition number, {treatment}", **look)
        for place, one in zip(places, results.values(), strict=True):
            done = one.reached[:, i].all()
            look = {"color": style.THEORY, "markeredgecolor": "white", "markersize": 7}
            ax.plot(place, one.steps[:, i].mean() if done else cap, "o" if done else "^", **look)
    for marker, words in (("o", "steps taken, mean"), ("^", f"not done after {cap:,} steps")):
        ax.plot([], [], marker, color=style.THEORY, markersize=7, label=words)
    ax.set_xticks(sets, [name.replace("_", " ") for name in results])
    ax.set(yscale="log", ylabel="condition number (bars) and steps (markers)")
    ax.set_title("All features, several data sets")
    ax.set_ylim(0.8, ax.get_ylim()[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
