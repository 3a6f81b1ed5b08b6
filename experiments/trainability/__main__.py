"""The command: tables, claims, cells that are trained again, and the figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import figures
from experiments.trainability import measurement
from experiments.trainability.measurement import SCALES, Map, Options
from jaxgrad.plotting import style

NEAR = 1.5
"""A cell within this factor of the border in depth is near it."""


def depth_table(kind: str, result: Map, options: Options) -> str:
    """Compare the predicted and the measured region of a kind, by depth."""
    rows = []
    for i, depth in enumerate(options.depths):
        inside, learns = result.predicted[:, i], result.learns[:, i]
        # A side of the border without cells has no mean.
        means = [
            result.accuracy[side, i].mean() if side.any() else "" for side in (inside, ~inside)
        ]
        ranges = [variance_range(options.variances, cells) for cells in (inside, learns)]
        rows.append((depth, *ranges, *means, np.mean(learns == inside)))
    title = (
        f"{options.activation}, {kind}, width {options.width}: weight variances (x fan-in) at "
        f"which networks learn, after {options.steps} steps; theory: depth up to {SCALES} scales; "
        f"measured: test accuracy above {result.threshold:.0%}, half of the way from chance to the "
        "best."
    )
    regions = {"depth": "d", "theory: trains": "", "measured": ""}
    shares = dict.fromkeys(("accuracy inside", "outside", "agree"), ".0%")
    return kit.table(regions | shares, rows, title)


def variance_range(variances: np.ndarray, cells: np.ndarray) -> str:
    """The range of the variances whose cells are true."""
    index = np.flatnonzero(cells)
    if not len(index):
        return "none"
    gaps = ", with gaps" if np.any(np.diff(index) > 1) else ""
    return f"{variances[index[0]]:.2f} to {variances[index[-1]]:.2f}{gaps}"


def summary(maps: dict[str, Map], options: Options) -> str:
    """Compare all kinds, and count the exceptions from the prediction."""
    rows = []
    for kind, result in maps.items():
        learns, inside, wrong = result.learns, result.predicted, ~result.right
        # exp(|margin|) is the factor in depth between a cell and the border.
        factor = np.exp(np.median(np.abs(result.margin[wrong]))) if wrong.any() else 1.0
        shares = learns.mean(), learns[:, -1].mean(), result.accuracy.max(), inside.mean()
        distance = f"{factor:.2f}" if factor < 10 else "far"
        exceptions = np.sum(wrong & learns), np.sum(wrong & inside), distance
        agreement = result.right.mean(), result.rank_correlation
        rows.append((kind, *shares, *agreement, *exceptions, result.diverged))
    cells = len(options.variances) * len(options.depths)
    title = (
        f"{cells} cells of each kind; exceptions: cells that learn beyond {SCALES} "
        "scales, cells that do not learn within, and the median factor in depth to the border."
    )
    deepest = f"at depth {max(options.depths)}"
    forms = {"kind": ""}
    forms |= dict.fromkeys(("learn", deepest, "best accuracy", "theory: learn"), ".0%")
    forms |= {"agree": ".1%", "rank correlation": "+.2f", "learn beyond": "d", "fail within": "d"}
    return kit.table(forms | {"factor": "", "diverged": ".1%"}, rows, title)


def train_again(kind: str, result: Map, options: Options) -> list[np.ndarray]:
    """Whether exceptions that fail within the border, and a control, learn in more steps."""
    learned = [np.zeros(0, bool), np.zeros(0, bool)]
    cells = measurement.exceptions_and_control(result)
    for i, name in enumerate(("again", "control")):
        if len(cells[i]):
            store, progress = options.store(f"_{kind}_{name}"), kit.progress(name)
            again = measurement.measure_again(kind, options, cells[i], progress, store)
            learned[i] = measurement.best_rate(again) > result.threshold
    return learned


def again_row(kind: str, result: Map, within: np.ndarray, beyond: np.ndarray) -> tuple[Any, ...]:
    """Count the cells that learn when they are trained again."""
    margin = result.margin[~result.learns & result.predicted][~within]
    near = np.sum(np.exp(margin) < NEAR)
    # Exceptions that learn after all are as predicted; controls that learn are not.
    share = (result.right.sum() + within.sum() - beyond.sum()) / result.right.size
    counts = [f"{np.sum(a)} of {len(a)}" for a in (within, beyond)]
    return kind, counts[0], f"{near} of {len(margin)}", counts[1], share


def again_table(rows: list[tuple[Any, ...]], options: Options) -> str:
    """Tabulate `again_row` of each kind."""
    title = (
        f"Cells that do not learn within {SCALES} scales, and as many nearest beyond, trained at "
        f"1/{options.longer} of the rate for {options.longer} times the steps."
    )
    near = f"others within a factor {NEAR:g} of the border"
    headings = dict.fromkeys(("kind", "within: learn", near, "beyond: learn"), "")
    return kit.table(headings | {"cells then as predicted": ".1%"}, rows, title)


def draw(maps: dict[str, Map], borders: dict[str, np.ndarray], options: Options) -> Any:
    """Draw accuracy over depth and weight variance, the predicted and the measured border."""
    rows = -(-len(maps) // 3)
    columns = -(-len(maps) // rows)
    share = np.mean([result.right.mean() for result in maps.values()])
    title = (
        f"Theory tells before training which {options.activation} networks will learn: it is right "
        f"for {share:.0%} of the cells"
    )
    height = 5.2 if len(maps) == 1 else 2.9 * rows + 0.8
    figure, axes = figures.panels(title, rows, columns, height, sharex=True, sharey=True)
    for ax, (kind, result) in zip(axes.flat, maps.items(), strict=False):
        _map(ax, result, borders[kind], options)
        ax.set_title(f"{kind.replace('_', ' ')}: {result.right.mean():.1%} right")
    # Panels share their axes; ticks are at powers of two.
    axes[0, 0].set(xscale="log", yscale="log")
    for axis, values in ((axes[0, 0].xaxis, options.depths), (axes[0, 0].yaxis, options.variances)):
        low, high = np.log2([values[0], values[-1]]).round(9)
        figures.ticks(axis, 2.0 ** np.arange(np.ceil(low), np.floor(high) + 1))
    # Where the last row is short, the panels above its gaps are the last of their columns.
    for ax in axes.flat[max(0, len(maps) - columns) : len(maps)]:
        ax.set_xlabel("depth, hidden layers")
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("weight variance × fan-in")
    # All panels have the same colours and lines, whose meaning is in the cells that are free.
    free = axes.flat[len(maps) :]
    for ax in free:
        ax.set_axis_off()
    bar: dict[str, Any] = {"ax": axes}
    if len(free):
        bar = {"cax": free[0].inset_axes((0.05, 0.1, 0.9, 0.06)), "orientation": "horizontal"}
    label = f"test accuracy after {options.steps} steps, %"
    figure.colorbar(axes[0, 0].collections[0], label=label, **bar)
    where: dict[str, Any] = (
        {"loc": "center"} if len(free) else {"loc": "outside lower center", "ncols": 2}
    )
    (free[0] if len(free) else figure).legend(handles=axes[0, 0].lines, **where)
    return figure


def _map(ax: Any, result: Map, border: np.ndarray, options: Options) -> None:
    x, y = cell_edges(options.depths), cell_edges(options.variances)
    look = {"cmap": "cividis", "vmin": 0, "vmax": 100, "rasterized": True}
    ax.pcolormesh(x, y, 100 * result.accuracy, **look)
    # An infinite depth is drawn beyond the edge, so that the line leaves the map there.
    colors, halo = style.palette(), style.halo(5)
    theory = {"color": colors.theory, "lw": 2.5, "path_effects": halo}
    label = f"theory, before training:\ndepth of {SCALES} depth scales"
    ax.plot(np.minimum(border, 10 * x[-1]), options.variances, **theory, label=label)
    look = {"color": colors.ink, "lw": 1.5}
    values = result.accuracy
    if min(values.shape) > 1 and values.min() < result.threshold < values.max():
        grid = (options.depths, options.variances, values)
        line = ax.contour(*grid, [result.threshold], colors=look["color"], linewidths=look["lw"])
        line.set_path_effects(style.halo(3.5))
    ax.plot([], [], **look, label="measured: half of the way\nfrom chance to the best")
    ax.set(xlim=x[[0, -1]], ylim=y[[0, -1]])


def cell_edges(values: Any) -> np.ndarray:
    """Edges of cells around values on a logarithmic axis."""
    logs = np.log(values)
    steps = np.diff(logs) if len(logs) > 1 else np.ones(1)
    # The outer cells are as wide as their inner halves make them.
    return np.exp([logs[0] - steps[0] / 2, *(logs[1:] + logs[:-1]) / 2, logs[-1] + steps[-1] / 2])


def run(options: Options) -> None:
    """Train a network for each depth and weight variance, and compare with theory's depth scale."""
    dataset = measurement.measure(options, kit.progress("networks"), options.store())
    scales = {kind: measurement.scales(kind, options) for kind in options.kinds}
    maps = {kind: measurement.compare(dataset.sel(kind=kind), scales[kind]) for kind in scales}
    again, claims = [], []
    for kind, result in maps.items():
        # Slow learning looks like none, so exceptions get more steps, with a control.
        if options.longer > 1 and np.any(~result.learns & result.predicted):
            again.append(again_row(kind, result, *train_again(kind, result, options)))
        # A guess without theory names the more frequent outcome for every cell.
        more = max(result.learns.mean(), 1 - result.learns.mean())
        text = f"{kind}: cells are as predicted more often than by the more frequent outcome"
        agreement = kit.Estimate.exact(float(result.right.mean()))
        claims.append(kit.Claim(text, agreement, "greater", float(more), form=".1%"))
    sections = [depth_table(kind, result, options) for kind, result in maps.items()]
    sections.append(summary(maps, options))
    if again:
        sections.append(again_table(again, options))
    sections.append(f"{dataset['accuracy'].size} networks in {options.store()}")
    estimates = {kind: result._asdict() for kind, result in maps.items()}
    borders = {kind: SCALES * scale for kind, scale in scales.items()}
    results = kit.Report(sections, claims, estimates)
    kit.publish(results, options, lambda: draw(maps, borders, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run, resumable=True)
