"""Hyper-parameter search: random points on suitable scales, from coarse to fine, and grids.

A space is a dictionary of ranges. Points are a dictionary of arrays, each of shape `[points]`. A
training run that is a function of one point is mapped over all points, so that it compiles once.

>>> import jax, jax.numpy as jnp
>>> space = {"learning_rate": log_uniform(1e-6, 10.0), "dropout": uniform(0.0, 0.8)}
>>> points = draw(space, 100, key=jax.random.key(0))
>>> sorted(points), points["dropout"].shape
(['dropout', 'learning_rate'], (100,))
>>> def error(point):
...     return (jnp.log10(point["learning_rate"]) + 2) ** 2 + (point["dropout"] - 0.5) ** 2
>>> result = search(error, space, key=jax.random.key(0), count=50, rounds=3)
>>> {name: round(float(value), 2) for name, value in result.best.items()}
{'dropout': 0.51, 'learning_rate': 0.01}
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate


class Range(NamedTuple):
    """The range of a hyper-parameter."""

    low: float
    high: float
    log: bool  # whether values are uniform in the logarithm


Space = Mapping[str, Range]
Points = dict[str, Float[Array, " points"]]


def uniform(low: float, high: float) -> Range:
    """Return a range with a linear scale, for example for a dropout rate; `low < high`."""
    return _range("uniform", low, high, log=False)


def log_uniform(low: float, high: float) -> Range:
    """Return a range with a logarithmic scale, for example for a learning rate; `0 < low < high`.

    `log_uniform(1e-6, 10.0)` is `10 ** uniform(-6, 1)` of the course notes.
    """
    return _range("log_uniform", low, high, log=True)


def draw(space: Space, count: int, *, key: PRNGKeyArray) -> Points:
    """Draw `count` random points, each hyper-parameter independently and on the scale of its range.

    Source: Bergstra, Bengio (2012).
    """
    names = _names(space)
    count = _validate.integer("count", count, 1)
    _validate.key("key", key)
    # One key for each name, in the order of the space.
    keys = zip(names, jax.random.split(key, len(names)), strict=True)
    return {name: _interpolate(space[name], jax.random.uniform(k, (count,))) for name, k in keys}


def grid(space: Space, counts: int | Mapping[str, int]) -> Points:
    """Return all combinations of evenly spaced values; the last hyper-parameter varies fastest.

    `counts` is the number of values of each hyper-parameter, at least 1: one number for all, or a
    number by name. A single value is the middle of its range.
    """
    names = _names(space)
    counts = counts if isinstance(counts, Mapping) else dict.fromkeys(names, counts)
    if set(counts) != set(names):
        got = f"got {sorted(counts)}; give one for each"
        raise ValueError(f"counts must have the names of space, {names}, {got}")
    values = []
    for name in names:
        size = _validate.integer("counts", counts[name], 1)
        shares = jnp.linspace(0.0, 1.0, size) if size > 1 else jnp.full(1, 0.5)
        values.append(_interpolate(space[name], shares))
    # With "ij" the first axis varies slowest in the raveled arrays.
    combined = jnp.meshgrid(*values, indexing="ij")
    return {name: value.ravel() for name, value in zip(names, combined, strict=True)}


def narrow(space: Space, points: Points, scores: Any, *, keep: float = 0.2) -> dict[str, Range]:
    """Return the ranges that the best points span, widened by half a step on each side.

    A step is the width of the range divided by the number of best points, on the scale of the
    range. The new range stays within the old one. Points are those of `draw` or `grid` from the
    same space. Of their scores, `[points]`, lower is better and NaN is worst; if all are NaN,
    ValueError is raised. The share `keep` of the points, at least two, counts as best.
    """
    names = _names(space)
    _check_keep(keep)
    points = _validate.mapping("points", points)
    _validate.known("points", points, "narrow")
    _validate.known("scores", scores, "narrow")
    scores = _validate.in_float64("scores", scores)
    sizes = {name: np.shape(points[name]) if name in points else None for name in names}
    if any(size != scores.shape for size in sizes.values()) or scores.ndim != 1:
        rule = f"have one value of each of {names} for each of scores, of shape {scores.shape}"
        raise ValueError(f"points must {rule}, got shapes {sizes}; pass those that were scored")
    numbers = np.count_nonzero(~np.isnan(scores))
    if numbers == 0:
        raise ValueError("scores must have a number, got NaN for all points; search elsewhere")
    count = min(numbers, max(2, math.ceil(keep * len(scores))))
    best = np.argsort(scores, kind="stable")[:count]  # NaN is sorted last
    new = {}
    for name in names:
        old = space[name]
        scale, inverse = (np.log, np.exp) if old.log else (np.asarray, np.asarray)
        values = scale(np.asarray(points[name], np.float64)[best])
        # Half of the mean distance of as many points over the old range.
        room = 0.5 * (scale(old.high) - scale(old.low)) / count
        low, high = inverse(values.min() - room), inverse(values.max() + room)
        new[name] = Range(max(old.low, float(low)), min(old.high, float(high)), old.log)
    return new


class Search(NamedTuple):
    """Points and scores of all rounds, the best point (NaN without a score), and all spaces."""

    points: Points
    scores: Float[Array, " points"]
    best: dict[str, Float[Array, ""]]
    spaces: tuple[Space, ...]


def search(
    f: Callable[[dict[str, Any]], Any],
    space: Space,
    *,
    key: PRNGKeyArray,
    count: int,
    rounds: int = 1,
    keep: float = 0.2,
) -> Search:
    """Minimize a function over random points, in rounds from coarse to fine.

    Each round after the first draws its points from the ranges that the best points of the round
    before span, see `narrow`; if all its scores were NaN, from the same ranges.

    Args:
      f: Pure function of one point, scalars by name, that returns one score, such as a function
        that calls `jaxgrad.training.fit`. Lower is better and NaN is worst. It is compiled once.
      space: Ranges by name.
      key: Key that draws the points.
      count: Number of points of a round, at least 2.
      rounds: Number of rounds, at least 1.
      keep: Share of the points of a round that count as best, see `narrow`.
    """
    _validate.function("f", f)
    count = _validate.integer("count", count, 2)
    rounds = _validate.integer("rounds", rounds, 1)
    _names(space)
    _check_keep(keep)
    _validate.key("key", key)
    _validate.known("key", key, "search")
    # One program for all rounds: the points are its data.
    run = jax.jit(jax.vmap(f))
    # Shapes alone, before anything is drawn.
    out = run.eval_shape(jax.eval_shape(lambda: draw(space, count, key=key)))
    if getattr(out, "ndim", 0) != 1:
        shapes = jax.tree.map(lambda score: score.shape[1:], out)
        raise ValueError(f"f must return one number, got shape {shapes}; reduce it")
    spaces, points, scores = [], [], []
    for index in range(rounds):
        spaces.append(space)
        points.append(draw(space, count, key=jax.random.fold_in(key, index)))
        scores.append(run(points[-1]))
        # A round of NaN says nothing about where the best points are.
        if index + 1 < rounds and not np.isnan(scores[-1]).all():
            space = narrow(space, points[-1], scores[-1], keep=keep)
    all_points = jax.tree.map(lambda *parts: jnp.concatenate(parts), *points)
    all_scores = jnp.concatenate(scores)
    # NaN ranks behind every number; -1 says that there is none.
    index = jnp.nanargmin(all_scores)
    best = {name: jnp.where(index < 0, jnp.nan, x[index]) for name, x in all_points.items()}
    return Search(all_points, all_scores, best, tuple(spaces))


def _check_keep(keep):
    _validate.known("keep", keep, "search")
    _validate.scalar("keep", keep, minimum=0.0, above=True, maximum=1.0)


def _range(name, low, high, *, log):
    for end, value in (("low", low), ("high", high)):
        _validate.known(end, value, name)
        _validate.scalar(end, value)
    if low >= high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}; swap or correct them")
    if log and low <= 0:
        remedy = "use uniform, or a small number"
        raise ValueError(f"low must be greater than 0 for {name}, got {low:g}; {remedy}")
    return Range(float(low), float(high), log)


def _names(space):
    if not isinstance(space, Mapping) or not all(isinstance(r, Range) for r in space.values()):
        raise TypeError(
            f"space must map names to ranges, got {_validate.show(space)}; see log_uniform"
        )
    if not space:
        raise ValueError("space must not be empty, got no ranges; give at least one")
    return list(space)


def _interpolate(interval, share):
    """The values at `share`, from 0 to 1, of the way from the low to the high end."""
    low, high = map(math.log, interval[:2]) if interval.log else interval[:2]
    value = low + (high - low) * share
    # Rounding may leave the range by a unit in the last place.
    return jnp.clip(jnp.exp(value) if interval.log else value, interval.low, interval.high)
