"""The command: claims, table and figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from experiments.regularization import measurement
from experiments.regularization.measurement import KINDS, MASKS, PARTS, Options, label


def errors(dataset: xarray.Dataset, part: str) -> dict[str, np.ndarray]:
    """Errors on a part of the data, `[seeds]`, of every setting and of early stopping."""
    none, *others = zip(dataset["setting"].values.tolist(), dataset[part].values.T, strict=True)
    # Early stopping is the run without regularization, seen earlier.
    return dict([none, ("early stopping", dataset[f"stopped_{part}"].values[:, 0]), *others])


def ways(dataset: xarray.Dataset) -> dict[str, str]:
    """The setting of each way to regularize: its smallest dev error, mean over seeds."""
    dev = dataset["dev"].mean("seed")
    best = {kind: dev.where(dataset["kind"] == kind).idxmin().item() for kind in KINDS}
    return best | {name: name for name in ("early stopping", "augmentation")}


def searched(dataset: xarray.Dataset) -> np.ndarray:
    """Test error of L2, where each seed by itself takes the lambda of the smallest dev error."""
    # Having no penalty at all is one of the choices.
    tried = dataset.isel(setting=dataset["kind"].isin(("none", "l2")).values)
    return tried["test"].isel(setting=tried["dev"].argmin("setting")).values


def claims(dataset: xarray.Dataset, options: Options) -> list[Claim]:
    """What each way to regularize is said to do, compared in the same seeds."""
    results = []

    def compare(text, values, others, *relation, form="+.1%"):
        results.append(Claim(text, Estimate.paired(values, others), *relation, form=form))

    test, best = errors(dataset, "test"), ways(dataset)
    for name in best.values():
        compare(f"{name}: lower test error than without", test[name], test["none"], "less")
    text = "early stopping, one run, costs less than 2 % of test error against a search of lambda"
    compare(text, test["early stopping"], searched(dataset), "less", 0.02)
    l2, l1 = label("l2", max(options.l2)), label("l1", max(options.l1))
    dropout, weakest = best["dropout"], label("dropout", min(options.dropout_rates))
    for text, name, relation, setting in (
        ("strongest L2: smaller weights, sum of w²", "squares", "less", l2),
        ("strongest L2: more units near-linear, |z| small", "near", "greater", l2),
        ("strongest L2: nearer to a linear function", "linear", "greater", l2),
        ("strongest L1: more weights near 0", "small", "greater", l1),
        ("best dropout: smaller weights, sum of w²", "squares", "less", dropout),
        ("weakest dropout: smaller weights, sum of w²", "squares", "less", weakest),
        ("best dropout: weights spread over more units", "spread", "greater", dropout),
    ):
        values, none = (dataset[name].sel(setting=s) for s in (setting, "none"))
        compare(text, values, none, relation, form="+.1f" if name == "squares" else "+.1%")
    # Dropout as bagging: the scaled network stands for the mean of all masked ones.
    bagging = dataset.sel(setting=dropout)
    text = f"the mean of {MASKS} masked networks has a lower dev error than one of them"
    compare(text, bagging["averaged"], bagging["masked"], "less")
    text = "the one scaled network has the dev error of that mean, within 2 %"
    compare(text, bagging["dev"], bagging["averaged"], "equal", 0.0, 0.02)
    for rate, shares in zip(measurement.DESCENT_DROPOUT, dataset["rises"].values.T, strict=True):
        # Without dropout the cost of full-batch gradient descent at a small rate only falls.
        relation, more = ("greater", "more") if rate else ("less", "less")
        text = f"dropout {rate:g}: in full-batch gradient descent the cost rises in {more} than 1 %"
        text += " of the steps"
        results.append(Claim(text, Estimate.of(shares), relation, 0.01, form=".1%"))
    return results


def report(dataset: xarray.Dataset, options: Options) -> kit.Report:
    """Errors and weights of every setting, what a search of lambda costs, and the claims."""
    parts = [errors(dataset, part) for part in PARTS]
    measured = dataset[["squares", "small", "near", "linear", "spread"]].mean("seed").to_array()
    means = dict(zip(dataset["setting"].values, measured.values.T, strict=True))
    # Early stopping ends with the weights of an earlier step, which are not measured.
    rows = [
        (name, *(Estimate.of(part[name]) for part in parts), *means.get(name, [""] * len(measured)))
        for name in parts[0]
    ]
    small, near = f"|w| < {measurement.SMALL_WEIGHT:g}", f"|z| < {measurement.NEAR_LINEAR:g}"
    headings = ("error", *PARTS, "sum w²", small, near, "linear", "spread")
    forms = dict.fromkeys(headings, ".1%") | {"sum w²": ".1f"}
    title = (
        f"{options.train} digits to train on, {options.mislabelled:.0%} of their labels drawn at "
        f"random, {options.dev} for dev; mean over {options.seeds} seeds ± standard error. z: "
        "argument of a hidden unit; linear: share of the logits' variance that a linear function "
        "of the inputs explains; spread: 100% if a unit weighs all hidden units alike."
    )
    table = kit.table(forms, rows, title)
    step = Estimate.of(dataset["stopped_step"][:, 0])
    words = kit.paragraph(
        f"Early stopping chose step {step:.1f} of {options.steps} in one run. The best lambda of "
        f"L2 in each seed took {len(options.l2) + 1} runs to find, and its test error is "
        f"{Estimate.of(searched(dataset)):.1%}."
    )
    numbers = {
        name: {s: Estimate.of(dataset[name].sel(setting=s)) for s in dataset["setting"].values}
        for name in measurement.VARIABLES
    }
    return kit.Report([table, words], claims(dataset, options), numbers)


def figure(dataset: xarray.Dataset, decided: kit.Report, options: Options) -> Any:
    """Train and test error without regularization and with each way to regularize, best last."""
    parts = {f"{part} error": errors(dataset, part) for part in ("train", "test")}
    test, names = parts["test error"], list(ways(dataset).values())
    # The first claims compare the test error of each way with that of none.
    verdicts = kit.verdicts(decided.claims)[: len(names)]
    lower = sum(verdict.outcome == "HOLDS" for verdict in verdicts)
    names.sort(key=lambda name: test[name].mean(), reverse=True)
    title = (
        f"With {options.mislabelled:.0%} of the labels drawn at random, {lower} of {len(names)} "
        f"ways to regularize lower the test error of {test['none'].mean():.0%}"
    )
    rows = {n: {k: Estimate.of(v[n]) for k, v in parts.items()} for n in ("none", *names)}
    result, axes = figures.panels(title, height=4.4)
    figures.dots(axes[0, 0], rows)
    axes[0, 0].set_xlabel("error, mean of seeds (bars: two standard errors)")
    figures.percent(axes[0, 0].xaxis)
    figures.legend_below(result, axes[0, 0], 2)
    return result


def run(options: Options) -> None:
    """Compare L2, L1, dropout, early stopping and augmentation on few digits."""
    dataset = measurement.measure(options, kit.progress("seeds"))
    decided = report(dataset, options)
    kit.publish(decided, options, lambda: figure(dataset, decided, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
