"""Gradients and difference quotients of a random function for many keys, and their moments.

Each key moves each leaf along random signs `v` of its own. With the change of `f` along `v` for
the same key, `(f(x + h v) - f(x - h v)) / (2 h) v` has the gradient of the mean as its mean, in
every element of the leaf at once (Spall, 1992).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._jaxprs import equations_of
from jaxgrad.checking._arguments import FlatFunction, LeafInfo
from jaxgrad.checking._programs import precision, shifts_of, weighted, with_copies

FACTORS = (1.0, 2.0, 4.0)  # multiples of a step at which the function is evaluated
CHUNK_BYTES = 2**26  # for the values of all operations, of as many keys as are mapped together
# Quantities of `sample_differences`, in this order. `DIFFERENCE` and `NUMERIC` have two versions.
AUTODIFF, DIFFERENCE, NUMERIC, RAW, CORRECTION, CURVATURE = 0, (1, 2), (3, 4), 3, 5, 6
# Quantities of `sample_jumps`.
JUMPS, MATCHES, CONTRIBUTION = 0, 1, 2


class Moments(NamedTuple):
    """Moments over keys of several quantities: of each coordinate, then along one vector a leaf."""

    samples: int  # number of keys
    mean: np.ndarray  # [Q, size + L]
    square: np.ndarray  # sum of squared deviations from the mean
    largest: np.ndarray  # largest squared deviation of one key

    @property
    @np.errstate(all="ignore")
    def error(self) -> np.ndarray:
        """Standard error of the mean."""
        return np.sqrt(self.square / (self.samples - 1) / self.samples)

    @property
    @np.errstate(all="ignore")
    def share(self) -> np.ndarray:
        """Share of the variance that one key has, 0 if there is no variance."""
        return np.where(self.square > 0, self.largest / np.maximum(self.square, 1e-300), 0.0)

    @property
    @np.errstate(all="ignore")
    def step_bias(self) -> np.ndarray:
        """Bound on the error of the difference quotient from its step."""
        # Of order h^4 it is 1/15 of the change to the next step. Where the step leaves the domain
        # in which the mean is smooth, as the probability of a sample leaves [0, 1], there is no
        # order, and the two changes may agree by chance. The first quotient is then the better one.
        correction, curvature = (np.abs(self.mean[i]) for i in (CORRECTION, CURVATURE))
        return np.maximum(correction, curvature / 5)


@dataclass(frozen=True)
class Sampler:
    """A random function and its gradient, as functions of (moved leaves, fixed arrays).

    The first of the fixed arrays is the key.
    """

    function: FlatFunction
    gradient: Callable[..., Sequence[Any]]  # of (moved, fixed, cotangents), as leaves
    leaves: tuple[LeafInfo, ...]
    halvings: int  # of an interval in which a jump is searched
    eps: float  # machine epsilon of the narrowest type that values pass through

    @property
    def owner(self) -> np.ndarray:
        """Index of the leaf of each coordinate."""
        return np.repeat(np.arange(len(self.leaves)), [info.size for info in self.leaves])

    def coordinates(self, gradient: Sequence[Any]) -> jax.Array:
        """Return a gradient as real coordinates; see `gradient_coordinates`."""
        parts = []
        for value in gradient:
            parts.append(jnp.real(value).ravel())
            parts += [-jnp.imag(value).ravel()] if jnp.iscomplexobj(value) else []
        return jnp.concatenate(parts)

    def along(self, x: jax.Array) -> jax.Array:
        """Add the coordinates of each leaf."""
        return jax.ops.segment_sum(x, jnp.asarray(self.owner), len(self.leaves))


def sample_differences(sampler, key, signs, moved, fixed, cotangents, steps):
    """Return for one key, `[7, size]`: gradient, difference, quotient and errors of the step."""
    fixed, owner = [key, *fixed], sampler.owner
    gradient = sampler.coordinates(sampler.gradient(moved, fixed, cotangents)).astype(signs.dtype)

    def quotient(leaf, factor):
        step = factor * steps[leaf]
        direction = jnp.where(owner == leaf, signs, 0.0)
        plus, minus = (_outputs(sampler, moved, fixed, s * step, direction) for s in (1.0, -1.0))
        changes = [a - b for a, b in zip(plus, minus, strict=True)]
        return weighted(cotangents, changes).astype(steps.dtype) / (2 * step)

    # Draws that do not depend on the arguments are not mapped, so they are computed once.
    by_factor = jax.vmap(quotient, (None, 0))
    q = jax.vmap(by_factor, (0, None))(jnp.arange(len(sampler.leaves)), jnp.asarray(FACTORS))
    # Richardson: the mean of q(h) is G' + c h^2 + O(h^4), which this combination frees of c.
    fine, coarse = (4 * q[:, 0] - q[:, 1]) / 3, (4 * q[:, 1] - q[:, 2]) / 3
    numeric = fine[owner] * signs
    # A pathwise gradient varies with the quotient, one by score functions does not. The first
    # version suits the latter; in the second one `v v` has replaced the unit matrix.
    free, paired = gradient - numeric, (sampler.along(gradient * signs) - fine)[owner] * signs
    errors = [(fine - q[:, 0])[owner] * signs, (coarse - fine)[owner] * signs]
    return jnp.stack([gradient, free, paired, numeric, gradient - paired, *errors])


def sample_jumps(sampler, key, signs, moved, fixed, cotangents, steps):
    """Return for one key, `[3, size]`: whether `f` jumps, its derivative fits, and the jump's part.

    A jump is searched by halving the interval from `x - h v` to `x + h v`, always on the side with
    the larger change. Values of `f` alone tell whether there is one.
    """
    fixed, owner, width = [key, *fixed], sampler.owner, 0.5**sampler.halvings
    gradient = sampler.coordinates(sampler.gradient(moved, fixed, cotangents)).astype(signs.dtype)
    slopes = sampler.along(gradient * signs)
    base = sampler.function(moved, fixed)

    def search(leaf):
        direction = jnp.where(owner == leaf, signs, 0.0)

        def value(t):
            outputs = _outputs(sampler, moved, fixed, t * steps[leaf], direction)
            changes = [a - b for a, b in zip(outputs, base, strict=True)]
            return weighted(cotangents, changes).astype(steps.dtype)

        def halve(_, ends):
            (low, f_low), (high, f_high) = ends
            middle = (low + high) / 2
            f_middle = value(middle)
            left = jnp.abs(f_middle - f_low) >= jnp.abs(f_high - f_middle)
            point = middle, f_middle
            return tuple(
                (jnp.where(side, point[0], end[0]), jnp.where(side, point[1], end[1]))
                for side, end in zip((~left, left), ends, strict=True)
            )

        one = jnp.ones_like(steps[leaf])
        ends = ((-one, value(-one)), (one, value(one)))
        variation = jnp.abs(ends[0][1]) + jnp.abs(ends[1][1])
        (_, f_low), (_, f_high) = jax.lax.fori_loop(0, sampler.halvings + 1, halve, ends)
        # A change by a smooth function has shrunk with the interval, a jump has not.
        jump = f_high - f_low
        size = jnp.abs(weighted(cotangents, base)).astype(steps.dtype)
        rounding = 64 * sampler.eps * (size + variation)
        jumped = jnp.abs(jump) > jnp.sqrt(width) * variation + rounding
        slope = (value(width * one) - value(-width * one)) / (2 * width * steps[leaf])
        allowed = jnp.sqrt(width) * (jnp.abs(slope) + jnp.abs(slopes[leaf]))
        allowed += width * variation / steps[leaf]
        matches = jnp.abs(slope - slopes[leaf]) <= allowed
        quotient = jnp.where(jumped, jump, 0.0) / (2 * steps[leaf])
        return jnp.stack([x.astype(steps.dtype) for x in (jumped, matches, quotient)])

    jumped, matches, quotient = jax.vmap(search)(jnp.arange(len(sampler.leaves))).T
    return jnp.stack([jumped[owner], matches[owner], quotient[owner] * signs])


def _outputs(sampler, moved, fixed, step, direction):
    shifts = shifts_of(moved, step, direction)
    return sampler.function(
        [leaf + shift for leaf, shift in zip(moved, shifts, strict=True)], fixed
    )


def compile_moments(sampler: Sampler, sample: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function of a chunk of keys: mean, squares and largest square over them."""

    def chunk(keys, moved, fixed, cotangents, steps, vectors):
        def one(pair):
            signs = jax.random.rademacher(pair[1], vectors.shape, vectors.dtype)
            values = sample(sampler, pair[0], signs, moved, fixed, cotangents, steps)
            combined = jax.vmap(sampler.along)(values * vectors[None])
            return jnp.concatenate([values, combined], axis=1)

        values = jax.vmap(one)(keys)
        mean = jnp.mean(values, axis=0)
        squares = jnp.square(values - mean[None])
        return mean, jnp.sum(squares, axis=0), jnp.max(squares, axis=0)

    return jax.jit(with_copies(chunk))


def bytes_per_key(sampler: Sampler, moved, fixed, cotangents, key) -> int:
    """Return the size of the values of all operations that one key needs; loops count once."""
    # XLA frees and fuses much of it, which leaves room for loops that count once.
    size = sum(info.size for info in sampler.leaves)
    signs, steps = jnp.zeros(size), jnp.zeros(len(sampler.leaves))
    program = jax.make_jaxpr(lambda *args: sample_differences(sampler, *args))
    closed = program(key, signs, moved, fixed, cotangents, steps)
    avals = [v.aval for equation in equations_of(closed.jaxpr) for v in equation.outvars]
    return sum(getattr(aval, "size", 1) * 8 for aval in avals)


@np.errstate(all="ignore")
def merge(parts: list[tuple[np.ndarray, ...]], count: int) -> Moments:
    """Combine the moments of chunks of `count` keys each (Chan, Golub and LeVeque, 1983)."""
    means, squares, largest = (
        np.stack(arrays).astype(np.float64) for arrays in zip(*parts, strict=True)
    )
    mean = means.mean(axis=0)
    between = count * np.sum((means - mean) ** 2, axis=0)
    return Moments(count * len(parts), mean, squares.sum(axis=0) + between, largest.max(axis=0))


def measure(program, keys, chunk: int, inputs, steps, vectors, wide: bool) -> Moments:
    """Return the moments over all keys, `[N, 2]`; `N` is a multiple of `chunk`."""
    with precision(wide):
        dtype = np.float64 if wide else np.float32
        steps, vectors = jnp.asarray(steps, dtype), jnp.asarray(vectors, dtype)
        parts = [
            tuple(map(np.asarray, program(keys[start : start + chunk], *inputs, steps, vectors)))
            for start in range(0, len(keys), chunk)
        ]
    return merge(parts, chunk)
