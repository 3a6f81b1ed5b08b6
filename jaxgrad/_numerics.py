"""Numerics that several parts of the library share: scaling, logs of sums, root finding, float64.

Functions of `np.ndarray` run on the host and return Python floats. All others can be jitted, mapped
and, except for the searches, differentiated.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from jaxgrad import _validate

P = ParamSpec("P")
R = TypeVar("R")
Axes = int | tuple[int, ...]
Values = ArrayLike | Array
Floats = Float[Array, "..."]
Function = Callable[[Array], Array]

FloatArray = Float[Array | np.ndarray, "..."]  # What functions wrapped by `in_float64` return.


def in_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` compute in float64 whatever JAX's setting is.

    With numbers the wrapped function returns NumPy arrays of float64. Inside a traced program
    without float64 it rounds its result to float32.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if jax.config.read("jax_enable_x64"):
            return function(*args, **kwargs)
        # A tracer may stand for a Python number, whose type changes when float64 is enabled.
        args, kwargs = jax.tree.map(_with_fixed_type, (args, kwargs))
        with jax.enable_x64(True):
            return jax.tree.map(_for_caller, function(*args, **kwargs))

    return wrapped


def _with_fixed_type(leaf: Any) -> Any:
    return jnp.asarray(leaf) if _validate.is_traced(leaf) else leaf


def _for_caller(leaf: Any) -> Any:
    if not _validate.is_traced(leaf):
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf


def float_eps(dtype: Any) -> float:
    """Return the machine epsilon of a floating or complex type, and 0 for any other type."""
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    return float(jnp.finfo(dtype).eps)


def norm(values: Num[np.ndarray, "..."]) -> float:
    """Return the Euclidean norm of all values, without overflow; NaN if any is not finite."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(largest):
        return math.nan
    return largest * float(np.linalg.norm(np.ravel(values) / largest)) if largest > 0 else 0.0


def rms(values: Num[np.ndarray, "..."]) -> float:
    """Return the root mean square of the finite values, without overflow; 0 if there are none."""
    sizes = np.abs(values[np.isfinite(values)])
    largest = np.max(sizes, initial=0.0)
    return float(largest * np.sqrt(np.mean(np.square(sizes / largest)))) if largest > 0 else 0.0


def divide_by_largest(a: Floats, axis: Axes) -> tuple[Floats, Floats]:
    """Divide an array by its largest absolute value along one axis or several.

    Squares of the result neither overflow nor all underflow. Returns it and the log of the divisor,
    with `axis` of size 1. Where all values are zero, or one is infinite or NaN, the divisor is 1.
    """
    # The result does not depend on the divisor, so no derivative has to pass through it.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(a), axis=axis, keepdims=True))
    divisor = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    return a / divisor, jnp.log(divisor)


def log_mean_square(a: Floats, axis: Axes) -> Floats:
    """Return the log of the mean square along an axis, -inf for zeros, without overflow."""
    scaled, log_divisor = divide_by_largest(a, axis)
    return jnp.log(jnp.mean(jnp.square(scaled), axis=axis)) + 2 * jnp.squeeze(log_divisor, axis)


def rescale(
    a: Float[Array, "batch *shape"], *, together: bool
) -> tuple[Float[Array, "batch *shape"], Float[Array, " batch"], Float[Array, " batch"]]:
    """Divide each example by its root mean square, or all by the largest one if `together`.

    Returns: the divided array, in which zeros stay zero; the log of the square of each divisor; the
    log of the mean square of each example before the division.
    """
    flat = a.reshape(len(a), -1)
    log_square = log_mean_square(flat, axis=1)
    shift = jnp.broadcast_to(jnp.max(log_square), log_square.shape) if together else log_square
    # What is zero or infinite cannot be scaled to one.
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    return (flat * jnp.exp(-shift / 2)[:, None]).reshape(a.shape), shift, log_square


def log_mean_exp(logs: Floats, axis: Axes = -1) -> Floats:
    """Return `log(mean(exp(logs)))` along an axis, without overflow."""
    total = jax.nn.logsumexp(logs, axis=axis)
    return total - math.log(logs.size / total.size)


def weighted_log_sum_exp(weights: Sequence[Values], logs: Sequence[Values]) -> Floats:
    """Return `log sum_i weights[i] exp(logs[i])` of arrays that broadcast, without overflow.

    The weights are at least 0, and the derivatives are right where a weight is 0.
    """
    arrays = jnp.broadcast_arrays(*(jnp.asarray(a, float) for a in (*weights, *logs)))
    factors, exponents = (jnp.stack(half) for half in (arrays[: len(logs)], arrays[len(logs) :]))
    # A weight of zero must not select the top; its log is not taken, or its derivative were NaN.
    size = jnp.abs(factors)
    terms = exponents + jnp.log(jnp.where(size > 0, size, 1.0))
    top = jax.lax.stop_gradient(jnp.max(terms, axis=0, where=size > 0, initial=-jnp.inf))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # A term of weight zero may exceed the top by any amount; its exponential must stay finite.
    scaled = jnp.exp(jnp.minimum(exponents - top[None], 700.0))
    return top + jnp.log(jnp.sum(factors * scaled, axis=0))


def bisect(
    function: Function, low: Values, high: Values, *, steps: int, sign: Values | None = None
) -> Array:
    """Find where an elementwise function changes its sign between `low` and `high`.

    The bounds have one shape, in either order. `sign` is that of the function at `low`; by default
    it is evaluated there. Returns the middle of the last interval, with an error of at most
    `|high - low| / 2^(steps + 1)`. If the sign does not change, this is near one of the bounds.
    """
    bracket = jnp.asarray(low), jnp.asarray(high)
    sign = jnp.sign(function(bracket[0])) if sign is None else sign

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        before = jnp.sign(function(middle)) == sign
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    bracket = jax.lax.fori_loop(0, steps, halve, bracket)
    return (bracket[0] + bracket[1]) / 2


def bracketed_secant(function: Function, low: Values, high: Values, *, tolerance: float) -> Array:
    """Find where an elementwise function that is positive at `low`, below `high`, turns negative.

    It takes a third of the evaluations of `bisect` where the function is smooth, and half more of
    them where it is not. The error is at most `tolerance`, and no derivative passes through.
    """
    low, high = jax.lax.stop_gradient(jnp.broadcast_arrays(low, high))

    def is_wide(state):
        # Every third step halves the interval, until rounding leaves nothing to halve.
        return (state[0] < 200) & jnp.any(state[2] - state[1] > 2 * tolerance)

    def shrink(state):
        index, low, high, low_value, high_value = state
        middle = (low + high) / 2
        secant = low + (high - low) * (low_value / (low_value - high_value))
        # Secants approach the root from one side; a small step beyond it moves the other bound.
        beyond = jnp.minimum(0.8 * tolerance + 0.1 * (high - low) ** 2, jnp.abs(middle - secant))
        point = secant + jnp.sign(middle - secant) * beyond
        point = jnp.where(jnp.isfinite(point) & (index % 3 > 0), point, middle)
        # The value at `high` comes first, because a root may lie there.
        point = jnp.where(index == 0, high, point)
        value = function(point)
        before = value > 0
        ends = jnp.where(before, point, low), jnp.where(before, high, point)
        values = jnp.where(before, value, low_value), jnp.where(before, high_value, value)
        return index + 1, *ends, *values

    unknown = jnp.full_like(low, jnp.nan)
    _, low, high, *_ = jax.lax.while_loop(is_wide, shrink, (0, low, high, unknown, unknown))
    return (low + high) / 2


def golden_section(cost: Function, low: Values, high: Values, *, steps: int) -> Array:
    """Find the minimum of an elementwise function with a single minimum between `low` and `high`.

    Each step multiplies the interval by 0.618. Rounding limits the accuracy where the cost is
    smooth to about the square root of the machine epsilon.
    """
    golden = (math.sqrt(5) - 1) / 2  # Both inner points divide the interval in this ratio.

    def shrink(_, bounds):
        low, high = bounds
        left, right = high - golden * (high - low), low + golden * (high - low)
        select_left = cost(left) < cost(right)
        return jnp.where(select_left, low, left), jnp.where(select_left, right, high)

    bounds = jax.lax.fori_loop(0, steps, shrink, (jnp.asarray(low), jnp.asarray(high)))
    return (bounds[0] + bounds[1]) / 2
