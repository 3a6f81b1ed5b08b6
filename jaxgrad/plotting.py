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


# Figures of `experiments.gradient_check`, which says what the fields of its results are.

_TIERS = ("#2f5fa8", "#9dbfe0", "#f7c27a", "#b35a12")
_STYLES = ("dashed", "dotted", "solid", "dashdot", (0, (6, 1)))


def gradient_check_steps(result: Any) -> Figure:
    """The error of numeric gradients against their step, with the best steps marked.

    Args:
      result: of `experiments.gradient_check.steps`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]
    figure = Figure(figsize=(12.5, 6.8), layout="constrained")
    ax = figure.subplots()
    least = min(method.error[method.error > 0].min() for method in result.methods)
    for method, (colour, marker), style in zip(result.methods, _LINES, _STYLES, strict=True):
        error = np.maximum(method.error, least)
        ax.plot(
            result.steps,
            error,
            color=colour,
            marker=marker,
            markersize=4,
            linestyle=style,
            label=f"{method.name}{_power(method.slope)}",
        )
        if not np.isfinite(method.small_slope):
            continue
        at = result.steps[method.best], error[method.best]
        ax.plot(*at, marker="*", markersize=19, color=colour, markeredgecolor="white", zorder=5)
        ax.annotate(
            f"best at {_scientific(at[0])}",
            at,
            # Above the flat arm of a one-sided difference, beside the steep ones of the others.
            xytext=(0, 19) if method.order == 1 else (-4, -8),
            textcoords="offset points",
            ha="center" if method.order == 1 else "right",
            va="bottom" if method.order == 1 else "top",
            fontsize=11,
            fontweight="bold",
            color=colour,
            path_effects=halo,
            zorder=6,
        )
    limit, word = result.tiers[0]
    ax.axhline(limit, color="0.5", linewidth=1, zorder=0)
    ax.text(
        result.steps.min(),
        limit / 1.3,
        f"the course: “{word}” below this line",
        va="top",
        color="0.3",
    )
    ax.axhspan(result.found_error, result.found_bar, color="#2f5fa8", alpha=0.25, linewidth=0)
    ax.axhline(
        result.found_bar,
        color="#2f5fa8",
        linewidth=1.2,
        label="differences.gradient: error bar\n(finds its own steps)",
    )
    ax.axhline(
        result.found_error,
        color="#2f5fa8",
        linewidth=2.5,
        linestyle=(0, (1, 1)),
        label="differences.gradient: error",
    )
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(result.steps.min() / 2, result.steps.max() * 2),
        ylim=(least / 8, 3.0),
        xlabel="step: how far each weight is moved\n"
        "(left: rounding of the loss rules; right: its curvature)",
        ylabel="relative error of the whole gradient",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelspacing=0.9)
    two_sided = [m for m in result.methods if m.name.startswith("two-sided, float")]
    best = " and ".join(
        f"{_scientific(result.steps[m.best])} in {m.name.split(', ')[1]}" for m in two_sided
    )
    inside = "within" if result.found_error <= result.found_bar else "OUTSIDE OF"
    ax.set_title(
        f"Two-sided differences are best at a step of {best}\n"
        f"(differences.gradient finds its steps; its error, {_scientific(result.found_error)}, is "
        f"{inside} the bar that it gives, {_scientific(result.found_bar)})",
        fontsize=13,
    )
    return figure


def gradient_check_kinks(result: Any) -> Figure:
    """What checkers say of correct gradients of networks with kinks.

    Args:
      result: of `experiments.gradient_check.kinks`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    axes = figure.subplots(1, len(result.examples), squeeze=False, sharey=True)[0]
    tiers, count = result.tiers(), len(result.steps)
    others = [*result.alarms.values(), result.rejected()]
    at = np.append(np.arange(count), count + 0.6 + 1.35 * np.arange(len(others)))
    names = [f"$10^{{{np.log10(step):.0f}}}$" for step in result.steps]
    names += [f"JAX,\n{dtype}" for dtype in result.alarms] + ["jaxgrad"]
    for e, (ax, examples) in enumerate(zip(axes, result.examples, strict=True)):
        bottom = np.zeros(count)
        for (tier, share), colour in zip(tiers.items(), _TIERS, strict=True):
            ax.bar(at[:count], share[e], 0.85, bottom, color=colour, label=f"“{tier}”")
            bottom = bottom + share[e]
        rejected = np.array([share[e] for share in others])
        ax.bar(at[count:], 1 - rejected, 0.85, color=_TIERS[0])
        ax.bar(at[count:], rejected, 0.85, 1 - rejected, color=_TIERS[-1])
        ax.plot(
            at[:count],
            1 - result.crossed[e].mean(axis=1),
            color="black",
            marker="D",
            linewidth=1.5,
            label="below this line no step crosses a kink",
        )
        bad = [*result.false_alarms()[e], *rejected]
        for x, share in zip(at, bad, strict=True):
            ax.text(x, 1.015, f"{share:.0%}", ha="center", va="bottom", fontweight="bold")
        ax.axvline(count - 0.2, color="0.6", linewidth=0.8)
        for middle, words in (
            (at[:count].mean(), "step of the course's rule"),
            (at[count:].mean(), "check_grads of"),
        ):
            below = ax.get_xaxis_transform()
            ax.text(middle, -0.13, words, transform=below, ha="center", va="top", fontsize=11)
        ax.set_xticks(at, names)
        ax.set_ylim(0, 1.08)
        ax.set_title(f"loss of {examples} example{'s' * (examples > 1)} (bold: false alarms)")
    axes[0].set_ylabel("share of the networks, all of them correct")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        title="the course's words for the relative error; for check_grads, accepted or rejected",
    )
    fixed, jax_s = (np.max(share) for share in (result.false_alarms(), [*result.alarms.values()]))
    figure.suptitle(
        f"{len(result.verdicts[0])} ReLU networks with correct gradients: false alarms for up to\n"
        f"{fixed:.0%} with a fixed step, {jax_s:.0%} with JAX's check_grads, "
        f"{result.rejected().max():.0%} with jaxgrad's",
        fontsize=14,
    )
    return figure


def gradient_check_regulariser(result: Any) -> Figure:
    """How a growing regulariser hides an error, and which checks still name it.

    Args:
      result: of `experiments.gradient_check.regulariser`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.25))
    at = np.arange(len(result.strengths))
    low = min(1e-8, 0.3 * result.error.min())
    edges = (low, *(min(limit, 1.0) for limit, _ in result.tiers))
    for colour, (_, word), start, stop in zip(
        _TIERS, result.tiers, edges[:-1], edges[1:], strict=True
    ):
        upper.axhspan(start, stop, color=colour, alpha=0.35, linewidth=0)
        middle = np.sqrt(start * stop)
        upper.text(-0.4, middle, f"“{word}”", va="center", fontsize=12, fontstyle="italic")
    upper.plot(
        at, result.error, color="black", marker="o", label="the course's rule, whole gradient"
    )
    for name, (colour, marker), size, style in zip(
        result.leaf_error, (_LINES[0], _LINES[3], _LINES[4]), (7, 5, 10), _STYLES[:3], strict=True
    ):
        upper.plot(
            at,
            result.leaf_error[name],
            color=colour,
            marker=marker,
            markersize=size,
            markerfacecolor="none" if size == 10 else colour,
            linestyle=style,
            label=f"{result.checkers[name]}, {name}",
        )
    upper.set(yscale="log", ylim=(low, 1.0), ylabel="relative error that is seen")
    upper.legend(loc="lower center", frameon=True, framealpha=0.9)
    names = list(result.verdicts)
    for row, name in enumerate(names):
        for x, verdict in zip(at, result.verdicts[name], strict=True):
            named = verdict == "WRONG"
            colour = "#0b1f4b" if named else "#f7c27a"
            lower.barh(row, 0.96, left=x - 0.48, height=0.9, color=colour)
            ink = "white" if named else "black"
            lower.text(x, row, verdict, ha="center", va="center", color=ink, fontsize=9)
    lower.set_yticks(range(len(names)), [f"{result.checkers[name]}:\n{name}" for name in names])
    lower.set_title("verdicts (dark: the error is named)", fontsize=11)
    lower.invert_yaxis()
    lower.set_xticks(at, [f"{s:g}" if s < 1e4 else _scientific(s) for s in result.strengths])
    lower.set(xlabel="strength of the L2 regulariser", xlim=(-0.5, len(at) - 0.5))
    start = result.hidden_from(result.tiers[0][0])
    hides = (
        f"A backward pass off by {result.planted:.0%} is never hidden from the course's rule"
        if np.isnan(start)
        else f"A backward pass off by {result.planted:.0%} is “{result.tiers[0][1]}” to the "
        f"course's rule from strength {_scientific(start)} on"
    )
    last = names[-1]
    wrong = sum(v == "WRONG" for v in result.verdicts[last])
    upper.set_title(
        f"{hides};\ncheck_terms names it at {wrong} of {len(at)} strengths", fontsize=14
    )
    return figure


def gradient_check_dropout(result: Any) -> Figure:
    """Numeric against autodiff slopes of a network with dropout, a panel for each kind of mask.

    Args:
      result: of `experiments.gradient_check.dropout`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5.4), layout="constrained")
    axes = figure.subplots(1, len(result), squeeze=False)[0]
    for ax, case in zip(axes, result, strict=True):
        good = case.verdict == "AGREE"
        ax.plot(
            case.autodiff,
            case.numeric,
            linestyle="none",
            marker="o" if good else "x",
            markersize=4,
            color=_TIERS[0] if good else _TIERS[-1],
        )
        reach = np.max(np.abs(case.autodiff))
        ax.plot([-reach, reach], [-reach, reach], color="black", linewidth=1, label="equal")
        ax.legend(loc="lower right", frameon=True)
        ax.set_ylim(top=1.3 * np.max(np.abs(case.numeric)))
        ax.set(
            xlabel="slope by autodiff (one mark for each weight)",
            ylabel="numeric slope, two-sided",
        )
        ax.set_title(f"mask: {case.name}\nrelative error {_scientific(case.error)}")
        ax.text(
            0.04,
            0.96,
            f"check_grads: {case.verdict}",
            transform=ax.transAxes,
            va="top",
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "black"},
        )
    first, last = result[0], result[1:]
    worst = max(np.max(np.abs(case.numeric)) / np.max(np.abs(case.autodiff)) for case in last)
    figure.suptitle(
        f"Dropout: with the mask held the numeric gradient is off by {_scientific(first.error)};\n"
        f"with a new mask at each call its slopes are up to {worst:,.0f} times as large as "
        "autodiff's",
        fontsize=14,
    )
    return figure


def gradient_check_training(result: Any) -> Figure:
    """The error of a right and of a wrong derivative rule along a training.

    Args:
      result: of `experiments.gradient_check.training`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    ax = figure.subplots()
    at = np.arange(len(result.at))
    lines = (("#0b1f4b", "solid"), ("#b35a12", "dashed"))
    for (name, error), (colour, style) in zip(result.error.items(), lines, strict=True):
        ax.plot(
            at, error, color=colour, linestyle=style, linewidth=2, label=f"tanh with the {name}"
        )
        for x, value, verdict in zip(at, error, result.verdicts[name], strict=True):
            wrong = verdict == "WRONG"
            ax.plot(
                x,
                value,
                marker="X" if wrong else "o",
                markersize=13 if wrong else 8,
                color=colour,
                markeredgecolor="white",
            )
            ax.annotate(
                verdict,
                (x, value),
                xytext=(-4, 9) if style == "dashed" else (0, -20),
                textcoords="offset points",
                ha="right" if style == "dashed" else "center",
                fontsize=10,
                fontweight="bold" if wrong else "normal",
                color=colour,
            )
    ax.set_xticks(at, [f"{step:g}" for step in result.at])
    ax.set(
        yscale="log",
        xlabel="optimizer steps before the check (weights start small and grow)",
        ylabel="relative error of the worst leaf",
    )
    low, high = ax.get_ylim()
    ax.set_ylim(low / 3, high * 5)
    ax.legend(loc="center right", frameon=False)
    ax.set_xlim(-0.6, at[-1] + 0.3)
    says = []
    for name, verdicts in result.verdicts.items():
        step = result.named_from(name)
        if step is None:
            words = "never found wrong"
        else:
            passed = "passes at first and is " if verdicts[0] != "WRONG" else ""
            words = f"{passed}found WRONG after {step} steps"
        says.append(f"the {name.split(', ')[0]} {'' if step else 'is '}{words}")
    ax.set_title(f"Checked along the training:\n{'; '.join(says)}", fontsize=13)
    return figure


def _power(slope: float) -> str:
    return f"\n(falls as step$^{{{slope:.2f}}}$)" if np.isfinite(slope) else ""


def _scientific(value: float) -> str:
    """A power of ten where the first digit is 1, else one digit and the power."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return f"{value:.0f}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"
