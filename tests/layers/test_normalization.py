"""Batch norm and layer norm against flax, in training and in use, and their parts."""

from typing import Any

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import check_grads, layers
from jaxgrad.layers import _normalization
from jaxgrad.theory import Moments


@pytest.fixture
def batches(key):
    return 3.0 + 2.0 * jax.random.normal(key, (4, 32, 6))


@pytest.mark.slow
@pytest.mark.parametrize("spatial", [0, 2])
def test_batch_norm_equals_flax_in_training_and_in_use(key, batches, spatial):
    if spatial:
        batches = batches.reshape(4, 8, 2, 2, 6)
    layer = layers.batch_norm(1e-3, spatial=spatial, momentum=0.8)
    params, state = layers.init(layer, batches.shape[2:], key=key)
    params = {"scale": params["scale"] * 1.7, "shift": params["shift"] - 0.4}
    expected_layer: Any = flax.linen.BatchNorm(momentum=0.8, epsilon=1e-3)
    variables = expected_layer.init(key, batches[0], use_running_average=True)
    variables = {
        "params": {"scale": params["scale"], "bias": params["shift"]},
        "batch_stats": variables["batch_stats"],
    }
    for batch in batches:
        out, state = layers.apply(layer, params, state, batch, key=key)
        expected, changed = expected_layer.apply(
            variables, batch, use_running_average=False, mutable=["batch_stats"]
        )
        variables |= changed
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out, layers.apply(layer, params, None, batch)[0], rtol=1e-6)
    np.testing.assert_allclose(state.mean, variables["batch_stats"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(state.variance, variables["batch_stats"]["var"], rtol=1e-5)
    used, same = layers.apply(layer, params, state, batches[0])
    expected = expected_layer.apply(variables, batches[0], use_running_average=True)
    np.testing.assert_allclose(used, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(same, state)


def test_layer_norm_equals_flax_and_keeps_no_state(key, batches):
    layer = layers.layer_norm(1e-6)
    params, state = layers.init(layer, (6,), key=key)
    assert state == ()
    expected_layer: Any = flax.linen.LayerNorm(epsilon=1e-6)
    expected = expected_layer.apply(expected_layer.init(key, batches[0]), batches[0])
    for mode in (key, None):
        out, _ = layers.apply(layer, params, state, batches[0], key=mode)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rms_norm_equals_flax(key, batches):
    params, state = layers.init(layers.rms_norm(0.3), (6,), key=key)
    assert state == ()
    params = {"scale": params["scale"] * jnp.arange(1.0, 7.0)}
    x, weights = batches[0].reshape(8, 4, 6), batches[1].reshape(8, 4, 6)

    def differentiated(function):
        return jax.value_and_grad(lambda *a: jnp.sum(function(*a) * weights), (0, 1))(params, x)

    result = differentiated(lambda p, x: layers.apply(layers.rms_norm(0.3), p, None, x)[0])
    reference: Any = flax.linen.RMSNorm(epsilon=0.3)
    expected = differentiated(lambda p, x: reference.apply({"params": p}, x))
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_prediction_of_rms_norm_in_closed_form():
    """It divides squares by `q + epsilon`, and keeps the mean and the gap."""
    start = Moments(np.log(3.0), np.log(2.0), 0.4, 0.3, gaussian=True)
    result = layers.rms_norm(0.5).predict(start)
    np.testing.assert_allclose(np.exp(result.log_q), 3 / 3.5, rtol=1e-12)
    np.testing.assert_allclose(np.exp(result.log_gradient), 2 / 3.5, rtol=1e-12)
    assert (result.mean, result.gap, result.gaussian) == (0.4, 0.3, True)


def test_in_use_an_example_does_not_depend_on_the_others(key, batches):
    layer = layers.sequential(layers.dense(5), layers.batch_norm(1e-5), layers.dropout(0.5))
    params, state = layers.init(layer, (6,), key=key)
    _, state = layers.apply(layer, params, state, batches[0], key=key)
    together, _ = layers.apply(layer, params, state, batches[1])
    alone, _ = layers.apply(layer, params, state, batches[1][:1])
    np.testing.assert_allclose(alone, together[:1], rtol=1e-5, atol=1e-6)


def test_running_statistics_come_to_those_of_the_data(key):
    layer = layers.batch_norm(momentum=0.9)
    params, state = layers.init(layer, (3,), key=key)
    x = jnp.asarray([1.0, -2.0, 0.0])[None, None] + 3.0 * jax.random.normal(key, (300, 64, 3))

    def step(state, batch):
        return layers.apply(layer, params, state, batch, key=key)[1], state

    state, _ = jax.lax.scan(step, state, x)
    # The last ten batches or so count, less 1 / 64 since a batch's own mean is subtracted.
    np.testing.assert_allclose(state.mean, [1, -2, 0], atol=4 * 3 / np.sqrt(64 * 19))
    np.testing.assert_allclose(state.variance, 9 * 63 / 64, rtol=4 * np.sqrt(2 / (64 * 19)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [layers.batch_norm(1e-5), layers.layer_norm(1e-5), layers.batch_norm()],
    ids=["batch", "layer", "batch, no epsilon"],
)
@pytest.mark.parametrize("mode", ["training", "use"])
def test_gradients_of_norms(key, layer, mode):
    params, state = layers.init(layer, (3,), key=key)
    weights = jax.random.normal(key, (8, 3))

    def loss(params, x):
        out, _ = layers.apply(layer, params, state, x, key=key if mode == "training" else None)
        return jnp.sum(out * weights + jnp.sin(out))

    assert check_grads(loss, params, 2.0 + weights, argnums=(0, 1)).ok


@pytest.mark.slow
def test_parts_of_norms(x64, batches):
    batch = _normalization.statistics(batches[0], (0,))
    np.testing.assert_allclose(batch.mean[0], np.mean(batches[0], 0), rtol=1e-6)
    np.testing.assert_allclose(batch.variance[0], np.var(batches[0], 0), rtol=1e-5)
    out = _normalization.normalize(batches[0], batch)
    np.testing.assert_allclose(np.mean(out**2, axis=0), 1, rtol=1e-5)
    old = _normalization.Statistics(jnp.zeros(6), jnp.ones(6))
    same = _normalization.update(old, batch, 1.0)
    chex.assert_trees_all_equal(same, old)
    new = _normalization.update(old, batch, 0.0)
    np.testing.assert_allclose(new.mean, batch.mean[0], rtol=1e-6)
    constant = jnp.full((4, 2), 7.0)
    zeros = _normalization.normalize(constant, _normalization.statistics(constant, (0,)))
    np.testing.assert_array_equal(zeros, 0)


@pytest.mark.slow
def test_norms_over_positions_equal_those_of_flax(key):
    x = 3 + 2 * jax.random.normal(key, (6, 4, 5))
    params = {"scale": jnp.arange(1.0, 6.0), "shift": jnp.arange(5.0)}
    variables = {"params": {"scale": params["scale"], "bias": params["shift"]}}
    expected = flax.linen.LayerNorm(epsilon=0.3).apply(variables, x)
    out, _ = layers.apply(layers.layer_norm(0.3), params, None, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    norm = flax.linen.BatchNorm(use_running_average=False, epsilon=0.3)
    statistics = {"batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
    expected, _ = norm.apply(variables | statistics, x, mutable=["batch_stats"])
    out, _ = layers.apply(layers.batch_norm(0.3, spatial=1), params, None, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [layers.layer_norm(), layers.batch_norm(), layers.rms_norm()],
    ids=["layer", "batch", "rms"],
)
def test_constants_become_zero(key, layer):
    params, _ = layers.init(layer, (4,), key=key)

    def total(x):
        return layers.apply(layer, params, None, x)[0].sum()

    constant = jnp.zeros if layer == layers.rms_norm() else jnp.ones
    value, slope = jax.value_and_grad(total)(constant((3, 4)))
    assert value == 0
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("norm", [layers.layer_norm, layers.batch_norm, layers.rms_norm])
def test_what_is_not_a_number_stays_so(key, norm):
    params, _ = layers.init(norm(1e-6), (4,), key=key)
    x = jax.random.normal(key, (3, 4)).at[1, 2].set(jnp.nan)
    out = jax.jit(lambda x: layers.apply(norm(1e-6), params, None, x)[0])(x)
    assert np.isnan(out[1, 2])


def test_errors(key):
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        layers.layer_norm(-1.0)
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        layers.rms_norm(-1.0)
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        layers.batch_norm(-1.0)
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        layers.batch_norm(momentum=-1)
    with pytest.raises(ValueError, match="spatial must be at least 0"):
        layers.batch_norm(spatial=-1)
    with pytest.raises(ValueError, match="moments must have a gap"):
        layers.batch_norm().predict(Moments(0.0, gaussian=True))
    with pytest.raises(ValueError, match="shape must have 0 spatial axes.*pass spatial=1"):
        layers.init(layers.batch_norm(), (4, 3), key=key)
