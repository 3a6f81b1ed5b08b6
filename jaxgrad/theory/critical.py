"""Variances of weights and biases at which a gradient neither vanishes nor explodes.

The critical line of an activation is parametrised by the variance `q` of its pre-activations:
`w_variance = 1 / D(q)`, `b_variance = q - M(q) / D(q)`. Points where the bias variance would be
negative do not exist; points where the length is unstable (`chi_par > 1`) are of no use.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.theory import moments, quadrature
from jaxgrad.theory._float64 import in_float64
from jaxgrad.theory.fixed_points import known
from jaxgrad.theory.maps import Phi
from jaxgrad.theory.tables import GRID, interpolate, table

_STABLE = 1 + 1e-9
_NEAR_ZERO, _ROUNDING = 1e-5, 1e-7


class Critical(NamedTuple):
    """A point of the critical line, where `chi_perp` is 1.

    Attributes:
      w_variance: times fan-in; NaN where there is no such point.
      b_variance: of the biases, in the limit 0 exactly.
      q: variance of the pre-activations that these keep; 0 for a point that holds only in the limit
        of small signals, as tanh's (1, 0).
      chi_par: slope of the length map there.
    """

    w_variance: jax.Array
    b_variance: jax.Array
    q: jax.Array
    chi_par: jax.Array


def critical_line(activation: Phi, q: Any) -> Critical:
    """The point of the critical line whose pre-activations have variance `q`.

    Args:
      activation: see `jaxgrad.activations.get`.
      q: variances above 0, any shape, may be traced.

    Returns:
      `Critical` of the shape of `q`; the variances are NaN where the biases' would be negative.

    Raises:
      ValueError, TypeError: as `second_moment`.

    >>> point = critical_line("erf", 0.7)
    >>> round(float(point.w_variance), 6), round(float(point.b_variance), 6)
    (1.531023, 0.092944)
    """
    _validate.numbers("q", q, minimum=0.0, above=True)
    return _line(activations.get(activation), q)


def critical(activation: Phi, b_variance: Any = None) -> Critical:
    """The critical point for a bias variance, or the one with the smallest.

    Args:
      activation: see `jaxgrad.activations.get`.
      b_variance: a number of at least 0, may be traced. `None` for the smallest for which there is
        a critical point with a stable length, `chi_par <= 1`: 0 for tanh and ReLU, and the point
        where both slopes are 1 for GELU and SiLU (Roberts, Yaida, Hanin 2022, sec. 5.3.4).

    Returns:
      `Critical`; NaN where no point with a stable length exists for this bias variance, as for
      GELU and small biases. Of several, the one with `q` nearest to 1.

    Raises:
      ValueError, TypeError: if the bias variance is negative, and as `second_moment`.

    >>> round(float(critical("tanh", 0.05).w_variance), 6)
    1.760955
    >>> round(float(critical("relu").w_variance), 6)
    2.0
    """
    phi = activations.get(activation)
    if b_variance is None:
        return _smallest(phi)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    return _critical(phi, b_variance)


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _line(phi: Activation, q):
    q = jnp.asarray(q, jnp.float64)
    found = moments.statistics(phi, jnp.log(q))
    ratio = jnp.exp(found.log_square - found.log_slope)
    b_variance = q - ratio
    # A homogeneous activation needs none, to rounding.
    b_variance = jnp.where(jnp.abs(b_variance) < 1e-13 * q, 0.0, b_variance)
    exists = b_variance >= 0
    w_variance = jnp.exp(-found.log_slope)
    point = Critical(w_variance, b_variance, q, found.elasticity * ratio / q)
    return jax.tree.map(lambda leaf: jnp.where(exists, leaf, jnp.nan), point)


def _relative(phi, at):
    """`b_variance / q` and `chi_par` on the critical line, from the table."""
    rows = table(phi)
    square, elasticity = interpolate(rows.square, at)
    slope, _ = interpolate(rows.slope, at)
    return -jnp.expm1(square - slope - at), elasticity * jnp.exp(square - slope - at)


def _on_grid(phi):
    first, last = known(phi)
    rows = table(phi)
    grid = GRID[first : last + 1]
    log_ratio = rows.square[0] - rows.slope[0] - GRID
    relative = -np.expm1(log_ratio[first : last + 1])
    chi_par = (rows.square[1] * np.exp(log_ratio))[first : last + 1]
    relative = np.where(np.abs(relative) < 1e-11, 0.0, relative)
    return grid, relative, chi_par


@functools.lru_cache(maxsize=64)
def _towards_zero(phi) -> tuple[bool, bool, float]:
    """Whether every `q` is critical, whether small signals are in the limit, and `1 / D` there."""
    grid, relative, _ = _on_grid(phi)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        sides = jnp.asarray([-1e-150, 1e-150])
        slope = sum(
            share * float(jnp.mean(jax.jvp(function, (sides,), (jnp.ones(2),))[1] ** 2))
            for share, function in quadrature.versions(phi)
        )
        w_variance = 1 / slope if slope > 0 else math.inf
    every = bool(np.all(np.abs(relative) < 1e-10))
    # Without biases a small signal must shrink, or it would leave the limit.
    first = int(np.searchsorted(GRID, grid[0]))
    square, elasticity = table(phi).square[:2, first : first + len(grid)]
    change = square + math.log(w_variance) - grid
    shrinks = change[np.argmax(np.abs(change) > 1e-9)] < 0
    small = abs(relative[0]) < _NEAR_ZERO and abs(elasticity[0] - 1) < _NEAR_ZERO and shrinks
    return every, bool(small), w_variance


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _critical(phi, b_variance):
    b_variance = jnp.asarray(b_variance, jnp.float64)
    every, small, w_small = _towards_zero(phi)
    grid, relative, chi_par = _on_grid(phi)

    def missing(at):
        return _relative(phi, at)[0] - b_variance * jnp.exp(-at)

    value = relative - b_variance * np.exp(-grid)
    stable = np.minimum(chi_par[:-1], chi_par[1:]) <= 1.05
    clear = jnp.maximum(jnp.abs(value[:-1]), jnp.abs(value[1:])) > _ROUNDING
    crossing = (value[:-1] * value[1:] < 0) & clear & stable
    distance = jnp.where(crossing, jnp.abs((grid[:-1] + grid[1:]) / 2), jnp.inf)
    index = jnp.argsort(distance)[:4]

    def root(index):
        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            left = jnp.sign(missing(middle)) == jnp.sign(value[index])
            return jnp.where(left, middle, low), jnp.where(left, high, middle)

        low, high = jax.lax.fori_loop(
            0, 50, halve, (jnp.asarray(grid)[index], jnp.asarray(grid)[index + 1])
        )
        return (low + high) / 2

    roots = jax.lax.stop_gradient(jax.vmap(root)(index))
    good = jnp.isfinite(distance[index]) & (_relative(phi, roots)[1] <= 1 + 1e-5)
    at = jnp.where(jnp.any(good), roots[jax.lax.argmax(good, 0, jnp.int32)], 0.0)

    def bias(at):
        found = moments.statistics(phi, at)
        return jnp.exp(at) - jnp.exp(found.log_square - found.log_slope)

    # A Newton step with exact averages, through which derivatives pass.
    miss, slope = jax.jvp(bias, (at,), (jnp.ones_like(at),))
    step = (b_variance - jax.lax.stop_gradient(miss)) / jax.lax.stop_gradient(
        jnp.where(slope == 0, jnp.inf, slope)
    )
    at = at + jnp.where(jnp.abs(step) < 1e-3, step, 0.0)
    found = moments.statistics(phi, at)
    exists = jnp.any(good)
    chi_par_there = found.elasticity * jnp.exp(found.log_square - found.log_slope - at)
    point = Critical(jnp.exp(-found.log_slope), b_variance, jnp.exp(at), chi_par_there)
    point = jax.tree.map(lambda leaf: jnp.where(exists, leaf, jnp.nan), point)
    if every or small:
        end = Critical(*map(jnp.asarray, (w_small, 0.0, 1.0 if every else 0.0, 1.0)))
        point = jax.tree.map(
            lambda leaf, limit: jnp.where(b_variance == 0, limit, leaf), point, end
        )
    return point


def _smallest(phi) -> Critical:
    every, small, _ = _towards_zero(phi)
    if every or small:
        return _critical(phi, 0.0)
    grid, relative, chi_par = _on_grid(phi)
    allowed = (chi_par <= _STABLE) & (relative > _ROUNDING)
    if not allowed.any():
        return _line(phi, np.nan)
    index = int(np.argmin(np.where(allowed, relative * np.exp(grid), np.inf)))
    low, high = (grid[np.clip(index + i, 0, len(grid) - 1)] for i in (-1, 1))
    return _least(phi, low, high)


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _least(phi, low, high):
    """The smallest allowed bias variance between two log variances, by golden section."""
    golden = (5**0.5 - 1) / 2

    def cost(at):
        relative, chi_par = _relative(phi, at)
        # Points that are not allowed come after all others, the farther the worse.
        excess = jnp.maximum(chi_par - 1, 0.0) + jnp.maximum(-relative, 0.0)
        return jnp.where(excess > 0, 1e9 + excess, relative * jnp.exp(at))

    def shrink(_, ends):
        low, high = ends
        left, right = high - golden * (high - low), low + golden * (high - low)
        keep_left = cost(left) < cost(right)
        return jnp.where(keep_left, low, left), jnp.where(keep_left, right, high)

    low, high = jax.lax.fori_loop(0, 70, shrink, (jnp.asarray(low), jnp.asarray(high)))
    return _line(phi, jnp.exp((low + high) / 2))
