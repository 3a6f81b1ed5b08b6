"""Losses of models whose gradients are right, though many a checker says otherwise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gradient_corpus_case import (
    Case,
    normal,
    register,
    uniform,
    with_vjp,
)

CASES: list[Case] = []
right = register(CASES, right=True)


def _mlp(key, *sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes, sizes[1:], strict=False)
    return [
        {"kernel": normal(k, m, n, scale=1 / math.sqrt(m)), "bias": jnp.zeros(n, jnp.float32)}
        for k, m, n in shapes
    ]


def _apply(params, x, activation):
    for layer in params[:-1]:
        x = activation(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def _cross_entropy(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(picked)


def _labels(key, batch, classes):
    return jax.random.randint(key, (batch,), 0, classes, jnp.int32)


# Scales, offsets, leaves.


@right()
def linear_regression(key):
    """A plain least-squares loss."""
    kx, ky, kw = jax.random.split(key, 3)
    x, y = normal(kx, 64, 10), normal(ky, 64)
    params = {"w": normal(kw, 10), "b": jnp.float32(0.3)}
    return lambda p: jnp.mean((x @ p["w"] + p["b"] - y) ** 2), (params,)


@right()
def scalar_python_float(key):
    """A Python float as argument."""
    return lambda x: jnp.sin(3 * x) * x, (float(uniform(key)) + 0.5,)


@right(argnums=(0, 1))
def numpy_arguments(key):
    """NumPy arrays as arguments."""
    ka, kb = jax.random.split(key)
    a, b = (np.asarray(normal(k, 5, 5)) for k in (ka, kb))
    return lambda a, b: jnp.sum(jnp.tanh(a @ b)), (a, b)


@right()
def tiny_parameters(key):
    """Parameters of 1e-6, far below a fixed step."""
    return lambda x: jnp.sum(jnp.exp(1e6 * x) * x), (normal(key, 20, scale=1e-6),)


@right()
def huge_parameters(key):
    """Parameters of 1e6, where a fixed step is below rounding."""
    return lambda x: jnp.sum(jnp.log1p((x / 1e6) ** 2)), (normal(key, 20, scale=1e6),)


@right()
def big_offset(key):
    """A constant of 1e5 in the loss swallows the differences in float32."""
    return lambda x: 1e5 + jnp.sum(jnp.tanh(x) ** 2), (normal(key, 30),)


@right()
def cancelling_constants(key):
    """Large constants that cancel."""
    return lambda x: jnp.sum(((x + 1e4) - 1e4) ** 2), (normal(key, 12),)


@right()
def leaves_of_unequal_gradient(key):
    """Leaves whose gradients differ by a factor of 1e9."""
    ka, kb, kc = jax.random.split(key, 3)
    params = {"steep": normal(ka, 10), "flat": normal(kb, 10), "level": normal(kc, 10)}

    def f(p):
        parts = 1e6 * jnp.sum(jnp.sin(p["steep"])), 1e-3 * jnp.sum(jnp.sin(p["flat"]))
        return sum(parts) + jnp.sum(jnp.sin(p["level"]))

    return f, (params,)


@right()
def leaves_of_unequal_scale(key):
    """Parameters of 1e-4 and 1e4 side by side."""
    ka, kb = jax.random.split(key)
    params = (normal(ka, 8, scale=1e-4), normal(kb, 8, scale=1e4))
    return lambda p: jnp.sum(jnp.sin(1e4 * p[0]) * jnp.cos(1e-4 * p[1])), (params,)


@right()
def huge_regulariser(key):
    """A data term beside a regulariser a million times larger."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 32, 16)
    return lambda w: jnp.mean(jax.nn.softplus(x @ w)) + 1e6 * jnp.sum(w**2), (normal(kw, 16),)


@right()
def unused_leaf(key):
    """A leaf that does not matter has gradient zero."""
    ka, kb = jax.random.split(key)
    params = {"used": normal(ka, 6), "unused": normal(kb, 6)}
    return lambda p: jnp.sum(jnp.cos(p["used"])), (params,)


@right()
def constant_function(key):
    """A function that does not depend on its argument."""
    return lambda x: jnp.sum(jnp.zeros_like(x)) + 3.0, (normal(key, 6),)


@right()
def constant_softmax_sum(key):
    """A sum of probabilities is one: the gradient is rounding."""
    return lambda x: jnp.sum(jax.nn.softmax(x)), (normal(key, 40),)


@right()
def bias_before_batch_norm(key):
    """The bias before a batch norm has gradient zero up to rounding."""
    kx, kw, kc = jax.random.split(key, 3)
    x, c = normal(kx, 32, 6), normal(kc, 32, 8)
    params = {"w": normal(kw, 6, 8), "b": jnp.ones(8, jnp.float32)}

    def f(p):
        z = x @ p["w"] + p["b"]
        return jnp.sum(c * (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5))

    return f, (params,)


@right()
def leaves_without_gradient(key):
    """Integer, boolean, key, None and empty leaves in the pytree."""
    params = {
        "w": normal(key, 6),
        "step": jnp.int32(3),
        "mask": jnp.asarray([True, False, True, True, False, True]),
        "key": jax.random.key(0),
        "none": None,
        "empty": jnp.zeros((0, 3), jnp.float32),
    }

    def f(p):
        noise = jax.random.normal(p["key"], (6,), jnp.float32)
        kept = jnp.where(p["mask"], p["w"], 0.0)
        return jnp.sum(jnp.sin(kept + noise)) * p["step"] + jnp.sum(p["empty"])

    return f, (params,)


@right()
def bfloat16_leaf(key):
    """A bfloat16 leaf beside a float32 one."""
    ka, kb = jax.random.split(key)
    params = {"half": normal(ka, 8).astype(jnp.bfloat16), "full": normal(kb, 8)}
    return lambda p: jnp.sum(jnp.tanh(p["half"].astype(jnp.float32) * p["full"])), (params,)


@right()
def float16_leaf(key):
    """A float16 leaf, computed with in float32."""
    x = normal(key, 10).astype(jnp.float16)
    return lambda x: jnp.sum(jnp.exp(-(x.astype(jnp.float32) ** 2))), (x,)


@right()
def mixed_precision(key):
    """A product in bfloat16 inside a float32 loss."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 32, 8)

    def f(w):
        z = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32)
        return jnp.sum(z**2)

    return f, (normal(kw, 8, 4),)


@right()
def float32_scan_carry(key):
    """A scan whose carry is hard-coded as float32."""
    kx, kw = jax.random.split(key)
    xs = normal(kx, 20, 5)

    def f(w):
        def step(carry, x):
            return jnp.tanh(carry + w * x).astype(jnp.float32), None

        return jnp.sum(lax.scan(step, jnp.zeros(5, jnp.float32), xs)[0] ** 2)

    return f, (normal(kw, 5),)


@right()
def float32_inside(key):
    """A cast to float32 on the way."""
    kx, kp = jax.random.split(key)
    x = normal(kx, 32, 8)
    f = lambda p: jnp.mean(_apply(p, x, lambda z: jnp.tanh(z.astype(jnp.float32))) ** 2)  # noqa: E731
    return f, (_mlp(kp, 8, 16, 3),)


# Arguments and outputs.


@right(argnums=(0, 2))
def several_arguments(key):
    """Two of three arguments, the other one integers."""
    ka, kb = jax.random.split(key)
    index = jnp.arange(4)
    f = lambda table, index, scale: jnp.sum(jnp.sin(table[index] * scale))  # noqa: E731
    return f, (normal(ka, 9, 3), index, normal(kb, 3))


@right()
def vector_output(key):
    """A vector is returned."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 20, 6)
    return lambda w: jnp.tanh(x @ w), (normal(kw, 6),)


@right()
def pytree_output(key):
    """A pytree is returned."""
    f = lambda x: {"a": jnp.sin(x), "b": (jnp.sum(x**2), x[:2] * x[2:4])}  # noqa: E731
    return f, (normal(key, 5),)


@right(has_aux=True)
def auxiliary_output(key):
    """A loss with auxiliary data."""
    return lambda x: (jnp.sum(x**3), {"step": 3, "x": x}), (normal(key, 7),)


@right(holomorphic=True)
def holomorphic(key):
    """A holomorphic function."""
    ka, kb = jax.random.split(key)
    z = lax.complex(normal(ka, 4), normal(kb, 4))
    return lambda z: jnp.sum(z**2 * jnp.sin(z)), (z,)


@right()
def complex_least_squares(key):
    """jax-ml/jax#9110: a real loss of complex numbers, in JAX's convention."""
    keys = jax.random.split(key, 6)
    shapes = [(6, 4)] * 2 + [(6,)] * 2 + [(4,)] * 2
    parts = [normal(k, *shape) for k, shape in zip(keys, shapes, strict=True)]
    a, b, z = (lax.complex(parts[i], parts[i + 1]) for i in (0, 2, 4))
    return lambda z: jnp.sum(jnp.abs(a @ z - b) ** 2), (z,)


@right()
def imaginary_part(key):
    """jax-ml/jax#15872: the square of an imaginary part."""
    ka, kb = jax.random.split(key)
    return lambda z: jnp.sum(z.imag**2 * z.real), (lax.complex(normal(ka, 3), normal(kb, 3)),)


# Networks.


@right()
def tanh_network(key):
    """A classifier."""
    kx, ky, kp = jax.random.split(key, 3)
    x, y = normal(kx, 64, 12), _labels(ky, 64, 5)
    return lambda p: _cross_entropy(_apply(p, x, jnp.tanh), y), (_mlp(kp, 12, 24, 24, 5),)


@right()
def relu_network(key):
    """Thousands of pre-activations, some next to the kink."""
    kx, ky, kp = jax.random.split(key, 3)
    x, y = normal(kx, 256, 20), _labels(ky, 256, 10)
    return lambda p: _cross_entropy(_apply(p, x, jax.nn.relu), y), (_mlp(kp, 20, 48, 30, 10),)


@right()
def relu_network_zero_input(key):
    """A row of padding puts every pre-activation on the kink."""
    kx, kp = jax.random.split(key)
    x = normal(kx, 16, 6).at[0].set(0.0)
    return lambda p: jnp.mean(_apply(p, x, jax.nn.relu) ** 2), (_mlp(kp, 6, 12, 3),)


@right(argnums=(0, 1))
def gelu_network_and_input(key):
    """Gradient in the parameters and in the input."""
    kx, kp = jax.random.split(key)
    return lambda p, x: jnp.mean(_apply(p, x, jax.nn.gelu) ** 2), (
        _mlp(kp, 8, 32, 4),
        normal(kx, 4, 8),
    )


@right()
def leaky_relu_deep(key):
    """Ten layers of a leaky ReLU."""
    kx, kp = jax.random.split(key)
    x = normal(kx, 32, 8)
    f = lambda p: jnp.mean(_apply(p, x, jax.nn.leaky_relu) ** 2)  # noqa: E731
    return f, (_mlp(kp, *[8] * 10, 2),)


@right()
def convolution_max_pool(key):
    """Convolution, maximum pooling, dense; the float32 images refuse float64 kernels."""
    kx, kw, kd = jax.random.split(key, 3)
    x = normal(kx, 4, 10, 10, 2)
    params = {"conv": normal(kw, 3, 3, 2, 4, scale=0.3), "dense": normal(kd, 100, 3, scale=0.1)}

    def f(p):
        z = lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        z = lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.mean(jax.nn.logsumexp(z.reshape(4, 100) @ p["dense"], axis=1))

    return f, (params,)


@right(argnums=(0, 1))
def strided_convolution_average_pool(key):
    """A strided convolution and overlapping average pooling."""
    kx, kw = jax.random.split(key)

    def f(x, w):
        z = lax.conv(x, w, (2, 2), "SAME")
        return jnp.sum(lax.reduce_window(z, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 1, 1), "SAME") ** 2)

    return f, (normal(kx, 2, 3, 8, 8), normal(kw, 4, 3, 3, 3))


@right()
def rnn_100_steps(key):
    """A tanh network over 100 time steps."""
    kx, kw, ku = jax.random.split(key, 3)
    xs = normal(kx, 100, 4)
    params = {"w": normal(kw, 16, 16, scale=0.3), "u": normal(ku, 4, 16), "h": jnp.zeros(16)}

    def f(p):
        step = lambda h, x: (jnp.tanh(h @ p["w"] + x @ p["u"]), jnp.sum(h))  # noqa: E731
        h, sums = lax.scan(step, p["h"], xs)
        return jnp.sum(h**2) + jnp.mean(sums**2)

    return f, (params,)


@right()
def gru_150_steps(key):
    """A gated recurrent unit over 150 steps."""
    kx, kw, ku = jax.random.split(key, 3)
    xs = normal(kx, 150, 3)
    params = {"w": normal(kw, 3, 8, 8, scale=0.3), "u": normal(ku, 3, 3, 8)}

    def f(p):
        def step(h, x):
            z, r = (jax.nn.sigmoid(h @ p["w"][i] + x @ p["u"][i]) for i in (0, 1))
            return (1 - z) * h + z * jnp.tanh((r * h) @ p["w"][2] + x @ p["u"][2]), None

        return jnp.sum(lax.scan(step, jnp.zeros(8), xs)[0] ** 2)

    return f, (params,)


@right(argnums=(0, 1))
def linear_recurrence_associative(key):
    """A linear recurrence by an associative scan."""
    ka, kx = jax.random.split(key)

    def f(a, x):
        combine = lambda left, r: (left[0] * r[0], r[0] * left[1] + r[1])  # noqa: E731
        return jnp.sum(lax.associative_scan(combine, (jax.nn.sigmoid(a), x))[1] ** 2)

    return f, (normal(ka, 64, 3), normal(kx, 64, 3))


@right(argnums=(0, 1, 2))
def causal_attention(key):
    """Attention with a causal mask."""

    def f(q, k, v):
        scores = jnp.where(jnp.tri(12, dtype=bool), q @ k.T / jnp.sqrt(8.0), -jnp.inf)
        return jnp.sum((jax.nn.softmax(scores) @ v) ** 2)

    return f, tuple(normal(k, 12, 8) for k in jax.random.split(key, 3))


@right()
def rotary_attention(key):
    """Rotary positions, two heads."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 10, 8)
    angle = jnp.arange(10.0)[:, None] * 10.0 ** -jnp.arange(2.0)

    def rotate(z):
        a, b = z[..., :2], z[..., 2:]
        c, s = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
        return jnp.concatenate([a * c - b * s, a * s + b * c], -1)

    def f(w):
        q, k, v = ((x @ w[i]).reshape(10, 2, 4) for i in range(3))
        p = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", rotate(q), rotate(k)) / 2)
        return jnp.sum(jnp.einsum("hij,jhd->ihd", p, v) ** 2)

    return f, (normal(kw, 3, 8, 8, scale=0.4),)


@right()
def layer_norm(key):
    """Layer norm with scale and shift."""
    kx, kc, kg = jax.random.split(key, 3)
    c = normal(kc, 8, 32)
    params = {"x": normal(kx, 8, 32), "scale": normal(kg, 32), "shift": jnp.zeros(32)}

    def f(p):
        x = p["x"]
        x = (x - x.mean(1, keepdims=True)) * lax.rsqrt(x.var(1, keepdims=True) + 1e-6)
        return jnp.sum(c * jnp.sin(p["scale"] * x + p["shift"]))

    return f, (params,)


@right()
def batch_norm_offset(key):
    """Batch norm of data with mean 1000 and deviation one."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 64, 6)

    def f(x):
        return jnp.sum(c * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))

    return f, (1000 + normal(kx, 64, 6),)


@right()
def group_norm(key):
    """Group norm, four groups."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 4, 4, 8)

    def f(x):
        z = x.reshape(4, 4, 8)
        return jnp.sum(c * (z - z.mean(-1, keepdims=True)) / (z.std(-1, keepdims=True) + 1e-3))

    return f, (normal(kx, 4, 32),)


@right()
def large_logits(key):
    """Cross entropy of logits in the tens, saturated rows among them."""
    kx, ky = jax.random.split(key)
    y = _labels(ky, 40, 10)
    return lambda x: _cross_entropy(x, y), (normal(kx, 40, 10, scale=30.0),)


@right()
def dropout(key):
    """Dropout with a fixed key, which draws another mask in float64."""
    kx, kp, kd = jax.random.split(key, 3)
    x = normal(kx, 32, 10)

    def f(p):
        h = jnp.tanh(x @ p[0]["kernel"])
        kept = jax.random.bernoulli(kd, 0.7, h.shape)
        return jnp.mean((jnp.where(kept, h / 0.7, 0) @ p[1]["kernel"]) ** 2)

    return f, (_mlp(kp, 10, 20, 3),)


@right()
def embedding(key):
    """An embedding table with repeated indices and unused rows."""
    kt, ki = jax.random.split(key)
    index = _labels(ki, 30, 40)
    return lambda t: jnp.sum(jnp.tanh(t[index]) ** 2), (normal(kt, 60, 4),)


@right()
def checkpointed(key):
    """Rematerialised layers in a scan whose float32 start refuses float64 parameters."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 16, 8)

    def f(w):
        layer = jax.checkpoint(lambda h, w: jnp.tanh(h @ w))
        return jnp.sum(lax.scan(lambda h, w: (layer(h, w), None), x, w)[0] ** 2)

    return f, (normal(kw, 6, 8, 8, scale=0.4),)


@right()
def gradient_penalty(key):
    """A penalty on the norm of an input gradient, which stays float32 as the input does."""
    kx, kp = jax.random.split(key)
    x = normal(kx, 16, 5)

    def f(p):
        slopes = jax.vmap(jax.grad(lambda x: _apply(p, x, jnp.tanh)[0]))(x)
        return jnp.mean((jnp.linalg.norm(slopes, axis=1) - 1) ** 2)

    return f, (_mlp(kp, 5, 16, 1),)


@right()
def hessian_vector_product(key):
    """A Hessian-vector product inside."""
    kx, kv = jax.random.split(key)
    v = normal(kv, 10)
    inner = lambda x: jnp.sum(jnp.sin(x) * jnp.roll(x, 1) ** 2)  # noqa: E731
    return lambda x: jnp.sum(jax.jvp(jax.grad(inner), (x,), (v.astype(x.dtype),))[1] ** 2), (
        normal(kx, 10),
    )


@right()
def physics_informed(key):
    """The residual of u'' = -u of a network."""
    t = jnp.linspace(0.0, 2.0, 20)

    def f(p):
        u = lambda t: _apply(p, t[None], jnp.tanh)[0]  # noqa: E731
        return jnp.mean((jax.vmap(jax.grad(jax.grad(u)))(t) + jax.vmap(u)(t)) ** 2)

    return f, (_mlp(key, 1, 16, 1),)


@right()
def fused_cross_entropy(key):
    """Softmax minus one-hot."""
    kx, ky = jax.random.split(key)
    y = _labels(ky, 32, 10)

    def backward(args, _, g):
        return (g * (jax.nn.softmax(args[0]) - jax.nn.one_hot(y, 10)) / 32,)

    fused = with_vjp(lambda x: _cross_entropy(x, y), backward)
    return lambda x: 3 * fused(x), (normal(kx, 32, 10),)


@right(order=2)
def second_order_network(key):
    """The Hessian of a tanh network."""
    kx, kp = jax.random.split(key)
    x = normal(kx, 10, 3)
    return lambda p: jnp.mean(_apply(p, x, jnp.tanh) ** 2), (_mlp(kp, 3, 5, 1),)
