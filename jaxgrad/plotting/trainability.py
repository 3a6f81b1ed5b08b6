"""The figure of `experiments.trainability`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxgrad.plotting._style import THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def trainability(
    accuracy: np.ndarray,
    depths: np.ndarray,
    w_variances: np.ndarray,
    reach: np.ndarray,
    critical: float | None,
    title: str,
) -> Figure:
    """Accuracy after training over depth and weight variance, and how deep theory says it goes.

    Args:
      accuracy: on the test set, `[w_variances, depths]`, from 0 to 1.
      depths: `[depths]`, ascending.
      w_variances: `[w_variances]`, ascending.
      reach: depth up to which theory calls networks trainable, `[w_variances]`.
      critical: weight variance that theory calls critical; `None` for no such line.
      title: which networks they are.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 6.2), layout="constrained")
    ax = figure.subplots()
    mesh = ax.pcolormesh(
        _edges(depths),
        _edges(w_variances),
        100 * accuracy,
        cmap="cividis",
        vmin=0,
        vmax=100,
        rasterized=True,
    )
    figure.colorbar(mesh, ax=ax, label="test accuracy, %")
    known = np.isfinite(reach)
    ax.plot(
        reach[known],
        w_variances[known],
        color=THEORY,
        linewidth=2.5,
        path_effects=halo(5),
        label="theory: trainable to the left, six depth scales",
    )
    if critical is not None and w_variances[0] <= critical <= w_variances[-1]:
        ax.axhline(
            critical,
            color="black",
            linestyle="dashed",
            path_effects=halo(3),
            label=f"theory: critical weight variance {critical:.3g}",
        )
    edges = _edges(depths)
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(edges[0], edges[-1]),
        ylim=_edges(w_variances)[[0, -1]],
        xlabel="depth, hidden layers",
        ylabel="weight variance × fan-in",
    )
    for axis, values in ((ax.xaxis, depths), (ax.yaxis, w_variances)):
        ticks = 2.0 ** np.arange(np.floor(np.log2(values[0])), np.ceil(np.log2(values[-1])) + 1)
        axis.set_ticks(ticks[(ticks >= values[0]) & (ticks <= values[-1])])
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_ticks([], minor=True)
    ax.set_title(f"Which networks learn: {title}", fontsize=14)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Borders of cells around values on a logarithmic axis."""
    logs = np.log(np.asarray(values, float))
    middle = (logs[1:] + logs[:-1]) / 2
    first = logs[0] - (middle[0] - logs[0] if len(middle) else 0.5)
    last = logs[-1] + (logs[-1] - middle[-1] if len(middle) else 0.5)
    return np.exp(np.concatenate([[first], middle, [last]]))
