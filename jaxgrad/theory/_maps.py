"""The maps of a fully connected layer `z = W phi(z') + b` at infinite width.

Weights have variance `w_variance / fan_in` and biases `b_variance`; `q` is the variance of the
pre-activations. Poole et al. (2016) derive the maps, Schoenholz et al. (2017) their slopes.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, in_float64
from jaxgrad.activations import Activation
from jaxgrad.theory._moments import pair, statistics

P = ParamSpec("P")
R = TypeVar("R")
ActivationLike = str | Activation | Callable[..., Any]

_MINIMUM = {"q": 0.0, "w_variance": 0.0, "b_variance": 0.0, "input_square": 0.0}
_MINIMUM |= {"width": 1.0, "depth": 0.0, "gap": 0.0}
_MAXIMUM = {"gap": 2.0 + 1e-5}  # with the rounding of a measured gap


def prediction(check: Callable[..., None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function of an activation in float64, with its arguments checked by their names.

    Arguments annotated as `ArrayLike` are numbers: they pass `check` and are converted to float64.
    All others are static; integers are at least 1.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        kinds = {name: part.annotation for name, part in signature.parameters.items()}
        static = [name for name, kind in kinds.items() if kind != ArrayLike]

        @in_float64
        @functools.partial(jax.jit, static_argnames=static)
        def compiled(**arguments: Any) -> Any:
            numbers = {name: jnp.asarray(arguments[name], float) for name in kinds.keys() - static}
            return function(**(arguments | numbers))  # pyright: ignore[reportCallIssue]

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = bound.arguments
            arguments["activation"] = activations.get(arguments["activation"])
            for name, kind in kinds.items():
                if kind is int:
                    arguments[name] = _validate.integer(name, arguments[name], 1)
                elif kind == ArrayLike and name in _MINIMUM:
                    above = name in ("q", "input_square")
                    bounds = {"minimum": _MINIMUM[name], "maximum": _MAXIMUM.get(name, math.inf)}
                    check(name, arguments[name], above=above, **bounds)
                elif get_origin(kind) is Literal:
                    _validate.choice(name, arguments[name], get_args(kind))
            return compiled(**arguments)

        return wrapper

    return decorate


@prediction(_validate.numbers)
def second_moment(activation: ActivationLike, q: ArrayLike) -> FloatArray:
    """Compute `M(q) = E phi(sqrt(q) z)^2`, `z` standard normal, with a relative error of 1e-12.

    The variances `q`, of any shape, are above 0; for `activation` see `jaxgrad.activations.get`.
    The result has the shape of `q`, NaN where `M` diverges. A `ValueError` reports an activation
    that is not elementwise, is NaN somewhere, or is nowhere smooth.
    """
    return jnp.exp(statistics(activations.get(activation), jnp.log(q)).log_square)


@prediction(_validate.numbers)
def slope_moment(activation: ActivationLike, q: ArrayLike) -> FloatArray:
    """Compute `D(q) = E phi'(sqrt(q) z)^2`, with `z` standard normal; see `second_moment`."""
    return jnp.exp(statistics(activations.get(activation), jnp.log(q)).log_slope)


@prediction(_validate.numbers)
def q_map(
    activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike, b_variance: ArrayLike = 0.0
) -> FloatArray:
    """Compute the variance of the next layer's pre-activations, `w_variance M(q) + b_variance`.

    The variances are at least 0 and broadcast with `q`; see `second_moment`.
    """
    return w_variance * second_moment(activation, q) + b_variance


@prediction(_validate.numbers)
def c_map(
    activation: ActivationLike,
    gap: ArrayLike,
    q: ArrayLike,
    w_variance: ArrayLike,
    b_variance: ArrayLike = 0.0,
) -> FloatArray:
    """Compute the correlation `c` of two examples in the next layer, in terms of `gap = 1 - c`.

    Both have variance `q`. The gap, from 0 to 2, broadcasts with the arguments of `q_map`. Near
    `c = 1` it keeps the digits that `c` loses; its relative error is about `1e-16 / sqrt(gap)`.

    >>> round(float(c_map("relu", 1.0, 1.0, 2.0)), 6)  # 1 - 1 / pi
    0.68169
    """
    q, gap = jnp.broadcast_arrays(q, gap)
    square = w_variance * second_moment(activation, q)
    # Equal biases bring examples closer: of the next variance, only the share w M differs.
    share = square / (square + b_variance)
    return pair(activations.get(activation), jnp.log(q), gap).gap * share


@prediction(_validate.numbers)
def chi_perp(activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike) -> FloatArray:
    """Compute `w_variance D(q)`, the growth per layer of a squared gradient or a squared angle."""
    return w_variance * slope_moment(activation, q)


@prediction(_validate.numbers)
def chi_par(activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike) -> FloatArray:
    """Compute `w_variance M'(q)`, the slope of `q_map`: below 1 the length is stable."""
    averages = statistics(activations.get(activation), jnp.log(q))
    # M' = (d log M / d log q) M / q.
    return w_variance * averages.elasticity * jnp.exp(averages.log_square) / q


def next_log_q(log_square: Any, log_w: Any, b_variance: Any) -> Array:
    """Compute `log(w M + b)` from the logs of `M` and `w`; its derivative by `b` is finite at 0."""
    weighted = log_w + log_square
    # logaddexp(x, -inf) has no derivative by the -inf, so b = 0 is a case of its own.
    positive = b_variance > 0
    both = jnp.logaddexp(weighted, jnp.log(jnp.where(positive, b_variance, 1.0)))
    # At b = 0, d/db log(w M + b) = 1 / (w M).
    inverse = jnp.exp(-jnp.where(jnp.isfinite(weighted), weighted, 0.0))
    return jnp.where(positive, both, weighted + b_variance * jax.lax.stop_gradient(inverse))
