"""Functions with derivative rules by hand, each right as it is, and ways to break it.

Each function of `FUNCTIONS` makes one: `change` is applied to the cotangents or tangents that the
rule returns, `residual` to what it has saved. With the identity for both the rule is right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Change = Callable[[Any], Any]


def array(*shape: int, seed: int = 0, low: float = 0.3, high: float = 1.5) -> jax.Array:
    """Return float32 numbers of either sign, none of them close to zero."""
    generator = np.random.default_rng([seed, *shape])
    values = generator.uniform(low, high, shape) * generator.choice([-1, 1], shape)
    return jnp.asarray(values, jnp.float32)


def gated(change: Change, residual: Change) -> Any:
    """The sine of an argument, times another."""

    @jax.custom_vjp
    def gated(x, w):
        return jnp.sin(x) * w

    def forward(x, w):
        return gated(x, w), (x, w)

    def backward(saved, ct):
        x, w = residual(saved)
        return change((ct * jnp.cos(x) * w, ct * jnp.sin(x)))

    gated.defvjp(forward, backward)
    return gated, (array(4), array(4, seed=1))


def dense(change: Change, residual: Change) -> Any:
    """A layer whose bias is broadcast over the batch."""

    @jax.custom_vjp
    def dense(x, w, b):
        return x @ w + b[None]

    def forward(x, w, b):
        return dense(x, w, b), (x, w)

    def backward(saved, ct):
        x, w = residual(saved)
        return change((ct @ w.T, x.T @ ct, ct.sum(0)))

    dense.defvjp(forward, backward)
    return dense, (array(3, 4), array(4, 3, seed=1), array(3, seed=2))


def layer_norm(change: Change, residual: Change) -> Any:
    """Layer normalization with a scale that is broadcast over the batch."""

    def normalized(x):
        centered = x - x.mean(-1, keepdims=True)
        size = jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return centered / size, size

    @jax.custom_vjp
    def layer_norm(x, scale):
        return normalized(x)[0] * scale[None]

    def forward(x, scale):
        return layer_norm(x, scale), (x, scale)

    def backward(saved, ct):
        x, scale = residual(saved)
        y, size = normalized(x)
        g = ct * scale[None]
        mean = g.mean(-1, keepdims=True) + y * (g * y).mean(-1, keepdims=True)
        return change(((g - mean) / size, (ct * y).sum(0)))

    layer_norm.defvjp(forward, backward)
    return layer_norm, (array(3, 5), array(5, seed=1))


def cross_entropy(change: Change, residual: Change) -> Any:
    """Cross entropy of logits and labels."""

    @jax.custom_vjp
    def cross_entropy(logits, labels):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]

    def forward(logits, labels):
        return cross_entropy(logits, labels), (jax.nn.softmax(logits), labels)

    def backward(saved, ct):
        p, labels = residual(saved)
        onehot = jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)
        (gradient,) = change((ct[:, None] * (p - onehot),))
        return gradient, None

    cross_entropy.defvjp(forward, backward)
    return cross_entropy, (array(3, 4), jnp.array([2, 0, 1]))


def attention(change: Change, residual: Change) -> Any:
    """Attention with one head."""

    def weights(q, k):
        return jax.nn.softmax(q @ k.T / np.sqrt(q.shape[-1]).astype(np.float32))

    @jax.custom_vjp
    def attention(q, k, v):
        return weights(q, k) @ v

    def forward(q, k, v):
        return attention(q, k, v), (q, k, v)

    def backward(saved, ct):
        q, k, v = residual(saved)
        p = weights(q, k)
        g = ct @ v.T
        g = p * (g - (g * p).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1]).astype(np.float32)
        return change((g @ k, g.T @ q, p.T @ ct))

    attention.defvjp(forward, backward)
    return attention, (array(3, 2), array(3, 2, seed=1), array(3, 2, seed=2))


def smoothed(change: Change, residual: Change) -> Any:
    """An exponential moving average, whose backward pass runs backward in time."""

    def run(x, decay, reverse=False):
        def step(carry, value):
            carry = decay * carry + value
            return carry, carry

        return jax.lax.scan(step, jnp.zeros_like(x[0]), x, reverse=reverse)[1]

    @jax.custom_vjp
    def smoothed(x, decay):
        return run(x, decay)

    def forward(x, decay):
        y = run(x, decay)
        return y, (y, decay)

    def backward(saved, ct):
        y, decay = residual(saved)
        g = run(ct, decay, reverse=True)
        before = jnp.concatenate([jnp.zeros_like(y[:1]), y[:-1]])
        return change((g, jnp.sum(g * before)))

    smoothed.defvjp(forward, backward)
    return smoothed, (array(5, 2), jnp.float32(0.7))


def embedding(change: Change, residual: Change) -> Any:
    """Rows of a table, some of them used twice."""

    @jax.custom_vjp
    def embedding(table, ids):
        return table[ids]

    def forward(table, ids):
        return table[ids], (jnp.zeros_like(table), ids)

    def backward(saved, ct):
        zeros, ids = residual(saved)
        (gradient,) = change((zeros.at[ids].add(ct),))
        return gradient, None

    embedding.defvjp(forward, backward)
    return embedding, (array(4, 3), jnp.array([0, 2, 2, 3]))


def fixed_point(change: Change, residual: Change) -> Any:
    """The solution of x = tanh(w x + b) / 2, by the implicit function theorem."""

    def solve(w, b):
        return jax.lax.fori_loop(0, 40, lambda _, x: jnp.tanh(w @ x + b) / 2, jnp.zeros_like(b))

    @jax.custom_vjp
    def fixed_point(w, b):
        return solve(w, b)

    def forward(w, b):
        x = solve(w, b)
        return x, (w, x)

    def backward(saved, ct):
        w, x = residual(saved)
        slope = 0.5 * (1 - (2 * x) ** 2)
        u = slope * jnp.linalg.solve((jnp.eye(len(x), dtype=x.dtype) - slope[:, None] * w).T, ct)
        return change((jnp.outer(u, x), u))

    fixed_point.defvjp(forward, backward)
    return fixed_point, (0.3 * array(3, 3), array(3, seed=1))


def softplus(change: Change, residual: Change) -> Any:
    """Softplus with a scale, by a rule of forward mode."""

    @jax.custom_jvp
    def softplus(x, scale):
        return jnp.log1p(jnp.exp(x)) * scale

    @softplus.defjvp
    def tangent(args, tangents):
        (x, scale), (dx, dscale) = residual(args), change(tangents)
        slope = jax.nn.sigmoid(x) * scale
        return softplus(*args), slope * dx + jnp.log1p(jnp.exp(x)) * dscale

    return softplus, (array(4), jnp.float32(1.3))


def unit(change: Change, residual: Change) -> Any:
    """A vector divided by its norm, by a rule of forward mode."""

    @jax.custom_jvp
    def unit(x):
        return x / jnp.linalg.norm(x)

    @unit.defjvp
    def tangent(args, tangents):
        (x,), (dx,) = residual(args), change(tangents)
        y, size = x / jnp.linalg.norm(x), jnp.linalg.norm(x)
        return unit(*args), (dx - y * jnp.vdot(y, dx)) / size

    return unit, (array(4),)


def huber(change: Change, residual: Change) -> Any:
    """Huber's loss of a difference, by rules for each argument."""

    @jax.custom_jvp
    def huber(x, y):
        d = jnp.abs(x - y)
        return jnp.where(d < 1, d**2 / 2, d - 0.5)

    @huber.defjvp
    def tangent(args, tangents):
        (x, y), (dx, dy) = residual(args), change(tangents)
        return huber(*args), jnp.clip(x - y, -1, 1) * (dx - dy)

    return huber, (array(4), array(4, seed=1))


FUNCTIONS = {
    function.__name__: function
    for function in (
        *(gated, dense, layer_norm, cross_entropy, attention, smoothed, embedding, fixed_point),
        *(softplus, unit, huber),
    )
}
