"""Functions whose gradients are wrong: not finite, not meant, not repeatable, planted errors."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.gradient_corpus_case import (
    Case,
    away_from_zero,
    normal,
    register,
    tampered,
    uniform,
    with_jvp,
    with_vjp,
)

CASES: list[Case] = []
wrong = register(CASES, right=False)


# NaN and infinity where the function is finite.


@wrong()
def nan_untaken_root(key):
    """jax-ml/jax#347: 0 * inf in the branch that where does not take."""
    x = normal(key, 4, 3).at[2].set(0.0)

    def f(x):
        size = jnp.sqrt(jnp.sum(x**2, axis=1))
        return jnp.sum(jnp.where(size > 0.05, size, 0.0))

    return f, (x,)


@wrong()
def nan_untaken_angle(key):
    """jax-ml/jax#1052: arctan2(0, 0) in the branch not taken."""
    x = normal(key, 6).at[1].set(0.0)
    masked = jnp.arange(6) == 1
    return lambda x: jnp.sum(jnp.where(masked, 0.0, jnp.arctan2(x, x**2))), (x,)


@wrong()
def nan_norm_at_zero(key):
    """jax-ml/jax#3058: the norm of the zero vector."""
    x = normal(key, 3, 4).at[1].set(0.0)
    return lambda x: jnp.sum(jnp.linalg.norm(x, axis=1)), (x,)


@wrong()
def nan_squared_norm(key):
    """jax-ml/jax#21723: the square of a norm at the zero vector, where it is smooth."""
    x = normal(key, 3, 4).at[0].set(0.0)
    return lambda x: jnp.sum(jnp.linalg.norm(x, axis=1) ** 2), (x,)


@wrong()
def nan_deviation_of_constants(key):
    """jax-ml/jax#11716: the standard deviation of equal numbers."""
    x = normal(key, 3, 4).at[1].set(2.0)
    return lambda x: jnp.sum(jnp.std(x, axis=1) ** 2), (x,)


@wrong()
def nan_impossible_states(key):
    """jax-ml/jax#6811: a logsumexp of minus infinities, as log 0 in a dynamic program."""

    def f(x):
        impossible = jnp.full(2, -jnp.inf) + x[:2]
        return jnp.exp(jax.nn.logsumexp(impossible)) + jnp.sum(jnp.sin(x))

    return f, (normal(key, 4),)


@wrong()
def nan_elu_overflow(key):
    """jax-ml/jax#1538: an ELU whose exponential overflows in the branch not taken."""
    x = 100 + uniform(key, 4)
    return lambda x: jnp.sum(jnp.where(x > 0, x, jnp.exp(x) - 1)), (x,)


@wrong()
def nan_sigmoid_overflow(key):
    """jax-ml/jax#777, in its kind: a naive sigmoid, finite forward, NaN backward."""
    x = normal(key, 6).at[0].set(-100.0)
    return lambda x: jnp.sum(1 / (1 + jnp.exp(-x))), (x,)


@wrong()
def nan_clipped_arccosine(key):
    """jax-ml/jax#23649: arccos of a clipped argument, beyond the clip."""
    x = uniform(key, 4, low=1.2, high=2.0)
    return lambda x: jnp.sum(jnp.arccos(jnp.clip(x, -1.0, 1.0))), (x,)


@wrong()
def nan_equal_eigenvalues(key):
    """jax-ml/jax#2311: eigenvectors of equal eigenvalues in a symmetric function of them."""
    x = 1 + uniform(key)

    def f(x):
        values, vectors = jnp.linalg.eigh(x * jnp.eye(3))
        return jnp.sum((vectors * jnp.exp(values)) @ vectors.T)

    return f, (x,)


@wrong()
def inf_backward_overflow(key):
    """A reciprocal whose derivative overflows float32, though the whole is tame."""
    return lambda x: jnp.sum(jnp.log(1 / (1e-25 * x))), (uniform(key, 5, low=0.5, high=2),)


@wrong()
def nan_square_root_of_square(key):
    """An absolute value written as sqrt(x^2), at zero."""
    return lambda x: jnp.sum(jnp.sqrt(x**2) * 2), (normal(key, 8).at[3].set(0.0),)


# Kinks.


@wrong()
def difference_of_relus(key):
    """The difference relu(x) - relu(-x) is x, but its gradient at zero comes out as 0."""
    x = normal(key, 10).at[:3].set(0.0)
    return lambda x: jnp.sum(jax.nn.relu(x) - jax.nn.relu(-x)), (x,)


@wrong()
def slope_beyond_both_sides(key):
    """A rule for abs that gives 3 at zero."""
    rule = with_vjp(jnp.abs, lambda a, _, g: (g * jnp.where(a[0] == 0, 3.0, jnp.sign(a[0])),))
    return lambda x: jnp.sum(rule(x)), (normal(key, 10).at[:2].set(0.0),)


@wrong()
def clip_edge_doubled(key):
    """A clip whose rule counts both comparisons at its edge."""

    def backward(args, _, g):
        x = args[0]
        return (g * ((x >= 0) & (x <= 1)) * (1.0 + (x == 1)),)

    rule = with_vjp(lambda x: jnp.clip(x, 0, 1), backward)
    return lambda x: jnp.sum(rule(x)), (uniform(key, 10).at[:2].set(1.0),)


# Functions that mean to differ from their derivative.


@wrong()
def straight_through_round(key):
    """A straight-through estimator of rounding."""

    def f(x):
        return jnp.sum((x + lax.stop_gradient(jnp.round(x) - x)) ** 2)

    return f, (2 * normal(key, 8).at[0].set(1.3),)


@wrong()
def straight_through_clip(key):
    """A clip that passes the gradient outside of its range."""
    rule = with_vjp(lambda x: jnp.clip(x, -1, 1), lambda _, __, g: (g,))
    return lambda x: jnp.sum(rule(x) ** 3), (2 * away_from_zero(key, 10, gap=0.6),)


@wrong()
def surrogate_spike(key):
    """A step function with a surrogate gradient."""
    rule = with_jvp(lambda x: (x > 0).astype(x.dtype), lambda a, t: t[0] / (1 + a[0] ** 2))
    return lambda x: jnp.sum(rule(x)), (away_from_zero(key, 10),)


@wrong()
def gradient_reversal(key):
    """A gradient reversal layer."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 12, 5)
    reverse = with_vjp(lambda x: x, lambda _, __, g: (-g,))
    return lambda w: jnp.sum(jnp.tanh(reverse(x @ w)) ** 2), (normal(kw, 5, 3),)


@wrong()
def target_network_stopped(key):
    """A temporal-difference loss, its target behind stop_gradient."""
    ka, kb, kr, kw = jax.random.split(key, 4)
    now, then, reward = normal(ka, 20, 4), normal(kb, 20, 4), normal(kr, 20)

    def f(w):
        target = reward + 0.9 * lax.stop_gradient(then @ w)
        return jnp.mean((now @ w - target) ** 2)

    return f, (normal(kw, 4),)


# Functions that are not functions.


@wrong(leaf=None)
def numpy_noise(key):
    """NumPy noise inside."""
    generator = np.random.default_rng(jax.random.bits(key).item())

    def f(x):
        return jnp.sum(jnp.sin(x) * generator.uniform(0.5, 1.5, 8).astype(np.float32))

    return f, (normal(key, 8),)


@wrong(leaf=None)
def python_counter(key):
    """A Python counter that changes the loss at every call."""
    count = itertools.count(1)
    return lambda x: jnp.sum(x**2) * (1 + 0.05 * next(count)), (normal(key, 8),)


@wrong(leaf=None)
def stateful_key(key):
    """A key that is split anew at every call."""
    state = [key]

    def f(x):
        state[0], used = jax.random.split(state[0])
        return jnp.sum(jnp.exp(x) * jax.random.uniform(used, x.shape, jnp.float32))

    return f, (normal(key, 8),)


@wrong(leaf=None)
def noisy_callback(key):
    """A simulator behind a callback, with another seed at every call."""
    generator = np.random.default_rng(jax.random.bits(key).item())

    def simulate(x):
        x = np.asarray(x)
        return np.asarray(x**2 + 0.1 * generator.standard_normal(x.shape), x.dtype)

    def call(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(simulate, shape, x, vmap_method="sequential")

    rule = with_vjp(call, lambda a, _, g: (2 * g * a[0],))
    return lambda x: jnp.sum(rule(x)), (away_from_zero(key, 5),)


# Complex numbers.


def _complex(key, *shape):
    ka, kb = jax.random.split(key)
    return lax.complex(away_from_zero(ka, *shape), away_from_zero(kb, *shape))


@wrong()
def conjugate_missing(key):
    """jax-ml/jax#9110: another framework's convention for |z|^2."""
    rule = with_vjp(lambda z: z.real**2 + z.imag**2, lambda a, _, g: (2 * g * a[0],))
    return lambda z: jnp.sum(rule(z)), (_complex(key, 5),)


@wrong(holomorphic=True)
def holomorphic_conjugated(key):
    """A holomorphic square with the conjugate in its tangent."""
    rule = with_jvp(lambda z: z**2, lambda a, t: 2 * jnp.conj(a[0]) * t[0])
    return lambda z: jnp.sum(rule(z)), (_complex(key, 4),)


@wrong()
def imaginary_part_dropped(key):
    """A rule that keeps the real part of a complex gradient only."""
    keys = jax.random.split(key)
    a = _complex(keys[0], 4, 3)
    rule = tampered(
        lambda z: jnp.sum(jnp.abs(a @ z) ** 2), lambda g: (g[0].real.astype(g[0].dtype),)
    )
    return lambda z: rule(z), (_complex(keys[1], 3),)


# Second order.


@wrong(order=2)
def second_order_stopped(key):
    """jax-ml/jax#10994, in its kind: a tangent rule with stop_gradient on its slope."""
    rule = with_jvp(jnp.sin, lambda a, t: lax.stop_gradient(jnp.cos(a[0])) * t[0])
    return lambda x: jnp.sum(rule(x) * x), (away_from_zero(key, 6),)


@wrong(order=2)
def second_order_zero(key):
    """jax-ml/jax#21220: a rule for the backward pass that returns zeros for what was saved."""
    slope = with_vjp(lambda x: 3 * x**2, lambda a, _, g: (jnp.zeros_like(a[0]) * g,))
    rule = with_vjp(lambda x: x**3, lambda a, _, g: (g * slope(a[0]),))
    return lambda x: jnp.sum(rule(x)), (away_from_zero(key, 6),)


@wrong(order=2)
def second_order_factor(key):
    """A backward pass with a rule of its own that is off by two."""
    slope = with_vjp(jnp.exp, lambda _, out, g: (2 * g * out,))
    rule = with_vjp(jnp.exp, lambda a, _, g: (g * slope(a[0]),))
    return lambda x: jnp.sum(rule(x)), (normal(key, 6),)


@wrong(order=2)
def second_order_host_constant(key):
    """A backward pass that closes over numbers instead of the residual."""
    x0 = away_from_zero(key, 6)
    rule = with_vjp(lambda x: jnp.sum(x**4), lambda _, __, g: (g * 4 * x0**3,))
    return lambda x: rule(x), (x0,)


# Precision lost.


@wrong()
def float16_underflow(key):
    """A backward pass in float16 whose cotangents of 1e-9 become zero."""

    def backward(args, _, g):
        return ((g.astype(jnp.float16) * jnp.cos(args[0]).astype(jnp.float16)).astype(g.dtype),)

    rule = with_vjp(jnp.sin, backward)
    return lambda x: 1e-9 * jnp.sum(rule(x)), (normal(key, 12),)


@wrong()
def float16_overflow(key):
    """A backward pass in float16 whose sum overflows."""
    kx, kw = jax.random.split(key)
    x = 50 + uniform(kx, 64, 4)

    def backward(_, __, g):
        half = jnp.float16
        return ((x.astype(half).T @ g.astype(half)).astype(g.dtype),)

    rule = with_vjp(lambda w: x @ w, backward)
    return lambda w: jnp.sum(rule(w) ** 2), (1 + uniform(kw, 4),)


@wrong()
def bfloat16_accumulation(key):
    """A bias gradient added up in bfloat16, one example after another."""

    def backward(_, __, g):
        add = lambda total, row: ((total + row).astype(jnp.bfloat16), None)  # noqa: E731
        total, _ = lax.scan(add, jnp.zeros(4, jnp.bfloat16), g)
        return (total.astype(g.dtype),)

    rule = with_vjp(lambda b: jnp.broadcast_to(b, (2000, 4)), backward)
    return lambda b: jnp.sum(rule(b) ** 2), (1 + uniform(key, 4),)


# Planted errors.


def _network_loss(key):
    kx, kp = jax.random.split(key)
    x = normal(kx, 64, 30)
    ka, kb = jax.random.split(kp)
    params = {
        "b": 0.1 + uniform(kb, 30),
        "v": normal(kb, 30, 4),
        "w": normal(ka, 30, 30, scale=0.2),
    }
    return lambda p: jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]) ** 2), params


def _planted(key, leaf, change):
    loss, params = _network_loss(key)
    bad = tampered(loss, lambda g: ({**g[0], leaf: change(g[0][leaf])},))
    return lambda p: bad(p), (params,)


def _at_largest(factor):
    def change(g):
        return g.ravel().at[jnp.argmax(jnp.abs(g))].multiply(factor).reshape(g.shape)

    return change


@wrong(leaf="['w']")
def one_element_half_percent(key):
    """One element of 900 is off by 0.5 %."""
    return _planted(key, "w", _at_largest(1.005))


@wrong(leaf="['w']")
def one_element_ten_percent(key):
    """One element of 900 is off by 10 %."""
    return _planted(key, "w", _at_largest(0.9))


@wrong(leaf="['w']")
def one_element_zeroed(key):
    """One element of 900 is zero."""
    return _planted(key, "w", _at_largest(0.0))


@wrong(leaf="['w']")
def one_row_zeroed(key):
    """One row of thirty is zero."""
    return _planted(key, "w", lambda g: g.at[7].set(0.0))


@wrong(leaf="['w']")
def one_column_three_percent(key):
    """One column is off by 3 %."""
    return _planted(key, "w", lambda g: g.at[:, 11].multiply(1.03))


@wrong(leaf="['w']")
def rolled_by_one(key):
    """A whole leaf is shifted by one element."""
    return _planted(key, "w", lambda g: jnp.roll(g, 1))


@wrong(leaf="['w']")
def opposite_pair(key):
    """Two opposite errors, which cancel along a uniform direction."""

    def change(g):
        size = 0.3 * jnp.sqrt(jnp.mean(g**2))
        return g.at[3, 4].add(size).at[20, 9].add(-size)

    return _planted(key, "w", change)


@wrong(leaf="['w']")
def one_percent_everywhere(key):
    """Every element is off by 1 %."""
    return _planted(key, "w", lambda g: 1.01 * g)


@wrong(leaf="['v']")
def fifth_of_a_percent_everywhere(key):
    """Every element is off by 0.2 %."""
    return _planted(key, "v", lambda g: 0.998 * g)


@wrong(leaf="['b']")
def bias_beside_large_weight(key):
    """The bias beside thirty times as many weights is off by 2 %."""
    return _planted(key, "b", lambda g: 0.98 * g)


@wrong(leaf="['b']")
def sign_of_one_leaf(key):
    """The sign of one leaf is wrong."""
    return _planted(key, "b", lambda g: -g)


@wrong()
def doubled(key):
    """The whole gradient counted twice, in a vector of 1000 outputs."""
    rule = tampered(jnp.tanh, lambda g: (2 * g[0],))
    return rule, (normal(key, 1000),)


@wrong()
def sign_flipped_long_vector(key):
    """A sign-flipped rule on 1000 outputs."""
    return with_vjp(jnp.sin, lambda a, _, g: (-g * jnp.cos(a[0]),)), (normal(key, 1000),)


@wrong(leaf="['small']")
def small_leaf_beside_large(key):
    """A leaf whose gradient is a millionth of its neighbour's is doubled."""
    ka, kb = jax.random.split(key)
    small = tampered(lambda x: jnp.sum(jnp.sin(x)), lambda g: (2 * g[0],))
    params = {"large": normal(ka, 50), "small": normal(kb, 50)}
    return lambda p: 1e6 * jnp.sum(jnp.sin(p["large"])) + small(p["small"]), (params,)


@wrong()
def behind_huge_regulariser(key):
    """A data term with the wrong sign behind a regulariser a hundred times larger."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 32, 16)
    data = tampered(lambda w: jnp.mean(jax.nn.softplus(x @ w + 1)), lambda g: (-g[0],))
    return lambda w: data(w) + 10 * jnp.sum(w**2), (normal(kw, 16),)


@wrong()
def regulariser_forgotten(key):
    """A weight decay in the loss that the rule leaves out."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 32, 8)
    data = lambda w: jnp.mean(jnp.tanh(x @ w) ** 2)  # noqa: E731
    rule = with_vjp(
        lambda w: data(w) + 1e-2 * jnp.sum(w**2), lambda a, _, g: (g * jax.grad(data)(*a),)
    )
    return lambda w: rule(w), (normal(kw, 8),)


@wrong()
def one_of_several_outputs(key):
    """Of three outputs the last one's rule is wrong."""
    rule = with_vjp(lambda x: jnp.sum(x**3), lambda a, _, g: (2 * g * a[0] ** 2,))
    return lambda x: {"a": jnp.sin(x), "b": jnp.sum(x**2), "c": rule(x)}, (normal(key, 6),)


@wrong()
def cancelling_outputs(key):
    """An error whose sum over the outputs is zero."""
    sign = jnp.where(jnp.arange(10) % 2 == 0, 1.0, -1.0)

    def backward(args, _, g):
        return (g * jnp.cos(args[0]) + 0.3 * jnp.sum(g * sign),)

    return with_vjp(jnp.sin, backward), (normal(key, 10),)


@wrong(argnums=(0, 2), leaf="[1]['scale']")
def nested_leaf_of_second_argument(key):
    """A leaf deep in the second of the arguments asked for."""
    ka, kb, kc = jax.random.split(key, 3)
    rule = tampered(lambda x, s: jnp.sum(jnp.sin(x * s)), lambda g: (g[0], 0.9 * g[1]))
    args = (normal(ka, 12), jnp.arange(3), {"scale": normal(kb, 12), "shift": normal(kc, 12)})
    return lambda x, index, p: rule(x, p["scale"]) + jnp.sum(jnp.cos(p["shift"])), args


@wrong(has_aux=True)
def wrong_beside_auxiliary(key):
    """A wrong gradient beside auxiliary data."""
    rule = with_vjp(lambda x: jnp.sum(x**4), lambda a, _, g: (g * 3 * a[0] ** 3,))
    return lambda x: (rule(x), {"x": x}), (away_from_zero(key, 5),)


@wrong()
def inside_scan_under_vmap(key):
    """A wrong rule inside a jitted, vmapped scan."""
    cell = with_vjp(
        lambda h, x: jnp.tanh(h + x), lambda a, out, g: (g * (1 - out**2), g * (1 - out) ** 2)
    )
    kx, kw = jax.random.split(key)
    x = normal(kx, 5, 10)

    @jax.jit
    def f(w):
        one = lambda xs: lax.scan(lambda h, x: (cell(h, w * x), None), jnp.zeros(3), xs)[0]  # noqa: E731
        return jnp.sum(jax.vmap(one)(x[:, :, None] + jnp.arange(3.0)) ** 2)

    return f, (0.5 + uniform(kw, 3),)


@wrong(leaf="['scale']")
def beside_leaves_without_gradient(key):
    """A wrong leaf beside integers, booleans, None and an empty array."""
    ka, kb = jax.random.split(key)
    rule = tampered(lambda x, s: jnp.sum(jnp.exp(x * s)), lambda g: (g[0], g[1] * 1.05))
    params = {
        "empty": jnp.zeros((0, 2), jnp.float32),
        "mask": jnp.asarray([True, False, True]),
        "none": None,
        "scale": normal(ka, 6),
        "step": jnp.int32(2),
        "x": normal(kb, 6),
    }
    return lambda p: rule(p["x"], p["scale"]) * p["step"] + jnp.sum(p["mask"]), (params,)
