"""Functions that several files check."""

import jax
import jax.numpy as jnp


def with_backward(function, backward):
    """`function` with `backward(args, cotangent)` for its reverse mode."""
    rule = jax.custom_vjp(function)
    rule.defvjp(lambda *args: (function(*args), args), backward)
    return rule


def network(params, x):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((h @ params["w2"] + params["b2"][None]) ** 2)


def by_path(report):
    return {leaf.path: leaf for leaf in report.leaves}
