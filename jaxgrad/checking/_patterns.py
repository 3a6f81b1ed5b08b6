"""How a wrong gradient is wrong, in words: a usual mistake, or the place of the error."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Location(NamedTuple):
    """The place of an error within a leaf."""

    worst: tuple[int, ...]  # index of the worst element
    axes: tuple[int | None, ...]  # for each axis the only index with errors
    alone: bool  # whether the error is in that element alone


def usual_mistake(
    gradient: np.ndarray,
    project: Callable[[np.ndarray], np.ndarray],
    numeric: np.ndarray,
    slack: np.ndarray,
) -> str:
    """Return the usual mistake that explains every numeric derivative, in words, or "".

    The `gradient` by autodiff has the axes of the leaf. `project` maps a gradient to derivatives,
    which may differ from the `numeric` ones by the `slack`, all `[P]`.
    """
    known = np.isfinite(numeric) & np.isfinite(slack)
    if known.sum() < 2:
        return ""

    def explains(predicted):
        return bool(np.all(np.abs(predicted - numeric)[known] <= slack[known]))

    if not np.any(gradient):
        return scaled_by(0.0)
    projected = project(gradient)
    product = float(np.sum((projected * numeric)[known]))
    square = float(np.sum(np.square(numeric[known])))
    if square > 0 and product != 0:
        # The factor by least squares; one near 1 would explain anything that is nearly right.
        factor = product / square
        if abs(factor - 1) > 1e-4 and explains(projected / factor):
            return scaled_by(factor)
    for words, other in _rearrangements(gradient):
        for sign, with_sign in ((1, ""), (-1, " and of the opposite sign")):
            if not np.array_equal(other, gradient) and explains(sign * project(other)):
                return f"autodiff is {words}{with_sign}"
    return ""


def scaled_by(factor: float) -> str:
    """Describe a gradient that is `factor` times the right one."""
    if factor == 0:
        return "autodiff is zero"
    if abs(factor + 1) < 1e-3:
        return "autodiff is of the opposite sign"
    return f"autodiff is {factor:.4g} times the numeric one"


def _rearrangements(gradient: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a mistake in words and the right gradient if that mistake made it `gradient`."""
    shape = gradient.shape
    if gradient.ndim == 2 and shape[0] == shape[1] and shape[0] > 1:
        yield "transposed", gradient.T
    if gradient.ndim == 2 and min(shape) > 1 and shape[0] != shape[1]:
        yield "transposed, then reshaped", gradient.reshape(shape[::-1]).T
    for axis, size in enumerate(shape):
        if size > 1:
            along = f" along axis {axis}" if len(shape) > 1 else ""
            yield f"reversed{along}", np.flip(gradient, axis)
            for shift in (1, -1) if size > 2 else (1,):
                yield f"shifted by one{along}", np.roll(gradient, shift, axis)


def locate(wrong: np.ndarray, error: np.ndarray) -> Location:
    """Return the place of the errors of `wrong` elements; both have the axes of the leaf."""
    worst = np.unravel_index(int(np.argmax(np.where(wrong, np.abs(error), -1.0))), wrong.shape)
    axes = []
    for axis, size in enumerate(wrong.shape):
        others = tuple(i for i in range(wrong.ndim) if i != axis)
        indices = np.flatnonzero(wrong.any(axis=others))
        axes.append(int(indices[0]) if len(indices) == 1 and size > 1 else None)
    return Location(tuple(int(i) for i in worst), tuple(axes), int(wrong.sum()) == 1)


def wrong_in(location: Location, shape: tuple[int, ...], count: int | None) -> str:
    """Describe a location: an element, a row, a column, or `count` elements of the leaf."""
    if location.alone:
        return "wrong at one element"
    single = [(axis, index) for axis, index in enumerate(location.axes) if index is not None]
    if single and len(single) < len(shape):
        if len(shape) == 2:
            axis, index = single[0]
            return f"wrong at {'row' if axis == 0 else 'column'} {index}"
        indices = ", ".join(":" if index is None else str(index) for index in location.axes)
        return f"wrong at slice [{indices}]"
    if count is None:
        return "wrong at many elements"
    size = int(np.prod(shape))
    return "wrong at every element" if count == size else f"wrong at {count} of {size} elements"
