"""Statistics of one array: what is summed where it appears, and what follows from the sums.

An array is measured in a program that someone waits to be compiled, at hundreds of operations, so
the sums are few and plain: XLA carries out each of them in one loop, and with no code of its own
where a library on CPUs knows it. Logs and quotients are taken outside of the program.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._numerics import float_eps
from jaxgrad.inspection._sites import Location

# The bounds of a function's values.
BOUNDS = {"tanh": (-1, 1), "erf": (-1, 1), "logistic": (0, 1)}


class Statistics(NamedTuple):
    """Statistics of one array; each field has one axis for each enclosing scan.

    Attributes:
      log_mean_square: natural log of the mean square of the finite elements; -inf if all are zero.
      log_largest: natural log of the largest finite absolute value.
      zeros: share of elements that are zero.
      non_finite: share of elements that are infinite or NaN.
    """

    log_mean_square: Any
    log_largest: Any
    zeros: Any
    non_finite: Any


class Details(NamedTuple):
    """What else is measured at an operation; NaN where it means nothing.

    Attributes:
      log_weight: natural log of the mean square of the parameter that is applied.
      input_zeros: share of zeros among the elements of the signal that it is applied to.
      dead: share of units of a non-linear function that are zero for all examples. A unit is an
        index of the last axis.
      saturated: share of elements of a bounded function that are within 1 % of its range from a
        bound.
    """

    log_weight: Any
    input_zeros: Any
    dead: Any
    saturated: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sums:
    """Sums over one array, in float32 at least; -1 in a branch that is not taken.

    Attributes:
      largest: the largest absolute value; of the finite elements, if the sums are exact.
      squares: sum of the squares; if exact, of the finite elements over `_divisor(largest)`.
      nonzero: number of elements that are not zero.
      finite: number of finite elements; `None` if the sums are not exact.
      size: number of elements.
    """

    largest: Any
    squares: Any
    nonzero: Any
    finite: Any
    size: int = field(metadata={"static": True})


class SiteSums(NamedTuple):
    """Sums at an operation, `None` for what it does not have.

    Attributes:
      signal: of its result.
      weight: of the parameter that it applies.
      operand: of the signal that the parameter is applied to, only the number of non-zeros.
      dead, saturated: as in `Details`.
    """

    signal: Sums
    weight: Sums | None
    operand: Sums | None
    dead: Any
    saturated: Any


# Traced once for each shape and type.
@functools.partial(jax.jit, static_argnames="exact")
def measure(x: jax.Array, exact: bool) -> Sums:
    """Return the sums over an array of any floating or complex type.

    If not `exact`, squares may overflow or underflow, and what is not finite spoils them: see
    `is_exact`. Comparisons and selections, which cost loops of their own, are then avoided.
    """
    a = jnp.abs(x) if exact or jnp.iscomplexobj(x) else x
    a = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    if x.size == 0:
        zero = jnp.zeros((), a.dtype)
        return Sums(zero, zero, zero, zero if exact else None, 0)
    if not exact:
        # The quotient of a normal number and the smallest one is at least 1.
        ones = jnp.minimum(jnp.square(a * (1 / jnp.finfo(a.dtype).tiny)), 1)
        return Sums(jnp.max(jnp.abs(a)), jnp.sum(jnp.square(a)), jnp.sum(ones), None, x.size)
    finite = jnp.isfinite(a)
    nonzero, finites = (jnp.sum(part, dtype=a.dtype) for part in (a != 0, finite))
    a = jnp.where(finite, a, 0)
    largest = jnp.max(a)
    # Squares of quotients that underflow are nothing beside that of the largest one.
    squares = jnp.sum(jnp.square(a / _divisor(largest, jnp)))
    return Sums(largest, squares, nonzero, finites, x.size)


def _divisor(largest: Any, xp: Any) -> Any:
    """Return the largest value, or one near it whose reciprocal is a normal number."""
    tiny = float(jnp.finfo(largest.dtype).tiny)
    return xp.clip(largest, tiny, 1 / (256 * tiny))


def measure_site(location: Location, inputs: Sequence[Any], result: Any, exact: bool) -> SiteSums:
    """Return the sums at an operation; no derivative goes through them."""
    name, i = location.operation, location.weight
    inputs, result = jax.lax.stop_gradient((list(inputs), result))
    weight, operand, dead, saturated = None, None, None, None
    if i >= 0 and len(inputs) == 2 and float_eps(inputs[i].dtype):
        # What is not returned is not computed.
        weight = dataclasses.replace(measure(inputs[i], exact), nonzero=None)
        operand = measure(inputs[1 - i], exact)
        operand = Sums(None, None, operand.nonzero, None, operand.size)
    if result.ndim > 1 and ("relu" in name or name == "max"):
        dead = jnp.mean(jnp.all(result == 0, axis=tuple(range(result.ndim - 1))), dtype=jnp.float32)
    if name in BOUNDS:
        low, high = BOUNDS[name]
        # 1 % of the range from a bound.
        far = jnp.abs(result - (low + high) / 2) > 0.49 * (high - low)
        saturated = jnp.mean(far, dtype=jnp.float32)
    return SiteSums(measure(result, exact), weight, operand, dead, saturated)


def is_exact(sums: Sums) -> bool:
    """Whether the statistics of sums, as arrays of NumPy, are those of the array."""
    if sums.finite is not None or sums.largest is None:
        return True
    largest, squares = np.asarray(sums.largest), np.asarray(sums.squares)
    info = np.finfo(largest.dtype)
    # The error of each square that underflows is below the smallest normal number.
    in_range = (squares > sums.size * info.tiny / info.eps) & (squares <= info.max)
    return bool(np.all(in_range | (largest <= 0)))


def statistics(sums: Sums, xp: Any) -> Statistics:
    """Return the statistics of an array, with `numpy` or `jax.numpy` as `xp`."""
    size, largest, squares = max(sums.size, 1), sums.largest, sums.squares
    if sums.finite is None:
        log_divisor, share = 0.0, xp.where(xp.isfinite(largest), 1.0, xp.nan)
    else:
        finite = sums.finite
        if sums.nonzero is not None:
            # Sums that no cotangent has reached are zero. Elements that are zero are finite.
            finite = xp.where((finite == 0) & (sums.nonzero == 0), size, finite)
        log_divisor, share = xp.log(_divisor(largest, xp)), finite / size
    # An empty array has no element that is not finite.
    non_finite = 1 - share if sums.size else 0 * share
    zeros = 1.0 if sums.nonzero is None else 1 - sums.nonzero / size
    with np.errstate(divide="ignore", invalid="ignore"):
        log_square = xp.log(squares / size) + 2 * log_divisor - xp.log(share)
        log_square = xp.where(squares == 0, -xp.inf, log_square)
        values = Statistics(log_square, xp.log(largest), zeros, non_finite)
    return Statistics(*(xp.where(largest < 0, xp.nan, value) for value in values))


def details(sums: SiteSums, xp: Any) -> Details:
    """Return the details of an operation, with `numpy` or `jax.numpy` as `xp`."""
    nothing = xp.full(sums.signal.largest.shape, xp.nan)
    weight, zeros = nothing, nothing
    if sums.weight is not None and sums.operand is not None:
        weight = statistics(sums.weight, xp).log_mean_square
        zeros = 1 - sums.operand.nonzero / max(sums.operand.size, 1)
    dead, saturated = (nothing if s is None else s for s in (sums.dead, sums.saturated))
    taken = sums.signal.largest >= 0
    return Details(*(xp.where(taken, value, xp.nan) for value in (weight, zeros, dead, saturated)))
