"""The depth over which the tokens of an example become equal."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad._numerics import FloatArray, in_float64
from jaxgrad.theory._moments import Moments

# Tokens this much alike are followed to first order.
_NEAR = 1e-6


@in_float64
def rank_collapse(
    predict: Callable[[Moments], Moments], moments: Moments, *, depth: int = 1
) -> FloatArray:
    """Predict the depth scale of rank collapse: the gap of almost equal tokens falls as `e^(-l/x)`.

    It is positive if tokens become equal with depth, negative if almost equal ones move apart, and
    infinite if they do neither. A pre-norm network, whose signal grows, collapses ever more slowly:
    its scale at a depth is that of its block at the signal there.

    Args:
      predict: the `predict` of a block, or any other function from moments to moments that follows
        `tokens`.
      moments: those of the input, with `tokens`; their gap does not matter.
      depth: which block, from 1; the earlier ones set the size of the signal.

    Returns:
      The scale `x` in blocks, of the shape of the moments.

    Source: Dong, Cordonnier, Loukas (2021) for the collapse. With uniform attention and a residual
    branch of scale `a`, the deviations of tokens stay and their mean grows by `1 + a^2`.

    >>> from jaxgrad.theory import Tokens, attend
    >>> def block(moments):
    ...     branch = attend(moments, logit_gain=0.0)
    ...     total = jnp.exp(moments.log_q) + jnp.exp(branch.log_q)
    ...     gap = moments.tokens.gap * jnp.exp(moments.log_q) / total
    ...     tokens = dataclasses.replace(moments.tokens, gap=gap)
    ...     return dataclasses.replace(moments, log_q=jnp.log(total), tokens=tokens)
    >>> scale = rank_collapse(block, Moments(log_q=0.0, tokens=Tokens(count=8, gap=1.0)))
    >>> round(float(scale), 4), round(1 / float(jnp.log(2.0)), 4)
    (1.4427, 1.4427)
    """
    _validate.function("predict", predict)
    _validate.instance("moments", moments, Moments, "moments_of")
    if moments.tokens is None:
        raise ValueError("moments must have tokens, got None; see jaxgrad.theory.Tokens")
    depth = _validate.integer("depth", depth, 1)

    def near(moments):
        # Only the size of the signal is carried on: the gap is set before every block.
        assert moments.tokens is not None
        gap = jnp.full_like(jnp.asarray(moments.log_q, float), _NEAR)
        tokens = dataclasses.replace(moments.tokens, gap=gap)
        return dataclasses.replace(moments, tokens=tokens)

    moments = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), moments)
    for _ in range(depth):
        after = predict(near(moments))
        if after.tokens is None:
            raise ValueError("predict must return moments with tokens, got None; keep those it got")
        moments = after
    assert moments.tokens is not None
    return -1 / jnp.log(moments.tokens.gap / _NEAR)
