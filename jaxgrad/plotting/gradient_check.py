"""Figures of `experiments.gradient_check`, which says what the fields of its results are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import LINES, STYLES, halo, scientific

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIERS = ("#2f5fa8", "#9dbfe0", "#f7c27a", "#b35a12")


def gradient_check_steps(result: Any) -> Figure:
    """The error of numeric gradients against their step, with the best steps marked.

    Args:
      result: of `experiments.gradient_check.steps`.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.8), layout="constrained")
    ax = figure.subplots()
    least = min(method.error[method.error > 0].min() for method in result.methods)
    for method, (colour, marker), style in zip(result.methods, LINES, STYLES, strict=True):
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
            f"best at {scientific(at[0])}",
            at,
            # Above the flat arm of a one-sided difference, beside the steep ones of the others.
            xytext=(0, 19) if method.order == 1 else (-4, -8),
            textcoords="offset points",
            ha="center" if method.order == 1 else "right",
            va="bottom" if method.order == 1 else "top",
            fontsize=11,
            fontweight="bold",
            color=colour,
            path_effects=halo(3),
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
        f"{scientific(result.steps[m.best])} in {m.name.split(', ')[1]}" for m in two_sided
    )
    inside = "within" if result.found_error <= result.found_bar else "OUTSIDE OF"
    ax.set_title(
        f"Two-sided differences are best at a step of {best}\n"
        f"(differences.gradient finds its steps; its error, {scientific(result.found_error)}, is "
        f"{inside} the bar that it gives, {scientific(result.found_bar)})",
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
        result.leaf_error, (LINES[0], LINES[3], LINES[4]), (7, 5, 10), STYLES[:3], strict=True
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
    lower.set_xticks(at, [f"{s:g}" if s < 1e4 else scientific(s) for s in result.strengths])
    lower.set(xlabel="strength of the L2 regulariser", xlim=(-0.5, len(at) - 0.5))
    start = result.hidden_from(result.tiers[0][0])
    hides = (
        f"A backward pass off by {result.planted:.0%} is never hidden from the course's rule"
        if np.isnan(start)
        else f"A backward pass off by {result.planted:.0%} is “{result.tiers[0][1]}” to the "
        f"course's rule from strength {scientific(start)} on"
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
        ax.set_title(f"mask: {case.name}\nrelative error {scientific(case.error)}")
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
        f"Dropout: with the mask held the numeric gradient is off by {scientific(first.error)};\n"
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
