"""A map of gradients over depth and weight variance, with theory over it."""

from __future__ import annotations

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
    (regimes.Regime.VANISHING, -0.5, "solid", "measured: vanishes below"),
    (regimes.Regime.EXPLODING, 0.5, "dashed", "measured: explodes above"),
)
FEW = 8
"""So many depths have a tick each."""
SCALES = 6
"""Networks are trainable up to about this many depth scales, Schoenholz et al. (2017)."""


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
    gradient norm at each layer for a few variances.

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
    figure = Figure(figsize=(style.WIDTH, 1.9 + 3.1 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1.25, 1))
    mesh: Any = None
    for (left, right), name in zip(axes, names, strict=True):
        measured = dataset.sel(activation=name)
        predicted = None if theory is None else theory.sel(activation=name)
        log_ratio = measured["log_ratio"].transpose("seed", "w_variance", "depth").values
        # The variance of a level gradient, and the regime of every cell.
        level = regimes.level(log_ratio, measured["w_variance"].values)
        classes = regimes.classify(log_ratio, measured["depth"].values, thresholds)
        mesh = _map(left, measured, classes, level, (name, words))
        if predicted is not None:
            _predictions(left, predicted, thresholds)
        level_variance = float(np.asarray(level.variance)[-1])
        _profile(right, measured, predicted, level_variance, (name, words))
    bar = {
        "label": f"{quantity},\nits norm at the first {block} over that at the last",
        "ticks": range(-4, 5, 2),
        "format": lambda value, _: "unchanged" if value == 0 else f"$10^{{{value:g}}}$",
    }
    # One for all maps, whose colours are the same.
    figure.colorbar(mesh, ax=axes[:, 0], location="bottom", extend="both", aspect=40, **bar)
    figure.legend(handles=_handles(theory), loc="outside lower center", ncols=2)
    style.headline(figure, "Where gradients vanish, survive or explode before training")
    return figure


def _map(ax: Any, measured: Any, classes: Any, level: regimes.Level, title: Any) -> Any:
    name, words = title
    depth, variance = measured["depth"].values, measured["w_variance"].values
    # Half, since the logs are of squared norms.
    decades = np.asarray(classes.log_ratio) / (2 * np.log(10))
    mesh = heat_map(ax, depth, variance, decades, DECADES)
    ink = palette().ink
    # Regimes are -1, 0 and 1, so that their borders are contours at -1/2 and 1/2.
    regime = np.asarray(classes.regime, float)
    for value, edge, line, _ in BORDERS:
        if (regime == value).any() and (regime != value).any():
            border = ax.contour(depth, variance, regime, [edge], colors=ink, linestyles=line)
            border.set_path_effects(halo(4))
    regions = ("vanishes", "survives", "explodes")
    order = (regimes.Regime.VANISHING, regimes.Regime.STABLE, regimes.Regime.EXPLODING)
    for value, word in zip(order, regions, strict=True):
        name_region(ax, depth, variance, regime == value, word)
    ax.plot(depth[1:], np.asarray(level.variance)[1:], color=ink, linestyle="dotted", zorder=5)
    ax.set_yscale("log")
    # Plain numbers at powers of 2.
    low, high = np.ceil(np.log2(variance.min())), np.floor(np.log2(variance.max()))
    marks = 2.0 ** np.arange(low, high + 1)
    ax.set_yticks(marks, [f"{mark:g}" for mark in marks])
    ax.set_yticks([], minor=True)
    ticks = [int(depth[0]), *(tick for tick in ax.get_xticks() if 1 < tick <= depth[-1])]
    ax.set_xticks(ticks if len(depth) > FEW else depth)
    ax.set_xlim(depth[0] - 0.5, depth[-1] + 0.5)
    ax.set(xlabel=f"depth (number of {words['block']}s)", ylabel=words["label"], title=name)
    return mesh


def _predictions(ax: Any, predicted: Any, thresholds: regimes.Thresholds) -> None:
    """Draw where theory predicts level gradients, and to which depth trainable networks.

    Without a depth scale the borders are those of the measurement.
    """
    limits = ax.get_ylim()
    log_ratio = predicted["log_ratio"].transpose("w_variance", "depth").values
    # `level` takes seeds, and a prediction has none: two equal ones stand for them.
    level = regimes.level(np.stack([log_ratio] * 2), predicted["w_variance"].values)
    line = "solid" if "xi" in predicted else "dotted"
    lines = [(predicted["depth"].values[1:], np.asarray(level.variance)[1:], line, 2.5)]
    if "xi" in predicted:
        scale = SCALES * predicted["xi"].values
        lines.append((scale, predicted["fine_w_variance"].values, "dashdot", 1.8))
    else:
        edge = 2 * np.log(thresholds.ratio)
        depths, variances = predicted["depth"].values, predicted["w_variance"].values
        for value, edges in ((-edge, "solid"), (edge, "dashed")):
            if log_ratio.min() < value < log_ratio.max():
                look = {"colors": palette().theory, "linestyles": edges}
                ax.contour(depths, variances, log_ratio, [value], **look)
    for x, y, line, width in lines:
        look = {"color": palette().theory, "path_effects": halo(width + 2), "zorder": 3}
        ax.plot(x, y, ls=line, lw=width, **look)
    ax.set_ylim(limits)


def _handles(theory: Any) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink, color = palette().ink, palette().theory
    lines: list[Any] = [(ink, line, words) for _, _, line, words in BORDERS]
    lines += [(ink, "dotted", "measured: gradient level")]
    if theory is not None and "xi" not in theory:
        lines.append((color, "solid", "theory, infinite width: the same lines"))
    if theory is not None and "xi" in theory:
        lines.append((color, "solid", "theory, infinite width: gradient level"))
        lines.append((color, "dashdot", f"theory: depth = {SCALES} depth scales of the gradient"))
    handles: list[Any] = [Line2D([], [], c=c, lw=2, ls=ls, label=words) for c, ls, words in lines]
    return [*handles, Patch(color=palette().muted, alpha=0.25, label="bands: standard error")]


def _profile(ax: Any, measured: Any, predicted: Any, level: float, title: Any) -> None:
    """Draw the gradient at each layer of the deepest network, around the level variance."""
    name, words = title
    block = words["block"]
    variance, layer = measured["w_variance"].values, measured["layer"].values
    # The level variance and two on each side, an eighth of the range apart.
    centre = np.abs(np.log(variance / level)).argmin() if np.isfinite(level) else len(variance) // 2
    step = max(len(variance) // 8, 1)
    indices = [centre + step * offset for offset in (2, 1, 0, -1, -2)]
    profile = measured["log_profile"].transpose("seed", "w_variance", "layer").values
    theory = None
    # A prediction may be of the map alone.
    if predicted is not None and np.isfinite(predicted["log_profile"].values).any():
        theory = predicted["log_profile"].transpose("w_variance", "layer").values
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(_decades(profile)))
    predictions = {"color": palette().theory, "linestyle": "dashed", "linewidth": 1}
    for (colour, marker), index in zip(palette().lines, indices, strict=True):
        if not 0 <= index < len(variance):
            continue
        low, high = (10 ** (mean[index] + sign * error[index]) for sign in (-1, 1))
        ax.fill_between(layer, low, high, color=colour, alpha=0.25, linewidth=0)
        is_level = index == centre and np.isfinite(level)
        label = f"{variance[index]:.2f}" + (" (level)" if is_level else "")
        every = max(len(layer) // 8, 1)
        ax.plot(layer, 10 ** mean[index], c=colour, marker=marker, markevery=every, label=label)
        if theory is not None:
            values = 10 ** _decades(theory[index])
            ax.plot(layer, values, **predictions)
    ax.plot(layer[[0, -1]], [1.0, 1.0], color=palette().muted, linewidth=0.8, zorder=1)
    if theory is not None:
        ax.plot([], [], **predictions, label="theory")
    ax.set_yscale("log")
    # To the right of where the lines meet, where it covers none.
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= layer[-1]]
    ax.set(xticks=ticks, xlim=(layer[0] - 0.02 * len(layer), layer[0] + 1.6 * len(layer)))
    ax.legend(title=words["label"].split(" × ")[0], handlelength=1.5, loc="center right")
    ax.set_title(f"{name}, {len(layer)} {block}s deep")
    ax.set_xlabel(f"{block} (1 is next to the input)")
    ax.set_ylabel(f"gradient norm,\nlast {block} = 1")


def _decades(profile: np.ndarray) -> np.ndarray:
    return (profile - profile[..., -1:]) / (2 * np.log(10))
