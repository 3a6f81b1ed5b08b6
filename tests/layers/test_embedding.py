"""Embeddings against flax, ids as inputs of whole networks, and positions."""

from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.layers import Scaled

IDS = np.array([[0, 3, 6, 3], [5, 1, 2, 0]])


@pytest.mark.slow
def test_values_and_gradients_equal_those_of_flax(key):
    layer = layers.embedding(7, 5, variance=4.0)
    params, state = layers.init(layer, (4,), key=key)
    assert state == ()
    assert params["embedding"].shape == (7, 5)
    weights = jax.random.normal(key, (2, 4, 5))
    reference: Any = flax.linen.Embed(7, 5)

    def ours(params):
        return jnp.sum(layers.apply(layer, params, None, IDS)[0] * weights)

    def expected(params):
        return jnp.sum(reference.apply({"params": params}, IDS) * weights)

    results = [jax.value_and_grad(f)(params) for f in (ours, expected)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1]["embedding"], results[1][1]["embedding"], rtol=1e-6)


@pytest.mark.slow
def test_a_language_model_takes_ids(key):
    network = layers.sequential(
        layers.embedding(7, 8),
        layers.positions("sinusoidal"),
        layers.transformer(2, 8, 2, causal=True),
        layers.layer_norm(1e-6),
        layers.dense(7),
    )
    params, state = layers.init(network, (4,), key=key)
    logits, _ = layers.apply(network, params, state, IDS)
    assert logits.shape == (2, 4, 7)
    later, _ = layers.apply(network, params, state, np.where(np.arange(4) < 3, IDS, 6))
    np.testing.assert_allclose(later[:, :3], logits[:, :3], rtol=1e-5, atol=1e-6)
    # Ids that are traced are not checked; one beyond the vocabulary is seen in the outputs.
    traced = jax.jit(lambda x: layers.apply(network, params, state, x)[0])
    np.testing.assert_allclose(traced(IDS), logits, rtol=1e-4, atol=1e-5)
    assert np.all(np.isnan(traced(IDS + 7)))
    # After the embedding the network is measured as any other.
    rest = layers.sequential(*network.layers[1:])
    h, _ = layers.apply(network.layers[0], params[0], None, IDS)
    measured = propagation.probe(rest, params[1:], h, key=key)
    assert np.all(np.isfinite(measured.log_gradient))


def test_draws_have_the_variances_asked_for(key):
    parts = layers.embedding(100, 50, variance=3.0), layers.positions(variance=0.2)
    table = layers.init(parts[0], (4,), key=key)[0]["embedding"]
    learned = layers.init(parts[1], (100, 50), key=key)[0]["positions"]
    for drawn, variance in ((table, 3.0), (learned, 0.2)):
        np.testing.assert_allclose(np.mean(drawn**2), variance, rtol=4 * np.sqrt(2 / 5000))
    # The sines and cosines have mean square 1/2, times a factor.
    table = layers.apply(layers.positions("sinusoidal"), {}, None, jnp.zeros((1, 100, 50)))[0]
    np.testing.assert_allclose(np.mean(table**2), 1.0, rtol=1e-5)


def test_sinusoids_turn_with_the_position(key):
    """`PE(t + k)` is `PE(t)` turned by a matrix that depends on `k` alone."""
    layer = layers.positions("sinusoidal", variance=0.5)
    table = np.asarray(layers.apply(layer, {}, None, jnp.zeros((1, 50, 6)))[0][0])
    pairs = table[:, 0::2] + 1j * table[:, 1::2]
    turns = pairs[1:] / pairs[:-1]
    np.testing.assert_allclose(turns, np.broadcast_to(turns[0], turns.shape), atol=2e-5)
    np.testing.assert_allclose(-np.angle(turns[0]), 10_000.0 ** -(np.arange(3) / 3), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_are_added(key, kind):
    layer = layers.positions(kind)
    params, _ = layers.init(layer, (3, 4), key=key)
    x, change = jax.random.normal(key, (2, 2, 3, 4))
    out, _ = layers.apply(layer, params, None, x)
    table = layers.apply(layer, params, None, jnp.zeros_like(x))[0][0]
    np.testing.assert_allclose(out - x, jnp.broadcast_to(table, x.shape), rtol=1e-5, atol=1e-6)
    # To a signal beyond the range of floats they add nothing, to a tiny one all there is.
    large, derivative = layer.linearize(params, Scaled(x, jnp.full(2, 150.0)))
    np.testing.assert_allclose(large.times(-150.0).plain(), x, rtol=1e-6)
    small, _ = layer.linearize(params, Scaled(x, jnp.full(2, -150.0)))
    np.testing.assert_allclose(small.plain(), jnp.broadcast_to(table, x.shape), rtol=1e-6)
    pushed = derivative.push(Scaled(change, jnp.zeros(2)))
    np.testing.assert_allclose(pushed.plain(), change, rtol=1e-6)
    gradient, log_square = derivative.pull(Scaled(change, jnp.zeros(2)))
    np.testing.assert_allclose(gradient.plain(), change, rtol=1e-6)
    total = np.sum(np.sum(np.asarray(change), axis=0) ** 2)
    np.testing.assert_allclose(np.exp(log_square), total if params else 0.0, rtol=1e-5)


def test_errors(key):
    layer = layers.sequential(layers.embedding(7, 4), layers.dense(2))
    params, _ = layers.init(layer, (4,), key=key)
    with pytest.raises(TypeError, match="x must be ids of integer type .*got float32"):
        layers.apply(layer, params, None, np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match="x must hold ids from 0 to 6, got 0 to 7"):
        layers.apply(layer, params, None, IDS + (IDS == 6))
    with pytest.raises(ValueError, match="x must hold ids from 0 to 6, got -1 to 5"):
        layers.apply(layer, params, None, IDS - 1)
    with pytest.raises(
        ValueError, match=r"x must have shape \[batch, \*shape\] and ids, got \(3,\)"
    ):
        layers.apply(layer, params, None, np.arange(3))
    with pytest.raises(TypeError, match="x must be floating point, got int"):
        layers.apply(layers.dense(2), {"kernel": jnp.ones((4, 2))}, None, IDS)
    with pytest.raises(ValueError, match="layer must have floating-point inputs.*an embedding"):
        propagation.probe(layer, params, IDS, key=key)
    late = layers.sequential(layers.dense(4), layers.embedding(7, 4))
    late_params, _ = layers.init(late, (3,), key=key)
    with pytest.raises(TypeError, match="x must be ids of integer type .*make it the first layer"):
        layers.apply(late, late_params, None, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"shape must be \(tokens, features\) for positions"):
        layers.init(layers.positions(), (4,), key=key)
