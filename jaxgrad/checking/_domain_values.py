"""Domains of arguments, and points of them where gradients tend to go wrong.

Points are drawn in the space of exponents, since a function of float32 has as many arguments below
1 as above, and among special numbers, ties and degenerate arrays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate

# How the elements of an array relate to each other, and how sizes are drawn.
STRUCTURES = ("free", "free", "scaled", "equal", "sparse", "two values", "one", "matrix")
SIZES = ("one", "one", "tens", "exponent", "exponent", "halves", "special")
SHARED = 0.15  # the share of points at which all arguments of a shape are equal


@dataclass(frozen=True)
class Interval:
    """All numbers of a type from `low` to `high`, both included, in arrays of a shape."""

    low: float = -math.inf
    high: float = math.inf
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.float32


def interval(
    low: float = -math.inf,
    high: float = math.inf,
    shape: Sequence[int] = (),
    dtype: Any = jnp.float32,
) -> Interval:
    """Return a domain for `check_domain`: arrays of finite numbers from `low` to `high`.

    >>> interval(0.0, 1.0, shape=(3,)).high
    1.0
    """
    dtype = _validate.dtype("dtype", dtype)
    for name, bound in (("low", low), ("high", high)):
        # Infinity stands for the largest number of the type.
        if not (isinstance(bound, float) and math.isinf(bound)):
            _validate.scalar(name, bound)
    largest = float(jnp.finfo(dtype).max)
    low, high = (min(max(float(bound), -largest), largest) for bound in (low, high))
    # Bounds that the type does not hold move into the interval.
    inside = [float(bound) for bound in np.array([low, high]).astype(dtype)]
    low = inside[0] if inside[0] >= low else float(next_number(np.array(low, dtype), 1))
    high = inside[1] if inside[1] <= high else float(next_number(np.array(high, dtype), -1))
    if not low <= high:
        raise ValueError(f"low must not exceed high, got low={low:g} and high={high:g}; swap them")
    return Interval(low, high, tuple(_validate.shape("shape", shape, 0)), dtype)


class Space(NamedTuple):
    """The domains of all arguments, flattened; points are lists of the leaves that vary."""

    structure: Any
    leaves: tuple[Any, ...]  # an `Interval`, or the value of a leaf that is fixed
    positions: tuple[int, ...]  # of the leaves that vary
    selected: tuple[bool, ...]  # whether these are differentiated

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The domains of the leaves that vary."""
        return tuple(self.leaves[i] for i in self.positions)

    @property
    def scalar(self) -> bool:
        """Whether a single number varies."""
        return len(self.positions) == 1 and self.intervals[0].shape == ()

    def arguments(self, point: Sequence[Any]) -> tuple[Any, ...]:
        """Return the arguments of the function at a point."""
        leaves = list(self.leaves)
        for i, value in zip(self.positions, point, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.structure, leaves)


def space(domains: tuple[Any, ...], argnums: Sequence[int] | None, dtype: Any = None) -> Space:
    """Flatten domains; floating-point leaves get `dtype` unless it is `None`."""
    leaves, positions, selected = [], [], []
    for index, domain in enumerate(domains):
        for leaf in jax.tree.leaves(domain):
            parsed = _parse(leaf, index, dtype)
            if isinstance(parsed, Interval):
                positions.append(len(leaves))
                selected.append(argnums is None or index in argnums)
            leaves.append(parsed)
    if not any(selected):
        raise TypeError(
            "domains must have a floating-point leaf to differentiate, got none; pass "
            "jax.ShapeDtypeStruct((), jnp.float32) or choose another argnums"
        )
    structure = jax.tree.structure(domains)
    return Space(structure, tuple(leaves), tuple(positions), tuple(selected))


def _parse(leaf: Any, index: int, dtype: Any) -> Any:
    if isinstance(leaf, Interval):
        return interval(leaf.low, leaf.high, leaf.shape, dtype or leaf.dtype)
    _validate.tree(f"domains[{index}]", leaf)
    shaped = isinstance(leaf, jax.ShapeDtypeStruct)
    kind = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise TypeError(
            f"domains[{index}] must be real, got {kind}; pass the real and the imaginary part as "
            "two arguments"
        )
    if 0 in np.shape(leaf):
        # Nothing of an empty leaf can vary.
        return np.zeros(np.shape(leaf), kind)
    if jnp.issubdtype(kind, jnp.floating):
        return interval(shape=np.shape(leaf), dtype=dtype or kind)
    if shaped:
        raise TypeError(
            f"domains[{index}] must be an example array for a leaf of {kind}, which is held fixed, "
            "got a ShapeDtypeStruct; pass an array"
        )
    return leaf


def next_number(values: np.ndarray, steps: int) -> np.ndarray:
    """Return the floating-point number that is so many steps away; beyond the largest, itself."""
    info = jnp.finfo(values.dtype)
    ordered = to_order(values) + steps
    limit = to_order(np.array(info.max, values.dtype))
    return from_order(np.clip(ordered, -limit, limit), values.dtype)


def to_order(values: np.ndarray) -> np.ndarray:
    """Map floating-point numbers to whole numbers in the same order, zero to zero."""
    values = np.asarray(values)
    bits = values.view(f"i{values.dtype.itemsize}").astype(np.int64)
    # The bits of a negative number are those of its size with the sign bit set.
    lowest = -(2 ** (8 * values.dtype.itemsize - 1))
    return np.where(bits < 0, lowest - bits, bits)


def from_order(ordered: np.ndarray, dtype: Any) -> np.ndarray:
    """Map whole numbers back to the floating-point numbers of `to_order`."""
    size = np.dtype(dtype).itemsize
    sign = np.where(ordered < 0, -1.0, 1.0)
    bits = np.abs(np.asarray(ordered)).astype(f"i{size}")
    return bits.view(dtype) * sign.astype(dtype)


def special_numbers(dtype: Any) -> np.ndarray:
    """Return numbers of both signs at which a type or a function has an edge, as float64."""
    info = jnp.finfo(dtype)
    eps, tiny, top = float(info.eps), float(info.tiny), float(info.max)
    sizes = [0.0, 1.0, 0.5, 2.0, 1.5, 3.0, 10.0, 100.0, 1e3, 1 - eps / 2, 1 + eps, 1 - eps, eps]
    sizes += [eps / 2, eps**0.5, tiny, tiny / 4, tiny**0.5, top, top**0.5, top**0.25, tiny**0.25]
    sizes += [math.log(top), 1.05 * math.log(top), -math.log(tiny), math.pi, math.pi / 2, 20.0, 5.0]
    return np.concatenate([sizes, -np.array(sizes)])


def decades(dtype: Any) -> np.ndarray:
    """Return powers of ten, and three times them, of both signs, over all exponents of a type."""
    info = jnp.finfo(dtype)
    exponents = np.arange(math.ceil(math.log10(info.tiny)), math.floor(math.log10(info.max)) + 1)
    # Float64 has ten times the exponents of float32.
    exponents = exponents[:: max(1, len(exponents) // 80)]
    sizes = np.concatenate([10.0**exponents, 3.0 * 10.0 ** exponents[:-1]])
    return np.concatenate([-sizes, sizes])


def into(values: Any, leaf: Interval, generator: np.random.Generator) -> np.ndarray:
    """Return numbers of a leaf's type in its interval: those outside are drawn anew."""
    values = np.asarray(values, np.float64)
    low, high = leaf.low, leaf.high
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        width, part = high - low, generator.uniform(size=values.shape)
        if math.isfinite(width) and width < float(jnp.finfo(leaf.dtype).max) / 2:
            # Uniform, or close to one of the bounds at any distance.
            near = width * 10.0 ** generator.uniform(-9, 0, values.shape)
            options = [low + part * width, low + near, high - near]
            other = np.choose(generator.integers(0, 3, values.shape), options)
        else:
            other = low + np.abs(values) if low > -width / 4 else high - np.abs(values)
        values = np.where(outside, np.clip(other, low, high), values)
    top = float(jnp.finfo(leaf.dtype).max)
    return np.clip(np.clip(values, -top, top), low, high).astype(leaf.dtype)


def _sizes(kind: str, leaf: Interval, count: int, generator: np.random.Generator) -> np.ndarray:
    info = jnp.finfo(leaf.dtype)
    if kind == "one":
        return generator.standard_normal(count)
    if kind == "tens":
        return generator.standard_normal(count) * 10.0 ** generator.uniform(-3, 3, count)
    if kind == "halves":
        return generator.integers(-8, 9, count) / 2
    if kind == "special":
        return generator.choice(special_numbers(leaf.dtype), count)
    exponents = generator.uniform(math.log10(info.tiny), math.log10(info.max), count)
    return generator.choice([-1.0, 1.0], count) * 10.0**exponents


def _draw(leaf: Interval, generator: np.random.Generator) -> np.ndarray:
    """Return a point of the domain of one leaf."""
    count = int(np.prod(leaf.shape, dtype=int))
    structure, kind = generator.choice(STRUCTURES), generator.choice(SIZES)
    values = _sizes(kind, leaf, count, generator)
    if structure == "scaled":
        values = generator.standard_normal(count) * _sizes("exponent", leaf, 1, generator)
    elif structure == "equal":
        values = np.full(count, values[0])
    elif structure == "sparse":
        values = values * (generator.uniform(size=count) < 0.5)
    elif structure == "two values":
        values = generator.choice(values[:2], count)
    elif structure == "one":
        other = generator.standard_normal(count)
        values = np.where(np.arange(count) == generator.integers(count), values, other)
    values = into(values, leaf, generator).reshape(leaf.shape)
    if structure == "matrix" and len(leaf.shape) > 1:
        values = into(_matrix(values.astype(np.float64), generator), leaf, generator)
    return values


def _matrix(a: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an identity, diagonal, symmetric or singular matrix, or one of repeated rows."""
    kind, eye = generator.integers(6), np.eye(*a.shape[-2:])
    if kind == 0:
        return np.broadcast_to(eye * a.flat[0], a.shape)
    if kind == 1:
        return eye * a
    if kind == 2 and a.shape[-1] == a.shape[-2]:
        return np.triu(a) + np.swapaxes(np.triu(a, 1), -1, -2)
    if kind == 3:
        return np.broadcast_to(a[..., :1, :], a.shape)
    if kind == 4:
        return eye + 0 * a
    return np.where(np.arange(a.shape[-2])[:, None] == 0, 0, a)


def candidates(space: Space, count: int, generator: np.random.Generator) -> list[list[np.ndarray]]:
    """Return points of a space: special ones first, then random ones, `count` in all."""
    leaves, points = space.intervals, []
    base = [into(generator.standard_normal(leaf.shape), leaf, generator) for leaf in leaves]
    for j, leaf in enumerate(leaves):
        numbers = np.concatenate([special_numbers(leaf.dtype), decades(leaf.dtype)])
        numbers = numbers[(numbers >= leaf.low) & (numbers <= leaf.high)]
        numbers = np.concatenate([numbers, _bounds(leaf)])
        numbers = numbers if len(leaves) == 1 else numbers[: max(60, count // (2 * len(leaves)))]
        for number in numbers:
            filled = np.full(leaf.shape, number).astype(leaf.dtype)
            points.append([*base[:j], filled, *base[j + 1 :]])
    # Numbers that are special in all arguments together.
    for number in special_numbers(leaves[0].dtype):
        points.append([into(np.full(leaf.shape, number), leaf, generator) for leaf in leaves])
    points = points[: count // 2]
    while len(points) < count:
        point = [_draw(leaf, generator) for leaf in leaves]
        if generator.uniform() < SHARED:
            same = [leaf.shape == leaves[0].shape for leaf in leaves]
            values = point[0].astype(np.float64)
            point = [
                into(values, leaf, generator) if equal else value
                for leaf, value, equal in zip(leaves, point, same, strict=True)
            ]
        points.append(point)
    return points


def _bounds(leaf: Interval) -> np.ndarray:
    """Return the bounds of a domain and the numbers next to them."""
    bounds = np.array([leaf.low, leaf.high]).astype(leaf.dtype)
    near = [next_number(bounds[:1], k) for k in (0, 1, 2, 8)]
    near += [next_number(bounds[1:], -k) for k in (0, 1, 2, 8)]
    numbers = np.concatenate(near).astype(np.float64)
    return numbers[(numbers >= leaf.low) & (numbers <= leaf.high)]
