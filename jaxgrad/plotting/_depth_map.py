"""A map of gradients over depth and weight variance, with theory over it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad import _validate, regimes
from jaxgrad.plotting import style
from jaxgrad.plotting.style import check_dataset, halo, heat_map, name_region, palette

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

DECADES = 4.0
BORDERS = (
    (regimes.Regime.VANISHING, -0.5, "solid", "measured: vanishes from here"),
    (regimes.Regime.EXPLODING, 0.5, "dashed", "measured: explodes from here"),
)
FEW = 8
"""So many depths have a tick each, if there is room."""
FACTOR_2 = np.log10(2.0)
SCALES = 6
"""Networks are trainable up to about this many depth scales, Schoenholz et al. (2017)."""
LEVEL, BANDS = "measured: gradient level", "bands: standard error"
THEORY_LINES = "theory, infinite width: the same lines"
THEORY_LEVEL = "theory, infinite width: gradient level"
THEORY_SCALES = f"theory: depth = {SCALES} depth scales of the gradient"


def depth_map(
    dataset: xarray.Dataset,
    thresholds: regimes.Thresholds | None = None,
    theory: xarray.Dataset | None = None,
    *,
    axis: str = "w_variance",
    label: str = "weight variance × fan-in",
    quantity: str = "gradient",
    block: str = "layer",
) -> Figure:
    """Draw the gradient over (depth, weight variance), one row for each activation.

    On the left is the log10 of the gradient norm at the first layer over that at the last, averaged
    over seeds, with the borders of the regimes. On the right is, for the deepest network, the
    gradient norm at each layer for variances over the whole grid.

    Args:
      dataset: `log_ratio` over (activation, seed, w_variance, depth) and `log_profile` over
        (activation, seed, w_variance, layer), natural logs of squared norms.
      thresholds: what counts as stable, see `jaxgrad.regimes`; `None` for the defaults.
      theory: to be drawn over the measurement: `log_ratio` and `log_profile` as in `dataset` but
        without seeds, the profile NaN where it is not known, and optionally `xi`, the depth scale
        in layers, over (activation, fine_w_variance). `None` for the measurement alone.
      axis: the axis in the place of `w_variance`, of positive numbers such as learning rates.
      label: of that axis.
      quantity: words for what is measured.
      block: word for what the depth counts.
    """
    _validate.installed("plotting.depth_map", "experiments", "matplotlib")
    from matplotlib.figure import Figure

    words = {"axis": axis, "label": label, "quantity": quantity, "block": block}
    for name, value in words.items():
        _validate.text(name, value)
    axes = ("activation", axis, "depth", "seed")
    check_dataset("dataset", dataset, ("log_ratio", "log_profile", *axes))
    if theory is not None:
        check_dataset("theory", theory, ("log_ratio", "log_profile", axis))
    if axis != "w_variance":
        dataset = dataset.rename({axis: "w_variance"})
        theory = None if theory is None else theory.rename({axis: "w_variance"})
    thresholds = regimes.Thresholds() if thresholds is None else thresholds
    _validate.instance("thresholds", thresholds, regimes.Thresholds, "jaxgrad.regimes.Thresholds()")
    names = [str(name) for name in dataset["activation"].values]
    figure = Figure(figsize=(style.WIDTH, 1.7 + 3.1 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1.25, 1))
    drawn: set[str] = set()
    for (left, right), name in zip(axes, names, strict=True):
        measured = dataset.sel(activation=name)
        predicted = None if theory is None else theory.sel(activation=name)
        log_ratio = measured["log_ratio"].transpose("seed", "w_variance", "depth").values
        # The variance of a level gradient, and the regime of every cell.
        variances = measured["w_variance"].values
        level = np.asarray(regimes.level(log_ratio, variances, thresholds).variance)
        classes = regimes.classify(log_ratio, measured["depth"].values, thresholds)
        drawn |= _map(left, measured, classes, level, (name, words))
        if predicted is not None:
            drawn |= _predictions(left, predicted, thresholds)
        drawn |= _profile(right, measured, predicted, float(level[-1]), (name, words))
    bar = {
        "label": f"{quantity}, its norm at the first {block} over that at the last",
        "ticks": range(-4, 5, 2),
        "format": lambda value, _: "unchanged" if value == 0 else f"$10^{{{value:g}}}$",
    }
    # One for all maps, whose colours are the same.
    mesh = axes[0, 0].collections[0]
    place = {"location": "bottom", "pad": 0.05 / len(names), "aspect": 50, "shrink": 0.7}
    figure.colorbar(mesh, ax=axes, extend="both", **place, **bar)
    handles = [handle for handle in _handles() if handle.get_label() in drawn]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    style.headline(figure, "Where gradients vanish, survive or explode before training")
    return figure


def _map(ax: Any, measured: Any, classes: Any, level: np.ndarray, title: Any) -> set[str]:
    """Draw one map; return what the legend has to say about it, as do the functions below."""
    name, words = title
    depth, variance = measured["depth"].values, measured["w_variance"].values
    # Half, since the logs are of squared norms.
    decades = np.asarray(classes.log_ratio) / (2 * np.log(10))
    heat_map(ax, depth, variance, decades, DECADES)
    ink, drawn = palette().ink, set()
    # Regimes are -1, 0 and 1, so that their borders are contours at -1/2 and 1/2.
    regime = np.asarray(classes.regime, float)
    for value, edge, line, label in BORDERS:
        if (regime == value).any() and (regime != value).any():
            border = ax.contour(depth, variance, regime, [edge], colors=ink, linestyles=line)
            border.set_path_effects(halo(4))
            drawn.add(label)
    regions = ("vanishes", "survives", "explodes")
    order = (regimes.Regime.VANISHING, regimes.Regime.STABLE, regimes.Regime.EXPLODING)
    for value, word in zip(order, regions, strict=True):
        name_region(ax, depth, variance, regime == value, word)
    ax.set_yscale("log")
    marks, texts = style.log_ticks(*np.log10(variance[[0, -1]]))
    ax.set_yticks(10**marks, texts)
    ax.set_yticks([], minor=True)
    ax.set_xticks(_depth_ticks(depth))
    ax.set_xlim(depth[0] - 0.5, depth[-1] + 0.5)
    ax.set(xlabel=f"depth (number of {words['block']}s)", ylabel=words["label"], title=name)
    drawn |= _line(ax, depth, level, LEVEL, color=ink, linestyle="dotted", zorder=5)
    return drawn


def _line(ax: Any, x: np.ndarray, y: np.ndarray, label: str, **look: Any) -> set[str]:
    """Draw a line, and return its label if some piece of it is in the panel."""
    ax.plot(x, y, **look)
    limits = zip((x, y), (ax.get_xlim(), ax.get_ylim()), strict=True)
    inside = np.all([(low <= part) & (part <= high) for part, (low, high) in limits], axis=0)
    return {label} if (inside[1:] & inside[:-1]).any() else set()


def _depth_ticks(depth: np.ndarray) -> list[float]:
    """Every depth where there are few, round numbers otherwise; none too near to the next."""
    from matplotlib.ticker import MaxNLocator

    first, last = depth[0], depth[-1]
    ticks = depth
    if len(depth) > FEW:
        ticks = MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]).tick_values(first, last)
    selected: list[float] = []
    for tick in sorted({float(first), *map(float, ticks)}, reverse=True):
        if first <= tick <= last and all(tick <= n - 0.06 * (last - first) for n in selected):
            selected.append(tick)
    return selected[::-1]


def _predictions(ax: Any, predicted: Any, thresholds: regimes.Thresholds) -> set[str]:
    """Draw where theory predicts level gradients, and to which depth trainable networks.

    Without a depth scale the borders are those of the measurement.
    """
    limits = ax.get_ylim()
    log_ratio = predicted["log_ratio"].transpose("w_variance", "depth").values
    depths, variances = predicted["depth"].values, predicted["w_variance"].values
    # `level` takes seeds, and a prediction has none: two equal ones stand for them.
    level = np.asarray(regimes.level(np.stack([log_ratio] * 2), variances).variance)

    def line(x, y, label, style, width):
        effects = {"path_effects": halo(width + 2), "zorder": 3}
        return _line(ax, x, y, label, color=palette().theory, ls=style, lw=width, **effects)

    if "xi" in predicted:
        drawn = line(depths, level, THEORY_LEVEL, "solid", 2.5)
        scale, fine = SCALES * predicted["xi"].values, predicted["fine_w_variance"].values
        drawn |= line(scale, fine, THEORY_SCALES, "dashdot", 1.8)
    else:
        drawn = line(depths, level, THEORY_LINES, "dotted", 2.5)
        edge = 2 * np.log(thresholds.ratio)
        for value, edges in ((-edge, "solid"), (edge, "dashed")):
            if log_ratio.min() < value < log_ratio.max():
                look = {"colors": palette().theory, "linestyles": edges}
                ax.contour(depths, variances, log_ratio, [value], **look)
                drawn.add(THEORY_LINES)
    ax.set_ylim(limits)
    return drawn


def _handles() -> list[Any]:
    """All that a legend may explain."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink, color = palette().ink, palette().theory
    lines: list[Any] = [(ink, line, words) for _, _, line, words in BORDERS]
    lines += [(ink, "dotted", LEVEL), (color, "solid", THEORY_LINES)]
    lines += [(color, "solid", THEORY_LEVEL), (color, "dashdot", THEORY_SCALES)]
    handles: list[Any] = [Line2D([], [], c=c, lw=2, ls=ls, label=words) for c, ls, words in lines]
    return [*handles, Patch(color=palette().muted, alpha=0.25, label=BANDS)]


def _profile(ax: Any, measured: Any, predicted: Any, level: float, title: Any) -> set[str]:
    """Draw the gradient at each layer of the deepest network, for variances over the whole grid."""
    name, words = title
    block = words["block"]
    variance, layer = measured["w_variance"].values, measured["layer"].values
    profile = measured["log_profile"].transpose("seed", "w_variance", "layer").values
    theory = None
    # A prediction may be of the map alone.
    if predicted is not None and np.isfinite(predicted["log_profile"].values).any():
        theory = predicted["log_profile"].transpose("w_variance", "layer").values
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(_decades(profile)))
    predictions = {"color": palette().theory, "linestyle": "dashed", "linewidth": 1}
    shown = _spread(variance, level, np.isfinite(mean).all(axis=-1))
    for index, (colour, marker) in shown.items():
        edges = mean[index] - error[index], mean[index] + error[index]
        ax.fill_between(layer, *edges, color=colour, alpha=0.25, linewidth=0)
        is_level = np.isfinite(level) and index == np.abs(np.log(variance / level)).argmin()
        label = f"{variance[index]:.3g}" + (" (level)" if is_level else "")
        every = max(len(layer) // 8, 1)
        ax.plot(layer, mean[index], c=colour, marker=marker, markevery=every, label=label)
        if theory is not None:
            ax.plot(layer, _decades(theory[index]), **predictions)
    ax.axhline(0.0, color=palette().muted, linewidth=0.8, zorder=1)
    if theory is not None:
        ax.plot([], [], **predictions, label="theory")
    # A level gradient looks level: the axis shows a factor of two at least.
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -FACTOR_2), max(high, FACTOR_2))
    ax.set_yticks(*style.log_ticks(*ax.get_ylim()))
    ax.set_xticks(_depth_ticks(layer))
    # Beside the panel, where it covers no line.
    how = {"handlelength": 1.5, "frameon": False, "alignment": "left"}
    heading = textwrap.fill(words["label"].split(" × ")[0], 16)
    ax.legend(title=heading, loc="center left", bbox_to_anchor=(1.0, 0.5), **how)
    ax.set_title(f"{name}, {len(layer)} {block}s deep")
    ax.set_xlabel(f"{block} (1 is next to the input)")
    ax.set_ylabel(f"gradient norm,\nlast {block} = 1")
    return {BANDS} if shown else set()


def _spread(variance: np.ndarray, level: float, known: Any) -> dict[int, tuple[str, str]]:
    """Five variances from the largest to the smallest, and the colour and marker of each.

    The level one is in the middle if there is one, and the others halfway to the ends.
    """
    candidates = np.flatnonzero(known)
    if not candidates.size:
        return {}
    last = candidates.size - 1
    centre = last / 2
    if np.isfinite(level):
        centre = float(np.abs(np.log(variance[candidates] / level)).argmin())
    places = np.round([last, (last + centre) / 2, centre, centre / 2, 0.0]).astype(int)
    return dict(zip(candidates[places].tolist(), palette().lines, strict=True))


def _decades(profile: np.ndarray) -> np.ndarray:
    return (profile - profile[..., -1:]) / (2 * np.log(10))
