"""The figure of `experiments.depth_variance`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad import regimes
from jaxgrad.plotting.style import LINES, THEORY, halo, middle, shades

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_DECADES = 4.0
_BORDERS = (
    (regimes.Regime.VANISHING, -0.5, "solid", "measured: vanishes below"),
    (regimes.Regime.EXPLODING, 0.5, "dashed", "measured: explodes above"),
)
_SCALES = 6
"""Networks are trainable to about so many depth scales, Schoenholz et al. (2017)."""


def depth_variance(
    dataset: xarray.Dataset,
    thresholds: regimes.Thresholds | None = None,
    theory: xarray.Dataset | None = None,
) -> Figure:
    """Map of the gradient over (depth, weight variance), one row for each activation.

    On the left the log10 of the gradient norm at the first layer over that at the last, averaged
    over seeds, with the borders of the regimes. On the right, for the deepest network, the gradient
    norm at each layer for a few variances.

    Args:
      dataset: of `experiments.depth_variance`: `log_ratio` over (activation, seed, w_variance,
        depth) and `log_profile` over (activation, seed, w_variance, layer), natural logs of squared
        norms.
      thresholds: what counts as stable, see `jaxgrad.regimes`; `None` for the defaults.
      theory: of the same experiment, to be drawn over the measurement: `log_ratio` and
        `log_profile` as in `dataset` but without seeds, and `xi` over (activation, fine_w_variance)
        in layers. `None` for the measurement alone.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    thresholds = regimes.Thresholds() if thresholds is None else thresholds
    names = [str(name) for name in dataset["activation"].values]
    figure = Figure(figsize=(13.5, 1.5 + 4.6 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(1.25, 1))
    for row, name in zip(axes, names, strict=True):
        chosen = dataset.sel(activation=name)
        expected = None if theory is None else theory.sel(activation=name)
        found = _found(chosen, thresholds)
        mesh = _map(row[0], chosen, found, name)
        if expected is not None:
            _predictions(row[0], expected)
        figure.colorbar(
            mesh,
            ax=row[0],
            extend="both",
            label="gradient at the first layer / at the last layer",
            ticks=range(-4, 5),
            format=lambda decades, _: "unchanged" if decades == 0 else f"$10^{{{decades:g}}}$",
        )
        _profile(row[1], chosen, expected, found, name)
    figure.legend(
        handles=_handles(theory is not None),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        title="lines of the maps on the left",
    )
    figure.suptitle("Where gradients vanish, survive or explode before training", fontsize=15)
    return figure


def _found(chosen: Any, thresholds: regimes.Thresholds) -> tuple[Any, regimes.Level]:
    log_ratio = chosen["log_ratio"].transpose("seed", "w_variance", "depth").values
    return (
        regimes.classify(log_ratio, chosen["depth"].values, thresholds),
        regimes.level(log_ratio, chosen["w_variance"].values),
    )


def _map(ax: Any, chosen: Any, found: Any, name: str) -> Any:
    classified, level = found
    depth, variance = chosen["depth"].values, chosen["w_variance"].values
    decades = np.asarray(classified.log_ratio) / (2 * np.log(10))
    mesh = ax.pcolormesh(
        depth, variance, decades, cmap=shades(), vmin=-_DECADES, vmax=_DECADES, rasterized=True
    )
    regime = np.asarray(classified.regime, float)
    for value, edge, style, _ in _BORDERS:
        if (regime == value).any() and (regime != value).any():
            border = ax.contour(depth, variance, regime, [edge], colors="black", linestyles=style)
            border.set_path_effects(halo(4))
    for value, word in (
        (regimes.Regime.VANISHING, "vanishes"),
        (regimes.Regime.STABLE, "survives"),
        (regimes.Regime.EXPLODING, "explodes"),
    ):
        spot = middle(regime == value)
        if spot is not None:
            ax.text(
                depth[spot[1]],
                variance[spot[0]],
                word,
                ha="center",
                va="center",
                fontsize=13,
                fontweight="bold",
                path_effects=halo(4),
                zorder=6,
            )
    ax.plot(depth[1:], np.asarray(level.variance)[1:], color="black", linestyle="dotted", zorder=5)
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis, variance)
    ax.set_xticks([int(depth[0]), *(tick for tick in ax.get_xticks() if 1 < tick <= depth[-1])])
    ax.set_xlim(depth[0] - 0.5, depth[-1] + 0.5)
    ax.set(
        xlabel="depth (number of layers)",
        ylabel="weight variance × fan-in",
        title=f"{name}: gradient change through the network",
    )
    return mesh


def _predictions(ax: Any, expected: Any) -> None:
    """Where theory sees the gradient level, and how deep it sees networks to be trainable."""
    limits = ax.get_ylim()
    log_ratio = expected["log_ratio"].transpose("w_variance", "depth").values
    # Two alike stand for the seeds, of which a prediction has none.
    level = regimes.level(np.stack([log_ratio] * 2), expected["w_variance"].values)
    depth = expected["depth"].values
    ax.plot(
        depth[1:],
        np.asarray(level.variance)[1:],
        color=THEORY,
        linewidth=2.5,
        path_effects=halo(4.5),
        zorder=3,
    )
    ax.plot(
        _SCALES * expected["xi"].values,
        expected["fine_w_variance"].values,
        color=THEORY,
        linestyle="dashdot",
        linewidth=1.8,
        path_effects=halo(3.5),
        zorder=3,
    )
    ax.set_ylim(limits)


def _handles(theory: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    lines: list[Any] = [("black", style, words) for _, _, style, words in _BORDERS]
    lines += [("black", "dotted", "measured: gradient level")]
    if theory:
        lines += [
            (THEORY, "solid", "theory, infinite width: gradient level"),
            (THEORY, "dashdot", f"theory: depth = {_SCALES} depth scales of the gradient"),
        ]
    return [
        Line2D([], [], color=colour, linewidth=2, linestyle=style, label=words)
        for colour, style, words in lines
    ]


def _profile(ax: Any, chosen: Any, expected: Any, found: Any, name: str) -> None:
    level = float(np.asarray(found[1].variance)[-1])
    variance = chosen["w_variance"].values
    centre = np.abs(np.log(variance / level)).argmin() if np.isfinite(level) else len(variance) // 2
    step = max(len(variance) // 8, 1)
    picked = [centre + step * offset for offset in (2, 1, 0, -1, -2)]
    layer = chosen["layer"].values
    profile = chosen["log_profile"].transpose("seed", "w_variance", "layer").values
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(_decades(profile)))
    for (colour, marker), index in zip(LINES, picked, strict=True):
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
        if expected is not None:
            at = expected["log_profile"].transpose("w_variance", "layer").values[index]
            ax.plot(layer, 10 ** _decades(at), color=THEORY, linestyle="dashed", linewidth=1)
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    if expected is not None:
        ax.plot([], [], color=THEORY, linestyle="dashed", linewidth=1, label="theory,\nall of them")
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


def _decades(profile: np.ndarray) -> np.ndarray:
    return (profile - profile[..., -1:]) / (2 * np.log(10))


def _plain_ticks(axis: Any, values: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    marks = 2.0 ** np.arange(np.ceil(np.log2(values.min())), np.floor(np.log2(values.max())) + 1)
    axis.set_major_locator(FixedLocator(list(marks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
