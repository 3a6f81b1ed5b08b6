"""Theory against measured networks: growth per layer, and the regimes that follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, layers, propagation, regimes
from jaxgrad.theory import Moments

WIDTH = 600


def predicted_log_ratio(network):
    return propagation.predict(network, Moments(log_q=0.0)).log_ratio


def network_of(name, depth, w_variance=1.0, width=WIDTH):
    return layers.mlp(width, depth, name, w_variance=w_variance, parameterization="ntk")


def networks(key, depth, seeds, batch):
    """Kernels of unit variance, inputs and keys, which serve all activations."""

    def draw(seed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(key), seed), 3)
        params, _ = layers.init(network_of("linear", depth), (40,), key=keys[0])
        x = jax.random.normal(keys[1], (batch, 40))
        return params, x / jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True)), keys[2]

    # The draws take longer to run than to compile; the programs that use them do not.
    optimized = jax.jit(draw, compiler_options={"xla_backend_optimization_level": 2})
    return [optimized(seed) for seed in range(seeds)]


def log_ratios(name, depth, variances, drawn):
    """Measured `[seeds, variances, depth]`, and predicted `[variances, depth]`."""

    def at_variances(log_ratio):
        return jax.vmap(lambda w: log_ratio(network_of(name, depth, w)))(variances)

    # The parameters of an activation that has any do not depend on the width.
    narrow, _ = layers.init(network_of(name, depth, width=1), (1,), key=jax.random.key(0))

    @jax.jit
    def measure(kernels, x, key):
        params = {part: narrow[part] | kernels[part] for part in kernels}
        return at_variances(lambda net: propagation.probe(net, params, x, key=key).log_ratio)

    measured = np.stack([np.asarray(measure(*network)) for network in drawn])
    with jax.enable_x64(True):
        return measured, np.asarray(at_variances(predicted_log_ratio))


@pytest.fixture(scope="module")
def shallow():
    # Few layers of many networks: deep ones of one width drift where a length repels.
    return networks(11, depth=4, seeds=60, batch=4)


@pytest.fixture(scope="module")
def deep():
    return networks(5, depth=28, seeds=5, batch=2)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "tanh" else pytest.mark.slow)
        for name in activations.TABLE
    ],
)
def test_measured_growth_agrees_with_theory_at_five_variances(shallow, name):
    variances = jnp.array([0.6, 1.0, 1.6, 2.2, 4.0])
    measured, predicted = (a[..., -1] / 3 for a in log_ratios(name, 4, variances, shallow))
    error = measured.std(axis=0, ddof=1) / np.sqrt(len(measured))
    apart = np.abs(measured.mean(axis=0) - predicted)
    assert np.all(apart < np.maximum(2 * error, 0.01)), (measured.mean(axis=0), predicted, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_regimes_are_as_predicted_but_for_one_percent_a_layer(deep, name):
    depth = 28
    measured, predicted = log_ratios(name, depth, jnp.geomspace(0.6, 4.5, 9), deep)
    depths = np.arange(1, depth + 1)
    classified = regimes.classify(measured, depths)
    found, error = np.asarray(classified.regime), np.asarray(classified.log_ratio_se)

    def label(log_ratio):
        return np.asarray(regimes.classify(np.stack([log_ratio] * 2), depths).regime)

    band = 0.01 * (depths - 1)[None]
    low, high = (label(np.asarray(predicted) + sign * band) for sign in (-1, 1))
    # Near an unstable length, as GELU's at 2.2, networks of one width differ by more than a band.
    clear = (low == high) & (error < 0.4)
    assert clear.mean() > 0.75
    assert len(np.unique(found)) == 3
    np.testing.assert_array_equal(found[clear], low[clear])
