"""Functions whose gradients are right, though many a checker says otherwise."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.ode import odeint

from benchmarks.gradient_corpus_case import (
    Case,
    away_from_zero,
    normal,
    register,
    uniform,
    with_jvp,
    with_vjp,
)

CASES: list[Case] = []
right = register(CASES, right=True)


# Kinks and the ends of domains.


@right()
def absolute_values_with_zeros(key):
    """An L1 norm where a third of the parameters are zero."""
    x = normal(key, 30).at[::3].set(0.0)
    return lambda x: jnp.sum(jnp.abs(x)), (x,)


@right()
def maximum_at_zero(key):
    """jax-ml/jax#37821: maximum(x, 0) at 0 has slope one half."""
    return lambda x: jnp.sum(jnp.maximum(x, 0.0) * 2), (normal(key, 20).at[:5].set(0.0),)


@right()
def relu_at_zero(key):
    """ReLU at exactly zero."""
    return lambda x: jnp.sum(jax.nn.relu(x) * 3), (normal(key, 20).at[::4].set(0.0),)


@right()
def tied_maximum(key):
    """A maximum over ties."""
    x = normal(key, 6, 5).at[:, 1].set(4.0).at[:, 3].set(4.0)
    return lambda x: jnp.sum(jnp.max(x, axis=1) ** 2), (x,)


@right()
def clip_edges(key):
    """Both ends of a clip."""
    x = uniform(key, 20, low=-1, high=2).at[:4].set(0.0).at[4:8].set(1.0)
    return lambda x: jnp.sum(jnp.clip(x, 0.0, 1.0)), (x,)


@right()
def hinge_near_kink(key):
    """Hinge losses within 1e-5 of the kink."""
    return lambda x: jnp.sum(jax.nn.relu(1 - x)), (1 + normal(key, 50, scale=1e-5),)


@right()
def safe_norm_at_zero(key):
    """A norm made safe by a double where, one row zero."""
    x = normal(key, 5, 4).at[2].set(0.0)

    def f(x):
        square = jnp.sum(x**2, axis=1)
        zero = square == 0
        return jnp.sum(jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square))))

    return f, (x,)


@right()
def guarded_square_root(key):
    """jax-ml/jax#1052: the double where."""
    x = away_from_zero(key, 20)
    return lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)), (x,)


@right()
def log_of_tiny(key):
    """A logarithm at 1e-10."""
    return lambda x: jnp.sum(jnp.log(x)), (1e-10 * uniform(key, 8, low=0.5, high=2),)


@right()
def square_root_of_tiny(key):
    """A square root at 1e-12."""
    return lambda x: jnp.sum(jnp.sqrt(x)), (1e-12 * uniform(key, 8, low=0.5, high=2),)


@right()
def entropy(key):
    """Sums of x log x, some probabilities near 1e-7."""
    p = jax.nn.softmax(normal(key, 20, scale=4.0)).at[:3].set(1e-7)
    return lambda p: -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0)), (p,)


@right()
def three_halves_power_at_zero(key):
    """The power 1.5 at zero, the end of its domain."""
    return lambda x: jnp.sum(x**1.5), (uniform(key, 10).at[:3].set(0.0),)


@right()
def fast_oscillation(key):
    """A sine of 1e4 x: a step of 1e-3 sees nothing."""
    return lambda x: jnp.sum(jnp.sin(1e4 * x)), (uniform(key, 10),)


@right()
def flat_at_zero(key):
    """The function exp(-1/x^2), small with all its derivatives."""
    return lambda x: jnp.sum(jnp.exp(-1 / x**2)), (uniform(key, 10, low=0.2, high=0.6),)


@right()
def twentieth_power(key):
    """The power 20 over many orders of magnitude."""
    return lambda x: jnp.sum(x**20), (uniform(key, 10, low=0.3, high=2.0),)


@right()
def huber(key):
    """Huber loss, residuals on either side of its joint."""
    return lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5)), (
        normal(key, 50),
    )


@right()
def quantile_loss(key):
    """The pinball loss."""
    kx, kq = jax.random.split(key)
    x = normal(kx, 60)
    return lambda q: jnp.mean(jnp.maximum(0.9 * (x - q), -0.1 * (x - q))), (normal(kq),)


@right()
def triplet_loss(key):
    """A hinge of distances."""

    def f(a, p, n):
        distance = lambda u, v: jnp.sqrt(jnp.sum((u - v) ** 2, 1) + 1e-8)  # noqa: E731
        return jnp.mean(jax.nn.relu(distance(a, p) - distance(a, n) + 0.5))

    return f, tuple(normal(k, 20, 4) for k in jax.random.split(key, 3))


# Order and selection.


@right()
def sorted_weights(key):
    """A weighted sum of order statistics."""
    kx, kw = jax.random.split(key)
    w = normal(kw, 50)
    return lambda x: jnp.sum(w * jnp.sort(x) ** 2), (normal(kx, 50),)


@right()
def median(key):
    """The median of columns."""
    return lambda x: jnp.sum(jnp.median(x, axis=0) ** 2), (normal(key, 31, 4),)


@right()
def top_k(key):
    """The five largest."""
    return lambda x: jnp.sum(lax.top_k(x, 5)[0] ** 2), (normal(key, 40),)


@right()
def interpolation(key):
    """Linear interpolation in its values and points."""
    kx, ky = jax.random.split(key)
    grid = jnp.linspace(0.0, 1.0, 9)
    args = {"x": uniform(kx, 30, low=0.01, high=0.99), "values": normal(ky, 9)}
    return lambda a: jnp.sum(jnp.interp(a["x"], grid, a["values"]) ** 2), (args,)


@right()
def segment_maximum(key):
    """Sums and maxima over segments."""
    ids = jnp.repeat(jnp.arange(5), 4)

    def f(x):
        return jnp.sum(jax.ops.segment_max(x, ids, 5) * jax.ops.segment_sum(x, ids, 5))

    return f, (normal(key, 20),)


# Linear algebra and special functions.


@right()
def symmetric_eigenvectors(key):
    """Eigenvalues and eigenvectors, well apart."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 5)

    def f(x):
        values, vectors = jnp.linalg.eigh(jnp.diag(3.0 * jnp.arange(5.0)) + 0.3 * (x + x.T))
        return jnp.sum(values**2) + jnp.sum((vectors * vectors) @ (c * values))

    return f, (normal(kx, 5, 5),)


@right(argnums=(0, 1))
def gaussian_process(key):
    """The likelihood of a Gaussian process, by Cholesky."""
    kx, ky = jax.random.split(key)
    x, y = normal(kx, 15), normal(ky, 15)

    def f(log_scale, log_noise):
        gram = jnp.exp(-(((x[:, None] - x) / jnp.exp(log_scale)) ** 2) / 2)
        lower = jnp.linalg.cholesky(gram + jnp.exp(log_noise) * jnp.eye(15))
        white = jax.scipy.linalg.solve_triangular(lower, y, lower=True)
        return jnp.sum(white**2) / 2 + jnp.sum(jnp.log(jnp.diag(lower)))

    return f, (jnp.float32(0.2), jnp.float32(-1.0))


@right(argnums=(0, 1))
def linear_solve(key):
    """A linear system."""
    ka, kb = jax.random.split(key)
    a = 4 * jnp.eye(6, dtype=jnp.float32) + normal(ka, 6, 6, scale=0.5)
    return lambda a, b: jnp.sum(jnp.linalg.solve(a, b) ** 2), (a, normal(kb, 6))


@right()
def nuclear_norm(key):
    """A sum of singular values."""
    x = jnp.diag(jnp.arange(1.0, 5.0)) + normal(key, 4, 4, scale=0.2)
    return lambda x: jnp.sum(jnp.linalg.svd(x, compute_uv=False)), (x,)


@right()
def log_determinant(key):
    """A log determinant and an inverse."""
    x = 3 * jnp.eye(5, dtype=jnp.float32) + normal(key, 5, 5, scale=0.5)
    return lambda x: jnp.linalg.slogdet(x)[1] + jnp.sum(jnp.linalg.inv(x) ** 2), (x,)


@right()
def matrix_exponential(key):
    """A matrix exponential."""
    return lambda x: jnp.sum(jax.scipy.linalg.expm(x) ** 2), (normal(key, 4, 4, scale=0.4),)


@right()
def power_spectrum(key):
    """A log power spectrum."""
    return lambda x: jnp.sum(jnp.log1p(jnp.abs(jnp.fft.rfft(x)) ** 2)), (normal(key, 64),)


@right()
def fourier_convolution(key):
    """A circular convolution by FFT."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 32)
    f = lambda w: jnp.sum(jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(w), 32) ** 3)  # noqa: E731
    return f, (normal(kw, 32),)


@right()
def special_functions(key):
    """The functions gammaln, digamma, erf and a Bessel function."""

    def f(x):
        s = jax.scipy.special
        return jnp.sum(s.gammaln(x) + s.digamma(x) + s.erf(x) + s.i0e(x))

    return f, (uniform(key, 12, low=0.3, high=4.0),)


@right(argnums=(0, 1))
def angles(key):
    """The angle in all quadrants."""
    ky, kx = jax.random.split(key)
    f = lambda y, x: jnp.sum(jnp.arctan2(y, x) ** 2)  # noqa: E731
    return f, (away_from_zero(ky, 12), away_from_zero(kx, 12))


@right()
def cumulative_product(key):
    """A cumulative product."""
    return lambda x: jnp.sum(jnp.cumprod(x) ** 2), (uniform(key, 30, low=0.8, high=1.2),)


@right()
def tensor_network(key):
    """A contraction of three tensors."""
    keys = jax.random.split(key, 3)
    params = [normal(k, 4, 4, 4) for k in keys]
    return lambda p: jnp.einsum("abc,cde,efa->bdf", *p).sum() ** 2, (params,)


# Control flow, solvers, optimisers.


@right()
def conditional(key):
    """Both cond and switch inside a vmap."""

    def one(x):
        y = lax.cond(x > 0, jnp.sin, lambda x: x**2, x)
        return lax.switch(jnp.int32(jnp.abs(x) > 1), [jnp.exp, jnp.tanh], y)

    return jax.jit(lambda x: jnp.sum(jax.vmap(one)(x))), (away_from_zero(key, 20),)


@right()
def runge_kutta(key):
    """A pendulum by 100 steps of RK4."""
    params = {"y": normal(key, 2), "g": jnp.float32(9.8), "damping": jnp.float32(0.1)}

    def f(p):
        rate = lambda y: jnp.stack([y[1], -p["g"] * jnp.sin(y[0]) - p["damping"] * y[1]])  # noqa: E731

        def step(y, _):
            a = rate(y)
            b = rate(y + 0.01 * a)
            c = rate(y + 0.01 * b)
            d = rate(y + 0.02 * c)
            return y + 0.02 / 6 * (a + 2 * b + 2 * c + d), None

        return jnp.sum(lax.scan(step, p["y"], None, 100)[0] ** 2)

    return f, (params,)


@right(argnums=(0, 1))
def adaptive_ode(key):
    """jax.experimental.ode: the adjoint of an adaptive solver, right to its tolerance."""
    ky, ka = jax.random.split(key)
    times = jnp.array([0.0, 1.0])

    def f(y, a):
        return jnp.sum(
            odeint(lambda y, t, a: jnp.tanh(a @ y), y, times.astype(y.dtype), a)[-1] ** 2
        )

    return f, (normal(ky, 3), normal(ka, 3, 3))


@right(argnums=(0, 1))
def unrolled_momentum(key):
    """Twenty steps of momentum, in the start and the learning rate."""
    kx, kh = jax.random.split(key)
    h = uniform(kh, 8, low=0.5, high=2.0)

    def f(x, rate):
        def step(carry, _):
            x, v = carry
            v = 0.9 * v - rate * (h * x + jnp.sin(x))
            return (x + v, v), None

        return jnp.sum(lax.scan(step, (x, jnp.zeros_like(x)), None, 20)[0][0] ** 2)

    return f, (normal(kx, 8), jnp.float32(0.05))


@right()
def unrolled_adam(key):
    """Ten steps of Adam."""
    target = 3 + uniform(key, 6)

    def f(rate):
        def step(carry, t):
            x, m, v = carry
            g = x - target
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            x = x - rate * m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
            return (x, m, v), None

        start = (jnp.zeros(6, rate.dtype),) * 3
        return jnp.sum((lax.scan(step, start, jnp.arange(1.0, 11.0))[0][0] - target) ** 2)

    return f, (jnp.float32(0.1),)


@right()
def newton_root(key):
    """A custom_root around a while loop."""

    def f(a):
        g = lambda x: x**3 + x - a  # noqa: E731

        def solve(g, x):
            step = lambda s: (s[0] - g(s[0]) / (3 * s[0] ** 2 + 1), s[1] + 1)  # noqa: E731
            return lax.while_loop(lambda s: s[1] < 30, step, (x, 0))[0]

        root = lax.custom_root(g, jnp.ones_like(a), solve, lambda g, y: y / g(jnp.ones_like(y)))
        return jnp.sum(root**2)

    return f, (uniform(key, 5, low=0.5, high=3.0),)


@right()
def implicit_fixed_point(key):
    """A fixed point stopped at 1e-5, differentiated implicitly."""
    kw, kb = jax.random.split(key)
    w = normal(kw, 8, 8, scale=0.1)

    def body(x, b):
        return jnp.tanh(w @ x + b)

    def solve(b):
        going = lambda s: jnp.max(jnp.abs(s[0] - s[1])) > 1e-5  # noqa: E731
        step = lambda s: (body(s[0], b), s[0])  # noqa: E731
        return lax.while_loop(going, step, (body(jnp.zeros_like(b), b), jnp.zeros_like(b)))[0]

    def backward(args, x, g):
        jac = jax.jacobian(body)(x, *args)
        adjoint = jnp.linalg.solve(jnp.eye(8, dtype=jac.dtype) - jac.T, g)
        return jax.vjp(partial(body, x), *args)[1](adjoint)

    solved = with_vjp(solve, backward)
    return lambda b: jnp.sum(solved(b) ** 2), (normal(kb, 8),)


@right()
def conjugate_gradients(key):
    """A custom_linear_solve by conjugate gradients."""
    ka, kb = jax.random.split(key)
    root = normal(ka, 10, 10, scale=0.3)
    a = jnp.eye(10) + root @ root.T

    def f(p):
        matvec = lambda v: a @ v + jnp.exp(p["shift"]) * v  # noqa: E731
        return jnp.sum(jax.scipy.sparse.linalg.cg(matvec, p["b"], tol=1e-7)[0] ** 2)

    return f, ({"b": normal(kb, 10), "shift": jnp.float32(0.1)},)


@right()
def sinkhorn(key):
    """Entropic transport, 50 iterations."""

    def f(cost):
        def step(uv, _):
            u = -jax.nn.logsumexp(uv[1] - cost / 0.2, axis=1)
            return (u, -jax.nn.logsumexp(u[:, None] - cost / 0.2, axis=0)), None

        (u, v), _ = lax.scan(step, (jnp.zeros(6, cost.dtype),) * 2, None, 50)
        return jnp.sum(jnp.exp(u[:, None] + v - cost / 0.2) * cost)

    return f, (uniform(key, 6, 6),)


@right()
def hidden_markov_model(key):
    """The forward algorithm in logarithms, with impossible transitions."""
    kt, ke = jax.random.split(key)
    params = {"transition": normal(kt, 4, 4), "emission": normal(ke, 30, 4)}
    allowed = jnp.triu(jnp.ones((4, 4), bool))

    def f(p):
        log_t = jnp.where(allowed, jax.nn.log_softmax(p["transition"]), -1e30)
        step = lambda a, e: (jax.nn.logsumexp(a[:, None] + log_t, 0) + e, None)  # noqa: E731
        return jax.nn.logsumexp(lax.scan(step, jnp.zeros(4), p["emission"])[0])

    return f, (params,)


@right()
def mixture_of_gaussians(key):
    """A mixture's likelihood, parameters as leaves."""
    kx, km, ks = jax.random.split(key, 3)
    x = normal(kx, 100, scale=2.0)
    params = {"mean": normal(km, 3), "log_sd": normal(ks, 3, scale=0.2), "logit": jnp.zeros(3)}

    def f(p):
        z = (x[:, None] - p["mean"]) / jnp.exp(p["log_sd"])
        return -jnp.sum(
            jax.nn.logsumexp(jax.nn.log_softmax(p["logit"]) - p["log_sd"] - z**2 / 2, 1)
        )

    return f, (params,)


# Rules by hand, all right.


@right()
def stop_gradient_maximum(key):
    """A stop_gradient that changes nothing: the maximum inside a logsumexp."""

    def f(x):
        top = lax.stop_gradient(jnp.max(x))
        return jnp.log(jnp.sum(jnp.exp(x - top))) + top

    return f, (normal(key, 30, scale=10.0),)


@right()
def fused_logsumexp(key):
    """A rule that keeps the softmax."""

    def backward(args, out, g):
        return (g[:, None] * jnp.exp(args[0] - out[:, None]),)

    fused = with_vjp(lambda x: jax.nn.logsumexp(x, axis=1), backward)
    return lambda x: jnp.sum(fused(x) ** 2), (normal(key, 16, 20),)


@right(argnums=(0, 1, 2))
def fused_layer_norm(key):
    """A layer norm with the textbook backward pass."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 12, 24)

    def standardize(x):
        inv = lax.rsqrt(x.var(1, keepdims=True) + 1e-6)
        return (x - x.mean(1, keepdims=True)) * inv, inv

    def backward(args, _, g):
        x, scale, _ = args
        z, inv = standardize(x)
        d = g * scale
        dx = inv * (d - d.mean(1, keepdims=True) - z * (d * z).mean(1, keepdims=True))
        return dx, (g * z).sum(0), g.sum(0)

    norm = with_vjp(lambda x, scale, shift: standardize(x)[0] * scale + shift, backward)
    args = normal(kx, 12, 24), jnp.ones(24), jnp.zeros(24)
    return lambda *args: jnp.sum(c * jnp.sin(norm(*args))), args


@right()
def swish_rule(key):
    """Swish that keeps only its input."""

    def backward(args, _, g):
        s = jax.nn.sigmoid(args[0])
        return (g * (s + args[0] * s * (1 - s)),)

    swish = with_vjp(lambda x: x * jax.nn.sigmoid(x), backward)
    return lambda x: jnp.sum(swish(x) ** 2), (normal(key, 50),)


@right()
def softplus_rule(key):
    """A softplus with a stable tangent, at large inputs too."""
    tangent = lambda args, t: t[0] * jax.nn.sigmoid(args[0])  # noqa: E731
    softplus = with_jvp(lambda x: jnp.logaddexp(x, 0.0), tangent)
    return lambda x: jnp.sum(softplus(x)), (normal(key, 20, scale=40.0),)


@right()
def norm_rule_at_zero(key):
    """A norm whose rule is zero at zero, a subgradient."""

    def tangent(args, tangents):
        size = jnp.linalg.norm(args[0])
        unit = args[0] / jnp.where(size == 0, 1.0, size)
        return jnp.vdot(unit, tangents[0])

    norm = with_jvp(jnp.linalg.norm, tangent)
    return lambda x: norm(x) + jnp.sum(x), (jnp.zeros(5, jnp.float32) * normal(key, 5),)


@right()
def rule_in_float16(key):
    """A backward pass in float16, right to its rounding."""

    def backward(args, _, g):
        slope = 1 - jnp.tanh(args[0].astype(jnp.float16)) ** 2
        return ((g.astype(jnp.float16) * slope).astype(args[0].dtype),)

    tanh = with_vjp(jnp.tanh, backward)
    return lambda x: jnp.sum(tanh(x)), (uniform(key, 16, low=-1, high=1),)


@right()
def rule_in_float32(key):
    """A backward pass that is float32 whatever comes in."""

    def backward(args, _, g):
        x = args[0].astype(jnp.float32)
        return ((g.astype(jnp.float32) * jnp.cos(x)).astype(args[0].dtype),)

    sine = with_vjp(jnp.sin, backward)
    return lambda x: jnp.sum(sine(x) ** 2), (normal(key, 30),)


def _host(function, x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = lambda x: np.asarray(function(np.asarray(x)), x.dtype)  # noqa: E731
    return jax.pure_callback(call, shape, x, vmap_method="sequential")


@right()
def host_function(key):
    """NumPy behind a callback, with its derivative behind another."""
    sinh = with_vjp(lambda x: _host(np.sinh, x), lambda args, _, g: (g * _host(np.cosh, args[0]),))
    return lambda x: jnp.sum(sinh(x) ** 2), (normal(key, 6),)


@right()
def host_simulation(key):
    """A recurrence run by NumPy, its adjoint by hand."""

    def simulate(x):
        for _ in range(20):
            x = x + 0.1 * (x - x**3)
        return x

    def slope(x):
        s = np.ones_like(x)
        for _ in range(20):
            s = s * (1 + 0.1 * (1 - 3 * x**2))
            x = x + 0.1 * (x - x**3)
        return s

    run = with_vjp(lambda x: _host(simulate, x), lambda args, _, g: (g * _host(slope, args[0]),))
    return lambda x: jnp.sum(run(x)), (normal(key, 8),)


# Second order.


@right(order=2)
def second_order_rule(key):
    """A tangent by hand that differentiates again."""
    sine = with_jvp(jnp.sin, lambda args, t: t[0] * jnp.cos(args[0]))
    return lambda x: jnp.sum(sine(x) * x), (normal(key, 8),)


@right(order=2)
def second_order_piecewise(key):
    """Piecewise linear: the second derivative is zero."""
    return lambda x: jnp.sum(jax.nn.relu(x) * 2), (away_from_zero(key, 12),)
