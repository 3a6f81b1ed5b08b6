"""Options, the least-squares loss of a linear model, and descent in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from jaxgrad.training import normalization

DATA = ("wine", "breast_cancer", "digits", "gaussian")
TREATMENTS = ("raw", "centred", "standardized", "divided by variance")


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of inputs, raw and normalized."""

    seeds: int = kit.option(8, "Number of training sets, 70 % of the rows each.", minimum=2)
    output: Path = kit.option(Path("results/input_normalization.png"), "Where to write the figure.")
    data: tuple[str, ...] = kit.option(
        DATA, "Data sets; the features of gaussian are alike to begin with.", choices=DATA
    )
    shrink: float = kit.option(1e-3, "Share of the loss's excess to stop at.", above=0, below=1)
    cap: int = kit.option(10_000, "Largest number of steps.", minimum=1)
    starts: int = kit.option(5, "Starts to try the largest stable rate from.", minimum=1)
    dev_sizes: tuple[int, ...] = kit.option(
        (2, 5, 10, 20, 50), "Sizes of small dev sets.", minimum=2, ascending=True
    )
    dev_draws: int = kit.option(50, "Dev sets of each size, for each seed.", minimum=1)
    pair: tuple[str, str] = kit.option(
        ("ash", "total_phenols"), "Wine features of the figure.", choices=kit.load("wine").features
    )


class Quadratic(NamedTuple):
    """The least-squares loss of a linear model, and its extreme curvatures, flat ones left out."""

    hessian: jax.Array  # of the weights of one output, the same for all, [inputs, inputs]
    best: jax.Array  # the smallest weights where the gradient is zero, [inputs, outputs]
    curvatures: jax.Array  # eigenvalues of the Hessian, descending, 0 where it is flat
    directions: jax.Array  # their eigenvectors, one a row, [inputs, inputs]
    low: jax.Array
    high: jax.Array


def treated(x: jax.Array) -> jax.Array:
    """The inputs after each of `TREATMENTS`, `[treatments, examples, features]`."""
    mean, deviation = (part[None] for part in normalization.fit(x))
    centred = x - mean
    return jnp.stack([x, centred, centred / deviation, centred / deviation / deviation])


def with_bias(x: jax.Array) -> jax.Array:
    """The inputs and a one beside them, whose weight is the bias."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def quadratic(x: jax.Array, y: jax.Array) -> Quadratic:
    """The loss `mean |x w - y|^2 / 2`; directions that only rounding bends count as flat."""
    scaled, targets = (a / jnp.sqrt(len(x)) for a in (x, y))
    left, singular, directions = jnp.linalg.svd(scaled, full_matrices=False)
    curved = singular > jnp.finfo(x.dtype).eps * max(x.shape) * singular[0]
    inverse = jnp.where(curved, 1 / jnp.where(curved, singular, 1.0), 0.0)
    best = directions.T @ (inverse[:, None] * (left.T @ targets))
    curvatures = jnp.where(curved, jnp.square(singular), 0.0)
    low = jnp.min(jnp.where(curved, curvatures, jnp.inf))
    return Quadratic(scaled.T @ scaled, best, curvatures, directions, low, curvatures[0])


def step_counts(problem: Quadratic, start: jax.Array, shrink: Any) -> tuple[jax.Array, jax.Array]:
    """Steps at the best constant rate that suffice from any start, and those from this one.

    A step multiplies all distances by at most `(k - 1) / (k + 1)`, where `k` is the condition
    number, and the excess of the loss by its square (Nesterov, 2004, theorem 2.1.15).
    """
    _, best, curvatures, directions, low, high = problem
    # |1 - rate * curvature| = 1 - 2 near / (low + high), whose log keeps its digits.
    near = jnp.minimum(curvatures, (high - curvatures) + low)
    log_factor = jnp.log1p(-2 * near / (low + high))
    bound = jnp.ceil(jnp.log(shrink) / (2 * jnp.log1p(-2 * low / (low + high))))
    excess = curvatures * jnp.sum(jnp.square(directions @ (start - best)), axis=1)

    def bisect(_, bounds):
        below, enough = bounds
        middle = jnp.floor((below + enough) / 2)
        done = jnp.sum(excess * jnp.exp(2 * middle * log_factor)) <= shrink * jnp.sum(excess)
        return jnp.where(done, below, middle), jnp.where(done, middle, enough)

    return bound, jax.lax.fori_loop(0, 64, bisect, (jnp.zeros(()), bound))[1]


def descend(
    problem: Quadratic, start: jax.Array, rate: Any, shrink: Any, cap: int
) -> tuple[jax.Array, jax.Array]:
    """Steps of gradient descent, at most `cap`, and the share of the excess that they leave."""

    def excess(offset):  # of a quadratic it is half of distance times gradient
        return jnp.sum(offset * (problem.hessian @ offset)) / 2

    offset = start - problem.best
    first = excess(offset)
    steps, offset = jax.lax.while_loop(
        lambda carry: (carry[0] < cap) & (excess(carry[1]) / first > shrink),
        lambda carry: (carry[0] + 1, carry[1] - rate * (problem.hessian @ carry[1])),
        (jnp.zeros((), jnp.int32), offset),
    )
    return steps, excess(offset) / first


def measure_all(options: Options, progress: kit.Progress = None) -> dict[str, dict[str, Any]]:
    """The arrays of `measure` with a leading axis of seeds, by data set."""

    def of_all_seeds(name):
        with jax.enable_x64(True):
            # Not by vmap: batches of SVDs in two CPU threads can wait forever for each other.
            every = jax.jit(lambda seeds: jax.lax.map(partial(measure, name, options), seeds))
            return jax.device_get(every(jnp.array(options.seed_values)))

    return kit.in_threads({name: partial(of_all_seeds, name) for name in options.data}, progress)


def measure(name: str, options: Options, seed: Any) -> dict[str, jax.Array]:
    """All treatments of one training set, `[treatments]`, and errors on dev sets, `[sizes, 2]`."""
    data = kit.load(name)
    x, y = jnp.asarray(data.x), jnp.asarray(np.eye(len(data.classes))[data.labels])
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)
    rows, count = jax.random.permutation(keys[0], len(x)), round(0.7 * len(x))
    train, dev = rows[:count], rows[count:]
    shape = (1 + options.starts, x.shape[1] + 1, y.shape[1])
    starts = jax.random.normal(keys[1], shape, x.dtype)

    def treatment(inputs):
        problem = quadratic(inputs, y[train])
        rate, stable = 2 / (problem.low + problem.high), 2 / problem.high
        steps, left = descend(problem, starts[0], rate, options.shrink, options.cap)
        bound, exact = step_counts(problem, starts[0], options.shrink)
        left_by = jax.vmap(lambda w, rate: descend(problem, w, rate, 0.0, 300)[1], (0, None))
        return {
            "condition": problem.high / problem.low,
            "flat": jnp.sum(problem.curvatures == 0),
            "bound": bound,
            "exact": exact,
            "steps": steps,
            "reached": left <= options.shrink,
            "rate": stable,
            # Whether the excess shrinks below that rate and grows above it, [treatments, starts].
            "below": left_by(starts[1:], 0.99 * stable) < 1,
            "above": left_by(starts[1:], 1.01 * stable) > 1,
        }

    inputs = with_bias(treated(x[train]))
    model = quadratic(inputs[TREATMENTS.index("standardized")], y[train]).best

    def dev_errors(size, key):
        rows = jax.random.permutation(key, dev)[:size]
        # By statistics of the training set, and of the dev set itself.
        fitted = (normalization.fit(x[part]) for part in (train, rows))
        inputs = jnp.stack([with_bias(normalization.apply(f, x[rows])) for f in fitted])
        labels = jnp.argmax(y[rows], axis=1)
        return jnp.mean(jnp.argmax(inputs @ model, axis=2) != labels[None], axis=1)

    draws = jax.random.split(keys[2], options.dev_draws)
    sizes = [size for size in options.dev_sizes if size <= len(dev)]
    errors = [jax.vmap(partial(dev_errors, size))(draws).mean(axis=0) for size in sizes]
    return {**jax.lax.map(treatment, inputs), "dev_error": jnp.array(errors).reshape(-1, 2)}


def bowls(options: Options) -> list[dict[str, Any]]:
    """The loss over two features of wine, raw and standardized: is it the first cultivar?

    Both descents start with the same excess, half of it in each direction of curvature, and take
    the best constant rate. `path` has the weights before each step and after the last.
    """
    wine, results = kit.load("wine"), []
    columns = [wine.features.index(name) for name in options.pair]
    with jax.enable_x64(True):
        y = jnp.asarray(wine.labels == 0, float)[:, None]
        raw, _, standardized, _ = treated(jnp.asarray(wine.x[:, columns]))
        for x in (raw, standardized):
            bias = quadratic(with_bias(x), y).best[-1:]
            problem = jax.device_get(quadratic(x, y - bias))
            hessian, best, curvatures, directions, low, high = problem
            # An excess of 1/2 in each direction: curvature * offset^2 = 1.
            offset, rate = 1 / np.sqrt(curvatures), 2 / (low + high)
            start = best + (directions.T @ offset)[:, None]
            steps, _ = descend(problem, start, rate, options.shrink, options.cap)
            decay = (1 - rate * curvatures) ** np.arange(int(steps) + 1)[:, None]
            path, best = best[:, 0] + (decay * offset) @ directions, best[:, 0]
            shape = {"hessian": hessian, "best": best, "path": path, "condition": high / low}
            results.append(shape)
    return results
