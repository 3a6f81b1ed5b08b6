"""Which points of a domain are suspicious: all of them are evaluated in one compiled program.

The gradient in the type of the arguments is compared with the one in float64, and that one with
differences in float64. A suspicion costs little; it is judged in arbitrary precision later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._domain_values import Space
from jaxgrad.checking._programs import precision

BLOCK = 256  # points that are evaluated together
STEPS = tuple(2.0**-k for k in (4, 7, 10, 13, 17, 21, 26))  # relative to a coordinate
COORDINATES = 24  # At most so many have a numeric derivative.
EPS64 = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Target:
    """A user's function as a function of (differentiated leaves, other leaves) to one number."""

    f: Callable[..., Any]
    space: Space
    has_aux: bool = False

    def split(self, point: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the leaves that are differentiated and those that are not."""
        pairs = list(zip(point, self.space.selected, strict=True))
        return [v for v, chosen in pairs if chosen], [v for v, chosen in pairs if not chosen]

    def merge(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[Any]:
        """Return the leaves of a point."""
        first, second = iter(moved), iter(fixed)
        return [next(first) if chosen else next(second) for chosen in self.space.selected]

    def outputs(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[jax.Array]:
        """Return the floating-point outputs of the function."""
        out = self.f(*self.space.arguments(self.merge(moved, fixed)))
        out = out[0] if self.has_aux else out
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(out)]
        return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def __call__(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[jax.Array]:
        """Return the sum of the outputs with the weights 1, 2, 3, ..., or the only one."""
        parts = []
        for output in self.outputs(moved, fixed):
            is_complex = jnp.iscomplexobj(output)
            parts += [output.real, output.imag] if is_complex else [output]
        if not parts:
            raise TypeError("f must return a floating-point number or array")
        if len(parts) == 1 and parts[0].shape == ():
            return parts
        total, start = jnp.zeros((), parts[0].dtype), 1
        for part in parts:
            weights = jnp.arange(start, start + part.size).astype(part.dtype)
            total = total + jnp.vdot(weights, part.ravel())
            start += part.size
        return [total]


class Screened(NamedTuple):
    """Values and gradients at `N` points, as float64."""

    value: np.ndarray  # [N], in the type of the arguments
    gradient: np.ndarray  # [N, P], likewise
    wide: np.ndarray  # [N, P], the gradient in float64
    numeric: np.ndarray  # [N, P], the difference in float64; NaN beyond the first coordinates
    error: np.ndarray  # [N, P], how far the steps are from agreeing


def screen(target: Target, points: list[list[np.ndarray]]) -> Screened:
    """Evaluate a function and its derivatives at all points."""
    count = len(points)
    columns = [np.stack(leaves) for leaves in zip(*points, strict=True)]
    enabled = any(c.dtype == np.float64 for c in columns)
    narrow = _blocks(lambda point: _gradient(target, point), columns, enabled)
    columns = [c.astype(np.float64) for c in columns]
    try:
        wide = _blocks(lambda point: _gradient(target, point)[1:], columns, True)
        numeric = _blocks(lambda point: _differences(target, point), columns, True)
    except (TypeError, ValueError):  # the function has arrays of float32 that do not mix
        wide, numeric = [narrow[1]], [np.full_like(narrow[1], np.nan)] * 2
    arrays = [*narrow, wide[0], *numeric]
    return Screened(*(np.asarray(a, np.float64)[:count] for a in arrays))


def _blocks(program: Callable[..., Any], columns: list[np.ndarray], wide: bool) -> list[np.ndarray]:
    """Map a program over points, `BLOCK` at a time, so that it is compiled once."""
    count = len(columns[0])
    padding = -count % BLOCK
    columns = [np.concatenate([c, np.repeat(c[:1], padding, 0)]) for c in columns]
    with precision(wide):
        mapped = jax.jit(jax.vmap(program))
        try:
            jax.eval_shape(mapped, [c[:BLOCK] for c in columns])
        except Exception:  # a function that cannot be mapped is evaluated point by point
            mapped = jax.jit(lambda points: jax.lax.map(program, points))
        blocks = [
            mapped([jnp.asarray(c[start : start + BLOCK]) for c in columns])
            for start in range(0, count + padding, BLOCK)
        ]
        return [np.concatenate([np.asarray(b) for b in part]) for part in zip(*blocks, strict=True)]


def _gradient(target: Target, point: list[Any]) -> tuple[Any, Any]:
    moved, fixed = target.split(point)
    value, pullback = jax.vjp(lambda m: target(m, fixed)[0], moved)
    gradient = pullback(jnp.ones_like(value))[0]
    return value, jnp.concatenate([g.ravel() for g in gradient])


def _differences(target: Target, point: list[Any]) -> tuple[Any, Any]:
    """Return central differences and their uncertainty for each coordinate."""
    moved, fixed = target.split(point)
    shapes = [m.shape for m in moved]
    ends = np.cumsum([m.size for m in moved])
    flat = jnp.concatenate([m.ravel() for m in moved])
    largest = jnp.max(jnp.abs(flat))
    usual = jnp.where(largest > 0, largest, 1.0)

    def value(x):
        parts = jnp.split(x, ends[:-1])
        leaves = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return target(leaves, fixed)[0].astype(jnp.float64)

    def coordinate(i):
        size = jnp.where(flat[i] != 0, jnp.abs(flat[i]), usual)
        steps = size * jnp.asarray(STEPS)
        unit = jnp.arange(flat.size) == i

        def change(step):
            # The step that is taken, not the one that was meant.
            up, down = flat + step * unit, flat - step * unit
            high, low = value(up), value(down)
            width = (up - down)[i]
            noise = 4 * EPS64 * (jnp.abs(high) + jnp.abs(low)) / width
            return (high - low) / width, noise

        slopes, noise = jax.vmap(change)(steps)
        # Two steps that agree: curvature is small there, and so is rounding.
        errors = jnp.abs(slopes[1:] - slopes[:-1]) + noise[1:]
        best = jnp.argmin(jnp.where(jnp.isnan(errors), jnp.inf, errors))
        return slopes[1:][best], errors[best]

    count = min(flat.size, COORDINATES)
    slopes, errors = jax.lax.map(coordinate, jnp.arange(count))
    rest = jnp.full(flat.size - count, jnp.nan)
    return jnp.concatenate([slopes, rest]), jnp.concatenate([errors, rest])


def suspects(screened: Screened, dtype: Any) -> list[tuple[str, np.ndarray]]:
    """Return the reasons for suspicion, worst first, and which points have them."""
    tiny = float(jnp.finfo(dtype).tiny)
    value, gradient, wide, numeric, error = screened
    finite = np.isfinite(value)
    with np.errstate(all="ignore"):
        bad = finite & ~np.isfinite(gradient).all(1)
        enclosed = np.isfinite(numeric).any(1)
        excess = np.abs(wide - numeric) - 20 * error - 1e-4 * np.abs(numeric) - 4 * tiny
        wrong = finite & np.any(excess > 0, axis=1)
        loss = np.abs(gradient - wide) >= 0.3 * np.abs(wide) + 4 * tiny
        lost = finite & np.any(loss, axis=1)
        zero = finite & (gradient == 0).any(1) & (~(numeric == 0).all(1) | ~(wide == 0).all(1))
        flat = finite & (gradient == 0).any(1)
    return [
        ("not finite", bad & enclosed),
        ("differs", wrong),
        ("lost", lost),
        ("zero", zero),
        ("not finite at an edge", bad & ~enclosed),
        ("flat", flat & ~zero),
        ("none", finite & ~(bad | wrong | lost | flat)),
    ]


def describe(point: Sequence[np.ndarray], decades: int = 6) -> tuple[Any, ...]:
    """Return coarse features of a point: signs, sizes, zeros and ties of each leaf.

    Sizes count as equal within so many decades, which are those from 1 on and below.
    """
    features: list[Any] = []
    for leaf in point:
        x = np.asarray(leaf, np.float64).ravel()
        size = np.abs(x[x != 0])
        low, high = (np.log10(size.min()), np.log10(size.max())) if size.size else (-99.0, -99.0)
        if x.size == 1:
            features.append((round(high * 3 / decades), np.sign(x[0])))
        else:
            ties = (x.size - len(np.unique(x))) * 3 // x.size
            features.append((round(low / decades), round(high / decades), np.any(x == 0), ties))
    return tuple(features)


def spread(
    points: list[list[np.ndarray]], mask: np.ndarray, count: int, used: set[int]
) -> list[int]:
    """Return indices of at most `count` points of a mask, from all of their kinds in turn."""
    groups: dict[Any, list[int]] = {}
    for i in np.flatnonzero(mask).tolist():
        if i not in used:
            groups.setdefault(describe(points[i]), []).append(i)
    chosen: list[int] = []
    depth = 0
    while len(chosen) < count and any(len(group) > depth for group in groups.values()):
        chosen += [group[depth] for group in groups.values() if len(group) > depth]
        depth += 1
    return chosen[:count]
