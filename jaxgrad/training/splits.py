"""Split examples into train, dev and test sets, and test whether two sets have one distribution."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.training import normalization


def fractions(examples: int, *, dev: bool = True) -> tuple[float, ...]:
    """Return the usual sizes of train, dev and test set, as fractions of the number of examples.

    Up to 10,000 examples they are 60/20/20 %, at a million 98/1/1 %, and beyond a million
    99.5/0.25/0.25 %. Without a dev set they are 70/30 %, with the same test fraction as above from
    a million examples on. The source says nothing about sizes between 10,000 and a million. There
    each held-out fraction is a power of the number of examples.

    Source: A. Ng, Deep Learning Specialization, course 2, week 1, "Train / dev / test sets".

    >>> fractions(5_000), fractions(5_000, dev=False)
    ((0.6, 0.2, 0.2), (0.7, 0.3))
    >>> fractions(1_000_000), fractions(50_000_000)
    ((0.98, 0.01, 0.01), (0.995, 0.0025, 0.0025))
    """
    examples = _validate.integer("examples", examples, 1)
    _validate.flag("dev", dev)
    held_out, largest, smallest = (2, 0.2, 0.01) if dev else (1, 0.3, 0.01)
    position = math.log(max(examples, 10_000) / 10_000, 1_000_000 / 10_000)
    # Rounding makes both ends the decimals of the table.
    fraction = round(largest * (smallest / largest) ** position, 12) if position <= 1 else 0.0025
    return (round(1 - held_out * fraction, 12), *[fraction] * held_out)


def split(
    labels: ArrayLike, fractions: Sequence[float], *, key: PRNGKeyArray, classes: int | None = None
) -> tuple[Int[Array, " size"], ...]:
    """Draw disjoint random sets that together contain every example, as indices in random order.

    The size of a set is its fraction of the examples, rounded by largest remainders. With labels
    the split is stratified: the number of examples of a class in a set is the set's fraction of the
    class, rounded up or down, if all these products are at least 1. Otherwise the difference may
    be larger, because every set gets at least one example of every class. The function can be
    mapped over keys, with labels that are closed over.

    Args:
      labels: Class of each example, whole numbers `[examples]`, not traced; or the number of
        examples, to split them without regard to classes.
      fractions: Fraction of each set, two or more numbers above 0 with sum 1; see `fractions`.
      classes: Number of classes, with labels from 0; by default the largest label plus one.

    Raises:
      ValueError: If a set or a class would be too small for one example of each class in each set.

    >>> labels = jnp.asarray([0] * 6 + [1] * 4)
    >>> train, test = split(labels, (0.5, 0.5), key=jax.random.key(0))
    >>> sorted(labels[train].tolist()), sorted(labels[test].tolist())
    ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
    """
    _validate.key("key", key)
    _validate.known("fractions", fractions, "split")
    shares = _validate.vector("fractions", fractions, length=2, axes="[sets]")
    _validate.numbers("fractions", shares, minimum=0.0, above=True)
    if abs(shares.sum() - 1) > 1e-6:
        got = f"got {shares.tolist()} with sum {shares.sum():g}"
        raise ValueError(f"fractions must sum to 1, {got}; divide them by their sum")
    shares = shares / shares.sum()
    if np.ndim(labels) == 0:
        if classes is not None:
            got = f"got {classes}; pass the class of each example"
            raise ValueError(f"classes must be None where labels is a number, {got}")
        labels, classes = np.zeros(_validate.integer("labels", labels, 1), np.int64), 1
    labels, class_sizes = _checked_labels(labels, classes)
    set_sizes = _set_sizes(len(labels), shares)
    _check_sizes(set_sizes, class_sizes, shares)
    counts = _class_counts(class_sizes, set_sizes, shares)
    # Positions in a list of the examples ordered by class: which set each one goes to.
    target = np.repeat(np.tile(np.arange(len(shares)), len(class_sizes)), counts.ravel())
    positions = tuple(np.flatnonzero(target == s) for s in range(len(shares)))
    return _draw(key, jnp.asarray(labels, jnp.int32), positions)


def _checked_labels(labels: Any, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the number of examples of each class."""
    if _validate.is_traced(labels):
        remedy = "close over the labels, as the sizes of the classes decide shapes"
        raise TypeError(f"labels must be known while tracing, got a traced array; {remedy}")
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        remedy = "number the classes, for example with np.unique(labels, return_inverse=True)"
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}; {remedy}")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape [examples], got {labels.shape}; flatten them")
    largest = int(labels.max())
    classes = largest + 1 if classes is None else _validate.integer("classes", classes, 1)
    if labels.min() < 0 or largest >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        got = f"got {wrong} with {classes} classes"
        raise ValueError(f"labels must be from 0 to classes - 1, {got}; renumber the classes")
    return labels, np.bincount(labels, minlength=classes)


def _set_sizes(examples: int, shares: np.ndarray) -> np.ndarray:
    """Sizes of the sets, rounded by largest remainders."""
    exact = examples * shares
    # Rounding of the product must not turn a whole number into the one below.
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    up = np.argsort(-(exact - sizes), kind="stable")[: examples - sizes.sum()]
    sizes[up] += 1
    return sizes


def _check_sizes(set_sizes: np.ndarray, class_sizes: np.ndarray, shares: np.ndarray) -> None:
    sets, classes, examples = len(set_sizes), len(class_sizes), class_sizes.sum()
    smallest = int(np.argmin(class_sizes))
    if class_sizes[smallest] < sets:
        rule = f"have an example of each of the {classes} classes for each of the {sets} sets"
        got = f"got {class_sizes[smallest]} of class {smallest}"
        raise ValueError(f"labels must {rule}, {got}; add examples, or merge or renumber classes")
    smallest = int(np.argmin(set_sizes))
    if set_sizes[smallest] < classes:
        rule = f"leave no set empty, nor without one of the {classes} classes"
        got = f"got {set_sizes[smallest]} of {examples} examples for set {smallest}"
        raise ValueError(f"fractions must {rule}, {got}; raise {shares[smallest]:g}")


def _class_counts(class_sizes: np.ndarray, set_sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Number of examples of each class in each set, `[classes, sets]`.

    Rows sum to `class_sizes`, columns to `set_sizes`. The sets are filled one after the other. The
    examples that rounding down leaves over go one by one to the classes with the most left over,
    which finds a table with these sums wherever one exists (Gale 1957, Ryser 1957).
    """
    exact = class_sizes[:, None] * shares[None]
    down = np.floor(exact + 1e-9).astype(np.int64)
    # For each class: what rounding down leaves over, and what is not in any set yet.
    surplus, remaining = class_sizes - down.sum(axis=1), class_sizes.copy()
    counts = np.empty_like(down)
    for s, size in enumerate(set_sizes):
        # Leave one example of each class for each set that is still to come.
        most = remaining - (len(set_sizes) - 1 - s)
        count = np.clip(down[:, s], 1, most)
        while (missing := size - count.sum()) != 0:
            added, deficit = count - down[:, s], exact[:, s] - count
            if missing > 0:
                order, possible, step = np.lexsort((-deficit, -surplus, added)), count < most, 1
            else:
                order, possible, step = np.argsort(deficit), count > 1, -1
            count[order[possible[order]][0]] += step
        surplus, remaining = surplus - (count - down[:, s]), remaining - count
        counts[:, s] = count
    return counts


@jax.jit
def _draw(key, labels, positions):
    """The examples at the given positions of a random list that is ordered by class."""
    key, *keys = jax.random.split(key, 1 + len(positions))
    shuffled = jax.random.permutation(key, len(labels))
    # A stable sort keeps the random order within each class.
    by_class = shuffled[jnp.argsort(labels[shuffled], stable=True)].astype(jnp.int32)
    # A second permutation mixes the classes within each set.
    return tuple(
        jax.random.permutation(k, by_class[rows]) for k, rows in zip(keys, positions, strict=True)
    )


class Comparison(NamedTuple):
    """Distances between two sets and their p-values.

    `ks` is the Kolmogorov-Smirnov statistic of each feature, from 0 to 1, `feature_p_values` are
    adjusted for the number of features, and `energy` is the energy distance of all standardized
    features jointly, at least 0, with its `p_value`.
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
    distribution, the probability that *any* of them is below 0.05 is 0.05. The second test compares
    all features jointly and detects differences that no single feature shows, such as a different
    correlation. `same` combines both to a decision.

    Each set needs at least two examples, floating point and finite. To compare the classes too,
    append one-hot labels. Memory grows as the square of the number of examples.

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
    _validate.key("key", key)
    if first.shape[1] != second.shape[1]:
        rule = f"have the {first.shape[1]} features of first"
        raise ValueError(f"second must {rule}, got shape {second.shape}; compare the same features")
    count, other = len(first), len(second)
    # The statistics are whole numbers up to count * other and must fit int32.
    if min(count, other) < 2 or count * other >= 2**31:
        rule = f"have at least 2 examples each, and fewer than {2**31:,} pairs of them"
        raise ValueError(
            f"first and second must {rule}, got {count} and {other}; pass more or fewer"
        )
    return _compare(first, second, key, permutations)


def same(comparison: Comparison, *, level: Any = 0.05) -> Bool[Array, "*batch"]:
    """Decide whether two sets have one distribution, at a significance level.

    Two sets of one distribution are rejected with probability `level`, above 0, at most; each of
    the two tests gets half of it. To be able to reject, `compare` needs at least `2 / level`
    permutations. `level` may be traced.
    """
    _validate.instance("comparison", comparison, Comparison, "compare")
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

    ks, energy = statistics(jnp.arange(examples) < count)
    # Larger chunks are faster, and take more memory.
    chunk = min(permutations, max(1, 2**21 // (examples + features)))
    largest, energies = jax.lax.map(permuted, jax.random.split(key, permutations), batch_size=chunk)
    # The distance of the same two sets, summed in another order, differs by rounding.
    rounding = 10 * float(jnp.finfo(pooled.dtype).eps) * jnp.mean(jnp.abs(distances))
    counts = jnp.sum(largest[:, None] >= ks[None], axis=0), jnp.sum(energies >= energy - rounding)
    numbers = (ks / (count * other), *((1 + n) / (1 + permutations) for n in counts))
    ks, feature_p_values, p_value = (number.astype(pooled.dtype) for number in numbers)
    return Comparison(ks, feature_p_values, jnp.maximum(energy, 0.0), p_value)


def _ks_numerators(in_first, order, last, count, other):
    """Kolmogorov-Smirnov statistics times `count * other`: whole numbers, which compare exactly."""
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
    """A random subset of `count` of the examples, as booleans, faster than by sorting.

    Each example in turn is selected with probability (still needed) / (still to come), which makes
    all subsets equally likely (Knuth, The Art of Computer Programming, sec. 3.4.2, algorithm S).
    """

    def select(needed, inputs):
        uniform, to_come = inputs
        selected = uniform * to_come < needed
        return needed - selected.astype(jnp.int32), selected

    uniforms = jax.random.uniform(key, (examples,), jnp.float32)
    return jax.lax.scan(select, jnp.int32(count), (uniforms, jnp.arange(examples, 0, -1)))[1]


def _distances(pooled: Array) -> Array:
    """Euclidean distances of standardized examples, minus the means of their rows and columns."""
    scaled = normalization.apply(normalization.fit(pooled), pooled)

    def row(x):
        return jnp.sqrt(jnp.sum(jnp.square(scaled - x[None]), axis=1))

    # As many rows at once as keep the differences of all pairs small.
    chunk = min(len(scaled), max(1, 2**21 // scaled.size))
    distances = jax.lax.map(row, scaled, batch_size=chunk)
    # These means cancel in an energy distance. Without them less precision is lost to rounding.
    means = jnp.mean(distances, axis=0)
    return distances - means[None] - means[:, None] + jnp.mean(means)
