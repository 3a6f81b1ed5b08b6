"""The figure: the records of training runs, a row each, with the panel that shows the fault."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._kit import figures
from jaxgrad.plotting.style import LINES, SHADES, THEORY, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("Loss of each batch", "Error", "Gradient", "Update / weights", "Pre-activations z")
LABELS = ("loss", "share wrong", "log10 of norm", "log10 of ratio", "share of all z")
# The column in which a fault is best seen.
PANELS = {
    "exploding": 0,
    **dict.fromkeys(("overfitting", "label noise"), 1),
    "vanishing": 2,
    **dict.fromkeys(("rate too high", "rate too low", "frozen layer"), 3),
    **dict.fromkeys(("dead units", "saturated units"), 4),
}
MARK = LINES[0][0]
USUAL_RATIO = -3.0


def draw(runs: Sequence[Any], edges: Sequence[float], title: str) -> Figure:
    """Draw the records of training runs beside their diagnoses.

    The panel in which the first finding shows is framed, its layer is drawn thick, and the step
    where it began is dashed.

    Args:
      runs: the diagnosed runs, `experiments.diagnosis.__main__.Run`.
      edges: bin edges of the histogram of pre-activations.
      title: the title of the figure.
    """
    widths = (1.15, 1, 1, 1.1, 1.1, 1.1)
    shared = {"sharex": "col", "sharey": "col", "width_ratios": widths}
    size = (16, 0.9 + 1.5 * len(runs))
    figure, grid = figures.panels(len(runs), 1 + len(COLUMNS), size, **shared)
    for row, run in zip(grid, runs, strict=True):
        finding = run.finding
        layer = run.names.index(finding.layer) if finding is not None and finding.layer else None
        epochs = run.epochs * np.arange(len(run.fit.loss))
        # Evaluations are evenly spaced, from before the first step to the end.
        times = np.linspace(0, run.epochs * len(run.fit.loss), len(run.fit.error))
        _words(row[0], run, finding)
        row[1].plot(epochs, run.fit.loss, color="black", linewidth=1)
        errors = {"dev error": run.fit.error, "train error": run.fit.record["train_error"]}
        for (name, error), (colour, marker) in zip(errors.items(), LINES[::4], strict=True):
            row[2].plot(times, error, color=colour, marker=marker, markersize=4, label=name)
        _layers(row[3], epochs, run.fit.trace.log_gradient, layer)
        _layers(row[4], epochs, run.fit.trace.log_ratio, layer)
        row[4].axhline(USUAL_RATIO, color=THEORY, linestyle="dotted", label="usual ratio 1e-3")
        _units(row[5], times, run, layer, edges)
        # After the first loss that is not finite there is nothing to draw.
        lost = np.flatnonzero(~np.isfinite(run.fit.loss))
        for ax in (row[1], row[3], row[4]):
            if len(lost):
                ax.axvspan(epochs[lost[0]], times[-1], color="0.85", zorder=0)
                ax.text(0.96, 0.5, f"no number\nfrom step {lost[0]}", **_inside(ax))
        if finding is not None:
            for ax in row[1:]:
                ax.axvline(run.epochs * finding.step, color=MARK, linestyle="dashed", zorder=5)
            if finding.fault in PANELS:
                for spine in row[1 + PANELS[finding.fault]].spines.values():
                    spine.set(color=MARK, linewidth=3.5, zorder=6)
    _scales(grid, runs)
    figure.suptitle(title, fontsize=17)
    legend = {"loc": "outside lower center", "ncols": 6, "frameon": False, "fontsize": 11}
    figure.legend(handles=_handles(grid, edges), **legend)
    return figure


def _inside(ax: Any) -> dict[str, Any]:
    """Options of a text at the right end of a panel."""
    place = {"transform": ax.transAxes, "ha": "right", "va": "center"}
    return {**place, "fontsize": 11, "path_effects": halo(3.0), "zorder": 7}


def _words(ax: Any, run: Any, finding: Any) -> None:
    """Write the planted fault and the diagnosis."""
    ax.axis("off")
    ax.text(0, 0.9, run.plant.fault or "healthy", fontsize=15, weight="bold", va="top")
    if finding is None:
        text = "diagnosis: no fault"
    else:
        where = _short(finding.layer) if finding.layer else "all layers"
        text = f"diagnosis: {finding.fault},\n{where}, from step {finding.step}"
    verdict = "✓" if run.right else "✗ wrong:"
    ax.text(0, 0.58, f"{verdict} {text}", fontsize=11, va="top", color=MARK if finding else "0")
    net = f"{run.group.activation}, {run.group.depth} layers, {run.group.data}"
    ax.text(0, 0.02, net, fontsize=10, color="0.35")


def _layers(ax: Any, epochs: np.ndarray, logs: Any, layer: int | None) -> None:
    """Draw a line for each layer, dark near the input, thick where the fault is."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("depth", SHADES[:3])
    # Natural logs become powers of ten.
    powers = np.asarray(logs, np.float64) / np.log(10)
    powers = np.where(np.isfinite(powers), powers, np.nan)
    for index, line in enumerate(powers.T):
        ax.plot(epochs, line, color=colours(index / max(1, len(powers.T) - 1)), linewidth=1)
    if layer is not None:
        ax.plot(epochs, powers[:, layer], color=MARK, linewidth=2.5)
    # A norm of exactly 0 has no place on a log axis.
    if np.isneginf(np.asarray(logs)[0]).all():
        ax.text(0.96, 0.5, "0 in all layers", **_inside(ax))


def _short(name: str) -> str:
    """The name of a layer, without that of its weights."""
    return name.replace("/kernel", "")


def _units(ax: Any, times: np.ndarray, run: Any, layer: int | None, edges: Any) -> None:
    """Draw the shares of pre-activations between edges, and of dead or saturated units."""
    units = run.fit.record["units"]
    last = units.dead.shape[1] - 1
    # The readout has no units; the last hidden layer stands for it.
    index = last if layer is None else min(layer, last)
    counts = np.concatenate([units.counts, units.not_finite[..., None]], axis=-1)[:, index]
    shares = counts / counts.sum(axis=1, keepdims=True)
    ax.stackplot(times, *shares.T, colors=_bins(len(edges) + 1), linewidth=0)
    # Activations with two flat ends saturate; the others have dead units.
    useless = units.saturated if np.any(units.saturated_above > 0) else units.dead
    ax.plot(times, useless[:, index], color="black", linewidth=2, path_effects=halo(3.5))
    ax.text(0.96, 0.12, _short(run.names[index]), **_inside(ax))


def _bins(count: int) -> list[Any]:
    """Colours of the histogram; the last is for values that are not finite."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("size", SHADES)
    return [*(colours(index / (count - 1)) for index in range(count)), THEORY]


def _scales(grid: Any, runs: Sequence[Any]) -> None:
    """Give all rows the same axes, so that they can be compared."""
    from matplotlib.ticker import MaxNLocator

    grid[0, 0].set_title("Planted, and diagnosis", fontsize=13, loc="left")
    for ax, title in zip(grid[0, 1:], COLUMNS, strict=True):
        ax.set_title(title, fontsize=13)
    for ax in grid[-1, 1:]:
        ax.set_xlabel("epoch", fontsize=12)
    for row in grid:
        for ax, label in zip(row[1:], LABELS, strict=True):
            ax.set_ylabel(label)
    grid[0, 1].set_yscale("log")
    # Runs that diverge count with their start only, or they would flatten all others.
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
    """Limits that include the median of every line, and a factor of 30 beyond."""
    lines = [line[np.isfinite(line)] for table in logs for line in np.asarray(table).T]
    middles = [np.median(line) for line in lines if len(line)] or [0.0]
    return min(middles) - 1.5, max(middles) + 1.5


def _handles(grid: Any, edges: Any) -> list[Any]:
    """The legend of colours and lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    names = [f"z < {edges[0]:g}", *between, f"z > {edges[-1]:g}", "z is no number"]
    bins = _bins(len(edges) + 1)
    framed = {"facecolor": "white", "edgecolor": MARK, "linewidth": 2.5}
    return [
        Patch(**framed, label="where the finding shows"),
        Line2D([], [], color=MARK, linewidth=2.5, label="layer of the finding"),
        Line2D([], [], color=MARK, linestyle="dashed", label="step where it began"),
        *grid[0, 2].get_legend_handles_labels()[0],
        Line2D([], [], color=SHADES[0], label="first layer ..."),
        Line2D([], [], color=SHADES[2], label="... last layer"),
        *grid[0, 4].get_legend_handles_labels()[0],
        Line2D([], [], color="black", linewidth=2, label="dead (ReLU) or saturated"),
        *(Patch(color=colour, label=name) for colour, name in zip(bins, names, strict=True)),
    ]
