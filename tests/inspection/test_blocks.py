"""Sizes at the blocks of a model: scanned, unrolled, residual, in Flax; mapped and compiled."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.inspection import measure_blocks

DEPTH = 4


@pytest.fixture
def model(key):
    keys = jax.random.split(key)
    return 0.7 * jax.random.normal(keys[0], (DEPTH, 3, 3)), jax.random.normal(keys[1], (5, 3))


def unrolled(params, x):
    for i in range(DEPTH):
        x = jnp.tanh(x @ params[i])
    return jnp.mean(x**2)


def scanned(params, x):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)
    return jnp.mean(h**2)


def listed(params, x):
    for layer in [{"w": w} for w in params]:
        x = jnp.tanh(x @ layer["w"])
    return jnp.mean(x**2)


def looped(params, x):
    def block(i, h):
        return jnp.tanh(h @ params[i])

    return jnp.mean(jax.lax.fori_loop(0, DEPTH, block, x) ** 2)


def log_mean_square(a):
    return np.log(np.mean(np.square(a)))


def by_hand(params, x):
    """The signal after each block, and the gradient by it."""
    signals = [x]
    for w in params:
        signals.append(jnp.tanh(signals[-1] @ w))

    def rest(h, start):
        for w in params[start:]:
            h = jnp.tanh(h @ w)
        return jnp.mean(h**2)

    gradients = [jax.grad(rest)(signals[i], i) for i in range(1, DEPTH + 1)]
    return [[log_mean_square(a) for a in part] for part in (signals[1:], gradients)]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [unrolled, scanned, listed, looped])
def test_sizes_are_those_by_hand(model, loss):
    sizes = jax.jit(measure_blocks(loss, DEPTH))(*model)
    signal, gradient = by_hand(*model)
    np.testing.assert_allclose(sizes.log_signal, signal, rtol=1e-6)
    np.testing.assert_allclose(sizes.log_gradient, gradient, rtol=1e-6)


@pytest.mark.slow
def test_a_map_over_factors_is_each_of_them(model):
    params, x = model
    measured = measure_blocks(scanned, DEPTH)
    factors = jnp.asarray([0.5, 1.0, 2.0])
    mapped = jax.jit(jax.vmap(lambda factor: measured(factor * params, x)))(factors)
    for i, factor in enumerate(factors):
        alone = measured(factor * params, x)
        np.testing.assert_allclose(mapped.log_gradient[i], alone.log_gradient, rtol=1e-6)


@pytest.mark.slow
def test_an_operation_that_a_block_has_twice_counts_where_it_is_last(model):
    params, x = model

    def layer(h, w):
        return jnp.tanh(h @ w)

    def loss(params, x):
        for i in range(DEPTH):
            x = layer(x, params[i])
        return jnp.mean(x**2)

    half, whole = (measure_blocks(loss, blocks)(params, x) for blocks in (DEPTH // 2, DEPTH))
    np.testing.assert_array_equal(half.log_signal, whole.log_signal[1::2])


class Block(nn.Module):
    @nn.compact
    def __call__(self, h):
        added = nn.Dense(6)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(h))))
        return h + added


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(DEPTH):
            x = Block()(x)
        return nn.Dense(2)(x)


@pytest.mark.slow
def test_the_stream_of_a_residual_model_of_flax(key):
    model: Any = Residual()
    x = jax.random.normal(key, (5, 6))
    params = model.init(key, x)

    def loss(params, x):
        return jnp.sum(model.apply(params, x) ** 2)

    sizes = jax.jit(measure_blocks(loss, DEPTH))(params, x)
    h = x
    for i in range(DEPTH):
        h = Block().apply({"params": params["params"][f"Block_{i}"]}, h)
        np.testing.assert_allclose(sizes.log_signal[i], log_mean_square(h), rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_is_not_a_number(model):
    params, x = model

    def loss(params, x):
        h, _ = jax.lax.scan(lambda h, w: (h @ w * 1e20, None), x, params)
        return jnp.mean(h)

    sizes = measure_blocks(loss, DEPTH)(params, x)
    assert np.all(np.isfinite(sizes.log_signal[:1]))
    assert np.isnan(sizes.log_signal[-1])


def test_a_wrong_number_of_blocks_is_named(model):
    with pytest.raises(ValueError, match="blocks must be the number of blocks .* got 3.*no opera"):
        measure_blocks(scanned, 3)(*model)
