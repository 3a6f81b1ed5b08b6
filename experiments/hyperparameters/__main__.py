"""The command: claims, tables and the figure of the training runs."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, table, verdicts
from experiments.hyperparameters import figure
from experiments.hyperparameters.runs import (
    CLASSES,
    METHODS,
    OPTIMIZERS,
    SCHEDULES,
    Options,
    Result,
    Runs,
    epoch_means,
    measure,
    network_count,
    steps_until,
)

SHOWN = ("log scale", "learning rate on a linear scale", "grid", "coarse to fine")
"""Methods in the figure."""


def best_so_far(errors: np.ndarray) -> np.ndarray:
    """The lowest error among the first 1, 2, ... runs."""
    return np.minimum.accumulate(errors, axis=-1)


def selected_error(runs: Runs) -> np.ndarray:
    """Test error of the run of lowest dev error in each search."""
    # Selected by dev error, so the test error is not the smallest of many.
    best = runs.dev.argmin(axis=-1, keepdims=True)
    return np.take_along_axis(runs.test, best, axis=-1)[..., 0]


def not_learned(runs: Runs) -> np.ndarray:
    """Whether each run got less than half of the way from chance to no error."""
    # A guess errs with probability 1 - 1 / CLASSES.
    return runs.test > (1 - 1 / CLASSES) / 2


def claims(result: Result, options: Options) -> list[Claim]:
    """State each piece of advice as a claim that it lowers a number, compared in pairs."""
    dev = dict(zip(METHODS, best_so_far(result.searches.dev)[..., -1], strict=True))
    steps = dict(zip(OPTIMIZERS, steps_until(result.optimizers.losses, options), strict=True))
    # Losses differ by orders of magnitude, so their logs are averaged.
    loss = dict(zip(OPTIMIZERS, np.log10(result.optimizers.final), strict=True))
    annealed = dict(zip(SCHEDULES, np.log10(result.annealed.final), strict=True))

    def claim(text, values, advised, without, form):
        # A pair has the same data and first weights, which removes most of the noise.
        change = Estimate.paired(values[advised], values[without])
        return Claim(text, change, "less", form=form)

    searches = (
        ("a log scale for the learning rate", "log scale", "learning rate on a linear scale"),
        ("a log scale for lambda", "log scale", "lambda on a linear scale"),
        ("a linear scale for keep_prob", "log scale", "keep_prob on a log scale"),
        ("random points instead of a grid", "log scale", "grid"),
        ("coarse to fine instead of one round", "coarse to fine", "log scale"),
    )
    rows = [claim(f"{t}: lower best dev error", dev, a, b, "+.1%") for t, a, b in searches]
    for slow, fast in (("SGD", "momentum"), ("momentum", "Nesterov"), ("momentum", "Adam")):
        text = f"{fast} instead of {slow}"
        rows.append(claim(f"{text}: fewer steps", steps, fast, slow, "+.0f"))
        rows.append(claim(f"{text}: lower log10 of the loss", loss, fast, slow, "+.2f"))
    for i, start in enumerate(("the best rate", "a high rate")):
        losses = {name: values[i] for name, values in annealed.items()}
        for name in SCHEDULES[1:]:
            text = f"annealing, {name}, from {start}: lower log10 of the loss"
            rows.append(claim(text, losses, name, "constant", "+.2f"))
    # A mean over the rates leaves one value for each seed.
    lost = not_learned(result.clipped).mean(axis=1)
    # Each method is judged at the rate with its lowest mean dev error.
    best = result.clipped.dev.mean(axis=2).argmin(axis=1)
    error = result.clipped.test[(0, 1), best]
    rows.append(claim("clipping: fewer deep networks that do not learn", lost, 1, 0, "+.1%"))
    rows.append(claim("clipping: lower test error at the best rate", error, 1, 0, "+.1%"))
    return rows


def search_table(result: Result, options: Options) -> str:
    """Tabulate the results of each search method."""
    early, errors = options.budget // options.rounds, result.searches.dev
    best, tests = best_so_far(errors), selected_error(result.searches)
    rows = [
        (
            name,
            f"{np.mean(errors[i] < options.works):.1%}",
            f"{result.searches.diverged[i].mean():.0%}",
            f"{Estimate.of(best[i, :, early - 1]):.1%}",
            f"{Estimate.of(best[i, :, -1]):.1%}",
            f"{Estimate.of(tests[i]):.1%}",
        )
        for i, name in enumerate(METHODS)
    ]
    # Short headings, so that the names of the searches fit on one line.
    reached = (f"best after {runs}" for runs in (early, options.budget))
    headings = ("search", f"error < {options.works:.0%}", "diverged", *reached, "its test error")
    title = (
        f"Dev errors, the best after a number of runs; mean of {options.searches} searches ± "
        f"standard error, {options.train} training images. "
        "Log scale: 10^U(-6, 1) for learning rate and lambda, U(0.05, 1) for keep_prob, as in the "
        "course notes; the next three differ in one respect."
    )
    return table(headings, rows, title)


def training_tables(result: Result, options: Options) -> list[str]:
    """Tabulate the optimizers and the effect of clipping, and count the networks."""
    losses = result.optimizers.losses
    steps = steps_until(losses, options)
    # A run that never reaches the threshold counts with all of its steps.
    reach = np.any(epoch_means(losses, options) < options.threshold, axis=-1)
    optimizers = [
        (
            name,
            f"{result.best_rates[i]:.2g}",
            f"{Estimate.of(steps[i]):.0f}",
            f"{np.mean(reach[i]):.0%}",
            f"{Estimate.of(result.optimizers.dev[i]):.1%}",
        )
        for i, name in enumerate(OPTIMIZERS)
    ]
    shares = (result.clipped.diverged, not_learned(result.clipped))
    clipped = [
        (f"{rate:g}", *(f"{share[i, j].mean():.0%}" for i in (0, 1) for share in shares))
        for j, rate in enumerate(options.deep_rates)
    ]
    columns = ("diverged", "not learned", "clipped: diverged", "clipped: not learned")
    return [
        table(
            ("optimizer", "learning rate", "steps", "reach it", "dev error"),
            optimizers,
            f"Steps, of {options.steps}, until the training loss is below {options.threshold:g}, "
            f"with the best of {options.learning_rates} rates; mean of {options.seeds} seeds.",
        ),
        table(
            ("learning rate", *columns),
            clipped,
            f"SGD in ReLU networks of {options.depth} layers, weight variance "
            f"{options.w_variance:g} / fan-in, clipped to a norm of {options.max_norm:g}.",
        ),
        f"{network_count(options)} networks. The two programs were traced {result.traces[0]} and "
        f"{result.traces[1]} times.",
    ]


def report(result: Result, options: Options) -> Report:
    """Collect all tables and claims."""
    best = best_so_far(result.searches.dev)[..., -1].mean(axis=1)
    estimates = {"best dev error": dict(zip(METHODS, best, strict=True))}
    sections = [search_table(result, options), *training_tables(result, options)]
    return Report(sections, claims(result, options), estimates)


def headline(result: Result, options: Options) -> str:
    """State the message of the figure in two sentences."""
    log, linear = (result.searches.dev[METHODS.index(name)] for name in SHOWN[:2])
    best = [Estimate.of(best_so_far(errors)[:, -1]) for errors in (log, linear)]
    words = {
        "HOLDS": "Search learning rates on a log scale",
        "UNDECIDED": "A log scale for learning rates makes no difference that shows",
        "DOES NOT HOLD": "Search learning rates on a linear scale",
        # The first claim is about the log scale for learning rates.
    }[verdicts(claims(result, options))[0].outcome]
    return (
        f"{words}: {np.mean(log < options.works):.1%} of those drawn on a log scale work, "
        f"{np.mean(linear < options.works):.1%} of the others\n"
        f"Best dev error after {options.budget} runs: {best[0]:.1%} on a log scale, "
        f"{best[1]:.1%} on a linear one"
    )


def draw(result: Result, options: Options) -> Any:
    """Draw the figure for the methods in `SHOWN`."""
    dev = dict(zip(METHODS, result.searches.dev, strict=True))
    rates = dict(zip(METHODS, result.learning_rates, strict=True))
    optimizers, annealed = (
        # Every epoch-th window: these do not overlap.
        epoch_means(losses, options)[..., :: options.epoch]
        for losses in (result.optimizers.losses, result.annealed.losses[:, 1])
    )
    high = f"Momentum, annealed from a rate of {options.high_rate:g}"
    return figure.draw(
        {name: (rates[name], dev[name]) for name in SHOWN[:2]},
        {name: best_so_far(dev[name]) for name in SHOWN},
        {
            "Each optimizer with its best rate": dict(zip(OPTIMIZERS, optimizers, strict=True)),
            high: dict(zip(SCHEDULES, annealed, strict=True)),
        },
        options.works,
        headline(result, options),
    )


def run(options: Options) -> None:
    """Search hyper-parameters in six ways; compare optimizers, schedules and clipping."""
    result = measure(options, _kit.progress("networks"))
    _kit.publish(report(result, options), options, draw(result, options))


if __name__ == "__main__":
    _kit.use_all_cores()
    _kit.command(Options, run)
