"""Search hyper-parameters: at random on the right scale, coarse to fine; a grid for comparison.

A space is a dictionary of ranges. Points are dictionaries of arrays, `[points]` each, so that a
training run that is a function of such a dictionary is mapped over all of them by `jax.vmap`: the
search compiles once.

>>> import jax, jax.numpy as jnp
>>> space = {"rate": log_uniform(1e-6, 10.0), "keep_prob": uniform(0.2, 1.0)}
>>> points = draw(jax.random.key(0), space, 100)
>>> sorted(points), points["rate"].shape
(['keep_prob', 'rate'], (100,))
>>> def error(point):
...     return (jnp.log10(point["rate"]) + 2) ** 2 + (point["keep_prob"] - 0.5) ** 2
>>> found = search(jax.random.key(0), error, space, count=50, rounds=3)
>>> {name: round(float(value), 2) for name, value in found.best.items()}
{'keep_prob': 0.51, 'rate': 0.01}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate


class Range(NamedTuple):
    """Where a hyper-parameter may lie.

    Attributes:
      low, high: its ends.
      log: whether to draw it evenly in the logarithm.
    """

    low: float
    high: float
    log: bool


Space = Mapping[str, Range]
Points = dict[str, jax.Array]


def uniform(low: float, high: float) -> Range:
    """For what does not multiply, such as `keep_prob`.

    Raises:
      ValueError, TypeError: if the ends are not finite numbers, the lower first.
    """
    return _checked("uniform", low, high, False)


def log_uniform(low: float, high: float) -> Range:
    """For what multiplies, such as a learning rate or the strength of a penalty.

    `log_uniform(1e-6, 10.0)` is the course notes' `10 ** uniform(-6, 1)`.

    Raises:
      ValueError, TypeError: if the ends are not finite numbers above 0, the lower first.
    """
    return _checked("log_uniform", low, high, True)


def draw(key: jax.Array, space: Space, count: int) -> Points:
    """Random points, each hyper-parameter independently on its scale.

    Args:
      key: PRNG key.
      space: ranges by name.
      count: number of points, at least 1.

    Returns:
      Arrays `[count]` by name.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Bergstra, Bengio (2012).
    """
    names = _names(space)
    count = _validate.integer("count", count, 1)
    keys = jax.random.split(key, len(names))
    return {
        name: _at(space[name], jax.random.uniform(k, (count,)))
        for name, k in zip(names, keys, strict=True)
    }


def grid(space: Space, counts: int | Mapping[str, int]) -> Points:
    """All combinations of evenly spaced values, the last name's fastest.

    Args:
      space: ranges by name.
      counts: values of each hyper-parameter, at least 1, or by name; a single one is in the middle.

    Returns:
      Arrays `[product of counts]` by name.

    Raises:
      ValueError, TypeError: if an argument is not as described.
    """
    names = _names(space)
    if isinstance(counts, Mapping) and set(counts) != set(names):
        raise ValueError(
            f"counts must have the names of space, {names}, got {sorted(counts)}; give one for each"
        )
    sizes = [counts[n] if isinstance(counts, Mapping) else counts for n in names]
    sizes = [_validate.integer("counts", size, 1) for size in sizes]
    values = [
        _at(space[name], jnp.linspace(0.0, 1.0, size) if size > 1 else jnp.full(1, 0.5))
        for name, size in zip(names, sizes, strict=True)
    ]
    combined = jnp.meshgrid(*values, indexing="ij")
    return {name: value.ravel() for name, value in zip(names, combined, strict=True)}


def narrow(space: Space, points: Points, scores: Any, keep: float = 0.2) -> dict[str, Range]:
    """The ranges that the best points span, with half a step of room on each side.

    A step is the range over the number of points kept, on the range's own scale. The new range
    stays within the old one.

    Args:
      space: where the points were drawn.
      points: from `draw` or `grid`.
      scores: `[points]`, lower is better; NaN is worst.
      keep: share of points that count as best, above 0, at most 1; two at least.

    Returns:
      A space of the same names.

    Raises:
      ValueError, TypeError: if an argument is not as described, or no score is a number.
    """
    names = _names(space)
    _check_keep(keep)
    if any(_validate.is_traced(leaf) for leaf in jax.tree.leaves((points, scores))):
        raise TypeError(
            "scores and points must be known numbers, got traced arrays; narrow outside of jax.jit"
        )
    scores = np.asarray(scores, np.float64)
    sizes = {name: np.shape(points[name]) if name in points else None for name in names}
    if any(size != scores.shape for size in sizes.values()) or scores.ndim != 1:
        raise ValueError(
            f"points must have one value of each of {names} for each of scores, of shape "
            f"{scores.shape}, got shapes {sizes}; pass the points that were scored"
        )
    known = np.count_nonzero(~np.isnan(scores))
    if known == 0:
        raise ValueError(
            "scores must have a number, got NaN for all points; search where runs do not diverge"
        )
    count = min(known, max(2, math.ceil(keep * len(scores))))
    best = np.argsort(scores, kind="stable")[:count]
    narrowed = {}
    for name in names:
        low, high, log = space[name]
        scale, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
        values = scale(np.asarray(points[name], np.float64)[best])
        room = 0.5 * (scale(high) - scale(low)) / count
        ends = back(values.min() - room), back(values.max() + room)
        narrowed[name] = Range(max(low, float(ends[0])), min(high, float(ends[1])), log)
    return narrowed


class Search(NamedTuple):
    """What a search has found.

    Attributes:
      points: all that were tried, arrays `[rounds * count]` by name.
      scores: of each, `[rounds * count]`.
      best: the point of the lowest score, numbers by name; NaN if no score is a number.
      spaces: where each round drew its points.
    """

    points: Points
    scores: jax.Array
    best: dict[str, jax.Array]
    spaces: tuple[Space, ...]


def search(
    key: jax.Array,
    evaluate: Callable[[dict[str, jax.Array]], jax.Array],
    space: Space,
    *,
    count: int,
    rounds: int = 1,
    keep: float = 0.2,
) -> Search:
    """Draw points at random, then again where the best of a round lie: coarse to fine.

    All rounds run the same compiled program, which maps `evaluate` over the points.

    Args:
      key: PRNG key of the points.
      evaluate: from numbers by name to a score, lower is better; NaN is worst, and after a round of
        nothing else the next one searches the same ranges. A pure function, for example of
        `jaxgrad.training.fit`.
      space: ranges by name.
      count: points of a round, at least 2.
      rounds: how often to draw, at least 1.
      keep: see `narrow`.

    Returns:
      `Search`.

    Raises:
      ValueError, TypeError: if an argument is not as described, before anything is compiled.
    """
    count = _validate.integer("count", count, 2)
    rounds = _validate.integer("rounds", rounds, 1)
    _names(space)
    _check_keep(keep)
    _validate.key("key", key)
    if _validate.is_traced(key):
        raise TypeError("key must be known, got a traced key; call search outside of jax.jit")
    run = jax.jit(jax.vmap(evaluate))
    spaces, tried, scores = [space], [], []
    for i in range(rounds):
        points = draw(jax.random.fold_in(key, i), spaces[-1], count)
        if i == 0:
            _check_score(run.eval_shape(points))
        found = run(points)
        tried.append(points)
        scores.append(found)
        if i + 1 < rounds:
            known = not np.isnan(found).all()
            spaces.append(narrow(spaces[-1], points, found, keep) if known else spaces[-1])
    points = jax.tree.map(lambda *parts: jnp.concatenate(parts), *tried)
    together = jnp.concatenate(scores)
    ranked = np.asarray(together, np.float64)
    at = int(np.argmin(np.where(np.isnan(ranked), np.inf, ranked)))
    known = not np.isnan(ranked).all()
    best = {name: values[at] if known else jnp.nan * values[at] for name, values in points.items()}
    return Search(points, together, best, tuple(spaces))


def _check_keep(keep):
    _validate.scalar("keep", keep, minimum=0.0, above=True)
    if _validate.is_traced(keep):
        raise TypeError("keep must be a known number, got a traced array; pass a float")
    if keep > 1:
        raise ValueError(f"keep must be at most 1, got {keep:g}; it is a share of the points")


def _check_score(scores):
    if not isinstance(scores, jax.ShapeDtypeStruct) or scores.ndim != 1:
        shapes = jax.tree.map(lambda score: score.shape[1:], scores)
        raise ValueError(f"evaluate must return one number, got shape {shapes}; reduce it")


def _checked(name, low, high, log):
    for end, value in (("low", low), ("high", high)):
        if _validate.is_traced(value):
            raise TypeError(
                f"{end} must be a known number, got a traced array; draw points outside of jax.jit"
            )
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


def _at(within, share):
    """The value at a share from 0 to 1 of the way from the low to the high end."""
    low, high, log = within
    if log:
        value = jnp.exp(math.log(low) + (math.log(high) - math.log(low)) * share)
    else:
        value = low + (high - low) * share
    return jnp.clip(value, low, high)
