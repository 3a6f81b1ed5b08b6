"""Options, the least-squares loss of a linear model, and descent in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Estimate
from jaxgrad.training import normalization

DATA = ("wine", "breast_cancer", "digits", "gaussian")
TREATMENTS = ("raw", "centred", "standardized", "divided by variance")
RAW, CENTRED, STANDARDIZED, BY_VARIANCE = range(4)
NEGLIGIBLE = 0.05
"""Change of a log10 that does not matter: 12 %."""
AROUND = np.array([0.99, 1.01])
"""Times the largest stable rate."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of inputs, raw and normalized."""

    seeds: int = kit.option(8, "Number of training sets, 70 % of the rows each.", minimum=2)
    output: Path = kit.option(Path("results/input_normalization.png"), "Where to write the figure.")
    data: tuple[str, ...] = kit.option(
        DATA, "Data sets; the features of gaussian are alike to begin with.", choices=DATA
    )
    shrink: float = kit.option(
        1e-3, "Descent ends when the excess of the loss has shrunk so much.", above=0, below=1
    )
    cap: int = kit.option(10_000, "Largest number of steps.", minimum=1)
    starts: int = kit.option(5, "Starts to try the largest stable rate from.", minimum=1)
    dev_sizes: tuple[int, ...] = kit.option(
        (2, 5, 10, 20, 50), "Sizes of small dev sets.", minimum=2, ascending=True
    )
    dev_draws: int = kit.option(50, "Dev sets of each size, for each seed.", minimum=1)
    pair: tuple[str, str] = kit.option(
        ("ash", "total_phenols"),
        "The two features of wine whose bowl the figure shows.",
        choices=kit.load("wine").features,
    )


class Measurement(NamedTuple):
    """What one data set shows; arrays `[seeds, treatments]`, treatments as in `TREATMENTS`.

    The number of steps is bounded by the condition number alone, exact from all curvatures and the
    start, and counted in `steps`, up to the cap; `reached`: whether the excess had shrunk by then.
    """

    condition: Any  # largest over smallest curvature of the loss
    flat: Any  # directions without any curvature, which are left out
    bound: Any
    exact: Any
    steps: Any
    reached: Any
    rate: Any  # the largest stable rate, 2 over the largest curvature
    below: Any  # whether the excess falls at 0.99 times it, [seeds, treatments, starts]
    above: Any  # whether the excess grows at 1.01 times it, [seeds, treatments, starts]
    dev_error: Any  # by statistics of the training set, and by its own, [seeds, sizes, 2]

    def change(self, treatment: int, before: int) -> Estimate:
        """Of log10 of the condition number, by another treatment."""
        logs = np.log10(self.condition)
        return Estimate.paired(logs[:, treatment], logs[:, before])


class Bowl(NamedTuple):
    """The loss over two weights, at the best bias."""

    hessian: np.ndarray
    best: np.ndarray
    path: np.ndarray  # weights before each step of descent and after the last, [steps + 1, 2]
    condition: float


class Quadratic(NamedTuple):
    """The least-squares loss of a linear model around its minimum."""

    hessian: jax.Array  # of the weights of one output, the same for all, [inputs, inputs]
    moment: jax.Array  # of inputs with targets; the gradient is hessian @ weights - moment
    best: jax.Array  # the smallest weights where the gradient is zero, [inputs, outputs]
    curvatures: jax.Array  # eigenvalues of the Hessian, descending, 0 where it is flat
    directions: jax.Array  # their eigenvectors, one a row, [inputs, inputs]


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
    scaled, targets = (a / jnp.sqrt(len(x)) for a in (x, y))
    left, singular, right = jnp.linalg.svd(scaled, full_matrices=False)
    noise = jnp.finfo(x.dtype).eps * max(x.shape) * singular[0]
    curved = singular > noise
    inverse = jnp.where(curved, 1 / jnp.where(curved, singular, 1.0), 0.0)
    best = right.T @ (inverse[:, None] * (left.T @ targets))
    curvatures = jnp.where(curved, jnp.square(singular), 0.0)
    return Quadratic(scaled.T @ scaled, scaled.T @ targets, best, curvatures, right)


def extremes(curvatures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest curvature, flat directions left out."""
    return jnp.min(jnp.where(curvatures > 0, curvatures, jnp.inf)), jnp.max(curvatures)


def step_bound(curvatures: jax.Array, shrink: Any) -> jax.Array:
    """Steps that suffice at the best constant rate from any start, by the condition number.

    Each step multiplies the distance in every direction by at most `(k - 1) / (k + 1)`, and the
    excess by its square (Polyak, 1964; Nesterov, 2004, theorem 2.1.15).
    """
    low, high = extremes(curvatures)
    return jnp.ceil(jnp.log(shrink) / (2 * jnp.log1p(-2 * low / (low + high))))


def step_count(problem: Quadratic, start: jax.Array, shrink: Any) -> jax.Array:
    """Steps after which the excess has shrunk, from the curvatures, without taking any."""
    low, high = extremes(problem.curvatures)
    # |1 - rate * curvature| = 1 - 2 near / (low + high), whose log keeps its digits.
    near = jnp.minimum(problem.curvatures, (high - problem.curvatures) + low)
    log_factor = jnp.log1p(-2 * near / (low + high))
    offsets = problem.directions @ (start - problem.best)
    excess = problem.curvatures * jnp.sum(jnp.square(offsets), axis=1)

    def halve(_, bounds):  # bisection over whole numbers of steps
        below, enough = bounds
        middle = jnp.floor((below + enough) / 2)
        left = jnp.sum(jnp.where(excess > 0, excess * jnp.exp(2 * middle * log_factor), 0.0))
        done = (left <= shrink * jnp.sum(excess)) & (middle > below)
        return jnp.where(done, below, middle), jnp.where(done, middle, enough)

    bounds = (jnp.zeros(()), step_bound(problem.curvatures, shrink))
    return jax.lax.fori_loop(0, 64, halve, bounds)[1]


def descend(
    problem: Quadratic, start: jax.Array, rate: Any, stop: Callable[[Any], Any], cap: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient descent until `stop(excess)`, at most `cap` steps.

    Returns:
      Steps taken, the excess over the minimum before the first step, and after the last.
    """

    def slope(w):
        gradient = problem.hessian @ w - problem.moment
        # Of a quadratic the excess is half of distance times gradient.
        return gradient, jnp.sum((w - problem.best) * gradient) / 2

    def step(carry):
        taken, w, gradient, _ = carry
        w = w - rate * gradient
        return taken + 1, w, *slope(w)

    gradient, first = slope(start)
    carry = (jnp.zeros((), jnp.int32), start, gradient, first)
    taken, _, _, excess = jax.lax.while_loop(lambda c: (c[0] < cap) & ~stop(c[3]), step, carry)
    return taken, first, excess


def measure(name: str, options: Options) -> Measurement:
    """Every treatment of one data set, every seed with a training set and a start of its own."""
    data = kit.load(name)
    with jax.enable_x64(True):
        x, y = jnp.asarray(data.x), jnp.asarray(np.eye(len(data.classes))[data.labels])

        @jax.jit
        def every(seeds, x, y, shrink, cap):
            return jax.lax.map(lambda s: measure_seed(s, x, y, options, shrink, cap), seeds)

        seeds = jnp.array(options.seed_values)
        return jax.device_get(every(seeds, x, y, options.shrink, options.cap))


def measure_all(options: Options, progress: kit.Progress = None) -> dict[str, Measurement]:
    """Measure every data set; much of the time is spent compiling, one thread a program."""
    results = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = {name: pool.submit(measure, name, options) for name in options.data}
        for name, job in jobs.items():
            results[name] = job.result()
            if progress is not None:
                progress(len(results), len(jobs))
    return results


def measure_seed(
    seed: Any, x: jax.Array, y: jax.Array, options: Options, shrink: Any, cap: Any
) -> Measurement:
    """All treatments of one training set."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)
    rows, count = jax.random.permutation(keys[0], len(x)), round(0.7 * len(x))
    train, dev = rows[:count], rows[count:]
    shape = (1 + options.starts, x.shape[1] + 1, y.shape[1])
    starts = jax.random.normal(keys[1], shape, x.dtype)

    def treatment(inputs):
        problem = quadratic(inputs, y[train])
        low, high = extremes(problem.curvatures)
        best_rate, stable = 2 / (low + high), 2 / high
        _, first, _ = descend(problem, starts[0], best_rate, lambda excess: excess <= 0, 0)
        enough = shrink * first
        taken, _, last = descend(problem, starts[0], best_rate, lambda e: e <= enough, cap)

        def growth(start, factor):
            rate = factor * stable
            _, before, after = descend(problem, start, rate, lambda e: ~jnp.isfinite(e), 300)
            return after / before

        ratios = jax.vmap(jax.vmap(growth, (0, None)), (None, 0))(starts[1:], AROUND)
        return {
            "condition": high / low,
            "flat": jnp.sum(problem.curvatures == 0),
            "bound": step_bound(problem.curvatures, shrink),
            "exact": step_count(problem, starts[0], shrink),
            "steps": taken,
            "reached": last <= enough,
            "rate": stable,
            "below": ratios[0] < 1,
            "above": ratios[1] > 1,
        }

    inputs = with_bias(treated(x[train]))
    numbers = jax.lax.map(treatment, inputs)
    model, standardizer = (
        quadratic(inputs[STANDARDIZED], y[train]).best,
        normalization.fit(x[train]),
    )
    errors = [
        dev_errors(keys[2], model, standardizer, x[dev], y[dev], size, options.dev_draws)
        for size in options.dev_sizes
        if size <= len(dev)
    ]
    return Measurement(**numbers, dev_error=jnp.stack(errors) if errors else jnp.zeros((0, 2)))


def dev_errors(key, model, standardizer, x, y, size, draws) -> jax.Array:
    """Mean error on dev sets, standardized by the training set's statistics and by their own."""

    def one(key):
        rows = jax.random.permutation(key, len(x))[:size]

        def wrong(standardizer):
            outputs = with_bias(normalization.apply(standardizer, x[rows])) @ model
            return jnp.mean(jnp.argmax(outputs, axis=1) != jnp.argmax(y[rows], axis=1))

        return jnp.stack([wrong(standardizer), wrong(normalization.fit(x[rows]))])

    return jnp.mean(jax.lax.map(one, jax.random.split(key, draws), batch_size=draws), axis=0)


def bowls(options: Options) -> tuple[Bowl, Bowl]:
    """Two features of wine, raw and standardized: is it the first cultivar?

    Both descents start with the same excess, half of it in each direction of curvature, and take
    the best constant rate, which shrinks both halves alike.
    """
    wine = kit.load("wine")
    columns = [wine.features.index(name) for name in options.pair]
    y = (wine.labels == 0)[:, None].astype(np.float64)
    with jax.enable_x64(True):
        inputs = treated(jnp.asarray(wine.x[:, columns]))
        raw, standardized = (bowl(inputs[i], y, options) for i in (RAW, STANDARDIZED))
    return raw, standardized


def bowl(x: jax.Array, y: np.ndarray, options: Options) -> Bowl:
    """The loss over the weights of two inputs, and the path of descent."""
    *_, bias = quadratic(with_bias(x), jnp.asarray(y)).best
    problem = quadratic(x, jnp.asarray(y) - bias[None])
    low, high = extremes(problem.curvatures)
    # An excess of 1/2 in each direction: curvature * offset^2 = 1.
    start = problem.best[:, 0] + problem.directions.T @ (1 / jnp.sqrt(problem.curvatures))
    rate, shrink = 2 / (low + high), options.shrink
    taken, _, _ = descend(problem, start[:, None], rate, lambda e: e <= shrink, options.cap)
    hessian, best = np.asarray(problem.hessian), np.asarray(problem.best[:, 0])
    path = [np.asarray(start)]
    for _ in range(int(taken)):
        path.append(path[-1] - float(rate) * hessian @ (path[-1] - best))
    return Bowl(hessian, best, np.array(path), float(high / low))
