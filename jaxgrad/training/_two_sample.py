"""Permutation tests of whether two sets of examples have one distribution."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.training import normalization


class Comparison(NamedTuple):
    """Distances between two sets and their p-values.

    Attributes:
      ks: Kolmogorov-Smirnov statistic of each feature, from 0 to 1.
      feature_p_values: p-value of each feature, adjusted for the number of features.
      energy: Energy distance of all features jointly, each standardized, at least 0.
      p_value: p-value of the energy distance.
    """

    ks: Float[Array, " features"]
    feature_p_values: Float[Array, " features"]
    energy: Float[Array, ""]
    p_value: Float[Array, ""]


def compare(
    first: Float[ArrayLike, "examples features"],
    second: Float[ArrayLike, "others features"],
    *,
    key: PRNGKeyArray,
    permutations: int = 999,
) -> Comparison:
    """Test whether two sets, such as dev and test, may come from one distribution.

    Two tests assign the examples to the sets at random, again and again, and count how often the
    sets are then at least as far from each other as they are: `p = (1 + count) / (1 +
    permutations)`. The first test compares each feature and names those that differ. Its p-values
    are adjusted by the distribution of the largest statistic over all features: for sets of one
    distribution, the probability that *any* of them is below 0.05 is 0.05. A constant feature has
    the statistic 0. The second test compares all features jointly and detects differences that no
    single feature shows, such as a different correlation. `same` combines both to a decision.

    To compare the classes too, append one-hot labels to the features.

    Args:
      first: At least two examples, floating point and finite.
      second: As `first`, with the same features. All pairwise distances are stored, so memory grows
        as the square of the number of examples.
      key: Key that draws the permutations.
      permutations: Number of permutations, at least 1. The p-values are multiples of
        `1 / (1 + permutations)`.

    Source: Westfall, Young (1993), sec. 2.3 (maximum of the statistics); Székely, Rizzo (2013),
    eq. 5 and 6 (energy distance).

    >>> first = jax.random.normal(jax.random.key(1), (60, 3))
    >>> second = jax.random.normal(jax.random.key(2), (60, 3)).at[:, 1].add(1.5)
    >>> result = compare(first, second, key=jax.random.key(0))
    >>> (result.feature_p_values < 0.01).tolist(), bool(same(result))
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
    # The statistics are whole numbers up to count * other and must fit int32.
    if count * other >= 2**31:
        raise ValueError(
            f"first and second must have fewer than {2**31:,} pairs of examples, got {count} and "
            f"{other} examples; draw a subset of each"
        )
    return _compare(first, second, key, permutations)


def same(comparison: Comparison, *, level: Any = 0.05) -> Bool[Array, "*batch"]:
    """Decide whether two sets have one distribution, at a significance level.

    Two sets of one distribution are rejected with probability `level` at most. Each of the two
    tests of `compare` gets half of it. To be able to reject at all, `compare` needs at least
    `2 / level` permutations.

    Args:
      comparison: From `compare`.
      level: Greater than 0, at most 1, may be traced.

    Returns:
      Whether the sets pass as one distribution.
    """
    _validate.scalar("level", level, minimum=0.0, above=True, maximum=1.0)
    smallest = jnp.minimum(jnp.min(comparison.feature_p_values, axis=-1), comparison.p_value)
    return smallest > level / 2


@functools.partial(jax.jit, static_argnums=3)
def _compare(first, second, key, permutations):
    count, other = len(first), len(second)
    pooled = jnp.concatenate([first, second])
    examples, features = pooled.shape
    order = jnp.argsort(pooled, axis=0)
    ordered = jnp.take_along_axis(pooled, order, axis=0)
    # Distribution functions can be compared only after the last of several equal values.
    last = jnp.concatenate([ordered[1:] != ordered[:-1], jnp.ones((1, features), bool)])
    distances = _distances(pooled)

    def statistics(in_first):
        ks = _ks_numerators(in_first, order, last, count, other)
        # Energy distance: -w^T D w with w = 1/n in the first set and -1/m in the second.
        weights = jnp.where(in_first, 1 / count, -1 / other).astype(pooled.dtype)
        product = jnp.matmul(weights, distances, precision="highest")
        return ks, -jnp.dot(product, weights, precision="highest")

    def permuted(key):
        ks, energy = statistics(_random_subset(key, examples, count))
        return jnp.max(ks), energy

    # The sets as they are: the first rows of the pool.
    ks, energy = statistics(jnp.arange(examples) < count)
    # Larger chunks are faster, and take more memory.
    chunk = min(permutations, max(1, 2**21 // (examples + features)))
    largest, energies = jax.lax.map(permuted, jax.random.split(key, permutations), batch_size=chunk)
    # The distance of the same two sets, summed in another order, differs by rounding.
    rounding = 10 * float(jnp.finfo(pooled.dtype).eps) * jnp.mean(jnp.abs(distances))
    joint = jnp.sum(energies >= energy - rounding)
    by_feature = jnp.sum(largest[:, None] >= ks[None], axis=0)
    return Comparison(
        ks=(ks / (count * other)).astype(pooled.dtype),
        feature_p_values=((1 + by_feature) / (1 + permutations)).astype(pooled.dtype),
        energy=jnp.maximum(energy, 0.0),
        p_value=((1 + joint) / (1 + permutations)).astype(pooled.dtype),
    )


def _ks_numerators(in_first, order, last, count, other):
    """Kolmogorov-Smirnov statistic of each feature, times `count * other`.

    In whole numbers, so that equal statistics compare as equal.
    """
    steps = jnp.where(in_first, other, -count).astype(jnp.int32)

    def add(carry, inputs):
        difference, largest = carry
        rows, is_last = inputs
        difference = difference + steps[rows]
        return (difference, jnp.maximum(largest, jnp.where(is_last, jnp.abs(difference), 0))), None

    zeros = jnp.zeros(order.shape[1], jnp.int32)
    (_, largest), _ = jax.lax.scan(add, (zeros, zeros), (order, last))
    return largest


def _random_subset(key, examples, count):
    """A random subset of `count` of the examples, as booleans.

    Each example in turn is selected with probability (still needed) / (still to come), which makes
    all subsets equally likely (Knuth, The Art of Computer Programming, sec. 3.4.2, algorithm S).
    This is several times as fast as sorting.
    """

    def select(needed, inputs):
        uniform, to_come = inputs
        selected = uniform * to_come < needed
        return needed - selected.astype(jnp.int32), selected

    uniforms = jax.random.uniform(key, (examples,), jnp.float32)
    return jax.lax.scan(select, jnp.int32(count), (uniforms, jnp.arange(examples, 0, -1)))[1]


def _distances(pooled: Array) -> Array:
    """Euclidean distances of standardized examples, minus the means of their rows and columns.

    The means cancel in an energy distance. Without them less precision is lost to rounding.
    """
    scaled = normalization.apply(normalization.fit(pooled), pooled)

    def row(x):
        return jnp.sqrt(jnp.sum(jnp.square(scaled - x[None]), axis=1))

    # As many rows at once as keep the differences of all pairs small.
    chunk = max(1, 2**21 // scaled.size)
    distances = jax.lax.map(row, scaled, batch_size=min(len(scaled), chunk))
    means = jnp.mean(distances, axis=0)
    return distances - means[None] - means[:, None] + jnp.mean(means)
