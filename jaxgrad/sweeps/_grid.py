"""The grid: its axes, the key and the values of each cell, and its division into chunks."""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from jaxgrad import _validate

# A rectangle of cells: the range of positions along each axis.
Block = tuple[slice, ...]


class Axis(NamedTuple):
    """One axis of the grid."""

    labels: list[Any]  # the values as Python numbers, strings or booleans
    ids: np.ndarray  # the numbers that are folded into the keys of cells
    traced: np.ndarray | None  # the values as data of a program; None: a program for each value


Grid = dict[str, Axis]


def cell_key(point: Mapping[str, Any], *, key: Key[Array, ""]) -> Key[Array, ""]:
    """Return the key that `run` passes to the cell at `point`, in any grid that contains it.

    One number is folded in for each axis, in alphabetical order of the axes. A whole number from 0
    to 2^32 - 1 is folded in itself, as `3` and `3.0` alike. Any other value is represented by the
    CRC-32 of its text.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool(cell_key({"seed": 3}, key=key) == jax.random.fold_in(key, 3))
    True
    """
    return fold_ids({name: np.uint32(_label_id(value)) for name, value in point.items()}, key=key)


def fold_ids(ids: Mapping[str, Any], *, key: Any) -> Any:
    """Fold the number of each axis into `key`, whatever the order of the axes."""
    for name in sorted(ids):
        key = jax.random.fold_in(key, ids[name])
    return key


def _label_id(value: Any) -> int:
    if not isinstance(value, (str, bool, np.bool_)):
        value = int(value) if value == int(value) else float(value)
        if isinstance(value, int) and 0 <= value < 2**32:
            return value
    return zlib.crc32(str(value).encode())


def make_grid(axes: Mapping[str, Any], static: Sequence[str]) -> Grid:
    """Check the axes of a sweep; the values of those in `static` are not traced."""
    grid = {name: _axis(name, values) for name, values in _validate.mapping("axes", axes).items()}
    for name in (static,) if isinstance(static, str) else static:
        _validate.choice("static", name, grid)
        grid[name] = grid[name]._replace(traced=None)
    return grid


def _axis(name: str, values: Any) -> Axis:
    name = f"axes[{name!r}]"
    labels = checked_labels(name, values)
    _validate.distinct(name, labels)
    ids = np.array([_label_id(label) for label in labels], np.uint32)
    exact = np.asarray(labels)
    if exact.dtype.kind not in "if":
        return Axis(labels, ids, None)
    # Programs compute in JAX's precision, in which the values must still differ.
    dtype = jax.dtypes.canonicalize_dtype(exact.dtype)
    with np.errstate(over="ignore"):
        traced = exact.astype(dtype)
    fits = np.isfinite(traced) if dtype.kind == "f" else traced == exact
    if not fits.all() or len(np.unique(traced)) < len(traced):
        remedy = "rescale it, or enter jax.enable_x64(True)"
        raise ValueError(f"{name} must stay finite and distinct as {dtype}, got {labels}; {remedy}")
    return Axis(labels, ids, traced)


def checked_labels(name: str, values: Any) -> list[Any]:
    """Return labels as Python values of one kind: all numbers, all strings or all booleans."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of values, got {values!r}; pass a list")
    labels: list[Any] = [v.item() if getattr(v, "ndim", None) == 0 else v for v in values]
    kinds = {"number" if type(v) in (int, float) else type(v).__name__ for v in labels}
    if len(kinds) > 1 or not kinds <= {"number", "str", "bool"}:
        rule = f"be all numbers, all strings or all booleans, got {sorted(kinds)}"
        remedy = "pass names, and look up in the function what they stand for"
        raise TypeError(f"{name} must {rule}; {remedy}")
    for v in labels if kinds == {"number"} else ():
        if not (math.isfinite(v) if isinstance(v, float) else abs(v) < 2**63):
            raise ValueError(f"{name} must be finite and fit 64 bits, got {v}; drop that value")
    return [float(v) for v in labels] if float in map(type, labels) else labels


def sizes(grid: Grid) -> tuple[int, ...]:
    """Return the shape of the grid."""
    return tuple(len(axis.labels) for axis in grid.values())


def static_values(grid: Grid, block: Block) -> tuple[tuple[str, Any], ...]:
    """Return names and values of the axes that are not traced, at the start of a block."""
    pairs = zip(grid.items(), block, strict=True)
    return tuple((name, a.labels[part.start]) for (name, a), part in pairs if a.traced is None)


def cell_inputs(grid: Grid, positions: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ids and the traced values at `positions`, one row for each axis."""
    rows = dict(zip(grid, positions, strict=True))
    traced = {n: axis.traced[rows[n]] for n, axis in grid.items() if axis.traced is not None}
    return {n: axis.ids[rows[n]] for n, axis in grid.items()}, traced


def chunk_shape(grid: Grid, cells: int) -> tuple[int, ...]:
    """Return the shape of chunks of at most `cells` consecutive cells.

    Trailing axes are whole, one axis is cut evenly, and the others have size 1, as have those that
    are not traced, so that one program computes a chunk.
    """
    shape = []
    for axis in reversed(list(grid.values())):
        size = len(axis.labels)
        # ceil(size / pieces), with as few pieces as the remaining cells allow.
        take = 1 if axis.traced is None else -(-size // -(-size // min(size, cells)))
        cells //= take
        shape.append(take)
    return tuple(reversed(shape))


def blocks(grid: Grid, chunk: Sequence[int]) -> Iterator[Block]:
    """Yield all chunks of the grid in row-major order; those at the end may be smaller."""
    shape = sizes(grid)
    starts = (range(0, size, step) for size, step in zip(shape, chunk, strict=True))
    for corner in itertools.product(*starts):
        ends = (min(a + step, size) for a, step, size in zip(corner, chunk, shape, strict=True))
        yield tuple(map(slice, corner, ends))
