"""The figure of `experiments.diagnosis`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import LINES, SHADES, THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "Loss of each batch",
    "Error",
    "Gradient",
    "Update / weights",
    "Pre-activations z",
)
_LABELS = ("loss", "share wrong", "log10 of norm", "log10 of ratio", "share of all z")
_TELLTALE = {
    "exploding": 0,
    **dict.fromkeys(("overfitting", "label noise"), 1),
    "vanishing": 2,
    **dict.fromkeys(("rate too high", "rate too low", "frozen layer"), 3),
    **dict.fromkeys(("dead units", "saturated units"), 4),
}
_FOUND = LINES[0][0]
_CUSTOMARY = -3.0


def diagnosis(runs: Sequence[Any], edges: Sequence[float], words: str = "") -> Figure:
    """What was recorded of training runs, a row each, beside what ails them.

    The panel in which the first finding shows is framed, its layer drawn thick and the step where
    it began dashed.

    Args:
      runs: of `experiments.diagnosis`, or whatever has the attributes of its `Watched`: `fit` with
        norms as the trace and `units` and `train_error` in the record, `names`, `found`, `plant`,
        `group`, `epochs` and `right`.
      edges: of the histogram of pre-activations.
      words: a sentence for the title.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 0.9 + 1.5 * len(runs)), layout="constrained")
    grid = figure.subplots(
        len(runs),
        1 + len(_COLUMNS),
        squeeze=False,
        sharex="col",
        sharey="col",
        width_ratios=(1.15, 1, 1, 1.1, 1.1, 1.1),
    )
    for row, run in zip(grid, runs, strict=True):
        finding = None if run.found.healthy else run.found.findings[0]
        layer = run.names.index(finding.layer) if finding is not None and finding.layer else None
        epochs = run.epochs * np.arange(len(run.fit.loss))
        times = np.linspace(0, run.epochs * len(run.fit.loss), len(run.fit.error))
        _said(row[0], run, finding)
        row[1].plot(epochs, run.fit.loss, color="black", linewidth=1)
        for error, name, (colour, marker) in (
            (run.fit.error, "dev error", LINES[0]),
            (run.fit.record["train_error"], "train error", LINES[4]),
        ):
            row[2].plot(times, error, color=colour, marker=marker, markersize=4, label=name)
        _layers(row[3], epochs, run.fit.trace.log_gradient, layer)
        _layers(row[4], epochs, run.fit.trace.log_ratio, layer)
        row[4].axhline(_CUSTOMARY, color=THEORY, linestyle="dotted", label="customary ratio 1e-3")
        _units(row[5], times, run, layer, edges)
        lost = np.flatnonzero(~np.isfinite(run.fit.loss))
        for ax in (row[1], row[3], row[4]):
            if len(lost):
                ax.axvspan(epochs[lost[0]], times[-1], color="0.85", zorder=0)
                ax.text(0.96, 0.5, f"no number\nfrom step {lost[0]}", **_inside(ax))
        if finding is not None:
            for ax in row[1:]:
                ax.axvline(run.epochs * finding.step, color=_FOUND, linestyle="dashed", zorder=5)
            if finding.fault in _TELLTALE:
                for spine in row[1 + _TELLTALE[finding.fault]].spines.values():
                    spine.set(color=_FOUND, linewidth=3.5, zorder=6)
    _scales(grid, runs)
    figure.suptitle(words, fontsize=17)
    figure.legend(
        handles=_handles(grid, edges),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=11,
    )
    return figure


def _inside(ax: Any) -> dict[str, Any]:
    """How a word is written at the right end of a panel."""
    placed = {"transform": ax.transAxes, "ha": "right", "va": "center"}
    return {**placed, "fontsize": 11, "path_effects": halo(3.0), "zorder": 7}


def _said(ax: Any, run: Any, finding: Any) -> None:
    """What was planted and what was found."""
    ax.axis("off")
    ax.text(0, 0.9, run.plant.fault or "healthy", fontsize=15, weight="bold", va="top")
    if finding is None:
        said = "found: no fault"
    else:
        where = _short(finding.layer) if finding.layer else "all layers"
        said = f"found: {finding.fault},\n{where}, from step {finding.step}"
    verdict = "✓" if run.right else "✗ wrong:"
    ax.text(0, 0.58, f"{verdict} {said}", fontsize=11, va="top", color=_FOUND if finding else "0")
    net = f"{run.group.activation}, {run.group.depth} layers, {run.group.data}"
    ax.text(0, 0.02, net, fontsize=10, color="0.35")


def _layers(ax: Any, epochs: np.ndarray, logs: Any, layer: int | None) -> None:
    """A line for each layer, dark at the input, thick where the fault is."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("depth", SHADES[:3])
    powers = np.asarray(logs, np.float64) / np.log(10)
    powers = np.where(np.isfinite(powers), powers, np.nan)
    for index, line in enumerate(powers.T):
        ax.plot(epochs, line, color=colours(index / max(1, len(powers.T) - 1)), linewidth=1)
    if layer is not None:
        ax.plot(epochs, powers[:, layer], color=_FOUND, linewidth=2.5)
    if np.isneginf(np.asarray(logs)[0]).all():
        ax.text(0.96, 0.5, "0 in all layers", **_inside(ax))


def _short(name: str) -> str:
    """A layer's name without that of its weights."""
    return name.replace("/kernel", "")


def _units(ax: Any, times: np.ndarray, run: Any, layer: int | None, edges: Any) -> None:
    """Shares of pre-activations between edges over time, and of units that are of no use."""
    units = run.fit.record["units"]
    last = units.dead.shape[1] - 1
    shown = last if layer is None else min(layer, last)
    counts = np.concatenate([units.counts, units.not_finite[..., None]], axis=-1)[:, shown]
    shares = counts / counts.sum(axis=1, keepdims=True)
    ax.stackplot(times, *shares.T, colors=_bins(len(edges) + 1), linewidth=0)
    useless = units.saturated if np.any(units.saturated_above > 0) else units.dead
    ax.plot(times, useless[:, shown], color="black", linewidth=2, path_effects=halo(3.5))
    ax.text(0.96, 0.12, _short(run.names[shown]), **_inside(ax))


def _bins(count: int) -> list[Any]:
    """Colours of the histogram, the last of what is no number."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("size", SHADES)
    return [*(colours(index / (count - 1)) for index in range(count)), THEORY]


def _scales(grid: Any, runs: Sequence[Any]) -> None:
    """Axes that all rows share, so that they compare; what leaves them is extreme."""
    from matplotlib.ticker import MaxNLocator

    grid[0, 0].set_title("Planted, and diagnosis", fontsize=13, loc="left")
    for ax, title in zip(grid[0, 1:], _COLUMNS, strict=True):
        ax.set_title(title, fontsize=13)
    for ax in grid[-1, 1:]:
        ax.set_xlabel("epoch", fontsize=12)
    for row in grid:
        for ax, label in zip(row[1:], _LABELS, strict=True):
            ax.set_ylabel(label)
    grid[0, 1].set_yscale("log")
    # On the way to infinity numbers would flatten all others: of such runs the start counts.
    steps = [len(loss) if np.isfinite(loss).all() else 1 for loss in (run.fit.loss for run in runs)]
    with np.errstate(divide="ignore"):
        losses = [np.log10(run.fit.loss[:n])[:, None] for run, n in zip(runs, steps, strict=True)]
    grid[0, 1].set_ylim(*np.power(10, _span(losses)))
    for column, name in ((3, "log_gradient"), (4, "log_ratio")):
        logs = [getattr(run.fit.trace, name)[:n] for run, n in zip(runs, steps, strict=True)]
        grid[0, column].set_ylim(*_span([log / np.log(10) for log in logs]))
    grid[0, 2].set_ylim(-0.05, 1.05)
    grid[0, 5].set_ylim(0, 1.05)
    shortest = min(run.epochs * len(run.fit.loss) for run in runs)
    for ax in grid[0, 1:]:
        ax.set_xlim(-0.02 * shortest, shortest)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _span(logs: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits that hold the middle of every line, and a factor of 30 beyond."""
    lines = [line[np.isfinite(line)] for table in logs for line in np.asarray(table).T]
    middles = [np.median(line) for line in lines if len(line)] or [0.0]
    return min(middles) - 1.5, max(middles) + 1.5


def _handles(grid: Any, edges: Any) -> list[Any]:
    """What the colours and lines mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    names = [f"z < {edges[0]:g}", *between, f"z > {edges[-1]:g}", "z is no number"]
    framed = {"facecolor": "white", "edgecolor": _FOUND, "linewidth": 2.5}
    return [
        Patch(**framed, label="where the finding shows"),
        Line2D([], [], color=_FOUND, linewidth=2.5, label="layer of the finding"),
        Line2D([], [], color=_FOUND, linestyle="dashed", label="step where it began"),
        *grid[0, 2].get_legend_handles_labels()[0],
        Line2D([], [], color=SHADES[0], label="first layer ..."),
        Line2D([], [], color=SHADES[2], label="... last layer"),
        *grid[0, 4].get_legend_handles_labels()[0],
        Line2D([], [], color="black", linewidth=2, label="dead (ReLU) or saturated"),
        *(
            Patch(color=colour, label=name)
            for colour, name in zip(_bins(len(edges) + 1), names, strict=True)
        ),
    ]
