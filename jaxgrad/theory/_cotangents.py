"""What becomes of a cotangent whose tokens are correlated."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.theory._moments import Moments


class Cotangent(NamedTuple):
    """Moments of a cotangent over tokens, arrays `[...]`.

    Attributes:
      log_square: log of its mean square over tokens and units.
      gap: `1 - r`, where `r` is the mean product of two tokens over the mean square.
    """

    log_square: Any = 0.0
    gap: Any = 1.0


@in_float64
def pull_back(
    predict: Callable[[Moments], Moments], moments: Moments, cotangent: Cotangent | None = None
) -> Cotangent:
    """Predict the gradient by the input of a layer, from a cotangent of its outputs.

    The gap of the cotangent matters: that of a loss of each token has gap 1, that of a loss of
    their mean has gap 0. A loss of several layers is pulled back through one after the other.

    Args:
      predict: the `predict` of a layer, or any other function from moments to moments that follows
        how a change grows.
      moments: those of the layer's input, with `tokens`.
      cotangent: that of the outputs; `None` for independent elements of variance 1.

    >>> from jaxgrad.theory import Tokens, attend
    >>> moments = Moments(log_q=0.0, tokens=Tokens(count=4, gap=1.0))
    >>> def uniform(moments):
    ...     return attend(moments, logit_gain=0.0)
    >>> each, mean = pull_back(uniform, moments), pull_back(uniform, moments, Cotangent(gap=0.0))
    >>> round(float(jnp.exp(each.log_square)), 6), round(float(jnp.exp(mean.log_square)), 6)
    (0.25, 1.0)
    """
    _validate.function("predict", predict)
    _validate.instance("moments", moments, Moments, "moments_of")
    tokens = moments.tokens
    if tokens is None:
        raise ValueError("moments must have tokens, got None; see jaxgrad.theory.Tokens")
    cotangent = Cotangent() if cotangent is None else cotangent
    _validate.instance("cotangent", cotangent, Cotangent, "Cotangent")
    size = tokens.count
    gap = jnp.asarray(cotangent.gap, float)

    def push(change_gap):
        changed = dataclasses.replace(tokens, change_gap=jnp.asarray(change_gap, float))
        start = dataclasses.replace(moments, log_gradient=jnp.zeros(()), tokens=changed)
        after = predict(start)
        if after.tokens is None:
            raise ValueError("predict must return moments with tokens, got None; keep those it got")
        growth = jnp.exp(after.log_gradient)
        deviation = growth * after.tokens.change_gap
        return deviation, size * growth - (size - 1) * deviation

    # Changes of variance 1 in all deviations from the mean token, and in the mean token alone. The
    # Jacobian has the same squared norm between two such spaces in both directions: the matrix of
    # the cotangent is the transpose, but for the number of dimensions, T - 1 and 1.
    deviation, mean_of_deviation = (a * (size - 1) / size for a in push(size / (size - 1)))
    deviation_of_mean, mean = (a / size for a in push(0.0))
    before, before_mean = gap, size - (size - 1) * gap
    after = deviation * before + mean_of_deviation * before_mean / (size - 1)
    after_mean = (size - 1) * deviation_of_mean * before + mean * before_mean
    growth = ((size - 1) * after + after_mean) / size
    return Cotangent(cotangent.log_square + jnp.log(growth), after / growth)
