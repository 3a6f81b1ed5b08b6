"""The command: claims, tables and the figure."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate
from experiments.input_normalization.figure import figure
from experiments.input_normalization.measurement import (
    BY_VARIANCE,
    CENTRED,
    NEGLIGIBLE,
    RAW,
    STANDARDIZED,
    TREATMENTS,
    Measurement,
    Options,
    bowls,
    measure_all,
)


def claims(results: dict[str, Measurement], options: Options) -> list[Claim]:
    """Round bowls, larger rates, the wrong divisor, harmlessness, exactness, and dev sets."""
    statements = []

    def add(text, change, relation, *bounds, form="+.2f"):
        statements.append(Claim(text, change, relation, *bounds, form=form))

    for name, one in results.items():
        text = f"{name}: log10 of the condition number, standardized less raw, is below 0"
        add(text, one.change(STANDARDIZED, RAW), "less")
        rates = np.log10(one.rate)
        text = f"{name}: log10 of the largest stable rate, standardized less raw, is above 0"
        add(text, Estimate.paired(rates[:, STANDARDIZED], rates[:, RAW]), "greater")
        text = f"{name}: dividing by the variance instead makes log10 of the condition number"
        change = one.change(BY_VARIANCE, STANDARDIZED)
        if name == "gaussian":  # its scales are alike, so that both divisors are about 1
            add(f"{text} the same, within 0.05", change, "equal", 0.0, NEGLIGIBLE)
        else:
            add(f"{text} larger by more than 0.05", change, "greater", NEGLIGIBLE)
        if name in ("gaussian", "digits"):
            text = f"{name}: dividing centred inputs by the deviation is harmless, raises it by"
            add(f"{text} less than 0.05", one.change(STANDARDIZED, CENTRED), "less", NEGLIGIBLE)
    # Every start of every data set is a trial, whatever the treatment.
    for factor, field, words in ((0.99, "below", "falls"), (1.01, "above", "grows")):
        tries = np.concatenate([getattr(one, field).ravel() for one in results.values()])
        text = f"at {factor} of the largest stable rate the loss {words} in more than 95 % of"
        share = Estimate.share(tries.sum(), tries.size)
        add(f"{text} descents", share, "greater", 0.95, form=".1%")
    ends = np.concatenate([abs(one.steps - one.exact)[one.reached] for one in results.values()])
    if ends.size:  # descents that reach the cap have nothing to compare
        text = f"steps taken are the exact number in all {ends.size} descents that end"
        add(text, Estimate.exact(ends.max()), "less", 0.5, form=".0f")
    for name, size, shared, separate in dev_set_errors(results, options):
        text = f"{name}: statistics of its own harm a dev set of {size}"
        add(text, Estimate.paired(separate, shared), "greater", form="+.1%")
    return statements


def dev_set_errors(results: dict[str, Measurement], options: Options) -> list[tuple[Any, ...]]:
    """Data set, size, and errors `[seeds]` by statistics of the training set and by its own."""
    return [
        (name, size, *errors.T)
        for name, one in results.items()
        # The sizes are ascending, and those that a data set is too small for are left out.
        for size, errors in zip(options.dev_sizes, one.dev_error.swapaxes(0, 1), strict=False)
    ]


def report(results: dict[str, Measurement], options: Options) -> kit.Report:
    """Condition numbers and steps, errors on dev sets, and the claims."""
    rows = []
    for name, one in results.items():
        for i, treatment in enumerate(TREATMENTS):
            steps = f"{Estimate.of(one.steps[:, i]):,.1f}"
            numbers = (f"{values[:, i].mean():,.3g}" for values in (one.bound, one.exact))
            row = (
                name if i == 0 else "",
                treatment,
                f"{Estimate.of(np.log10(one.condition[:, i])):.2f}",
            )
            row += (str(int(one.flat[:, i].max())), *numbers)
            row += (steps if one.reached[:, i].all() else f"> {options.cap:,}",)
            rows.append((*row, f"{one.rate[:, i].mean():.2g}"))
    headings = ("data", "inputs", "log10 condition", "flat", "bound", "exact", "steps taken")
    title = (
        "Least squares of a linear model with bias: condition number of the Hessian, over its "
        "curved directions; directions without curvature, such as constant features, left out "
        "('flat', most of all seeds); steps of gradient descent at its best constant rate to "
        f"{options.shrink:g} of the loss's excess: bound by the condition number, exact from all "
        "curvatures, and taken; largest stable rate. Mean over "
        f"{options.seeds} training sets and random starts ± standard error."
    )
    first = kit.table((*headings, "largest rate"), rows, title, left=2)
    pairs = (
        (STANDARDIZED, RAW),
        (CENTRED, RAW),
        (BY_VARIANCE, STANDARDIZED),
        (BY_VARIANCE, CENTRED),
    )
    rows = [
        (name, *(f"{one.change(*pair):+.2f}" for pair in pairs)) for name, one in results.items()
    ]
    headings = [f"{TREATMENTS[after]} / {TREATMENTS[before]}" for after, before in pairs]
    second = kit.table(("data", *headings), rows, "Changes of log10 of the condition number.")
    rows = [
        (name, str(size), f"{Estimate.of(shared):.1%}", f"{Estimate.of(separate):.1%}")
        + (f"{Estimate.paired(separate, shared):+.1%}",)
        for name, size, shared, separate in dev_set_errors(results, options)
    ]
    title = (
        "Dev error of a model of standardized inputs, mean over "
        f"{options.seeds} training sets with {options.dev_draws} dev sets each ± standard error; "
        "dev inputs standardized by the statistics of the training set or by their own."
    )
    headings = ("data", "dev set", "training statistics", "its own", "difference")
    third = kit.table(headings, rows, title)
    unfinished = sum(int((~one.reached).sum()) for one in results.values())
    third += f"\n{unfinished} descents did not end before the cap."
    # All arrays are stored, so that other comparisons need no new run.
    numbers = {name: one._asdict() for name, one in results.items()}
    return kit.Report([first, second, third], claims(results, options), numbers)


def run(options: Options) -> None:
    """Compare inputs, raw and normalized: the loss's condition number and the steps of descent."""
    results = measure_all(options, kit.progress("data sets"))
    kit.publish(report(results, options), options, figure(bowls(options), results, options))


if __name__ == "__main__":
    kit.command(Options, run)
