"""The command: claims, tables and the figure of the searches."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.hyperparameters import runs
from experiments.hyperparameters.runs import METHODS, OPTIMIZERS, SCHEDULES, Options, Result, Runs

LOG, LINEAR = METHODS[:2]
SHOWN = (LINEAR, "grid", LOG)
"""Methods in the figure."""


def selected_error(searches: Runs) -> np.ndarray:
    """Test error of the run of lowest dev error in each search."""
    # Selected by dev error, so the test error is not the smallest of many.
    best = searches.dev.argmin(axis=-1, keepdims=True)
    return np.take_along_axis(searches.test, best, axis=-1)[..., 0]


def not_learned(trained: Runs) -> np.ndarray:
    """Whether each run got less than half of the way from chance to no error."""
    # A guess errs with probability 1 - 1 / CLASSES.
    return trained.test > (1 - 1 / runs.CLASSES) / 2


def claims(result: Result, options: Options) -> list[Claim]:
    """State each piece of advice as a claim that it lowers a number, compared in pairs."""
    steps = runs.steps_until(result.optimizers.losses, options)
    # Losses differ by orders of magnitude, so their logs are averaged.
    loss, annealed = np.log10(result.optimizers.final), np.log10(result.annealed.final)
    rows = []

    def claim(text, values, names, advised, without, form="+.2f"):
        # A pair has the same data and first weights, which removes most of the noise.
        pair = (values[names.index(name)] for name in (advised, without))
        rows.append(Claim(text, Estimate.paired(*pair), "less", form=form))

    for text, advised, without in (
        ("a log scale for the learning rate", LOG, LINEAR),
        ("a log scale for lambda", LOG, "lambda on a linear scale"),
        ("a linear scale for keep_prob", LOG, "keep_prob on a log scale"),
        ("random points instead of a grid", LOG, "grid"),
        ("coarse to fine instead of one round", "coarse to fine", LOG),
    ):
        best = result.searches.dev.min(axis=-1)
        claim(f"{text}: lower best dev error", best, METHODS, advised, without, "+.1%")
    for slow, fast in (("SGD", "momentum"), ("momentum", "Nesterov"), ("momentum", "Adam")):
        text = f"{fast} instead of {slow}"
        claim(f"{text}: fewer steps", steps, OPTIMIZERS, fast, slow, "+.0f")
        claim(f"{text}: lower log10 of the loss", loss, OPTIMIZERS, fast, slow)
    for i, start in enumerate(("the best rate", "a high rate")):
        for name in SCHEDULES[1:]:
            text = f"annealing, {name}, from {start}: lower log10 of the loss"
            claim(text, annealed[:, i], SCHEDULES, name, "constant")
    # A mean over the rates leaves one value for each seed.
    lost = not_learned(result.clipped).mean(axis=1)
    # Each method is judged at the rate with its lowest mean dev error.
    error = result.clipped.test[(0, 1), result.clipped.dev.mean(axis=2).argmin(axis=1)]
    names = ("no", "yes")
    claim("clipping: fewer deep networks that do not learn", lost, names, "yes", "no", "+.1%")
    claim("clipping: lower test error at the best rate", error, names, "yes", "no", "+.1%")
    return rows


def search_table(result: Result, options: Options) -> str:
    """Tabulate the results of each search method."""
    early, errors = options.budget // options.rounds, result.searches.dev
    columns = {
        "search": (METHODS, ""),
        f"error < {options.works:.0%}": (np.mean(errors < options.works, axis=(1, 2)), ".1%"),
        "diverged": (result.searches.diverged.mean(axis=(1, 2)), ".0%"),
        f"best after {early}": (Estimate.of(errors[..., :early].min(axis=-1), axis=1), ".1%"),
        f"best after {options.budget}": (Estimate.of(errors.min(axis=-1), axis=1), ".1%"),
        "its test error": (Estimate.of(selected_error(result.searches), axis=1), ".1%"),
    }
    title = (
        f"Dev errors, the best after a number of runs; mean of {options.searches} searches ± "
        f"standard error, {options.train} training images. "
        "Log scale: 10^U(-6, 1) for learning rate and lambda, U(0.05, 1) for keep_prob, as in the "
        "course notes; the next three differ in one respect."
    )
    return _table(columns, title)


def _table(columns: dict[str, tuple[Any, str]], title: str) -> str:
    """A table from columns, each with its format."""
    rows = zip(*(values for values, _ in columns.values()), strict=True)
    return table({heading: form for heading, (_, form) in columns.items()}, rows, title)


def training_tables(result: Result, options: Options) -> list[str]:
    """Tabulate optimizers and schedules, and the effect of clipping."""
    # Momentum with each schedule from two rates follows the optimizers at their best rates.
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), result.annealed)
    trained = jax.tree.map(lambda *arrays: np.concatenate(arrays), result.optimizers, flat)
    names = [*OPTIMIZERS, *(f"momentum, {name}" for name in SCHEDULES for _ in range(2))]
    starts = (result.best_rates[runs.MOMENTUM], options.high_rate)
    steps = runs.steps_until(trained.losses, options)
    # A run that never reaches the threshold counts with all of its steps.
    reach = np.any(runs.epoch_means(trained.losses, options) < options.threshold, axis=-1)
    optimizers = {
        "optimizer, annealing": (names, ""),
        "learning rate": ([*result.best_rates, *(starts * len(SCHEDULES))], ".2g"),
        "steps": (Estimate.of(steps, axis=1), ".0f"),
        "reach it": (reach.mean(axis=1), ".0%"),
        "log10 of the loss": (Estimate.of(np.log10(trained.final), axis=1), ".2f"),
        "dev error": (Estimate.of(trained.dev, axis=1), ".1%"),
    }
    shares = {"diverged": result.clipped.diverged, "not learned": not_learned(result.clipped)}
    clipped: dict[str, tuple[Any, str]] = {"learning rate": (options.deep_rates, "g")}
    for i, prefix in enumerate(("", "clipped: ")):
        clipped |= {prefix + name: (v[i].mean(axis=1), ".0%") for name, v in shares.items()}
    return [
        _table(
            optimizers,
            f"Steps, of {options.steps}, until the training loss is below {options.threshold:g}, "
            f"with the best of {options.learning_rates} rates or {options.high_rate:g}; mean of "
            f"{options.seeds} seeds.",
        ),
        _table(
            clipped,
            f"SGD in ReLU networks of {options.depth} layers, weight variance "
            f"{options.w_variance:g} / fan-in, clipped to a norm of {options.max_norm:g}.",
        ),
    ]


def report(result: Result, options: Options) -> Report:
    """Collect all tables and claims."""
    best = result.searches.dev.min(axis=-1).mean(axis=1)
    estimates = {"best dev error": dict(zip(METHODS, best, strict=True))}
    sections = [search_table(result, options), *training_tables(result, options)]
    sections.append(f"{runs.network_count(options)} networks.")
    return Report(sections, claims(result, options), estimates)


def figure(result: Result, decided: Report, options: Options) -> Any:
    """Dev error of every run over its learning rate, and the best so far of three searches."""
    dev = dict(zip(METHODS, result.searches.dev, strict=True))
    rates = dict(zip(METHODS, result.learning_rates, strict=True))
    estimates = {n: Estimate.of(np.minimum.accumulate(dev[n], axis=1)) for n in SHOWN}
    looks = dict(zip(SHOWN, figures.looks(), strict=False))
    # The first claim is about the log scale for learning rates.
    title = {
        "HOLDS": "Search learning rates on a log scale: on a linear one hardly a run tries a rate "
        "that works",
        "UNDECIDED": "A log scale for learning rates makes no difference that shows",
        "DOES NOT HOLD": "Search learning rates on a linear scale",
    }[_kit.verdicts(decided.claims)[0].outcome]
    drawn, ((scatter, best),) = figures.panels(title, 1, 2, sharey=True)
    for name in (LINEAR, LOG):
        # Transparent marks show where many runs overlap.
        look = looks[name] | {"linestyle": "none", "markersize": 4, "alpha": 0.6}
        scatter.plot(rates[name].ravel(), dev[name].ravel(), **look)
    figures.curves(best, np.arange(1, options.budget + 1), estimates, markevery=3)
    scatter.set(xscale="log", xlabel="learning rate", ylabel="dev error (100 %: diverged)")
    scatter.set(ylim=(0, 1.03), title="every run")
    best.set(xlabel="runs tried", title="best so far (bands: two standard errors)")
    best.tick_params(labelleft=True)
    figures.percent(scatter.yaxis)
    figures.legend_below(drawn, best, 3)
    return drawn


def run(options: Options) -> None:
    """Search hyper-parameters in six ways; compare optimizers, schedules and clipping."""
    result = runs.measure(options, _kit.progress("networks"))
    decided = report(result, options)
    _kit.publish(decided, options, lambda: figure(result, decided, options))


if __name__ == "__main__":
    _kit.use_all_cores()
    _kit.command(Options, run)
