"""The command: claims, tables and the figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from experiments.input_normalization.measurement import TREATMENTS, Options, bowls, measure_all
from jaxgrad.plotting import style

NEGLIGIBLE = 0.05
"""Change of a log10 that does not matter: 12 %."""


def claims(results: dict[str, Any], dev_rows: list[Any]) -> list[Claim]:
    """Round bowls, larger rates, the wrong divisor, harmlessness, exactness, and dev sets."""
    statements, number = [], "log10 of the condition number"

    def add(text, estimate, *relation, form="+.2f"):
        statements.append(Claim(text, estimate, *relation, form=form))

    for name, one in results.items():
        raw, centred, standardized, by_variance = np.log10(one["condition"]).T
        change = Estimate.paired(standardized, raw)
        add(f"{name}: {number}, standardized less raw, is below 0", change, "less")
        slow, _, fast, _ = np.log10(one["rate"]).T
        text = f"{name}: log10 of the largest stable rate, standardized less raw, is above 0"
        add(text, Estimate.paired(fast, slow), "greater")
        text = f"{name}: dividing by the variance instead makes {number}"
        change = Estimate.paired(by_variance, standardized)
        if name == "gaussian":  # its scales are alike, so that both divisors are about 1
            add(f"{text} the same, within 0.05", change, "equal", 0.0, NEGLIGIBLE)
        else:
            add(f"{text} larger by more than 0.05", change, "greater", NEGLIGIBLE)
        if name in ("gaussian", "digits"):
            text = f"{name}: dividing centred inputs by the deviation is harmless, raises it by"
            change = Estimate.paired(standardized, centred)
            add(f"{text} less than 0.05", change, "less", NEGLIGIBLE)
    # Every start of every data set is a trial, whatever the treatment.
    for factor, field, words in ((0.99, "below", "falls"), (1.01, "above", "grows")):
        tries = np.concatenate([one[field].ravel() for one in results.values()])
        text = f"at {factor} of the largest stable rate the loss {words} in more than 95 % of"
        add(
            f"{text} descents", Estimate.share(tries.sum(), tries.size), "greater", 0.95, form=".1%"
        )
    errors = [abs(one["steps"] - one["exact"])[one["reached"]] for one in results.values()]
    ends = np.concatenate(errors)
    if ends.size:  # descents that reach the cap have nothing to compare
        text = f"steps taken are the exact number in all {ends.size} descents that end"
        add(text, Estimate.exact(ends.max()), "less", 0.5, form=".0f")
    for name, size, _, _, harm in dev_rows:
        add(f"{name}: statistics of its own harm a dev set of {size}", harm, "greater", form="+.1%")
    return statements


def report(results: dict[str, Any], options: Options) -> kit.Report:
    """Condition numbers and steps, errors on dev sets, and the claims."""
    rows, dev_rows = [], []
    for name, one in results.items():
        condition, steps = (Estimate.of(v) for v in (np.log10(one["condition"]), one["steps"]))
        bound, exact, rate = (one[field].mean(axis=0) for field in ("bound", "exact", "rate"))
        for i, treatment in enumerate(TREATMENTS):
            taken = steps[i] if one["reached"][:, i].all() else f"> {options.cap:,}"
            row = ("" if i else name, treatment, condition[i], one["flat"][:, i].max())
            rows.append((*row, bound[i], exact[i], taken, rate[i]))
        # Sizes are ascending, and those that a data set is too small for are left out.
        for size, errors in zip(options.dev_sizes, one["dev_error"].swapaxes(0, 1), strict=False):
            trained, separate = errors.T
            change = Estimate.paired(separate, trained)
            dev_rows.append((name, size, Estimate.of(trained), Estimate.of(separate), change))
    title = (
        "Least squares of a linear model with bias: condition number of the Hessian without its "
        "flat directions; steps of gradient descent at the best constant rate to "
        f"{options.shrink:g} of the loss's excess, bound by the condition number, exact, and "
        f"taken; largest stable rate. Mean over {options.seeds} training sets ± standard error."
    )
    headings = {"data": "", "inputs": "", "log10 condition": ".2f", "flat": "d", "bound": ",.3g"}
    headings |= {"exact": ",.3g", "steps taken": ",.1f", "largest rate": ".2g"}
    first = kit.table(headings, rows, title, left=2)
    title = (
        "Dev error of a model of standardized inputs, those of the dev set standardized by the "
        f"statistics of the training set or by its own; mean over {options.seeds} training sets "
        f"with {options.dev_draws} dev sets each ± standard error."
    )
    headings = {"data": "", "dev set": "d", "training statistics": ".1%", "its own": ".1%"}
    second = kit.table({**headings, "difference": "+.1%"}, dev_rows, title)
    # All arrays are stored, so that other comparisons need no new run.
    return kit.Report([first, second], claims(results, dev_rows), results)


def figure(shapes: list[dict[str, Any]], options: Options) -> Any:
    """Level lines of the loss over two weights and the path of descent, raw and standardized."""
    from matplotlib.colors import LinearSegmentedColormap

    counts = [len(shape["path"]) - 1 for shape in shapes]
    title = "Standardized inputs make the bowl round: {1} steps of descent instead of {0}"
    result, axes = figures.panels(title.format(*counts), 1, 2, height=4.4)
    colors = style.palette()
    bowl = (colors.paper, colors.lines[3][0])
    looks = (("raw", "unit"), ("standardized", "standard deviation"))
    for ax, shape, steps, (words, unit) in zip(axes[0], shapes, counts, looks, strict=True):
        hessian, best, path = shape["hessian"], shape["best"], shape["path"]
        # The level line of the start, (w - best)' H (w - best) = 2, fits into the panel.
        reach = 1.3 * np.sqrt(2 * np.linalg.inv(hessian).diagonal().max())
        offset = np.moveaxis(np.mgrid[-reach:reach:301j, -reach:reach:301j], 0, -1)
        excess = np.einsum("...i,ij,...j->...", offset, hessian, offset) / 2
        grid = (*np.moveaxis(best + offset, -1, 0), excess, [0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
        # The minimum has the colour of the paper.
        ax.contourf(*grid, cmap=LinearSegmentedColormap.from_list("bowl", bowl))
        ax.contour(*grid, colors=colors.ink, linewidths=0.6)
        ax.plot(*path.T, color=colors.theory, marker="o", markersize=3.5)
        for point, name, marker, y in ((path[0], "start", "s", -20), (best, "minimum", "*", 9)):
            ax.plot(*point, marker, markersize=11, color=colors.ink, markeredgecolor=colors.paper)
            place = {"xytext": (0, y), "textcoords": "offset points", "ha": "center"}
            ax.annotate(name, point, path_effects=style.halo(3), **place)
        # Feature names of scikit-learn have underscores.
        names = [f"weight of {name.replace('_', ' ')}, per {unit}" for name in options.pair]
        ax.set(aspect="equal", xlabel=names[0], ylabel=names[1])
        ax.set_title(f"{words}: {steps} steps, condition number {shape['condition']:.3g}")
    return result


def run(options: Options) -> None:
    """Compare inputs, raw and normalized: the loss's condition number and the steps of descent."""
    results = measure_all(options, kit.progress("data sets"))
    kit.publish(report(results, options), options, lambda: figure(bowls(options), options))


if __name__ == "__main__":
    kit.command(Options, run)
