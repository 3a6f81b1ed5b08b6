"""Where a wrong gradient is wrong: which elements, and in what way.

A leaf that was checked element by element shows it at once. A large one has been checked along
random directions only; `search` finds the wrong element from few more: directions that are masked
by each bit of the index along each axis. An error in one element is seen on one side of every mask,
an error in one row on one side of every mask of the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

AUTODIFF = "autodiff is "
SIGNS = np.array([-1, 1], np.float32)


class Location(NamedTuple):
    """Where the error is.

    Attributes:
      at: the worst element's index in the leaf's axes.
      axes: for each axis the only index that has errors, or `None`.
      alone: whether the error is at that element alone.
    """

    at: tuple[int, ...]
    axes: tuple[int | None, ...]
    alone: bool


def transforms(gradient: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Usual mistakes: (words, what the right gradient is if autodiff's is `gradient`)."""
    shape = gradient.shape
    if gradient.ndim == 2 and shape[0] == shape[1] and shape[0] > 1:
        yield "transposed", gradient.T
    if gradient.ndim == 2 and min(shape) > 1 and shape[0] != shape[1]:
        yield "transposed, then reshaped", gradient.reshape(shape[::-1]).T
    for axis, size in enumerate(shape):
        if size > 1:
            where = f" along axis {axis}" if len(shape) > 1 else ""
            yield f"reversed{where}", np.flip(gradient, axis)
            for shift in (1, -1) if size > 2 else (1,):
                yield f"shifted by one{where}", np.roll(gradient, shift, axis)


def factor_words(factor: float) -> str:
    """What a gradient is called that is `factor` times the right one."""
    if factor == 0:
        return "zero"
    if abs(factor + 1) < 1e-3:
        return "of the opposite sign"
    return f"{factor:.4g} times the numeric one"


def pattern(
    gradient: np.ndarray,
    seen: Callable[[np.ndarray], np.ndarray],
    numeric: np.ndarray,
    slack: np.ndarray,
) -> str:
    """A usual mistake that explains every number, in words, or "".

    Args:
      gradient: autodiff's, with the leaf's axes.
      seen: what a gradient would show: itself, flat, or its products with the directions, `[P]`.
      numeric, slack: the numeric derivatives and what may separate them, `[P]`.
    """
    fine = np.isfinite(numeric) & np.isfinite(slack)
    if fine.sum() < 2:
        return ""
    mine = seen(gradient)

    def explains(other):
        return bool(np.all(np.abs(other - numeric)[fine] <= slack[fine]))

    if not np.any(gradient):
        return AUTODIFF + factor_words(0)
    product = float(np.sum((mine * numeric)[fine]))
    square = float(np.sum(np.square(numeric[fine])))
    if square > 0 and product != 0:
        factor = product / square
        # A factor near one would explain anything that is nearly right.
        if abs(factor - 1) > 1e-4 and explains(mine / factor):
            return AUTODIFF + factor_words(factor)
    for words, other in transforms(gradient):
        for sign, with_sign in ((1, ""), (-1, " and of the opposite sign")):
            if not np.array_equal(other, gradient) and explains(sign * seen(other)):
                return AUTODIFF + words + with_sign
    return ""


def among(wrong: np.ndarray, error: np.ndarray) -> Location:
    """The location of errors that are known element by element; `wrong` has the leaf's axes."""
    worst = np.unravel_index(int(np.argmax(np.where(wrong, np.abs(error), -1.0))), wrong.shape)
    axes = []
    for axis in range(wrong.ndim):
        others = tuple(a for a in range(wrong.ndim) if a != axis)
        hit = np.flatnonzero(wrong.any(axis=others))
        axes.append(int(hit[0]) if len(hit) == 1 and wrong.shape[axis] > 1 else None)
    return Location(tuple(int(i) for i in worst), tuple(axes), int(wrong.sum()) == 1)


def search(
    shape: tuple[int, ...],
    error: Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]],
    generator: np.random.Generator,
    bases: int = 3,
) -> Location:
    """Find the wrong elements of a large leaf by masked random directions.

    Args:
      shape: the leaf's axes.
      error: from directions, each of the leaf's size, to how far autodiff is from the numeric
        derivative along each, and the error bar, `[P]` both.
      generator: of the random signs.
      bases: directions for each mask.

    Returns:
      `Location`; its `at` is a candidate that the caller has to check.
    """
    base = generator.choice(SIGNS, size=(bases, *shape))
    masks = []
    for axis, size in enumerate(shape):
        for bit in range(max(size - 1, 0).bit_length()):
            held = (np.arange(size) >> bit & 1).astype(np.float32)
            masks.append(
                (axis, bit, held.reshape([-1 if a == axis else 1 for a in range(len(shape))]))
            )
    directions = [b.ravel() for b in base]
    directions += [(b * mask).ravel() for _, _, mask in masks for b in base]
    found, bars = error(directions)
    whole, whole_bar = found[:bases], bars[:bases]
    inside, inside_bar = (a[bases:].reshape(-1, bases) for a in (found, bars))
    outside, outside_bar = whole - inside, whole_bar + inside_bar

    index = [0] * len(shape)
    single = [size > 1 for size in shape]
    for (axis, bit, _), one, one_bar, zero, zero_bar in zip(
        masks, inside, inside_bar, outside, outside_bar, strict=True
    ):
        index[axis] |= int(np.sum(one**2) > np.sum(zero**2)) << bit
        both = np.any(np.abs(one) > 2 * one_bar) and np.any(np.abs(zero) > 2 * zero_bar)
        neither = np.all(np.abs(one) <= one_bar) and np.all(np.abs(zero) <= zero_bar)
        if both or neither:
            single[axis] = False
    index = [min(i, size - 1) for i, size in zip(index, shape, strict=True)]
    axes = tuple(i if only else None for i, only in zip(index, single, strict=True))
    alone = all(only or size == 1 for only, size in zip(single, shape, strict=True))
    return Location(tuple(index), axes, alone)


def descend(
    size: int,
    error: Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]],
    generator: np.random.Generator,
    bases: int = 3,
    parts: int = 16,
) -> int:
    """An element with one of the largest errors: always on into the part with the most error.

    Args:
      size: of the leaf, flat.
      error, generator, bases: of `search`.
      parts: into how many a range is cut.
    """
    start, stop = 0, size
    while stop - start > 1:
        edges = np.unique(np.linspace(start, stop, parts + 1).astype(int))
        directions = []
        for first, last in itertools.pairwise(edges):
            for _ in range(bases):
                one = np.zeros(size, np.float32)
                # Not signs, under which two equal errors may cancel.
                one[first:last] = generator.standard_normal(last - first, np.float32)
                directions.append(one)
        found = error(directions)[0].reshape(-1, bases)
        largest = int(np.argmax(np.sum(found**2, axis=1)))
        start, stop = int(edges[largest]), int(edges[largest + 1])
    return start


def where_words(location: Location, shape: tuple[int, ...], count: int | None) -> str:
    """A location in words: an element, a row, a column, or how many elements."""
    if location.alone:
        return "one element"
    fixed = [(axis, i) for axis, i in enumerate(location.axes) if i is not None]
    if fixed and len(fixed) < len(shape):
        if len(shape) == 2:
            axis, i = fixed[0]
            return f"{'row' if axis == 0 else 'column'} {i}"
        return "slice [" + ", ".join(":" if i is None else str(i) for i in location.axes) + "]"
    size = int(np.prod(shape))
    if count is None:
        return "many elements"
    return "every element" if count == size else f"{count} of {size} elements"
