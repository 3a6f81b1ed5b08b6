"""Split examples into train, dev and test sets; do two sets follow one distribution?"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _validate

_SMALL, _LARGE = 10_000, 1_000_000


class Comparison(NamedTuple):
    """How far two sets lie apart, and how often chance alone would part them as far.

    Attributes:
      ks: Kolmogorov-Smirnov statistic of each feature, `[features]`, from 0 to 1.
      feature_p_values: of each feature, `[features]`, adjusted for their number.
      energy: energy distance of all features jointly, each standardized, at least 0.
      p_value: of the energy distance.
    """

    ks: jax.Array
    feature_p_values: jax.Array
    energy: jax.Array
    p_value: jax.Array


def fractions(examples: int, dev: bool = True) -> tuple[float, ...]:
    """Usual shares of train, dev and test set for a number of examples.

    Up to 10,000 examples 60/20/20 %, at a million 98/1/1 %, beyond it 99.5/0.25/0.25 %. Without a
    dev set 70/30 %, and the test set's share where there are a million or more. Texts leave open
    what holds between 10,000 and a million; there the share of each held-out set is a power of the
    number of examples, a straight line on logarithmic axes, which is our choice.

    Args:
      examples: how many there are, at least 1.
      dev: whether there is a dev set.

    Returns:
      Shares of `(train, dev, test)`, or of `(train, test)`, that sum to 1.

    Raises:
      ValueError, TypeError: if `examples` is no whole number of at least 1.

    Source: A. Ng, Deep Learning Specialization, course 2, week 1, "Train / dev / test sets".

    >>> fractions(5_000), fractions(5_000, dev=False)
    ((0.6, 0.2, 0.2), (0.7, 0.3))
    >>> fractions(1_000_000), fractions(50_000_000)
    ((0.98, 0.01, 0.01), (0.995, 0.0025, 0.0025))
    """
    examples = _validate.integer("examples", examples, 1)
    held_out = 2 if dev else 1
    most, least = 0.2 if dev else 0.3, 0.01
    if examples > _LARGE:
        share = 0.0025
    else:
        way = math.log(max(examples, _SMALL) / _SMALL) / math.log(_LARGE / _SMALL)
        # Rounded so that the ends are the decimals of the table.
        share = round(most * (least / most) ** way, 12)
    return (round(1 - held_out * share, 12), *[share] * held_out)


def split(
    key: jax.Array,
    labels_or_count: ArrayLike,
    fractions: Sequence[float],
    *,
    classes: int | None = None,
) -> tuple[jax.Array, ...]:
    """Indices of disjoint random sets that together hold every example.

    Given labels, every class has its share in every set: class size times fraction to within one
    example, where no such share is less than one. Where one is, it may be further off, since each
    class has an example in each set.
    The sizes of the sets are examples times fraction, rounded by the largest remainders.

    The sizes depend on the labels alone and not on the key, so `jax.jit` and `jax.vmap` over keys
    work with labels that are closed over.

    Args:
      key: of the draw.
      labels_or_count: labels, whole numbers `[examples]`, known while tracing; or how many examples
        there are, to split them without regard to class.
      fractions: share of each set, two or more, above 0, that sum to 1; see `fractions`.
      classes: how many classes there are, labels run from 0 to `classes - 1`; `None` for the
        largest label plus one.

    Returns:
      For each set its members, int32 `[size]`, in random order.

    Raises:
      ValueError, TypeError: if an argument is not as described, a set would be empty or have fewer
        examples than there are classes, or a class has fewer examples than there are sets.

    >>> labels = jnp.asarray([0] * 6 + [1] * 4)
    >>> train, test = split(jax.random.key(0), labels, (0.5, 0.5))
    >>> sorted(labels[train].tolist()), sorted(labels[test].tolist())
    ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
    """
    shares = _checked_fractions(fractions)
    if np.ndim(labels_or_count) == 0:
        if classes is not None:
            raise ValueError(
                f"classes must be None where only a number of examples is given, got {classes}; "
                "pass labels to split by class"
            )
        examples = _validate.integer("labels_or_count", labels_or_count, 1)
        labels, sizes = np.zeros(examples, np.int64), np.array([examples])
    else:
        labels, sizes = _checked_labels(labels_or_count, classes)
    totals = _set_sizes(len(labels), shares)
    if min(totals) < len(sizes):
        at = int(np.argmin(totals))
        raise ValueError(
            f"fractions must leave each set an example of each of the {len(sizes)} classes, got "
            f"{totals[at]} of {len(labels)} examples for set {at} of fraction {shares[at]:g}; "
            "raise this fraction"
        )
    if min(sizes) < len(shares):
        at = int(np.argmin(sizes))
        raise ValueError(
            f"labels must have an example of each class for each of the {len(shares)} sets, got "
            f"{sizes[at]} of class {at}; add examples, or join or leave out this class"
        )
    counts = _class_counts(sizes, totals, shares)
    owner = np.repeat(np.tile(np.arange(len(shares)), len(sizes)), counts.ravel())
    positions = tuple(np.flatnonzero(owner == s) for s in range(len(shares)))
    return _drawn(key, jnp.asarray(labels, jnp.int32), positions)


def compare(
    key: jax.Array, first: ArrayLike, second: ArrayLike, permutations: int = 999
) -> Comparison:
    """Test whether two sets, such as dev and test, may come from one distribution.

    Both tests redistribute the examples to the sets at random and count how often they then lie as
    far apart: `p = (1 + count) / (1 + permutations)`. One looks at each feature by itself and names
    those that differ; its p-values are adjusted by the distribution of the largest statistic of all
    features, so that with equal sets *any* of them lies below 0.05 with probability 0.05. A feature
    that does not vary gets the statistic 0. The other looks at all features jointly and notices
    what no single feature shows, such as another correlation. See `same` for a decision.

    Classes can be compared too: append the one-hot labels to the features.

    Args:
      key: of the permutations.
      first, second: `[examples, features]`, floating point, finite, at least two examples each. All
        distances are kept: memory grows as the square of the number of examples.
      permutations: how many, at least 1; p-values are multiples of `1 / (1 + permutations)`.

    Returns:
      `Comparison`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Westfall, Young (1993), sec. 2.3 (maximum of the statistics); Székely, Rizzo (2013),
    eq. 5 and 6 (energy distance).

    >>> first = jax.random.normal(jax.random.key(1), (60, 3))
    >>> second = jax.random.normal(jax.random.key(2), (60, 3)).at[:, 1].add(1.5)
    >>> found = compare(jax.random.key(0), first, second)
    >>> (found.feature_p_values < 0.01).tolist(), bool(same(found))
    ([False, True, False], False)
    """
    first = _validate.floating("first", first, 2, "[examples, features]")
    second = _validate.floating("second", second, 2, "[examples, features]")
    permutations = _validate.integer("permutations", permutations, 1)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"second must have the {first.shape[1]} features of first, got shape {second.shape}; "
            "compare the same features"
        )
    count, other = len(first), len(second)
    if min(count, other) < 2:
        raise ValueError(
            f"first and second must have at least 2 examples each, got {count} and {other}; "
            "pass larger sets"
        )
    if count * other >= 2**31:
        raise ValueError(
            f"first and second must have fewer than {2**31:,} pairs of examples, got {count} and "
            f"{other} examples; draw a subset of each"
        )
    return _compared(key, first, second, permutations)


def same(comparison: Comparison, level: Any = 0.05) -> jax.Array:
    """Whether two sets pass as one distribution at a level.

    Two sets of one distribution fail with probability `level` at most: each of the two tests, of
    single features and of all jointly, has half of it. To fail at all, `compare` needs at least
    `2 / level` permutations.

    Args:
      comparison: of `compare`.
      level: above 0, at most 1, may be traced.

    Returns:
      A boolean array of shape `[]`.

    Raises:
      ValueError, TypeError: if `level` is not as described.
    """
    _validate.scalar("level", level, minimum=0.0, above=True)
    if not _validate.is_traced(level) and level > 1:
        raise ValueError(f"level must be at most 1, got {level}; it is a probability")
    smallest = jnp.minimum(jnp.min(comparison.feature_p_values, axis=-1), comparison.p_value)
    return smallest > level / 2


def _checked_fractions(fractions: Any) -> np.ndarray:
    try:
        shares = np.asarray(fractions, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"fractions must be numbers that are known while tracing, got {fractions!r}; pass "
            "Python floats"
        ) from None
    if shares.ndim != 1 or len(shares) < 2:
        raise ValueError(
            f"fractions must be a sequence of two or more numbers, got shape {shares.shape}; pass "
            "one for each set, such as (0.6, 0.2, 0.2)"
        )
    _validate.numbers("fractions", shares, minimum=0.0, above=True)
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"fractions must sum to 1, got {shares.tolist()} of sum {shares.sum():g}; divide them "
            "by their sum"
        )
    return shares / shares.sum()


def _checked_labels(labels: Any, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The labels and how many examples each class has."""
    if _validate.is_traced(labels):
        raise TypeError(
            "labels must be known while tracing, since the classes' sizes decide which positions "
            "go to which set, got a traced array; close over them instead of passing them"
        )
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"labels must be whole numbers, got {labels.dtype}; number the classes, for example "
            "with np.unique(labels, return_inverse=True)"
        )
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape [examples], got {labels.shape}; flatten them")
    if classes is None:
        classes = int(labels.max()) + 1
    else:
        classes = _validate.integer("classes", classes, 1)
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(
            f"labels must be from 0 to classes - 1, got {wrong} with {classes} classes; renumber "
            "the classes"
        )
    sizes = np.bincount(labels, minlength=classes)
    if (sizes == 0).any():
        raise ValueError(
            f"labels must have an example of each of the {classes} classes, got an empty class "
            f"{int(np.argmin(sizes))}; renumber the classes"
        )
    return labels, sizes


def _set_sizes(examples: int, shares: np.ndarray) -> np.ndarray:
    """Sizes of the sets, rounded by the largest remainders."""
    wanted = examples * shares
    sizes = np.floor(wanted + 1e-9).astype(np.int64)
    up = np.argsort(-(wanted - sizes), kind="stable")[: examples - sizes.sum()]
    sizes[up] += 1
    if sizes.min() == 0:
        at = int(np.argmin(sizes))
        raise ValueError(
            f"fractions must leave no set empty, got {shares[at]:g} of {examples} examples for set "
            f"{at}; raise this fraction"
        )
    return sizes


def _class_counts(sizes: np.ndarray, totals: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many examples of each class each set gets, `[classes, sets]`.

    Rows sum to `sizes`, columns to `totals`. Set by set, what rounding down leaves over goes to the
    classes that have most left over, by which a table of zeros and ones is found wherever one with
    these sums exists (Gale 1957, Ryser 1957).
    """
    wanted = sizes[:, None] * shares[None]
    down = np.floor(wanted + 1e-9).astype(np.int64)
    loose, left = sizes - down.sum(axis=1), sizes.copy()
    counts = np.empty_like(down)
    for s, total in enumerate(totals):
        # One example for each set that is still to come.
        most = left - (len(totals) - 1 - s)
        count = np.clip(down[:, s], 1, most)
        while (missing := total - count.sum()) != 0:
            given, lacking = count - down[:, s], wanted[:, s] - count
            if missing > 0:
                ranked, room, step = np.lexsort((-lacking, -loose, given)), count < most, 1
            else:
                ranked, room, step = np.argsort(lacking), count > 1, -1
            count[ranked[room[ranked]][0]] += step
        loose, left, counts[:, s] = loose - (count - down[:, s]), left - count, count
    return counts


@jax.jit
def _drawn(key, labels, positions):
    """The sets whose members stand at the positions, once examples are ordered by class."""
    key, *keys = jax.random.split(key, 1 + len(positions))
    shuffled = jax.random.permutation(key, len(labels))
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)].astype(jnp.int32)
    # Drawn within classes, the members come class by class.
    return tuple(
        jax.random.permutation(k, by_class[at]) for k, at in zip(keys, positions, strict=True)
    )


@functools.partial(jax.jit, static_argnums=3)
def _compared(key, first, second, permutations):
    count, other = len(first), len(second)
    pooled = jnp.concatenate([first, second])
    examples, features = pooled.shape
    order = jnp.argsort(pooled, axis=0)
    ordered = jnp.take_along_axis(pooled, order, axis=0)
    # Distribution functions may be compared after the last of equal values only.
    last = jnp.concatenate([ordered[1:] != ordered[:-1], jnp.ones((1, features), bool)])
    distances = _distances(pooled)

    def statistics(of_first):
        # Whole numbers, so that equal statistics compare as equal.
        steps = jnp.where(of_first, other, -count).astype(jnp.int32)

        def add(carry, at):
            ahead, most = carry
            chosen, compared = at
            ahead = ahead + steps[chosen]
            return (ahead, jnp.maximum(most, jnp.where(compared, jnp.abs(ahead), 0))), None

        zeros = jnp.zeros(features, jnp.int32)
        (_, apart), _ = jax.lax.scan(add, (zeros, zeros), (order, last))
        weights = jnp.where(of_first, 1 / count, -1 / other).astype(pooled.dtype)
        product = jnp.matmul(weights, distances, precision="highest")
        return apart, -jnp.dot(product, weights, precision="highest")

    def permuted(key):
        apart, energy = statistics(_random_subset(key, examples, count))
        return jnp.max(apart), energy

    apart, energy = statistics(jnp.arange(examples) < count)
    chunk = min(permutations, max(1, 2**21 // (examples + features)))
    largest, energies = jax.lax.map(permuted, jax.random.split(key, permutations), batch_size=chunk)
    # The same sets, summed up in another order, are as far apart.
    rounding = 10 * float(jnp.finfo(pooled.dtype).eps) * jnp.mean(jnp.abs(distances))
    reached = energies >= energy - rounding
    exceeded = jnp.sum(largest[:, None] >= apart[None], axis=0)
    return Comparison(
        ks=(apart / (count * other)).astype(pooled.dtype),
        feature_p_values=((1 + exceeded) / (1 + permutations)).astype(pooled.dtype),
        energy=jnp.maximum(energy, 0.0),
        p_value=((1 + jnp.sum(reached)) / (1 + permutations)).astype(pooled.dtype),
    )


def _random_subset(key, examples, count):
    """Which of the examples are in a random subset of `count`, as booleans.

    Each in turn with probability (still wanted) / (still to come), which gives every subset the
    same probability (Knuth, The Art of Computer Programming, sec. 3.4.2, algorithm S), and is
    several times as fast as sorting.
    """

    def choose(wanted, at):
        draw, to_come = at
        chosen = draw * to_come < wanted
        return wanted - chosen.astype(jnp.int32), chosen

    draws = jax.random.uniform(key, (examples,), jnp.float32)
    return jax.lax.scan(choose, jnp.int32(count), (draws, jnp.arange(examples, 0, -1)))[1]


def _distances(pooled: jax.Array) -> jax.Array:
    """Euclidean distances of standardized examples, less the means of their rows and columns.

    Without the means, which cancel in an energy distance, much less is lost to rounding.
    """
    spread = jnp.std(pooled, axis=0)
    noise = 4 * jnp.finfo(pooled.dtype).eps * jnp.max(jnp.abs(pooled), axis=0)
    spread = jnp.where(spread > noise, spread, 1.0)
    scaled = (pooled - jnp.mean(pooled, axis=0)[None]) / spread[None]

    def row(x):
        return jnp.sqrt(jnp.sum(jnp.square(scaled - x[None]), axis=1))

    chunk = max(1, 2**21 // scaled.size)
    distances = jax.lax.map(row, scaled, batch_size=min(len(scaled), chunk))
    means = jnp.mean(distances, axis=0)
    return distances - means[None] - means[:, None] + jnp.mean(means)
