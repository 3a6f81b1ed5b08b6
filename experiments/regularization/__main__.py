"""The command: claims, tables and the figure."""

from __future__ import annotations

import xarray

from experiments import _kit as kit
from experiments._kit import Claim, Estimate
from experiments.regularization.figure import figure
from experiments.regularization.measurement import (
    DESCENT_DROPOUT,
    KINDS,
    MASKS,
    NEAR_LINEAR,
    SMALL_WEIGHT,
    VARIABLES,
    Options,
    best,
    label,
    measure,
    select_by_dev,
    ways,
)


def claims(dataset: xarray.Dataset) -> list[Claim]:
    """What each way to regularize is said to do, compared in the same seeds."""

    def compare(text, values, others, relation, *bounds, form="+.1%"):
        return Claim(text, Estimate.paired(values, others), relation, *bounds, form=form)

    none = dataset["test"].values[:, 0]
    results = [
        compare(f"{name}: lower test error than without", values, none, "less")
        for name, values in ways(dataset, "test").items()
    ]
    stopped, searched = dataset["stopped_test"].values[:, 0], select_by_dev(dataset, "l2", "test")
    text = "early stopping, one run, costs less than 2 % of test error against a search of lambda"
    results.append(compare(text, stopped, searched, "less", 0.02))
    strength = {kind: dataset["strength"].where(dataset["kind"] == kind) for kind in KINDS}
    l2, l1 = (int(strength[kind].argmax("setting")) for kind in ("l2", "l1"))
    dropout, weakest = best(dataset, "dropout"), int(strength["dropout"].argmin("setting"))
    for text, name, relation, index in (
        ("strongest L2: smaller weights, sum of w²", "squares", "less", l2),
        ("strongest L2: more units near-linear, |z| small", "near", "greater", l2),
        ("strongest L2: nearer to a linear function", "linear", "greater", l2),
        ("strongest L1: more weights near 0", "small", "greater", l1),
        ("best dropout: smaller weights, sum of w²", "squares", "less", dropout),
        ("weakest dropout: smaller weights, sum of w²", "squares", "less", weakest),
        ("best dropout: weights spread over more units", "spread", "greater", dropout),
    ):
        values, form = dataset[name].values, "+.1f" if name == "squares" else "+.1%"
        results.append(compare(text, values[:, index], values[:, 0], relation, form=form))
    # Dropout as bagging: the scaled network stands for the mean of all masked ones.
    masked, averaged, scaled = (dataset[n][:, dropout] for n in ("masked", "averaged", "dev"))
    text = f"the mean of {MASKS} masked networks has a lower dev error than one of them"
    results.append(compare(text, averaged, masked, "less"))
    text = "the one scaled network has the dev error of that mean, within 2 %"
    results.append(compare(text, scaled, averaged, "equal", 0.0, 0.02))
    for rate, share in zip(DESCENT_DROPOUT, dataset["rises"].values.T, strict=True):
        # Without dropout the cost of full-batch gradient descent at a small rate only falls.
        relation, more = ("greater", "more") if rate else ("less", "less")
        text = f"dropout {rate:g}: in full-batch gradient descent the cost rises in {more} than 1 %"
        text += " of the steps"
        results.append(Claim(text, Estimate.of(share), relation, 0.01, form=".1%"))
    return results


def report(dataset: xarray.Dataset, options: Options) -> kit.Report:
    """Errors and weights of every setting, what early stopping costs, and the claims."""

    def row(name, index, prefix=""):
        errors = (dataset[prefix + part].values[:, index] for part in ("train", "dev", "test"))
        return (name, *(f"{Estimate.of(values) * 100:.1f}" for values in errors))

    rows = []
    for i in range(dataset.sizes["setting"]):
        mean = {name: float(dataset[name][:, i].mean()) for name in VARIABLES}
        shares = (f"{mean[name]:.1%}" for name in ("small", "near", "linear", "spread"))
        rows.append((*row(label(dataset, i), i), f"{mean['squares']:.1f}", *shares))
        if i == 0:  # early stopping is the same run, seen earlier
            rows.append((*row("early stopping", 0, "stopped_"), *[""] * 5))
    small, near = f"|w| < {SMALL_WEIGHT:g}", f"|z| < {NEAR_LINEAR:g}"
    headings = ("error in percent", "train", "dev", "test", "sum w²", small, near)
    title = (
        f"{options.train} digits to train on, {options.mislabelled:.0%} of their labels drawn at "
        f"random, {options.dev} for dev; mean over {options.seeds} seeds ± standard error. z: "
        "argument of a hidden unit; linear: share of the logits' variance that a linear function "
        "of the inputs explains; spread: 100% if a unit weighs all hidden units alike."
    )
    # Early stopping needs one run, the search as many as there are strengths, and one without.
    stopped = dataset["stopped_test"].values[:, 0]
    steps = Estimate.of(dataset["stopped_step"].values[:, 0])
    searched = Estimate.of(select_by_dev(dataset, "l2", "test"))
    words = kit.paragraph(
        f"Early stopping reached its parameters in one run after {steps:.1f} of {options.steps} "
        f"steps: test error {Estimate.of(stopped):.1%}. The best lambda of L2 in each seed took "
        f"{len(options.l2) + 1} runs to find: {searched:.1%}."
    )
    count = options.seeds * (dataset.sizes["setting"] + dataset.sizes["descent_dropout"])
    numbers = {
        name: {label(dataset, i): Estimate.of(v) for i, v in enumerate(dataset[name].values.T)}
        for name in VARIABLES
    }
    sections = [kit.table((*headings, "linear", "spread"), rows, title), words]
    return kit.Report([*sections, f"{count} networks."], claims(dataset), numbers)


def run(options: Options) -> None:
    """Compare L2, L1, dropout, early stopping and augmentation on few digits."""
    dataset = measure(options, kit.progress("seeds"))
    kit.publish(report(dataset, options), options, figure(dataset, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
