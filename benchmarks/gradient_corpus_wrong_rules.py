"""Rules written by hand that are wrong, each as somebody got it wrong or easily might."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
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


# Dense layers.


def _dense(x, w, b):
    return x @ w + b


def _loss_of(layer, activation=jnp.tanh):
    return lambda *args: jnp.sum(activation(layer(*args)) ** 2)


@wrong(argnums=(1, 2), leaf="[1]")
def dense_without_bias_gradient(key):
    """unslothai/unsloth#4533, in a dense layer: a parameter gets no gradient."""
    dense = with_vjp(_dense, lambda a, _, g: (g @ a[1].T, a[0].T @ g, jnp.zeros_like(a[2])))
    keys = jax.random.split(key, 3)
    return _loss_of(dense), (normal(keys[0], 16, 6), normal(keys[1], 6, 4), normal(keys[2], 4))


@wrong(argnums=(1, 2), leaf="[0]")
def dense_weight_transposed(key):
    """A square weight gradient is transposed."""
    dense = with_vjp(_dense, lambda a, _, g: (g @ a[1].T, g.T @ a[0], g.sum(0)))
    keys = jax.random.split(key, 3)
    return _loss_of(dense), (normal(keys[0], 16, 6), normal(keys[1], 6, 6), normal(keys[2], 6))


@wrong(argnums=(1, 2), leaf="[1]")
def bias_summed_over_wrong_axis(key):
    """deeplearning4j/deeplearning4j#8280: the bias gradient is summed over the wrong axes."""
    dense = with_vjp(_dense, lambda a, _, g: (g @ a[1].T, a[0].T @ g, g.sum(1)))
    keys = jax.random.split(key, 3)
    return _loss_of(dense), (normal(keys[0], 8, 5), normal(keys[1], 5, 8), normal(keys[2], 8))


@wrong(argnums=(0, 1), leaf="[0]")
def input_gradient_dropped(key):
    """jax-ml/jax#17496: a rule for the matrix only, in a chain of two."""
    product = with_vjp(
        lambda x, w: w @ x, lambda a, _, g: (jnp.zeros_like(a[0]), jnp.outer(g, a[0]))
    )
    keys = jax.random.split(key, 3)

    def f(w, v, x):
        return jnp.sum(product(jnp.tanh(product(x, w)), v) ** 2)

    return f, (normal(keys[0], 6, 5), normal(keys[1], 4, 6), normal(keys[2], 5))


@wrong()
def first_of_the_batch_only(key):
    """A broadcast weight gets the gradient of the first example alone."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 8, 5)
    product = with_vjp(lambda w: x @ w, lambda a, _, g: (jnp.outer(x[0], g[0]),))
    return _loss_of(product), (normal(kw, 5, 4),)


@wrong()
def tied_weights_counted_once(key):
    """pytorch/pytorch#136662: a value that is used twice is counted once."""
    kx, kw = jax.random.split(key)
    x = normal(kx, 12, 6)
    network = with_vjp(
        lambda w: jnp.tanh(x @ w) @ w.T,
        lambda a, _, g: (x.T @ ((g @ a[0]) * (1 - jnp.tanh(x @ a[0]) ** 2)),),
    )
    return lambda w: jnp.sum(network(w) ** 2), (normal(kw, 6, 5),)


@wrong()
def stale_closure(key):
    """A backward pass that closes over the parameters of an earlier step."""
    kx, kw, kd = jax.random.split(key, 3)
    x, w = normal(kx, 20, 6), normal(kw, 6)
    stale = w + normal(kd, 6, scale=0.1)

    def backward(_, __, g):
        return (g * (x.T @ (1 - jnp.tanh(x @ stale) ** 2)),)

    total = with_vjp(lambda w: jnp.sum(jnp.tanh(x @ w)), backward)
    return lambda w: total(w), (w,)


# Elementwise rules.


@wrong(argnums=(0, 1), leaf="[1]")
def wrong_sign(key):
    """jax-ml/jax#3213: the sign in a custom rule's documentation."""
    kx, ky = jax.random.split(key)
    rule = with_vjp(
        lambda x, y: jnp.sin(x) * y,
        lambda a, _, g: (g * jnp.cos(a[0]) * a[1], -g * jnp.sin(a[0])),
    )
    return lambda x, y: jnp.sum(rule(x, y)), (normal(kx, 6), normal(ky, 6))


@wrong()
def missing_factor_two(key):
    """jax-ml/jax#29485: x**2 with the gradient x."""
    square = with_vjp(lambda x: x**2, lambda a, _, g: (g * a[0],))
    return lambda x: jnp.sum(square(x)), (normal(key, 6),)


@wrong(argnums=(0, 1), leaf="[0]")
def arctan2_missing_factor(key):
    """ml-explore/mlx#2451: arctan2 without the other argument's factor."""
    ky, kx = jax.random.split(key)

    def backward(args, _, g):
        y, x = args
        return g / (x**2 + y**2), -g * y / (x**2 + y**2)

    rule = with_vjp(jnp.arctan2, backward)
    args = away_from_zero(ky, 10), away_from_zero(kx, 10, gap=1.2)
    return lambda y, x: jnp.sum(rule(y, x)), args


@wrong()
def safe_arcsin_rule(key):
    """google/brax#484, in its kind: a safe arcsine whose rule lacks the square root."""
    rule = with_jvp(lambda x: jnp.arcsin(jnp.clip(x, -1, 1)), lambda a, t: t[0] / (1 - a[0] ** 2))
    return lambda x: jnp.sum(rule(x)), (uniform(key, 12, low=0.3, high=0.9),)


@wrong()
def output_saved_for_input(key):
    """A softplus whose rule takes the sigmoid of the output."""
    rule = with_vjp(jax.nn.softplus, lambda _, out, g: (g * jax.nn.sigmoid(out),))
    return lambda x: jnp.sum(rule(x) ** 2), (normal(key, 20),)


@wrong()
def input_saved_for_output(key):
    """A sigmoid whose rule takes the input for the output."""
    rule = with_vjp(jax.nn.sigmoid, lambda a, _, g: (g * a[0] * (1 - a[0]),))
    return lambda x: jnp.sum(rule(x)), (normal(key, 20),)


@wrong()
def cotangent_ignored(key):
    """A backward pass that takes the cotangent to be one."""
    rule = with_vjp(lambda x: jnp.sum(jnp.cos(x)), lambda a, _, g: (0 * g - jnp.sin(a[0]),))
    return lambda x: jnp.tanh(rule(x)) + 3 * rule(x), (normal(key, 10),)


@wrong()
def cotangent_squared(key):
    """A backward pass that is right for a cotangent of one only."""
    rule = with_vjp(lambda x: jnp.sum(jnp.cos(x)), lambda a, _, g: (-(g**2) * jnp.sin(a[0]),))
    return lambda x: 2.5 * rule(x), (normal(key, 10),)


@wrong()
def temperature_forgotten(key):
    """The chain factor of a temperature is forgotten."""
    rule = with_vjp(
        lambda x: jax.nn.logsumexp(x / 0.7), lambda a, _, g: (g * jax.nn.softmax(a[0] / 0.7),)
    )
    return lambda x: rule(x), (normal(key, 15),)


@wrong()
def huber_wrong_joint(key):
    """Huber's linear part with the slope of another threshold."""
    rule = with_vjp(
        lambda x: jnp.sum(jnp.where(jnp.abs(x) < 0.5, x**2 / 2, 0.5 * jnp.abs(x) - 0.125)),
        lambda a, _, g: (g * jnp.clip(a[0], -0.6, 0.6),),
    )
    return lambda x: rule(x), (normal(key, 40, scale=2.0),)


@wrong()
def gelu_of_another_kind(key):
    """The exact GELU with the derivative of a sigmoid approximation."""

    def backward(args, _, g):
        s = jax.nn.sigmoid(1.702 * args[0])
        return (g * (s + 1.702 * args[0] * s * (1 - s)),)

    rule = with_vjp(lambda x: jax.nn.gelu(x, approximate=False), backward)
    return lambda x: jnp.sum(rule(x)), (normal(key, 50),)


@wrong()
def newton_square_root(key):
    """A Newton iteration whose tangent divides by the argument, not by its root."""

    def newton(x):
        return lax.fori_loop(0, 20, lambda _, s: 0.5 * (s + x / s), jnp.ones_like(x))

    rule = with_jvp(newton, lambda a, t: 0.5 * t[0] / a[0])
    return lambda x: jnp.sum(rule(x)), (uniform(key, 8, low=1.5, high=5),)


@wrong()
def product_rule_at_zero(key):
    """A product's gradient as product over factor: 0/0 at a zero factor."""
    rule = with_vjp(jnp.prod, lambda a, out, g: (g * out / a[0],))
    return lambda x: rule(x), (away_from_zero(key, 6).at[2].set(0.0),)


@wrong()
def clipped_backward(key):
    """A gradient clipped element by element inside the backward pass."""
    x = 30 * away_from_zero(key, 10)
    rule = with_vjp(lambda x: x, lambda _, __, g: (jnp.clip(g, -1, 1),))
    return lambda x: jnp.sum(rule(x) ** 2), (x,)


# Losses, softmax, attention.


@wrong()
def mean_without_count(key):
    """A mean whose gradient is not divided by n."""
    mse = with_vjp(lambda x: jnp.mean(x**2), lambda a, _, g: (2 * g * a[0],))
    return lambda x: mse(x), (normal(key, 50),)


@wrong()
def softmax_without_sum(key):
    """A softmax backward pass without the sum term."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 6, 10)
    softmax = with_vjp(jax.nn.softmax, lambda _, out, g: (out * g,))
    return lambda x: jnp.sum(c * softmax(x)), (normal(kx, 6, 10),)


@wrong()
def logsumexp_wrong_axis(key):
    """The softmax in a logsumexp's rule runs along the other axis."""
    rule = with_vjp(
        lambda x: jax.nn.logsumexp(x, axis=1),
        lambda a, _, g: (g[:, None] * jax.nn.softmax(a[0], axis=0),),
    )
    return lambda x: jnp.sum(rule(x)), (normal(key, 7, 7),)


def _token_losses(x, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)[:, 0]


@wrong()
def cross_entropy_first_cotangent(key):
    """linkedin/Liger-Kernel#1298: every token's gradient times the first token's cotangent."""
    kx, ky, kc = jax.random.split(key, 3)
    y = jax.random.randint(ky, (12,), 0, 8, jnp.int32)
    c = uniform(kc, 12, low=0.2, high=2.0)
    loss = with_vjp(
        lambda x: _token_losses(x, y),
        lambda a, _, g: (g[0] * (jax.nn.softmax(a[0]) - jax.nn.one_hot(y, 8)),),
    )
    return lambda x: jnp.sum(c * loss(x)), (normal(kx, 12, 8),)


@wrong()
def padding_not_masked(key):
    """A mean over the tokens that count; the backward pass counts the padding too."""
    kx, ky = jax.random.split(key)
    y = jax.random.randint(ky, (12,), 0, 8, jnp.int32)
    mask = jnp.arange(12) < 9
    loss = with_vjp(
        lambda x: jnp.sum(_token_losses(x, y) * mask) / 9,
        lambda a, _, g: (g * (jax.nn.softmax(a[0]) - jax.nn.one_hot(y, 8)) / 9,),
    )
    return lambda x: loss(x), (normal(kx, 12, 8),)


@wrong()
def label_smoothing_forgotten(key):
    """Label smoothing of 0.1 in the loss, plain labels in the gradient."""
    kx, ky = jax.random.split(key)
    y = jax.nn.one_hot(jax.random.randint(ky, (16,), 0, 5, jnp.int32), 5)
    loss = with_vjp(
        lambda x: -jnp.sum((0.9 * y + 0.02) * jax.nn.log_softmax(x)),
        lambda a, _, g: (g * (jax.nn.softmax(a[0]) - y),),
    )
    return lambda x: loss(x), (normal(kx, 16, 5),)


def _attention_rule(*, mask_backward=True, scale_backward=True):
    mask = jnp.tri(10, dtype=bool)

    def probabilities(q, k, masked):
        return jax.nn.softmax(jnp.where(mask | (not masked), q @ k.T / math.sqrt(8), -jnp.inf))

    def backward(args, _, g):
        q, k, v = args
        p = probabilities(q, k, mask_backward)
        dp = g @ v.T
        ds = p * (dp - (dp * p).sum(1, keepdims=True)) / math.sqrt(8)
        dq = ds @ k * (1 if scale_backward else math.sqrt(8))
        return dq, ds.T @ q, p.T @ g

    return with_vjp(lambda q, k, v: probabilities(q, k, True) @ v, backward)


@wrong(argnums=2)
def causal_mask_missing(key):
    """triton-lang/triton#4541, turned round: forward causal, backward not."""
    rule = _attention_rule(mask_backward=False)
    args = tuple(normal(k, 10, 8) for k in jax.random.split(key, 3))
    return lambda q, k, v: jnp.sum(rule(q, k, v) ** 2), args


@wrong(argnums=(0, 1, 2), leaf="[0]")
def attention_scale_missing(key):
    """The scale of the scores is missing in the gradient of the queries."""
    rule = _attention_rule(scale_backward=False)
    args = tuple(normal(k, 10, 8) for k in jax.random.split(key, 3))
    return lambda q, k, v: jnp.sum(rule(q, k, v) ** 2), args


# Normalization.


def _standardize(x, axis):
    inv = lax.rsqrt(x.var(axis, keepdims=True) + 1e-5)
    return (x - x.mean(axis, keepdims=True)) * inv, inv


@wrong(argnums=(0, 1), leaf="[0]")
def layer_norm_without_projection(key):
    """A layer norm backward pass without the term of the variance."""
    kx, kg, kc = jax.random.split(key, 3)
    c = normal(kc, 6, 12)

    def backward(args, _, g):
        z, inv = _standardize(args[0], 1)
        d = g * args[1]
        return inv * (d - d.mean(1, keepdims=True)), (g * z).sum(0)

    norm = with_vjp(lambda x, scale: _standardize(x, 1)[0] * scale, backward)
    return lambda x, s: jnp.sum(c * norm(x, s)), (normal(kx, 6, 12), normal(kg, 12))


@wrong(argnums=(0, 1), leaf="[1]")
def layer_norm_of_rank_three(key):
    """flagos-ai/FlagGems#5392: a backward pass that takes the input to be of rank two."""
    kx, kg, kc = jax.random.split(key, 3)
    c = normal(kc, 3, 4, 8)

    def backward(args, _, g):
        z, inv = _standardize(args[0], -1)
        d = g * args[1]
        dx = inv * (d - d.mean(-1, keepdims=True) - z * (d * z).mean(-1, keepdims=True))
        flat, _ = _standardize(args[0].reshape(3, 32), -1)
        return dx, (g.reshape(3, 32) * flat).sum(0)[:8]

    norm = with_vjp(lambda x, scale: _standardize(x, -1)[0] * scale, backward)
    return lambda x, s: jnp.sum(c * norm(x, s)), (normal(kx, 3, 4, 8), normal(kg, 8))


@wrong()
def batch_norm_fixed_statistics(key):
    """A batch norm backward pass that takes the statistics for constants."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 16, 5)

    def backward(args, _, g):
        return (g * _standardize(args[0], 0)[1],)

    norm = with_vjp(lambda x: _standardize(x, 0)[0], backward)
    return lambda x: jnp.sum(c * norm(x)), (normal(kx, 16, 5),)


@wrong()
def batch_norm_extra_mean_term(key):
    """apache/mxnet#1053: a term too many in the gradient of the mean."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 8, 5)

    def backward(args, _, g):
        z, inv = _standardize(args[0], 0)
        extra = (g * z).sum(0) / 8
        return (inv * (g - g.mean(0) - z * (g * z).mean(0) + 0.1 * extra),)

    norm = with_vjp(lambda x: _standardize(x, 0)[0], backward)
    return lambda x: jnp.sum(c * norm(x)), (normal(kx, 8, 5),)


@wrong(argnums=(0, 1), leaf="[0]")
def rms_norm_without_weight(key):
    """karpathy/llm.c#763: RMS norm's backward pass without the weight in its sum."""
    kx, kg, kc = jax.random.split(key, 3)
    c = normal(kc, 6, 12)
    inverse = lambda x: lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + 1e-6)  # noqa: E731

    def backward(args, _, g):
        x, w = args
        z = x * inverse(x)
        return inverse(x) * (g * w - z * (g * z).mean(1, keepdims=True)), (g * z).sum(0)

    norm = with_vjp(lambda x, w: x * inverse(x) * w, backward)
    return lambda x, w: jnp.sum(c * norm(x, w)), (normal(kx, 6, 12), 0.5 + uniform(kg, 12))


@wrong(argnums=(0, 1), leaf="[1]")
def rms_norm_weight_frozen(key):
    """unslothai/unsloth#4533: RMS norm returns no gradient for its weight."""
    norm = tampered(
        lambda x, w: x * lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + 1e-6) * w,
        lambda g: (g[0], jnp.zeros_like(g[1])),
    )
    kx, kg = jax.random.split(key)
    return lambda x, w: jnp.sum(norm(x, w) ** 3), (normal(kx, 6, 12), 0.5 + uniform(kg, 12))


@wrong()
def statistics_stopped(key):
    """A stop_gradient on a mean that depends on the parameters."""

    def f(x):
        return jnp.sum((x - lax.stop_gradient(x.mean())) ** 3)

    return f, (normal(key, 12),)


# Convolution, pooling, gather, order.


def _convolve(x, w):
    return jnp.convolve(x, w, mode="same", precision="highest")


@wrong(argnums=(0, 1), leaf="[0]")
def kernel_not_flipped(key):
    """The input gradient of a convolution with the kernel unflipped."""
    kx, kw = jax.random.split(key)

    def backward(args, _, g):
        return _convolve(g, args[1]), jax.vjp(lambda w: _convolve(args[0], w), args[1])[1](g)[0]

    rule = with_vjp(_convolve, backward)
    return lambda x, w: jnp.sum(jnp.sin(rule(x, w))), (normal(kx, 20), normal(kw, 5))


@wrong()
def boundary_forgotten(key):
    """A periodic difference whose backward pass does not wrap round."""

    def backward(_, __, g):
        return (jnp.concatenate([jnp.zeros_like(g[:1]), g[:-1]]) - g,)

    rule = with_vjp(lambda x: jnp.roll(x, -1) - x, backward)
    return lambda x: jnp.sum(rule(x) ** 2), (normal(key, 30).at[0].add(2.0),)


@wrong()
def average_pool_divisor(key):
    """pytorch/pytorch#198119: the clipped last window divided by the full size."""
    count = jnp.array([3.0, 3.0, 3.0, 2.0])
    pad = lambda x: jnp.pad(x, (0, 1)).reshape(4, 3)  # noqa: E731

    def backward(_, __, g):
        return (jnp.repeat(g / 3, 3)[:11],)

    rule = with_vjp(lambda x: pad(x).sum(1) / count, backward)
    return lambda x: jnp.sum(jnp.sin(rule(x))), (normal(key, 11),)


@wrong()
def max_pool_to_all(key):
    """A maximum pooling that shares the cotangent among its window."""
    rule = with_vjp(lambda x: x.reshape(8, 4).max(1), lambda _, __, g: (jnp.repeat(g / 4, 4),))
    return lambda x: jnp.sum(rule(x) ** 2), (normal(key, 32),)


@wrong()
def scattered_duplicates(key):
    """An embedding gradient that sets where it should add."""
    kt, ki = jax.random.split(key)
    index = jnp.concatenate([jnp.array([0, 0, 0, 1, 1]), jax.random.randint(ki, (10,), 0, 10)])
    rule = with_vjp(lambda t: t[index], lambda a, _, g: (jnp.zeros_like(a[0]).at[index].set(g),))
    return lambda t: jnp.sum(jnp.exp(rule(t))), (normal(kt, 10, 3, scale=0.3),)


@wrong()
def overwritten_update(key):
    """tensorflow/tensorflow#56961: an overwritten update gets a gradient."""
    index = jnp.array([0, 1, 1, 2])
    rule = with_vjp(lambda u: u[jnp.array([0, 2, 3])], lambda _, __, g: (g[index],))
    return lambda u: jnp.sum(rule(u) ** 2), (away_from_zero(key, 4),)


@wrong()
def sort_not_unpermuted(key):
    """A sort whose backward pass gathers by the permutation, not by its inverse."""
    kx, kw = jax.random.split(key)
    w = normal(kw, 12)
    rule = with_vjp(jnp.sort, lambda a, _, g: (g[jnp.argsort(a[0])],))
    return lambda x: jnp.sum(w * rule(x)), (normal(kx, 12),)


@wrong()
def cumulative_sum_shifted(key):
    """A cumulative sum whose backward pass is exclusive."""

    def backward(_, __, g):
        return (jnp.cumsum(g[::-1])[::-1] - g,)

    rule = with_vjp(jnp.cumsum, backward)
    return lambda x: jnp.sum(jnp.sin(rule(x))), (normal(key, 16),)


@wrong()
def dropout_other_mask(key):
    """Dropout whose backward pass draws another mask."""
    kx, ka, kb = jax.random.split(key, 3)
    kept, other = (jax.random.bernoulli(k, 0.5, (40,)) for k in (ka, kb))
    rule = with_vjp(lambda x: x * kept * 2, lambda _, __, g: (g * other * 2,))
    return lambda x: jnp.sum(jnp.exp(rule(x))), (normal(kx, 40, scale=0.3),)


@wrong()
def fourier_without_scale(key):
    """An inverse FFT whose rule lacks 1/n."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 16)
    rule = with_vjp(
        lambda x: jnp.fft.ifft(x).real, lambda _, __, g: (jnp.fft.fft(g).real.astype(g.dtype),)
    )
    return lambda x: jnp.sum(c * rule(x)), (normal(kx, 16),)


# Recurrences, solvers, linear algebra.


def _recurrence_rule(*, shift, last_state=True, steps=None):
    def run(a, x):
        h = [jnp.zeros_like(a)]
        for t in range(x.shape[0]):
            h.append(a * h[-1] + x[t])
        return jnp.stack(h[1:]), h[-1]

    def backward(args, out, cotangents):
        a, x = args
        gs, last = cotangents
        h = jnp.concatenate([jnp.zeros_like(x[:1]), out[0]])
        carry, da, dx = (last if last_state else jnp.zeros_like(a)), jnp.zeros_like(a), []
        for t in reversed(range(x.shape[0])):
            carry = carry + gs[t]
            dx.append(carry)
            if steps is None or t > steps:
                da = da + carry * h[t + shift]
            carry = a * carry
        return da, jnp.stack(dx[::-1])

    return with_vjp(run, backward)


def _recurrence_args(key):
    ka, kx = jax.random.split(key)
    return uniform(ka, 3, low=0.4, high=0.9), normal(kx, 12, 3) + 1


@wrong(argnums=(0, 1), leaf="[0]")
def recurrence_off_by_one(key):
    """A linear recurrence that multiplies by the state after the step."""
    rule = _recurrence_rule(shift=1)
    return lambda a, x: jnp.sum(rule(a, x)[0] ** 2), _recurrence_args(key)


@wrong(argnums=(0, 1), leaf="[0]")
def recurrence_drops_first_steps(key):
    """A linear recurrence whose backward pass stops one step early."""
    rule = _recurrence_rule(shift=0, steps=1)
    return lambda a, x: jnp.sum(rule(a, x)[0] ** 2), _recurrence_args(key)


@wrong(argnums=1)
def last_state_without_gradient(key):
    """state-spaces/mamba#258: the gradient of the last state is not considered."""
    rule = _recurrence_rule(shift=0, last_state=False)

    def f(a, x):
        states, last = rule(a, x)
        return jnp.mean(states) + jnp.sum(last**2)

    return f, _recurrence_args(key)


@wrong()
def truncated_through_time(key):
    """Backpropagation through time, cut every ten steps."""
    kx, kw, ku = jax.random.split(key, 3)
    xs, u = normal(kx, 4, 10, 3), normal(ku, 3, 6)

    def f(w):
        h = jnp.zeros(6)
        for chunk in xs:
            h = lax.stop_gradient(h)
            for x in chunk:
                h = jnp.tanh(h @ w + x @ u)
        return jnp.sum(h**2)

    # Strong recurrence, so that what was cut off matters.
    return f, (normal(kw, 6, 6, scale=0.4) + 1.1 * jnp.eye(6),)


@wrong(argnums=(0, 1), leaf="[1]")
def solve_untransposed(key):
    """JuliaDecisionFocusedLearning/ImplicitDifferentiation.jl#161: a transpose is wrong."""
    ka, kb = jax.random.split(key)

    def backward(args, x, g):
        adjoint = jnp.linalg.solve(args[0].T, g)
        return -jnp.outer(adjoint, x), jnp.linalg.solve(args[0], g)

    rule = with_vjp(jnp.linalg.solve, backward)
    a = 3 * jnp.eye(5, dtype=jnp.float32) + normal(ka, 5, 5)
    return lambda a, b: jnp.sum(rule(a, b) ** 3), (a, away_from_zero(kb, 5))


@wrong(argnums=(0, 1), leaf="[0]")
def solve_matrix_sign(key):
    """The gradient of a linear solve in its matrix has the wrong sign."""
    ka, kb = jax.random.split(key)

    def backward(args, x, g):
        adjoint = jnp.linalg.solve(args[0].T, g)
        return jnp.outer(adjoint, x), adjoint

    rule = with_vjp(jnp.linalg.solve, backward)
    a = 4 * jnp.eye(5, dtype=jnp.float32) + normal(ka, 5, 5, scale=0.5)
    return lambda a, b: jnp.sum(rule(a, b) ** 2), (a, normal(kb, 5))


@wrong()
def log_determinant_untransposed(key):
    """The gradient of a log determinant is the inverse, untransposed."""
    rule = with_vjp(lambda a: jnp.linalg.slogdet(a)[1], lambda a, _, g: (g * jnp.linalg.inv(a[0]),))
    return lambda a: rule(a), (3 * jnp.eye(5, dtype=jnp.float32) + normal(key, 5, 5),)


@wrong()
def eigenvector_sign(key):
    """Eigenvectors' gradient with the differences of eigenvalues reversed."""
    kx, kc = jax.random.split(key)
    c = normal(kc, 4, 4)

    def backward(args, out, g):
        values, v = out
        gap = values[:, None] - values[None, :]
        inverse = jnp.where(gap == 0, 0.0, 1 / jnp.where(gap == 0, 1.0, gap))
        inner = jnp.diag(g[0]) + inverse * (v.T @ g[1])
        inner = v @ inner @ v.T
        return ((inner + inner.T) / 2,)

    rule = with_vjp(lambda a: tuple(jnp.linalg.eigh(a)), backward)

    def f(x):
        values, vectors = rule(jnp.diag(2.0 * jnp.arange(4.0)) + 0.4 * (x + x.T))
        return jnp.sum(values) + jnp.sum(c * vectors**2)

    return f, (normal(kx, 4, 4),)


def _fixed_point(adjoint):
    def make(key):
        kw, kb = jax.random.split(key)
        # Far from symmetric, so that the transpose matters.
        w = normal(kw, 6, 6, scale=0.15) + 0.6 * jnp.eye(6, k=1)
        body = lambda x, b: jnp.tanh(w @ x + b)  # noqa: E731
        solve = lambda b: lax.fori_loop(0, 200, lambda _, x: body(x, b), jnp.zeros_like(b))  # noqa: E731

        def backward(args, x, g):
            jac = jax.jacobian(body)(x, *args)
            return jax.vjp(lambda b: body(x, b), *args)[1](adjoint(jac, g))

        rule = with_vjp(solve, backward)
        return lambda b: jnp.sum(rule(b) ** 2), (normal(kb, 6) + 0.5,)

    return make


@wrong()
def fixed_point_one_step(key):
    """A fixed point with the gradient of its last step only."""
    return _fixed_point(lambda jac, g: g)(key)


@wrong()
def fixed_point_untransposed(key):
    """A fixed point whose adjoint solves with the Jacobian, not with its transpose."""
    return _fixed_point(lambda jac, g: jnp.linalg.solve(jnp.eye(6, dtype=g.dtype) - jac, g))(key)


@wrong()
def root_tangent_solve(key):
    """A custom_root with a tangent solve that does not divide by the slope."""

    def f(a):
        solve = lambda g, x: lax.fori_loop(  # noqa: E731
            0, 30, lambda _, x: x - g(x) / (3 * x**2 + 1), x
        )
        one = jnp.ones_like(a)
        return jnp.sum(lax.custom_root(lambda x: x**3 + x - a, one, solve, lambda _, y: y / 2))

    return f, (uniform(key, 4, low=0.5, high=1.5),)


@wrong()
def coarse_adjoint(key):
    """Fine steps of an ODE forward, its adjoint by coarse Euler steps."""
    ky, ka = jax.random.split(key)

    def run(y, a):
        return lax.fori_loop(0, 400, lambda _, y: y + 0.0025 * jnp.sin(a * y), y)

    def backward(args, out, g):
        a = args[1]

        def step(_, s):
            y, adjoint, da = s
            slope = jnp.cos(a * y)
            new = adjoint + 0.1 * adjoint * a * slope
            return y - 0.1 * jnp.sin(a * y), new, da + 0.1 * adjoint * y * slope

        _, adjoint, da = lax.fori_loop(0, 10, step, (out, g, jnp.zeros_like(g)))
        return adjoint, da

    rule = with_vjp(run, backward)
    return lambda y, a: jnp.sum(rule(y, a) ** 2), (0.5 + uniform(ky, 4), 1 + uniform(ka, 4))
