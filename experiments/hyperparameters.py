"""How to search hyper-parameters, and what momentum, annealing and clipping are worth.

Run `python -m experiments.hyperparameters`, or `--help` for its options.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments import frontend, tuning
from experiments.tuning import CLASSES, METHODS, OPTIMIZERS, SCHEDULES, Config, Found, Runs
from jaxgrad import plotting, regimes

SHOWN = ("log scale", "rate on its own scale", "grid", "coarse to fine")
"""In the figure."""


def so_far(errors: np.ndarray) -> np.ndarray:
    """The lowest error among the first 1, 2, ... runs."""
    return np.minimum.accumulate(errors, axis=-1)


def of_chosen(runs: Runs) -> np.ndarray:
    """Test error of the run of lowest dev error in each search."""
    best = runs.dev.argmin(axis=-1, keepdims=True)
    return np.take_along_axis(runs.test, best, axis=-1)[..., 0]


def not_learnt(runs: Runs) -> np.ndarray:
    """Which runs are not half of the way from chance to no error."""
    return runs.test > (1 - 1 / CLASSES) / 2


def with_error(values: np.ndarray, scale: float = 100.0, digits: int = 1) -> str:
    """Mean over seeds and standard error, shares in percent."""
    mean, error = (float(part) * scale for part in regimes.mean_and_error(values))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def verdict(without: np.ndarray, advised: np.ndarray) -> str:
    """Whether the advice lowers a number, pair by pair, by more than two standard errors."""
    mean, error = (float(part) for part in regimes.mean_and_error(without - advised))
    if not abs(mean) > 2 * error:
        return "does not show"
    return "holds" if mean > 0 else "is the other way round"


def claims(found: Found, config: Config) -> list[tuple[str, ...]]:
    """Each claim with the numbers without and with the advice, and the verdict."""
    dev = dict(zip(METHODS, so_far(found.searches.dev)[..., -1], strict=True))
    steps = dict(zip(OPTIMIZERS, tuning.steps_until(found.optimizers.losses, config), strict=True))
    reached = dict(zip(OPTIMIZERS, np.log10(found.optimizers.final), strict=True))
    final = dict(zip(SCHEDULES, np.log10(found.annealed.final), strict=True))
    lost = not_learnt(found.clipped).mean(axis=1)
    best = found.clipped.dev.mean(axis=2).argmin(axis=1)
    deep_error = found.clipped.test[(0, 1), best]

    def row(claim, values, without, advised, *style):
        pair = [values[name] for name in (without, advised)]
        return (claim, *(with_error(v, *style) for v in pair), verdict(*pair))

    searches = (
        ("rate: log scale, not its own", "rate on its own scale", "log scale"),
        ("lambda: log scale, not its own", "lambda on its own scale", "log scale"),
        ("keep_prob: own scale, not log", "keep_prob on a log scale", "log scale"),
        ("random, not a grid", "grid", "log scale"),
        ("coarse to fine, not one round", "log scale", "coarse to fine"),
    )
    rows = [row(f"{claim}: best dev error, %", dev, *names) for claim, *names in searches]
    for slow, fast in (("SGD", "momentum"), ("momentum", "Nesterov"), ("momentum", "Adam")):
        rows.append(row(f"{fast}, not {slow}: steps", steps, slow, fast, 1.0, 0))
        rows.append(row(f"{fast}, not {slow}: log10 of loss", reached, slow, fast, 1.0, 2))
    for i, start in enumerate(("the best", "a high")):
        losses = {name: values[i] for name, values in final.items()}
        for name in SCHEDULES[1:]:
            claim = f"anneal, {name}: log10 of loss, from {start} rate"
            rows.append(row(claim, losses, "constant", name, 1.0, 2))
    rows.append(row("clip: deep networks that do not learn, %", lost, 0, 1))
    rows.append(row("clip: their test error at the best rate, %", deep_error, 0, 1))
    return rows


def report(found: Found, config: Config) -> str:
    """Tables of searches, optimizers, schedules and clipping, then each claim with its verdict."""
    early = config.budget // config.rounds
    curves, chosen = so_far(found.searches.dev), of_chosen(found.searches)
    searches = [
        (
            name,
            f"{np.mean(found.searches.dev[i] < config.works):.1%}",
            f"{found.searches.diverged[i].mean():.0%}",
            *(with_error(curves[i, :, n - 1]) for n in (early, config.budget)),
            with_error(chosen[i]),
        )
        for i, name in enumerate(METHODS)
    ]
    steps = tuning.steps_until(found.optimizers.losses, config)
    reached = tuning.epoch_means(found.optimizers.losses, config) < config.threshold
    optimizers = [
        (
            name,
            f"{found.rates[i]:.2g}",
            with_error(steps[i], 1.0, 0),
            f"{np.mean(reached[i].any(axis=-1)):.0%}",
            with_error(found.optimizers.dev[i]),
        )
        for i, name in enumerate(OPTIMIZERS)
    ]
    shares = (found.clipped.diverged, not_learnt(found.clipped))
    clipped = [
        (f"{rate:g}", *(f"{share[i, j].mean():.0%}" for i in (0, 1) for share in shares))
        for j, rate in enumerate(config.deep_rates)
    ]
    works = f"dev < {config.works:.0%}"
    heads = (f"dev after {early} runs", f"after {config.budget}", "test of the chosen")
    lost = ("non-finite", "do not learn")
    return "\n".join(
        (
            f"\nErrors in percent, mean of {config.searches} searches ± standard error, "
            f"{config.train} training images.",
            "log scale: 10^U(-6, 1) for learning rate and lambda, U(0.05, 1) for keep_prob, as the",
            "notes say; the next three differ in one respect.",
            frontend.table(("search", works, "diverged", *heads), searches),
            f"\nSteps, of {config.steps}, until the training loss is below {config.threshold:g}, "
            f"at the best of {config.rates} rates; mean of {config.seeds} seeds.",
            frontend.table(("optimizer", "rate", "steps", "reach it", "dev, %"), optimizers),
            f"\nSGD in ReLU networks of {config.depth} layers, weight variance "
            f"{config.w_variance:g} / fan-in, clipped at {config.max_norm:g}.",
            frontend.table(("rate", *lost, *(f"clipped: {words}" for words in lost)), clipped),
            f"\nAnnealing: momentum, batches of {config.batch_size}; the high rate is "
            f"{config.annealed_rate:g}.",
            frontend.table(("claim", "without", "with", "verdict"), claims(found, config)),
            f"\nHow often the two programs were traced: {found.traces[0]} and {found.traces[1]}.",
        )
    )


def headline(found: Found, config: Config) -> str:
    """What the figure shows, in two sentences."""
    log, own = (found.searches.dev[METHODS.index(name)] for name in SHOWN[:2])
    best = [so_far(errors)[:, -1] for errors in (log, own)]
    words = {
        "holds": "Search learning rates on a log scale",
        "does not show": "A log scale for learning rates makes no difference that shows",
        "is the other way round": "Search learning rates on their own scale",
    }[verdict(best[1], best[0])]
    return (
        f"{words}: {np.mean(log < config.works):.1%} of those drawn on a log scale work, "
        f"{np.mean(own < config.works):.1%} of the others\n"
        f"Best dev error after {config.budget} runs: {with_error(best[0])} % on a log scale, "
        f"{with_error(best[1])} % on their own"
    )


def figure(found: Found, config: Config) -> Any:
    """The figure, of the methods of `SHOWN`."""
    dev = dict(zip(METHODS, found.searches.dev, strict=True))
    tried = dict(zip(METHODS, found.tried, strict=True))
    window = config.train // config.batch_size
    optimizers, annealed = (
        tuning.epoch_means(losses, config)[..., ::window]
        for losses in (found.optimizers.losses, found.annealed.losses[:, 1])
    )
    high = f"Momentum, annealed from a rate of {config.annealed_rate:g} on"
    return plotting.hyperparameters(
        {name: (tried[name], dev[name]) for name in SHOWN[:2]},
        {name: so_far(dev[name]) for name in SHOWN},
        {
            "Each optimizer at its best rate": dict(zip(OPTIMIZERS, optimizers, strict=True)),
            high: dict(zip(SCHEDULES, annealed, strict=True)),
        },
        config.works,
        headline(found, config),
    )


def run(config: Config) -> None:
    """Search hyper-parameters in six ways; compare optimizers, schedules and clipping."""
    tuning.checked(config)
    start = time.perf_counter()
    found = tuning.measure(config, frontend.Bar("networks"))
    print(report(found, config))
    figure(found, config).savefig(config.output, dpi=110)
    print(f"\n{tuning.count(config)} networks, {time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
