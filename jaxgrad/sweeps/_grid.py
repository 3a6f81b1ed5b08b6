"""The grid: its axes, the key and the values of each cell, and its division into chunks."""

import hashlib
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxgrad import _validate

# A rectangle of cells: the range of positions along each axis.
Block = tuple[slice, ...]
CELL_IDS = "blake2b-64"
"""How labels become numbers: of new sweeps; those of 0.1 had "crc32"."""


class Axis(NamedTuple):
    """One axis of the grid."""

    labels: list[Any]  # the values as Python numbers, strings or booleans
    ids: np.ndarray  # the numbers that are folded into the keys of cells, `[labels, 1 or 3]`
    traced: np.ndarray | None  # the values as data of a program; None: a program for each value


Grid = dict[str, Axis]


def cell_key(point: Mapping[str, Any], *, key: Key[Array, ""]) -> Key[Array, ""]:
    """Return the key that `run` passes to the cell at `point`, in any grid that contains it.

    The axes are folded in one after the other, in alphabetical order. A whole number from 0 to
    2^32 - 1 is folded in itself, as `3` and `3.0` alike. Of any other value, the upper and then the
    lower half of a 64-bit number are folded in: the BLAKE2b digest of its text, big-endian.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool(cell_key({"seed": 3}, key=key) == jax.random.fold_in(key, 3))
    True
    """
    _validate.key("key", key)
    point = _validate.mapping("point", point)
    point = {name: checked_labels(f"point[{name!r}]", [value])[0] for name, value in point.items()}
    ids = {name: _label_ids(name, [value], CELL_IDS)[0] for name, value in point.items()}
    return fold_ids(ids, key=key)


def fold_ids(ids: Mapping[str, Any], *, key: Any) -> Any:
    """Fold the numbers of each axis into `key`, whatever the order of the axes."""
    for name in sorted(ids):
        first, *more = ids[name]
        key = jax.random.fold_in(key, first)
        if more:
            # An axis may mix numbers that are folded in once with others that need two.
            twice, second = more
            key = jnp.where(twice, jax.random.fold_in(key, second), key)
    return key


def _label_ids(name: str, labels: Sequence[Any], cell_ids: str) -> np.ndarray:
    """Return the numbers of an axis, `[labels, 1]`, or `[labels, 3]` if some have 64 bits.

    The columns are the first number, whether there is a second one, and the second one.
    """
    exact = np.asarray(labels)
    if exact.dtype.kind == "i" and exact.min() >= 0 and exact.max() < 2**32:
        return exact.astype(np.uint32)[:, None]
    numbers = (number for label in labels for number in _label_id(label, cell_ids))
    ids = np.fromiter(numbers, np.uint32, 3 * len(labels)).reshape(-1, 3)
    if not ids[:, 1].any():
        return ids[:, :1]
    unique, counts = np.unique(ids, axis=0, return_counts=True)
    if len(unique) < len(ids):
        same = np.flatnonzero((ids == unique[counts.argmax()]).all(axis=1))[:2]
        clash = " and ".join(repr(labels[i]) for i in same)
        raise ValueError(f"{name} must have labels of different hashes, got {clash}; rename one")
    return ids


def _label_id(value: Any, cell_ids: str) -> tuple[int, int, int]:
    if not isinstance(value, (str, bool, np.bool_)):
        value = int(value) if value == int(value) else float(value)
        if isinstance(value, int) and 0 <= value < 2**32:
            return value, 0, 0
    text = str(value).encode()
    if cell_ids == "crc32":
        return zlib.crc32(text), 0, 0
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest[:4]), 1, int.from_bytes(digest[4:])


def make_grid(axes: Mapping[str, Any], static: Sequence[str], cell_ids: str) -> Grid:
    """Check the axes of a sweep; the values of those in `static` are not traced."""
    axes = _validate.mapping("axes", axes)
    grid = {name: _axis(name, values, cell_ids) for name, values in axes.items()}
    if not isinstance(static, Iterable):
        got = f"got {_validate.show(static)}; pass a tuple of them"
        raise TypeError(f"static must be names of axes, {got}")
    names = [static] if isinstance(static, str) else list(static)
    for name in names:
        _validate.choice("static", name, grid)
        if names.count(name) > 1:
            raise ValueError(f"static must not repeat a name, got {names}; drop the repeats")
        grid[name] = grid[name]._replace(traced=None)
    return grid


def _axis(name: str, values: Any, cell_ids: str) -> Axis:
    name = f"axes[{name!r}]"
    labels = checked_labels(name, values)
    _validate.distinct(name, labels)
    ids = _label_ids(name, labels, cell_ids)
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
    # NumPy's scalars have a method for iteration, which fails.
    single = isinstance(values, (str, bytes, Mapping)) or getattr(values, "ndim", 1) == 0
    if single or not isinstance(values, Iterable):
        got = f"got {_validate.show(values)}; pass a list"
        raise TypeError(f"{name} must be a sequence of values, {got}")
    labels: list[Any] = list(map(_plain_label, values))
    kinds = {"number" if type(v) in (int, float) else type(v).__name__ for v in labels}
    if len(kinds) > 1 or not kinds <= {"number", "str", "bool"}:
        rule = f"be all numbers, all strings or all booleans, got {sorted(kinds)}"
        remedy = "pass names, and look up in the function what they stand for"
        raise TypeError(f"{name} must {rule}; {remedy}")
    for v in labels if kinds == {"str"} else ():
        # NumPy drops NUL at the end of a text, and files are written in UTF-8.
        if "\0" in v or any("\ud800" <= letter <= "\udfff" for letter in v):
            rule = f"{name} must be texts without NUL that can be written in UTF-8"
            raise ValueError(f"{rule}, got {v!r}; rename it")
    for v in labels if kinds == {"number"} else ():
        if not (math.isfinite(v) if isinstance(v, float) else abs(v) < 2**63):
            raise ValueError(f"{name} must be finite and fit 64 bits, got {v}; drop that value")
    return [float(v) for v in labels] if float in map(type, labels) else labels


def _plain_label(value: Any) -> Any:
    """Return a number of NumPy or JAX as one of Python."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    single = kind in "biufcSU" and kind and value.ndim == 0
    return value.item() if single and value is not np.ma.masked else value


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


class Chunks(NamedTuple):
    """The division of a grid into blocks, which are numbered in row-major order."""

    shape: tuple[int, ...]  # of the grid
    chunk: tuple[int, ...]  # of a block; those at the ends may be smaller

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.chunk, strict=True))

    @property
    def total(self) -> int:
        """Number of blocks."""
        return math.prod(self.counts)

    def position(self, number: int) -> tuple[int, ...]:
        """Return the position of a block along each axis."""
        return tuple(map(int, np.unravel_index(number, self.counts)))

    def block(self, number: int) -> Block:
        """Return the cells of a block."""
        starts = [i * step for i, step in zip(self.position(number), self.chunk, strict=True)]
        ends = map(min, [a + step for a, step in zip(starts, self.chunk, strict=True)], self.shape)
        return tuple(map(slice, starts, ends))

    def complete(self, computed: np.ndarray) -> np.ndarray:
        """Return whether all cells of each block are computed, in the order of the blocks."""
        for axis, (size, step) in enumerate(zip(self.shape, self.chunk, strict=True)):
            computed = np.logical_and.reduceat(computed, range(0, size, step), axis)
        return computed.ravel()


def block_shape(block: Block) -> tuple[int, ...]:
    """Return the number of cells along each axis of a block."""
    return tuple(part.stop - part.start for part in block)


def block_positions(block: Block, start: int, stop: int) -> np.ndarray:
    """Return positions along each axis of the cells `start` to `stop` of a block, `[axis, cell]`.

    Cells after the last one are copies of it, so that a batch can be filled up.
    """
    shape = block_shape(block)
    numbers = np.minimum(np.arange(start, stop), math.prod(shape) - 1)
    starts = np.array([part.start for part in block])
    return np.array(np.unravel_index(numbers, shape)) + starts[:, None]


def programs(grid: Grid, chunks: Chunks, numbers: np.ndarray) -> list[np.ndarray]:
    """Group the numbers of blocks by the values that are not traced: one program each."""
    static = [i for i, axis in enumerate(grid.values()) if axis.traced is None]
    # Such axes are cut into single values, so that a block's position is a value's.
    index = np.array(np.unravel_index(numbers, chunks.counts))[static]
    counts = [chunks.counts[i] for i in static]
    group = np.zeros_like(numbers)
    if static:
        group = np.asarray(np.ravel_multi_index(list(index), counts))
    return [numbers[group == value] for value in dict.fromkeys(group.tolist())]
