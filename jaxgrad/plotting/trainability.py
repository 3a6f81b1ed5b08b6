"""The figure of `experiments.trainability`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trainability(
    accuracy: Mapping[str, np.ndarray],
    depths: np.ndarray,
    w_variances: np.ndarray,
    reach: Sequence[np.ndarray],
    agree: Sequence[float],
    title: str,
) -> Figure:
    """Accuracy after training over depth and weight variance, and how deep theory says it goes.

    Args:
      accuracy: by kind of network, on the test set, `[w_variances, depths]`, from 0 to 1.
      depths: `[depths]`, ascending.
      w_variances: `[w_variances]`, ascending.
      reach: of each kind, depth up to which theory calls networks trainable, `[w_variances]`.
      agree: of each kind, share of the cells that are as theory says.
      title: what all networks have in common.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    rows = -(-len(accuracy) // 3)
    columns = -(-len(accuracy) // rows)
    size = (9.5, 6.2) if len(accuracy) == 1 else (5.0 * columns + 1, 4.4 * rows + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(accuracy) :]:
        ax.set_axis_off()
    drawn = [
        _draw(ax, values, depths, w_variances, border)
        for ax, values, border in zip(axes.flat, accuracy.values(), reach, strict=False)
    ]
    for index, (kind, share) in enumerate(zip(accuracy, agree, strict=True)):
        ax = axes.flat[index]
        ax.set_title(f"{kind}: {share:.1%} of cells as theory says", fontsize=12)
        if index + columns >= len(accuracy):
            ax.set_xlabel("depth, hidden layers")
            ax.tick_params(labelbottom=True)
        if index % columns == 0:
            ax.set_ylabel("weight variance × fan-in")
    mesh, line = drawn[-1]
    figure.colorbar(mesh, ax=axes, label="test accuracy, %")
    figure.suptitle(f"Which networks learn, and theory's border: {title}", fontsize=14)
    figure.legend(
        [line],
        ["theory, made without training: trainable to the left, six depth scales"],
        loc="outside lower center",
        frameon=False,
    )
    return figure


def _draw(ax: Any, values, depths, w_variances, border):
    x, y = _edges(depths), _edges(w_variances)
    mesh = ax.pcolormesh(x, y, 100 * values, cmap="cividis", vmin=0, vmax=100, rasterized=True)
    # An endless reach is drawn beyond the edge, so that the line leaves the map there.
    (line,) = ax.plot(
        np.minimum(border, 10 * x[-1]),
        w_variances,
        color=THEORY,
        linewidth=2.5,
        path_effects=halo(5),
    )
    ax.set(xscale="log", yscale="log", xlim=x[[0, -1]], ylim=y[[0, -1]])
    for axis, ticked in ((ax.xaxis, depths), (ax.yaxis, w_variances)):
        low, high = np.log2(ticked[[0, -1]])
        ticks = 2.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
        axis.set_ticks(ticks[(ticks >= ticked[0]) & (ticks <= ticked[-1])])
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_ticks([], minor=True)
    return mesh, line


def _edges(values: np.ndarray) -> np.ndarray:
    """Borders of cells around values on a logarithmic axis."""
    logs = np.log(np.asarray(values, float))
    middle = (logs[1:] + logs[:-1]) / 2
    first = logs[0] - (middle[0] - logs[0] if len(middle) else 0.5)
    last = logs[-1] + (logs[-1] - middle[-1] if len(middle) else 0.5)
    return np.exp(np.concatenate([[first], middle, [last]]))
