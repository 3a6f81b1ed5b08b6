"""Initializers on the critical line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.initializers import critical
from jaxgrad.theory.finite_width import layer_law
from tests.tolerances import within_errors

TANH = (1.760955, 0.570048)  # at bias variance 0.05


def test_critical_point_of_a_bias_variance(key):
    found = critical("tanh", 0.05)
    np.testing.assert_allclose([found.w_variance, found.q], TANH, atol=1e-6)
    kernel, bias = found.kernel(key, (300, 400)), found.bias(key, (100_000,))
    within_errors(300 * kernel.ravel() ** 2, TANH[0])
    within_errors(bias**2, 0.05)


def test_critical_point_of_a_length():
    found = critical("erf", q=0.7)
    np.testing.assert_allclose(
        [found.w_variance, found.b_variance], [1.531023, 0.092944], atol=1e-6
    )


@pytest.mark.parametrize(
    ("activation", "expected"), [("relu", (2, 0, 1)), ("tanh", (1, 0, 0)), ("gelu", None)]
)
def test_critical_point_without_a_choice(activation, expected, key):
    found = critical(activation)
    if expected is None:
        expected = (1.983058, 0.172922, (3 + np.sqrt(17)) / 2)
    np.testing.assert_allclose(
        [found.w_variance, found.b_variance, found.q], expected, rtol=1e-4, atol=1e-12
    )
    assert (float(jnp.abs(found.bias(key, (9,))).max()) > 0) == (expected[1] > 0)


def test_critical_convolutions_count_their_fans(key):
    kernel = critical("relu", distribution="uniform", groups=4).kernel(key, (3, 3, 8, 512))
    within_errors(72 * kernel.ravel() ** 2, 2.0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_critical_for_a_width_keeps_the_typical_layer(activation):
    found = critical(activation, 0.0, width=16)
    q = max(float(found.q), 1e-12)
    assert abs(layer_law(activation, q, found.w_variance, 16).mean_log) < 1e-9
    assert found.w_variance > critical(activation, 0.0).w_variance


@pytest.mark.slow
def test_critical_for_a_width_keeps_the_median_network(key):
    def growth(key, factor):
        network = layers.mlp(16, 40, "relu", w_variance=factor)
        params, _ = layers.init(network, (16,), key=key)
        found = propagation.probe(network, params, jnp.ones((1, 16)), key=key)
        return found.log_gradient[-1] - found.log_gradient[0]

    keys = jax.random.split(key, 400)
    growths = jax.jit(lambda keys, factor: jax.lax.map(lambda key: growth(key, factor), keys))
    within_errors(growths(keys, jnp.float32(critical("relu", width=16).w_variance)), 0.0)
    with pytest.raises(AssertionError):
        within_errors(growths(keys, jnp.float32(2.0)), 0.0)


def test_critical_traces_its_variances(key):
    @jax.jit
    def draw(q):
        found = critical("tanh", q=q, width=64)
        return found.kernel(key, (8, 8)), found.w_variance, found.b_variance

    kernel, w_variance, b_variance = draw(0.5)
    expected = critical("tanh", q=0.5, width=64)
    np.testing.assert_allclose(
        [w_variance, b_variance], [expected.w_variance, expected.b_variance], rtol=1e-5
    )
    np.testing.assert_allclose(kernel, expected.kernel(key, (8, 8)), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: critical("gelu", 0.01), "'gelu' has no stable critical point for b_variance 0.01"),
        (lambda: critical("softplus", q=1.0), "'softplus' has no stable critical point for q 1"),
        (lambda: critical("tanh", 0.05, q=1.0), "b_variance and q must not both be given"),
        (lambda: critical("tanh", q=0.0), "q must be greater than 0"),
        (lambda: critical("tanh", -0.1), "b_variance must be at least 0"),
        (lambda: critical("tanh", 0.05, width=0), "width must be at least 1"),
        (lambda: critical("tanh", 0.05, distribution="cauchy"), "distribution must be one of"),
        (lambda: critical("gelu", depth=60), "no argument 'depth', got 60; leave it out"),
        (lambda: critical("gelu", stride=2), "critical has no argument 'stride', got 2; the"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
