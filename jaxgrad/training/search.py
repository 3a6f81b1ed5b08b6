"""Hyper-parameter search: random points on suitable scales, from coarse to fine, and grids.

A space is a dictionary of ranges. Points are a dictionary of arrays, each of shape `[points]`. A
training run written as a function of one point can be mapped over all points by `jax.vmap`, so that
a search compiles once.

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
    """Draw random points, each hyper-parameter independently and on its own scale.

    Args:
      space: Ranges by name.
      count: Number of points, at least 1.
      key: Key that draws the points.

    Returns:
      Arrays of shape `[count]` by name.

    Source: Bergstra, Bengio (2012).
    """
    names = _names(space)
    count = _validate.integer("count", count, 1)
    # One key for each name, in the order of the space.
    keys = jax.random.split(key, len(names))
    return {
        name: _interpolate(space[name], jax.random.uniform(k, (count,)))
        for name, k in zip(names, keys, strict=True)
    }


def grid(space: Space, counts: int | Mapping[str, int]) -> Points:
    """Return all combinations of evenly spaced values; the last hyper-parameter varies fastest.

    Args:
      space: Ranges by name.
      counts: Number of values of each hyper-parameter, at least 1: one number for all, or a number
        by name. A single value is the middle of its range.

    Returns:
      Arrays of shape `[product of counts]` by name.
    """
    names = _names(space)
    counts = counts if isinstance(counts, Mapping) else dict.fromkeys(names, counts)
    if set(counts) != set(names):
        raise ValueError(
            f"counts must have the names of space, {names}, got {sorted(counts)}; give one for each"
        )
    values = []
    for name in names:
        size = _validate.integer("counts", counts[name], 1)
        # A single value lies in the middle.
        shares = jnp.linspace(0.0, 1.0, size) if size > 1 else jnp.full(1, 0.5)
        values.append(_interpolate(space[name], shares))
    # With "ij" the first axis varies slowest in the raveled arrays.
    combined = jnp.meshgrid(*values, indexing="ij")
    return {name: value.ravel() for name, value in zip(names, combined, strict=True)}


def narrow(space: Space, points: Points, scores: Any, *, keep: float = 0.2) -> dict[str, Range]:
    """Return the ranges that the best points span, widened by half a step on each side.

    A step is the width of the range divided by the number of best points, on the scale of the
    range. The new range stays within the old one.

    Args:
      space: The space that the points were drawn from.
      points: From `draw` or `grid`.
      scores: Score of each point, `[points]`; lower is better and NaN is worst.
      keep: Share of the points that count as best, greater than 0, at most 1. At least two points
        count as best.

    Returns:
      A space with the same names.

    Raises:
      ValueError: If all scores are NaN.
    """
    names = _names(space)
    _check_keep(keep)
    _validate.known("points", points, "narrow")
    _validate.known("scores", scores, "narrow")
    scores = np.asarray(scores, np.float64)
    sizes = {name: np.shape(points[name]) if name in points else None for name in names}
    if any(size != scores.shape for size in sizes.values()) or scores.ndim != 1:
        raise ValueError(
            f"points must have one value of each of {names} for each of scores, of shape "
            f"{scores.shape}, got shapes {sizes}; pass the points that were scored"
        )
    numbers = np.count_nonzero(~np.isnan(scores))
    if numbers == 0:
        raise ValueError(
            "scores must have a number, got NaN for all points; search where runs do not diverge"
        )
    count = min(numbers, max(2, math.ceil(keep * len(scores))))
    best = np.argsort(scores, kind="stable")[:count]  # NaN is sorted last
    return {
        name: _spanned(space[name], np.asarray(points[name], np.float64)[best]) for name in names
    }


def _spanned(old: Range, values: np.ndarray) -> Range:
    """The range that values span within `old`, widened by half a step."""
    scale, inverse = (np.log, np.exp) if old.log else (np.asarray, np.asarray)
    values = scale(values)
    # Half of the mean distance of as many points over the old range.
    room = 0.5 * (scale(old.high) - scale(old.low)) / len(values)
    low, high = inverse(values.min() - room), inverse(values.max() + room)
    return Range(max(old.low, float(low)), min(old.high, float(high)), old.log)


class Search(NamedTuple):
    """The result of a search.

    Attributes:
      points: All points that were tried, arrays of shape `[rounds * count]` by name.
      scores: Score of each point, `[rounds * count]`.
      best: The point with the lowest score, scalars by name. NaN if all scores are NaN.
      spaces: The space of each round.
    """

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
    before span, see `narrow`. `f` is compiled once and mapped over the points of a round.

    Args:
      f: Pure function of one point, scalars by name, that returns one score. Lower is better and
        NaN is worst. For example a function that calls `jaxgrad.training.fit`. If all scores of a
        round are NaN, the next round draws from the same ranges.
      space: Ranges by name.
      key: Key that draws the points.
      count: Number of points of a round, at least 2.
      rounds: Number of rounds, at least 1.
      keep: Share of the points of a round that count as best, see `narrow`.

    Raises:
      ValueError, TypeError: If an argument is out of range, before anything is compiled.
    """
    count = _validate.integer("count", count, 2)
    rounds = _validate.integer("rounds", rounds, 1)
    _names(space)
    _check_keep(keep)
    _validate.key("key", key)
    _validate.known("key", key, "search")
    # One program for all rounds: the points are its data.
    run = jax.jit(jax.vmap(f))
    spaces, points, scores = [space], [], []
    for index in range(rounds):
        points.append(draw(space, count, key=jax.random.fold_in(key, index)))
        if index == 0:  # an abstract evaluation, before anything is compiled
            _check_score(run.eval_shape(points[0]))
        scores.append(run(points[-1]))
        if index + 1 < rounds:
            # A round of NaN says nothing about where the best points are.
            failed = np.isnan(scores[-1]).all()
            space = space if failed else narrow(space, points[-1], scores[-1], keep=keep)
            spaces.append(space)
    all_points = jax.tree.map(lambda *parts: jnp.concatenate(parts), *points)
    all_scores = jnp.concatenate(scores)
    # NaN ranks behind every number.
    ranked = np.where(np.isnan(all_scores), np.inf, np.asarray(all_scores, np.float64))
    index = int(np.argmin(ranked))
    best = {name: values[index] for name, values in all_points.items()}
    if np.isnan(all_scores).all():
        best = {name: jnp.nan * value for name, value in best.items()}
    return Search(all_points, all_scores, best, tuple(spaces))


def _check_keep(keep):
    _validate.known("keep", keep, "search")
    _validate.scalar("keep", keep, minimum=0.0, above=True, maximum=1.0)


def _check_score(scores):
    if not isinstance(scores, jax.ShapeDtypeStruct) or scores.ndim != 1:
        shapes = jax.tree.map(lambda score: score.shape[1:], scores)
        raise ValueError(f"f must return one number, got shape {shapes}; reduce it to a scalar")


def _range(name, low, high, *, log):
    for end, value in (("low", low), ("high", high)):
        _validate.known(end, value, name)
        _validate.scalar(end, value)
    if low >= high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}; swap or correct them")
    if log and low <= 0:
        raise ValueError(
            f"low must be greater than 0 for {name}, got {low:g}; use uniform, or a small number"
        )
    return Range(float(low), float(high), log)


def _names(space):
    if not isinstance(space, Mapping) or not all(isinstance(r, Range) for r in space.values()):
        raise TypeError(
            f"space must map names to ranges, got {space!r}; make them with uniform or log_uniform"
        )
    if not space:
        raise ValueError("space must not be empty, got no ranges; give at least one")
    return list(space)


def _interpolate(interval, share):
    """The values at `share`, from 0 to 1, of the way from the low to the high end."""
    low, high, log = interval
    if log:
        value = jnp.exp(math.log(low) + (math.log(high) - math.log(low)) * share)
    else:
        value = low + (high - low) * share
    # Rounding may leave the range by a unit in the last place.
    return jnp.clip(value, low, high)
