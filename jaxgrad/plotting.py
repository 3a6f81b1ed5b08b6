"""Figures of results. Matplotlib is imported when a function is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad import regimes

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

# From vanishing to exploding, lightest at "unchanged"; the ends differ in lightness, so that they
# stay apart in grey and for the colour-blind.
_COLOURS = ("#0b1f4b", "#2f5fa8", "#9dbfe0", "#fbfaf5", "#f7c27a", "#e08a2b", "#b35a12")
_DECADES = 4.0
_LINES = (("#b35a12", "^"), ("#d99a2b", "D"), ("#000000", "o"), ("#5f9ed1", "s"), ("#0b1f4b", "v"))


def depth_variance(dataset: xarray.Dataset, thresholds: regimes.Thresholds | None = None) -> Figure:
    """Map of the gradient over (depth, weight variance), one row for each activation.

    On the left the log10 of the gradient norm at the first layer over that at the last, averaged
    over seeds, with the borders of the regimes. On the right, for the deepest network, the gradient
    norm at each layer for a few variances.

    Args:
      dataset: of `experiments.depth_variance`: `log_ratio` over (activation, seed, w_variance,
        depth) and `log_profile` over (activation, seed, w_variance, layer), natural logs of squared
        norms.
      thresholds: what counts as stable, see `jaxgrad.regimes`; `None` for the defaults.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    thresholds = regimes.Thresholds() if thresholds is None else thresholds
    names = [str(name) for name in dataset["activation"].values]
    figure = Figure(figsize=(13.5, 0.8 + 4.6 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1.25, 1))
    for row, name in zip(axes, names, strict=True):
        chosen = dataset.sel(activation=name)
        found = _found(chosen, thresholds)
        mesh = _map(row[0], chosen, found, name)
        figure.colorbar(
            mesh,
            ax=row[0],
            extend="both",
            label="gradient at the first layer / at the last layer",
            ticks=range(-4, 5),
            format=lambda decades, _: "unchanged" if decades == 0 else f"$10^{{{decades:g}}}$",
        )
        _profile(row[1], chosen, found, name)
    figure.suptitle("Where gradients vanish, survive or explode before training", fontsize=15)
    return figure


def _found(chosen: Any, thresholds: regimes.Thresholds) -> tuple[Any, regimes.Level]:
    log_ratio = chosen["log_ratio"].transpose("seed", "w_variance", "depth").values
    return (
        regimes.classify(log_ratio, chosen["depth"].values, thresholds),
        regimes.level(log_ratio, chosen["w_variance"].values),
    )


def _map(ax: Any, chosen: Any, found: Any, name: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patheffects import withStroke

    classified, level = found
    depth, variance = chosen["depth"].values, chosen["w_variance"].values
    decades = np.asarray(classified.log_ratio) / (2 * np.log(10))
    colours = LinearSegmentedColormap.from_list("unchanged", _COLOURS).with_extremes(bad="0.5")
    mesh = ax.pcolormesh(
        depth, variance, decades, cmap=colours, vmin=-_DECADES, vmax=_DECADES, rasterized=True
    )
    regime = np.asarray(classified.regime, float)
    halo = [withStroke(linewidth=4, foreground="white")]
    for value, edge, style in (
        (regimes.Regime.VANISHING, -0.5, "solid"),
        (regimes.Regime.EXPLODING, 0.5, "dashed"),
    ):
        if (regime == value).any() and (regime != value).any():
            border = ax.contour(depth, variance, regime, [edge], colors="black", linestyles=style)
            border.set_path_effects(halo)
    for value, word in (
        (regimes.Regime.VANISHING, "vanishes"),
        (regimes.Regime.STABLE, "survives"),
        (regimes.Regime.EXPLODING, "explodes"),
    ):
        spot = _middle(regime == value)
        if spot is not None:
            ax.text(
                depth[spot[1]],
                variance[spot[0]],
                word,
                ha="center",
                va="center",
                fontsize=13,
                fontweight="bold",
                path_effects=halo,
            )
    ax.plot(depth[1:], np.asarray(level.variance)[1:], color="black", linestyle="dotted")
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis, variance)
    ax.set_xticks([int(depth[0]), *(tick for tick in ax.get_xticks() if 1 < tick <= depth[-1])])
    ax.set_xlim(depth[0] - 0.5, depth[-1] + 0.5)
    ax.set(
        xlabel="depth (number of layers)",
        ylabel="weight variance × fan-in",
        title=f"{name}: gradient change through the network\n"
        "(borders: solid vanishing, dashed exploding; dotted: level)",
    )
    return mesh


def _middle(where: np.ndarray) -> tuple[int, int] | None:
    """The cell of a region with the most room around it."""
    if not where.any():
        return None
    padded = np.pad(where, 1)
    room = np.zeros(where.shape, int)
    while padded.any():
        room += padded[1:-1, 1:-1]
        inner = padded[1:-1, 1:-1]
        for shift in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
            inner = inner & shift
        padded = np.pad(inner, 1)
    # Among cells with as much room, the one nearest to the middle of all.
    best = np.argwhere(room == room.max())
    at = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return int(at[0]), int(at[1])


def _profile(ax: Any, chosen: Any, found: Any, name: str) -> None:
    level = float(np.asarray(found[1].variance)[-1])
    variance = chosen["w_variance"].values
    centre = np.abs(np.log(variance / level)).argmin() if np.isfinite(level) else len(variance) // 2
    step = max(len(variance) // 8, 1)
    picked = [centre + step * offset for offset in (2, 1, 0, -1, -2)]
    layer = chosen["layer"].values
    profile = chosen["log_profile"].transpose("seed", "w_variance", "layer").values
    decades = (profile - profile[..., -1:]) / (2 * np.log(10))
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(decades))
    for (colour, marker), index in zip(_LINES, picked, strict=True):
        if not 0 <= index < len(variance):
            continue
        low, high = (10 ** (mean[index] + sign * error[index]) for sign in (-1, 1))
        ax.fill_between(layer, low, high, color=colour, alpha=0.25, linewidth=0)
        label = f"{variance[index]:.2f}" + (" (level)" if index == centre else "")
        ax.plot(
            layer,
            10 ** mean[index],
            color=colour,
            marker=marker,
            markevery=max(len(layer) // 8, 1),
            label=label,
        )
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set_yscale("log")
    ax.legend(
        title="weight variance\n× fan-in",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
    )
    ax.set(
        xlabel="layer (1 is next to the input)",
        ylabel="gradient norm / that of the last layer",
        title=f"{name}: gradient in the {len(layer)}-layer network\n"
        "(mean over seeds ± standard error)",
    )


def _plain_ticks(axis: Any, values: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    marks = 2.0 ** np.arange(np.ceil(np.log2(values.min())), np.floor(np.log2(values.max())) + 1)
    axis.set_major_locator(FixedLocator(list(marks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
