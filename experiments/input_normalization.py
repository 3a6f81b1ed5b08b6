"""Why inputs are standardized: how round is the bowl, and how many steps does descent need in it?

Run `python -m experiments.input_normalization`, or `--help` for its options.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import frontend
from jaxgrad import plotting, regimes
from jaxgrad.training import normalization

DATA = ("wine", "breast_cancer", "digits", "gaussian")
TREATMENTS = ("raw", "centred", "standardized", "divided by variance")


@dataclass(frozen=True)
class Config:
    """Options of the comparison of inputs, raw and normalized."""

    data: tuple[str, ...] = DATA
    """Of wine, breast_cancer, digits, and gaussian, whose features are alike to begin with."""
    seeds: int = 8
    """How many training sets, 70 % of the rows each, with a start each; at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    shrink: float = 1e-3
    """Descent ends when the loss's excess over its minimum has shrunk by this factor."""
    cap: int = 10_000
    """Descent that needs more steps is not followed further."""
    starts: int = 5
    """From how many starts the largest stable rate is tried, for each seed."""
    dev_sizes: tuple[int, ...] = (2, 5, 10, 20, 50)
    """How many examples a dev set has that is standardized by statistics of its own."""
    dev_draws: int = 50
    """How many dev sets of each size are drawn, for each seed."""
    pair: tuple[str, str] = ("ash", "total_phenols")
    """The two features of wine whose bowl the figure shows."""
    output: Path = Path("results/input_normalization.png")
    """Where to write the figure."""


class Found(NamedTuple):
    """What one data set shows; the treatments are those of `TREATMENTS`.

    Attributes:
      condition: largest over smallest curvature of the loss, `[seeds, treatments]`.
      flat: directions without any curvature, which are left out, `[seeds, treatments]`.
      bound: steps that the condition number alone promises, `[seeds, treatments]`.
      exact: steps that all curvatures and the start give, `[seeds, treatments]`.
      steps: steps taken, at most the cap, `[seeds, treatments]`.
      reached: whether the excess had shrunk by then, `[seeds, treatments]`.
      rate: the largest stable rate, 2 over the largest curvature, `[seeds, treatments]`.
      below: whether the excess falls at 0.99 times this rate, `[seeds, treatments, starts]`.
      above: whether it grows at 1.01 times this rate, `[seeds, treatments, starts]`.
      dev_error: share of dev examples put into a wrong class, `[seeds, sizes, 2]`: standardized by
        the training set's statistics, and by the dev set's own.
    """

    condition: Any
    flat: Any
    bound: Any
    exact: Any
    steps: Any
    reached: Any
    rate: Any
    below: Any
    above: Any
    dev_error: Any


class Bowl(NamedTuple):
    """The loss over two weights, the bias being held at its best.

    Attributes:
      hessian: `[2, 2]`.
      best: where the loss is smallest, `[2]`.
      path: the weights before each step of descent and after the last, `[steps + 1, 2]`.
      condition: the condition number of `hessian`.
    """

    hessian: np.ndarray
    best: np.ndarray
    path: np.ndarray
    condition: float


class Quadratic(NamedTuple):
    """The least-squares loss of a linear model around its minimum.

    Attributes:
      hessian: `[inputs, inputs]`, of the weights of one output; all outputs share it.
      moment: of inputs with targets, `[inputs, outputs]`; the gradient is
        `hessian @ weights - moment`.
      best: the smallest weights where the gradient is zero, `[inputs, outputs]`.
      curvatures: eigenvalues of `hessian`, falling, zero where there is no curvature, `[inputs]`.
      directions: their eigenvectors, one a row, `[inputs, inputs]`.
    """

    hessian: jax.Array
    moment: jax.Array
    best: jax.Array
    curvatures: jax.Array
    directions: jax.Array


def load(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs as they are, `[examples, features]`, classes, one-hot, and names of the features."""
    if name == "gaussian":
        generator = np.random.default_rng(0)
        x = generator.standard_normal((1500, 30))
        classes = np.argmax(x @ generator.standard_normal((30, 3)), axis=1)
        names = [f"feature {i}" for i in range(30)]
    else:
        from sklearn import datasets

        found = getattr(datasets, f"load_{name}")()
        x, classes, names = found.data.astype(np.float64), found.target, list(found.feature_names)
    return x, np.eye(classes.max() + 1)[classes], names


def treated(x: jax.Array) -> jax.Array:
    """The inputs after each of `TREATMENTS`, `[treatments, examples, features]`."""
    standardizer = normalization.fit(x)
    standardized = normalization.apply(standardizer, x)
    centred = x - standardizer.mean[None]
    return jnp.stack([x, centred, standardized, standardized / standardizer.std[None]])


def with_bias(x: jax.Array) -> jax.Array:
    """The inputs and a one beside them, whose weight is the bias."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def quadratic(x: jax.Array, y: jax.Array) -> Quadratic:
    """The loss `mean |x w - y|^2 / 2`; directions that only rounding bends count as flat."""
    scaled = x / jnp.sqrt(len(x))
    left, singular, right = jnp.linalg.svd(scaled, full_matrices=False)
    noise = jnp.finfo(x.dtype).eps * max(x.shape) * singular[0]
    curved = singular > noise
    inverse = jnp.where(curved, 1 / jnp.where(curved, singular, 1.0), 0.0)
    targets = y / jnp.sqrt(len(x))
    best = right.T @ (inverse[:, None] * (left.T @ targets))
    curvatures = jnp.where(curved, jnp.square(singular), 0.0)
    return Quadratic(scaled.T @ scaled, scaled.T @ targets, best, curvatures, right)


def extremes(curvatures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest curvature, flat directions left out."""
    return jnp.min(jnp.where(curvatures > 0, curvatures, jnp.inf)), jnp.max(curvatures)


def promised(curvatures: jax.Array, shrink: Any) -> jax.Array:
    """Steps that suffice at the best constant rate from any start, by the condition number.

    Each step multiplies the distance in every direction by at most `(k - 1) / (k + 1)`, and the
    excess by its square (Polyak, 1964; Nesterov, 2004, theorem 2.1.15).
    """
    low, high = extremes(curvatures)
    return jnp.ceil(jnp.log(shrink) / (2 * jnp.log1p(-2 * low / (low + high))))


def counted(problem: Quadratic, start: jax.Array, shrink: Any) -> jax.Array:
    """Steps after which the excess has shrunk, from the curvatures, without taking any."""
    low, high = extremes(problem.curvatures)
    # |1 - rate * curvature| = 1 - 2 near / (low + high), whose log keeps its digits.
    near = jnp.minimum(problem.curvatures, (high - problem.curvatures) + low)
    log_factor = jnp.log1p(-2 * near / (low + high))
    offsets = problem.directions @ (start - problem.best)
    excess = problem.curvatures * jnp.sum(jnp.square(offsets), axis=1)

    def halve(_, bounds):
        below, enough = bounds
        middle = jnp.floor((below + enough) / 2)
        left = jnp.sum(jnp.where(excess > 0, excess * jnp.exp(2 * middle * log_factor), 0.0))
        done = (left <= shrink * jnp.sum(excess)) & (middle > below)
        return jnp.where(done, below, middle), jnp.where(done, middle, enough)

    bounds = (jnp.zeros(()), promised(problem.curvatures, shrink))
    return jax.lax.fori_loop(0, 64, halve, bounds)[1]


def descend(
    problem: Quadratic,
    start: jax.Array,
    rate: Any,
    stop: Callable[[jax.Array], jax.Array],
    cap: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient descent until `stop(excess)`, at most `cap` steps.

    Returns:
      Steps taken, the excess over the minimum before the first step, and after the last.
    """

    def slope(w):
        gradient = problem.hessian @ w - problem.moment
        # Of a quadratic the excess is half of distance times gradient.
        return gradient, jnp.sum((w - problem.best) * gradient) / 2

    def more(carry):
        taken, _, _, excess = carry
        return (taken < cap) & ~stop(excess)

    def step(carry):
        taken, w, gradient, _ = carry
        w = w - rate * gradient
        return taken + 1, w, *slope(w)

    gradient, first = slope(start)
    carry = (jnp.zeros((), jnp.int32), start, gradient, first)
    taken, _, _, excess = jax.lax.while_loop(more, step, carry)
    return taken, first, excess


def measure(name: str, config: Config) -> Found:
    """Every treatment of one data set, every seed with a training set and a start of its own."""
    with jax.enable_x64(True):
        x, y = (jnp.asarray(part) for part in load(name)[:2])
        sizes = tuple(size for size in config.dev_sizes if size <= len(x) - _training(len(x)))

        @jax.jit
        def every(seeds, x, y, shrink, cap):
            return jax.lax.map(lambda seed: _seed(seed, x, y, sizes, config, shrink, cap), seeds)

        seeds = jnp.arange(config.first_seed, config.first_seed + config.seeds)
        return jax.device_get(every(seeds, x, y, config.shrink, config.cap))


def compare(config: Config, progress: Any = None) -> dict[str, Found]:
    """Measure every data set; much of the time is spent compiling, one thread a program."""
    found = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = {name: pool.submit(measure, name, config) for name in config.data}
        for done, (name, job) in enumerate(jobs.items()):
            found[name] = job.result()
            if progress is not None:
                progress(done + 1, len(jobs))
    return found


def _training(examples: int) -> int:
    return round(0.7 * examples)


def _seed(seed, x, y, sizes, config, shrink, cap) -> Found:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)
    rows = jax.random.permutation(keys[0], len(x))
    train, dev = rows[: _training(len(x))], rows[_training(len(x)) :]
    shape = (1 + config.starts, x.shape[1] + 1, y.shape[1])
    starts = jax.random.normal(keys[1], shape, x.dtype)

    def treatment(inputs):
        problem = quadratic(inputs, y[train])
        low, high = extremes(problem.curvatures)
        best_rate, stable = 2 / (low + high), 2 / high
        _, first, _ = descend(problem, starts[0], best_rate, lambda excess: excess <= 0, 0)
        taken, _, last = descend(
            problem, starts[0], best_rate, lambda excess: excess <= shrink * first, cap
        )

        def tried(start, factor):
            _, before, after = descend(
                problem, start, factor * stable, lambda excess: ~jnp.isfinite(excess), 300
            )
            return after / before

        ratios = jax.vmap(jax.vmap(tried, (0, None)), (None, 0))(starts[1:], _AROUND)
        return {
            "condition": high / low,
            "flat": jnp.sum(problem.curvatures == 0),
            "bound": promised(problem.curvatures, shrink),
            "exact": counted(problem, starts[0], shrink),
            "steps": taken,
            "reached": last <= shrink * first,
            "rate": stable,
            "below": ratios[0] < 1,
            "above": ratios[1] > 1,
        }

    inputs = with_bias(treated(x[train]))
    found = jax.lax.map(treatment, inputs)
    model = quadratic(inputs[2], y[train]).best
    standardizer = normalization.fit(x[train])
    errors = [
        _dev_errors(keys[2], model, standardizer, x[dev], y[dev], size, config.dev_draws)
        for size in sizes
    ]
    return Found(**found, dev_error=jnp.stack(errors) if errors else jnp.zeros((0, 2)))


_AROUND = np.array([0.99, 1.01])
"""Times the largest stable rate."""


def _dev_errors(key, model, standardizer, x, y, size, draws):
    def drawn(key):
        rows = jax.random.permutation(key, len(x))[:size]

        def wrong(standardizer):
            outputs = with_bias(normalization.apply(standardizer, x[rows])) @ model
            return jnp.mean(jnp.argmax(outputs, axis=1) != jnp.argmax(y[rows], axis=1))

        return jnp.stack([wrong(standardizer), wrong(normalization.fit(x[rows]))])

    return jnp.mean(jax.lax.map(drawn, jax.random.split(key, draws), batch_size=draws), axis=0)


def bowls(config: Config) -> tuple[Bowl, Bowl]:
    """Two features of wine, raw and standardized: is it the first cultivar?

    Both descents start with the same excess, half of it in each direction of curvature, and take
    the best constant rate, which shrinks both halves alike.
    """
    x, y, names = load("wine")
    columns = [names.index(name) for name in config.pair]
    with jax.enable_x64(True):
        kinds = treated(jnp.asarray(x[:, columns]))
        raw, standardized = (_bowl(kinds[i], y[:, :1], config) for i in (0, 2))
    return raw, standardized


def _bowl(x: jax.Array, y: np.ndarray, config: Config) -> Bowl:
    *best, bias = quadratic(with_bias(x), jnp.asarray(y)).best
    problem = quadratic(x, jnp.asarray(y) - bias[None])
    low, high = extremes(problem.curvatures)
    start = problem.best[:, 0] + problem.directions.T @ (1 / jnp.sqrt(problem.curvatures))
    taken, _, _ = descend(
        problem,
        start[:, None],
        2 / (low + high),
        lambda excess: excess <= config.shrink,
        config.cap,
    )
    hessian, best = np.asarray(problem.hessian), np.asarray(problem.best[:, 0])
    path = [np.asarray(start)]
    for _ in range(int(taken)):
        path.append(path[-1] - 2 / float(low + high) * hessian @ (path[-1] - best))
    return Bowl(hessian, best, np.array(path), float(high / low))


def _both(values: Any, form: str) -> str:
    mean, error = regimes.mean_and_error(np.asarray(values, np.float64))
    return f"{float(mean):{form}} ± {float(error):{form}}"


def report(found: dict[str, Found], config: Config) -> str:
    """Tables and, in words, what they say of each claim."""
    rows = []
    for name, one in found.items():
        for i, treatment in enumerate(TREATMENTS):
            reached = one.reached[:, i].all()
            rows.append(
                (
                    name if i == 0 else "",
                    treatment,
                    _both(np.log10(one.condition[:, i]), ".2f"),
                    str(int(one.flat[:, i].max())),
                    f"{one.bound[:, i].mean():,.3g}",
                    f"{one.exact[:, i].mean():,.3g}",
                    _both(one.steps[:, i], ",.1f") if reached else f"> {config.cap:,}",
                    f"{one.rate[:, i].mean():.2g}",
                )
            )
    headings = (
        "data",
        "inputs",
        "log10 condition",
        "flat",
        "bound",
        "exact",
        "steps taken",
        "largest rate",
    )
    lines = [
        "Least squares of a linear model with bias: condition number of the Hessian, over its "
        "curved",
        "directions; directions without curvature, such as constant features, left out ('flat', "
        "most of",
        f"all seeds); steps of gradient descent at its best constant rate to {config.shrink:g} of "
        "the loss's excess:",
        "bound by the condition number, exact from all curvatures, and taken; largest stable rate. "
        "Mean over",
        f"{config.seeds} training sets and random starts ± standard error.",
        frontend.table(headings, rows),
        "",
    ]
    for words in (_rounder, _rates, _variance, _alike, _exactness):
        lines += words(found)
    return "\n".join([*lines, *_dev(found, config)])


def _change(one: Found, treatment: int, before: int = 0) -> tuple[float, float]:
    """Of the log10 condition number: mean over seeds and standard error."""
    logs = np.log10(one.condition[:, treatment]) - np.log10(one.condition[:, before])
    mean, error = regimes.mean_and_error(logs)
    return float(mean), float(error)


def _rounder(found: dict[str, Found]) -> list[str]:
    lines = ["Is the bowl rounder once inputs are standardized?"]
    for name, one in found.items():
        centred, _ = _change(one, 1)
        mean, error = _change(one, 2)
        fall = "falls" if mean < -2 * error else "rises" if mean > 2 * error else "does not change"
        lines.append(
            f"- {name}: the condition number {fall}, by 10^({mean:+.2f} ± {error:.2f}), of which "
            f"centring alone brings 10^({centred:+.2f})."
        )
    return lines


def _rates(found: dict[str, Found]) -> list[str]:
    lines = ["Do larger rates work, from any start?"]
    for name, one in found.items():
        ratio = np.log10(one.rate[:, 2] / one.rate[:, 0])
        lines.append(
            f"- {name}: standardized, the largest stable rate is 10^({_both(ratio, '.2f')}) times "
            f"that of raw inputs; at 0.99 of it the loss falls in {one.below.mean():.0%} of "
            f"{one.below.size} descents (4 treatments), at 1.01 it grows in {one.above.mean():.0%}."
        )
    return lines


def _variance(found: dict[str, Found]) -> list[str]:
    lines = ["Divided by the variance, as one text has it, instead of the standard deviation:"]
    for name, one in found.items():
        mean, error = _change(one, 3, 2)
        verdict = "no different" if abs(mean) < _HARDLY else "worse" if mean > 0 else "better"
        if abs(mean) < 2 * error:
            verdict = "no different within two standard errors"
        against, _ = _change(one, 3, 1)
        lines.append(
            f"- {name}: {verdict}, the condition number is 10^({mean:+.2f} ± {error:.2f}) times "
            f"that of standardized inputs, 10^({against:+.2f}) times that of centred ones."
        )
    return lines


def _alike(found: dict[str, Found]) -> list[str]:
    lines = ["Harmless where scales are alike already?"]
    for name in ("gaussian", "digits"):
        if name in found:
            mean, error = _change(found[name], 2, 1)
            verdict = "harmless" if mean < _HARDLY + 2 * error else "harmful"
            small = "hardly a change" if abs(mean) < _HARDLY else "scales were not alike"
            lines.append(
                f"- {name}: dividing by the standard deviation changes the condition number of "
                f"centred inputs by 10^({mean:+.2f} ± {error:.2f}): {small}, {verdict}."
            )
    return lines


_HARDLY = 0.05
"""Of a log10: 12 %."""


def _exactness(found: dict[str, Found]) -> list[str]:
    off = [np.abs(one.steps - one.exact)[one.reached] for one in found.values()]
    off = np.concatenate(off)
    unreached = sum(int((~one.reached).sum()) for one in found.values())
    if not off.size:
        return ["No descent ended before its cap."]
    return [
        f"Steps taken differ from the exact count by at most {off.max():.0f} in {off.size} "
        f"descents; {unreached} did not end before the cap."
    ]


def _dev(found: dict[str, Found], config: Config) -> list[str]:
    rows, harmed, tried = [], 0, 0
    for name, one in found.items():
        for i in range(one.dev_error.shape[1]):
            trained, own = one.dev_error[:, i].T
            mean, error = (float(part) for part in regimes.mean_and_error(own - trained))
            harmed += mean > 2 * error
            tried += 1
            rows.append(
                (
                    name if i == 0 else "",
                    str(config.dev_sizes[i]),
                    _both(trained, ".1%"),
                    _both(own, ".1%"),
                    f"{mean:+.1%} ± {error:.1%}",
                )
            )
    headings = ("data", "dev set", "training statistics", "its own", "difference")
    return [
        f"\nDev error of a model of standardized inputs, mean over {config.seeds} training sets "
        f"with {config.dev_draws} dev sets",
        "each ± standard error, dev inputs standardized by the training set's statistics or by "
        "their own:",
        frontend.table(headings, rows),
        f"Own statistics are worse by more than 2 standard errors in {harmed} of {tried} cases.",
    ]


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    if not config.data or len(set(config.data)) != len(config.data) or set(config.data) - {*DATA}:
        raise ValueError(
            f"data must be different names of {', '.join(DATA)}, got {config.data}; correct them"
        )
    for name, least in (
        ("seeds", 2),
        ("first_seed", 0),
        ("cap", 1),
        ("starts", 1),
        ("dev_draws", 1),
    ):
        if getattr(config, name) < least:
            raise ValueError(
                f"{name} must be at least {least}, got {getattr(config, name)}; raise it"
            )
    if not 0 < config.shrink < 1:
        raise ValueError(f"shrink must be between 0 and 1, got {config.shrink:g}; try 1e-3")
    if min(config.dev_sizes, default=2) < 2:
        raise ValueError(
            f"dev_sizes must be at least 2, got {config.dev_sizes}; one example has no deviation"
        )
    names = load("wine")[2]
    if len(set(config.pair)) != 2 or set(config.pair) - set(names):
        raise ValueError(
            f"pair must be two different features of {', '.join(names)}; got {config.pair}"
        )
    frontend.writable("output", config.output)


def run(config: Config) -> None:
    """Compare inputs, raw and normalized: the loss's condition number and the steps of descent."""
    checked(config)
    start = time.perf_counter()
    found = compare(config, frontend.Bar("data sets"))
    print(report(found, config))
    pair = bowls(config)
    figure = plotting.input_normalization(pair, config.pair, found, TREATMENTS, config.cap)
    figure.savefig(config.output, dpi=110)
    print(f"\n{time.perf_counter() - start:.1f} s in all.\nFigure: {config.output}")


if __name__ == "__main__":
    frontend.main(Config, run)
