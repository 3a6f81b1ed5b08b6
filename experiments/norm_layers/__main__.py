"""The command: claims, tables and the figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from experiments.norm_layers.measurement import TEST, Options, Results, measure
from jaxgrad.plotting import style

GROWTH_TOLERANCE = 0.1
"""Difference from theory that does not matter: 10 % of the squared gradient a layer."""
LEARNS = 0.2
"""Test accuracy of a network that learns at all, twice that of chance."""


def claims(results: Results, options: Options) -> list[Claim]:
    """Gradients grow as theory says, norms learn at any variance, and what training changes."""
    statements = []

    def add(text, estimate, *relation, form="+.3f"):
        statements.append(Claim(text, estimate, *relation, form=form))

    for kind, one in results.start.items():
        measured, predicted = one.growth()
        for i, w_variance in enumerate(options.w_variances):
            if kind == "plain" or i == 0:  # norms make the variance indifferent
                text = f"{kind}, weight variance {w_variance:g}: growth as in theory, within 10 %"
                difference = Estimate.of(measured[:, i] - predicted[i])
                add(text, difference, "equal", 0.0, GROWTH_TOLERANCE)
        if "batch" in kind:
            text = f"{kind}: gradients explode at every variance (smallest growth)"
            add(text, Estimate.of(measured.min(axis=1)), "greater")
    changes = []
    for kind, one in results.trained.items():
        worst = Estimate.of(one.test.min(axis=1))  # in each seed, over variances
        # Seeds share one test set, whose sampling error is added; all may predict one class.
        worst -= Estimate(0.0, Estimate.share(worst.mean * TEST, TEST).standard_error)
        text = f"{kind}, depth {options.depth}: test accuracy above 20 % at every weight variance"
        add(text, worst, "greater", LEARNS, form=".1%")
        if "batch" in kind:
            changes.append((one.test - one.test_batch).ravel())
    text = "running statistics change the accuracy of batch norm by less than 2 %"
    add(text, Estimate.of(np.concatenate(changes)), "equal", 0.0, 0.02, form="+.1%")
    return statements


def report(results: Results, options: Options) -> kit.Report:
    """Gradients at the start, accuracies and gradients after training, and the claims."""
    rows, trained_rows, gradient_rows, numbers = [], [], [], {}
    for kind, one in results.start.items():
        measured, predicted = one.growth()
        for i, w_variance in enumerate(options.w_variances):
            growth, factor = Estimate.of(measured[:, i]), np.exp(measured[:, i].mean())
            row = ("" if i else kind, w_variance, growth, predicted[i])
            rows.append((*row, factor, np.exp(predicted[i])))
    for kind, one in results.trained.items():
        first, *_, last = np.moveaxis(one.ratio(), -1, 0)
        train, test, by_batch, *ends = (
            Estimate.of(v) for v in (one.train, one.test, one.test_batch, first, last)
        )
        for i, w_variance in enumerate(options.w_variances):
            row = ("" if i else kind, w_variance, options.learning_rates[one.rate[i]])
            trained_rows.append((*row, train[i], test[i]))
            gradient_rows.append((*row[:2], by_batch[i], *(end[i] for end in ends)))
        numbers[kind] = {"test": test, "train": train}
    title = (
        f"{options.activation}, before training: growth per layer of the log squared gradient, "
        f"layers {options.start_depth // 2} to {options.start_depth}, width {options.start_width}, "
        f"{options.start_examples} digits; mean over {options.start_seeds} seeds ± standard error. "
        f"Theory is of infinite width; plain relu grows {2.5 / options.start_width:.3f} less."
    )
    headings = {"kind": "", "w var": "g", "measured": "+.3f", "theory": "+.3f"}
    before = kit.table({**headings, "factor": ".3g", "in theory": ".4g"}, rows, title)
    title = (
        f"After {options.steps} steps at the rate of best dev accuracy, {options.depth} layers, "
        f"width {options.width}; mean over {options.seeds} seeds ± standard error."
    )
    headings = {"kind": "", "w var": "g"}
    accuracies = {"rate": "g", "train accuracy": ".1%", "test accuracy": ".1%"}
    after = kit.table(headings | accuracies, trained_rows, title)
    title = (
        "Test accuracy by statistics of the test set; log10 of the gradient's norm at the input of "
        "the first repeated layer over that of the last; lost: 0 or no longer finite."
    )
    headings |= {"by batch statistics": ".1%", "first/last, start": "+.2f", "end": "+.2f"}
    details = [kit.table(headings, gradient_rows, title)]
    return kit.Report([before, after], claims(results, options), numbers, details)


def figure(results: Results, options: Options) -> Any:
    """Test accuracy by weight variance, with and without norms."""
    order, trained = np.argsort(options.w_variances), results.trained
    values = np.sort(options.w_variances)
    # The message of the figure: without norms most variances fail.
    counts = {kind: (t.test.mean(axis=0) > LEARNS).sum() for kind, t in trained.items()}
    title = (
        f"Without norms, networks of {options.depth} layers learn at {counts.pop('plain')} of "
        f"{len(values)} weight variances, with any norm at {min(counts.values())}"
    )
    result, ((ax,),) = figures.panels(title)
    figures.curves(ax, values, {k: Estimate.of(t.test[:, order]) for k, t in trained.items()})
    ax.axhline(0.1, color=style.palette().muted, linewidth=0.8, label="chance")
    ax.set(xscale="log", ylim=(0, 1.03), ylabel=f"test accuracy after {options.steps} steps")
    ax.set_xlabel("weight variance × fan-in")
    figures.ticks(ax.xaxis, values)
    figures.percent(ax.yaxis)
    figures.legend_below(result, ax, 5)
    return result


def run(options: Options) -> None:
    """Compare plain networks with batch and layer norm: gradients at the start and in training."""
    results = measure(options, kit.progress("networks"))
    kit.publish(report(results, options), options, lambda: figure(results, options))


if __name__ == "__main__":
    kit.command(Options, run)
