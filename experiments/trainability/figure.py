"""The figure: accuracy after training over depth and weight variance, and theory's border."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._kit import figures
from experiments.trainability.measurement import Map, Options
from jaxgrad.plotting.style import THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(maps: Mapping[str, Map], borders: Mapping[str, np.ndarray], options: Options) -> Figure:
    """Draw accuracy after training by depth and weight variance, with the predicted border.

    Args:
      maps: by kind.
      borders: by kind, depth up to which theory predicts that networks learn, `[w_variances]`.
      options: of the run.
    """
    rows = -(-len(maps) // 3)
    columns = -(-len(maps) // rows)
    size = (9.5, 6.2) if len(maps) == 1 else (5.0 * columns + 1, 4.4 * rows + 1)
    figure, axes = figures.panels(rows, columns, size, sharex=True, sharey=True)
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    drawn = []
    for index, (kind, result) in enumerate(maps.items()):
        ax = axes.flat[index]
        drawn.append(draw_map(ax, result.accuracy, borders[kind], options))
        ax.set_title(f"{kind.replace('_', ' ')}: {result.agreement:.1%} of cells as predicted")
        if index + columns >= len(maps):
            ax.set_xlabel("depth, hidden layers")
            ax.tick_params(labelbottom=True)
        if index % columns == 0:
            ax.set_ylabel("weight variance × fan-in")
    # All panels have the same colours and line, so the last ones stand for all.
    mesh, line = drawn[-1]
    figure.colorbar(mesh, ax=axes, label="test accuracy, %")
    words = f"{options.activation} networks after {options.steps} steps"
    figure.suptitle(f"Which networks learn, and theory's border: {words}", fontsize=14)
    label = "theory, without training: networks to the left of six depth scales can learn"
    figure.legend([line], [label], loc="outside lower center", frameon=False)
    return figure


def draw_map(
    ax: Any, accuracy: np.ndarray, border: np.ndarray, options: Options
) -> tuple[Any, Any]:
    """Draw one panel of the figure."""
    depths, variances = np.asarray(options.depths), options.variances
    x, y = cell_edges(depths), cell_edges(variances)
    look = {"cmap": "cividis", "vmin": 0, "vmax": 100, "rasterized": True}
    mesh = ax.pcolormesh(x, y, 100 * accuracy, **look)
    # An infinite depth is drawn beyond the edge, so that the line leaves the map there.
    border = np.minimum(border, 10 * x[-1])
    (line,) = ax.plot(border, variances, color=THEORY, linewidth=2.5, path_effects=halo(5))
    ax.set(xscale="log", yscale="log", xlim=x[[0, -1]], ylim=y[[0, -1]])
    for axis, values in ((ax.xaxis, depths), (ax.yaxis, variances)):
        low, high = np.log2(values[[0, -1]])
        powers = 2.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
        figures.ticks(axis, powers[(powers >= values[0]) & (powers <= values[-1])])
    return mesh, line


def cell_edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells around values on a logarithmic axis."""
    logs = np.log(np.asarray(values, float))
    middle = (logs[1:] + logs[:-1]) / 2
    first = logs[0] - (middle[0] - logs[0] if len(middle) else 0.5)
    last = logs[-1] + (logs[-1] - middle[-1] if len(middle) else 0.5)
    return np.exp(np.concatenate([[first], middle, [last]]))
