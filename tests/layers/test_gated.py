"""Gated units: against products written with flax, and their prediction."""

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments

FUNCTIONS = {
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_those_of_flax(key, activation, bias):
    layer = layers.gated(5, activation, bias=bias, b_variance=float(bias), gate_variance=3.0)
    params, state = layers.init(layer, (4, 6), key=key)
    assert state == ()
    x, weights = (jax.random.normal(key, (2, 4, n)) for n in (6, 5))
    dense = flax.linen.Dense(5, use_bias=bias)

    def expected(params, x):
        value, gate = (dense.apply({"params": p}, x) for p in (params["value"], params["gate"][0]))
        return value * FUNCTIONS[activation](gate)

    def ours(params, x):
        return layers.apply(layer, params, None, x)[0]

    results = [
        jax.value_and_grad(lambda *a, f=f: jnp.sum(f(*a) * weights), (0, 1))(params, x)
        for f in (ours, expected)
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_a_prediction_in_closed_form():
    """With the gate `relu`: half of the variance, half of the slopes, `gap` of the arc cosine."""
    layer = layers.gated(8, "relu", w_variance=3.0, gate_variance=2.0)
    result = layer.predict(Moments(np.log(1.5), np.log(5.0), gap=1.0))
    value, gate = 3.0 * 1.5, 2.0 * 1.5 / 2
    np.testing.assert_allclose(np.exp(result.log_q), value * gate, rtol=1e-12)
    growth = 5.0 * (3.0 * gate + value * 2.0 / 2)
    np.testing.assert_allclose(np.exp(result.log_gradient), growth, rtol=1e-10)
    # Of examples without correlation the values have none, nor have then the products.
    np.testing.assert_allclose(result.gap, 1.0, rtol=1e-12)
    assert (result.mean, result.gaussian, result.fresh) == (0.0, False, True)
    some = layer.predict(Moments(np.log(1.5), gap=0.5))
    # E relu(u) relu(v) = q J(theta) / (2 pi) at correlation 1/2, theta = pi / 3.
    theta = np.pi / 3
    between = 0.5 * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / np.pi * 2
    np.testing.assert_allclose(some.gap, 1 - 0.5 * between, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["sigmoid", "silu", "gelu"])
def test_a_prediction_equals_the_measurement(key, activation):
    layer = layers.sequential(
        layers.gated(512, activation, w_variance=2.0, gate_variance=1.5), layers.dense(512)
    )
    seeds, x = 24, jax.random.normal(key, (8, 512))

    def measure(key):
        key_draw, key_probe = jax.random.split(key)
        params, _ = layers.init(layer, (512,), key=key_draw)
        return propagation.probe(layer, params, x, key=key_probe)

    measured = jax.lax.map(measure, jax.random.split(key, seeds))
    predicted = propagation.predict(layer, x)
    for name in ("log_activation", "log_gradient"):
        value = np.exp(np.asarray(getattr(measured, name), np.float64))
        error = value.std(axis=0, ddof=1) / np.sqrt(seeds) / value.mean(axis=0)
        assert np.all(error < 0.02)
        ratio = value.mean(axis=0) / np.exp(getattr(predicted, name))
        assert np.all(np.abs(ratio - 1) < 4 * error), (ratio, error)


@pytest.mark.slow
def test_gates_of_any_size_have_their_logs(key):
    """A signal of `exp(60)`, whose square overflows, passes; a tiny one, too."""
    layer = layers.gated(4, "relu")
    params, _ = layers.init(layer, (4,), key=key)
    value = jax.random.normal(key, (3, 4))
    out, _ = layers.apply(layer, params, None, value)
    for log_scale in (-60.0, 60.0):
        signal = layers.Scaled(value, jnp.full(3, log_scale))
        scaled, _ = layer.linearize(params, signal)
        # Both factors are homogeneous here, so that the product is of degree 2.
        np.testing.assert_allclose(scaled.times(-2 * log_scale).plain(), out, rtol=1e-4, atol=1e-6)
    assert not layer.homogeneous


def test_errors():
    with pytest.raises(ValueError, match="gate_variance must be at least 0"):
        layers.gated(3, gate_variance=-1.0)
    with pytest.raises(ValueError, match="b_variance is for layers with biases"):
        layers.gated(3, b_variance=1.0)
