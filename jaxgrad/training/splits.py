"""Split examples into train, dev and test sets, and test whether two sets have one distribution."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.training._two_sample import Comparison, compare, same

__all__ = ["Comparison", "compare", "fractions", "same", "split"]

_SMALL, _LARGE = 10_000, 1_000_000


def fractions(examples: int, *, dev: bool = True) -> tuple[float, ...]:
    """Return the usual sizes of train, dev and test set, as fractions of the examples.

    Up to 10,000 examples they are 60/20/20 %, at a million 98/1/1 %, and beyond a million
    99.5/0.25/0.25 %. Without a dev set they are 70/30 %, with the same test fraction as above from
    a million examples on. The sources say nothing about sizes between 10,000 and a million. There
    we interpolate: each held-out fraction is a power of the number of examples, a straight line on
    logarithmic axes.

    Args:
      examples: Number of examples, at least 1.
      dev: Whether there is a dev set.

    Returns:
      Fractions for `(train, dev, test)` or for `(train, test)`, which sum to 1.

    Source: A. Ng, Deep Learning Specialization, course 2, week 1, "Train / dev / test sets".

    >>> fractions(5_000), fractions(5_000, dev=False)
    ((0.6, 0.2, 0.2), (0.7, 0.3))
    >>> fractions(1_000_000), fractions(50_000_000)
    ((0.98, 0.01, 0.01), (0.995, 0.0025, 0.0025))
    """
    examples = _validate.integer("examples", examples, 1)
    held_out = 2 if dev else 1
    largest, smallest = 0.2 if dev else 0.3, 0.01
    if examples > _LARGE:
        fraction = 0.0025
    else:
        position = math.log(max(examples, _SMALL) / _SMALL) / math.log(_LARGE / _SMALL)
        # Rounding makes both ends the decimals of the table.
        fraction = round(largest * (smallest / largest) ** position, 12)
    return (round(1 - held_out * fraction, 12), *[fraction] * held_out)


def split(
    labels: ArrayLike,
    fractions: Sequence[float],
    *,
    key: PRNGKeyArray,
    classes: int | None = None,
) -> tuple[Int[Array, " size"], ...]:
    """Draw disjoint random sets that together contain every example.

    The size of a set is its fraction of the examples, rounded by largest remainders. With labels
    the split is stratified: the number of examples of a class in a set is the set's fraction of the
    class, rounded up or down, if all these products are at least 1. Otherwise the difference may
    be larger, because every set gets at least one example of every class.

    The sizes depend on the labels but not on the key, so this function can be jitted and mapped
    over keys with labels that are closed over.

    Args:
      labels: Class of each example, whole numbers `[examples]`, not traced; or the number of
        examples, to split them without regard to classes.
      fractions: Fraction of each set, two or more numbers above 0 with sum 1; see `fractions`.
      key: Key that draws the sets.
      classes: Number of classes; labels are from 0 to `classes - 1`. `None` takes the largest label
        plus one.

    Returns:
      The indices of the examples of each set, int32 `[size]`, in random order.

    Raises:
      ValueError, TypeError: If an argument is out of range, a set would have fewer examples than
        there are classes, or a class has fewer examples than there are sets.

    >>> labels = jnp.asarray([0] * 6 + [1] * 4)
    >>> train, test = split(labels, (0.5, 0.5), key=jax.random.key(0))
    >>> sorted(labels[train].tolist()), sorted(labels[test].tolist())
    ([0, 0, 0, 1, 1], [0, 0, 0, 1, 1])
    """
    shares = _checked_fractions(fractions)
    if np.ndim(labels) == 0:
        if classes is not None:
            raise ValueError(
                f"classes must be None where labels is a number of examples, got {classes}; pass "
                "the class of each example to stratify"
            )
        examples = _validate.integer("labels", labels, 1)
        labels, class_sizes = np.zeros(examples, np.int64), np.array([examples])
    else:
        labels, class_sizes = _checked_labels(labels, classes)
    set_sizes = _set_sizes(len(labels), shares)
    _check_sizes(set_sizes, class_sizes, shares)
    counts = _class_counts(class_sizes, set_sizes, shares)
    # Positions in a list of the examples ordered by class: which set each one goes to.
    target = np.repeat(np.tile(np.arange(len(shares)), len(class_sizes)), counts.ravel())
    positions = tuple(np.flatnonzero(target == s) for s in range(len(shares)))
    return _draw(key, jnp.asarray(labels, jnp.int32), positions)


def _checked_fractions(fractions: Any) -> np.ndarray:
    _validate.known("fractions", fractions, "split")
    shares = _validate.vector("fractions", fractions, length=2, axes="[sets]")
    _validate.numbers("fractions", shares, minimum=0.0, above=True)
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"fractions must sum to 1, got {shares.tolist()} with sum {shares.sum():g}; divide "
            "them by their sum"
        )
    return shares / shares.sum()


def _checked_labels(labels: Any, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and the number of examples of each class."""
    if _validate.is_traced(labels):
        raise TypeError(
            "labels must be known while tracing, because the sizes of the classes decide the "
            "shapes, got a traced array; close over the labels instead of passing them"
        )
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"labels must be whole numbers, got {labels.dtype}; number the classes, for example "
            "with np.unique(labels, return_inverse=True)"
        )
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape [examples], got {labels.shape}; flatten them")
    largest = int(labels.max())
    classes = largest + 1 if classes is None else _validate.integer("classes", classes, 1)
    if labels.min() < 0 or largest >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(
            f"labels must be from 0 to classes - 1, got {wrong} with {classes} classes; renumber "
            "the classes"
        )
    # Examples of each class, in the order of the labels.
    sizes = np.bincount(labels, minlength=classes)
    if (sizes == 0).any():
        raise ValueError(
            f"labels must have an example of each of the {classes} classes, got an empty class "
            f"{int(np.argmin(sizes))}; renumber the classes"
        )
    return labels, sizes


def _set_sizes(examples: int, shares: np.ndarray) -> np.ndarray:
    """Sizes of the sets, rounded by largest remainders."""
    exact = examples * shares
    # Rounding of the product must not turn a whole number into the one below.
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    up = np.argsort(-(exact - sizes), kind="stable")[: examples - sizes.sum()]
    sizes[up] += 1
    if sizes.min() == 0:
        smallest = int(np.argmin(sizes))
        raise ValueError(
            f"fractions must leave no set empty, got {shares[smallest]:g} of {examples} examples "
            f"for set {smallest}; raise this fraction"
        )
    return sizes


def _check_sizes(set_sizes: np.ndarray, class_sizes: np.ndarray, shares: np.ndarray) -> None:
    # Every set gets an example of every class.
    if min(set_sizes) < len(class_sizes):
        smallest = int(np.argmin(set_sizes))
        raise ValueError(
            f"fractions must leave each set an example of each of the {len(class_sizes)} classes, "
            f"got {set_sizes[smallest]} of {set_sizes.sum()} examples for set {smallest} of "
            f"fraction {shares[smallest]:g}; raise this fraction"
        )
    if min(class_sizes) < len(shares):
        smallest = int(np.argmin(class_sizes))
        raise ValueError(
            f"labels must have an example of each class for each of the {len(shares)} sets, got "
            f"{class_sizes[smallest]} of class {smallest}; add examples, or merge or drop this "
            "class"
        )


def _class_counts(class_sizes: np.ndarray, set_sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Number of examples of each class in each set, `[classes, sets]`.

    Rows sum to `class_sizes`, columns to `set_sizes`. The sets are filled one after the other. The
    examples that rounding down leaves over go to the classes with the most left over, which finds
    a table with these sums wherever one exists (Gale 1957, Ryser 1957).
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
            # One example at a time, to or from the class where it fits best.
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
