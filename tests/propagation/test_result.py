import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments
from tests.propagation import cases


@pytest.mark.slow
def test_measured_minus_predicted(key):
    network = cases.plain_mlp(64, 6, "relu", w_variance=2.0)
    x = jax.random.normal(key, (8, 10))
    measured = propagation.probe(network, cases.draw(network, key), x, key=key)
    predicted = propagation.predict(network, x, pairs=True)
    difference = measured - predicted
    assert isinstance(difference, propagation.Propagation)
    for name in (
        "log_preactivation",
        "log_activation",
        "log_gradient",
        "log_last_gradient",
        "log_ratio",
    ):
        value = getattr(difference, name)
        np.testing.assert_allclose(
            value, np.asarray(getattr(measured, name)) - getattr(predicted, name), rtol=1e-12
        )
        assert value.dtype == np.float64
        assert np.all(np.abs(value) < 2)
    for name in ("dead", "gap", "log_weight_gradient"):
        np.testing.assert_array_equal(getattr(difference, name), [np.nan] * 6)
    assert difference.log_example_gradient is None
    assert difference.depths is None


@pytest.mark.slow
def test_seeds_minus_one_prediction(key):
    network = layers.repeat(cases.block_of(8), 3)

    def run(key):
        return propagation.probe(network, cases.draw(network, key, (8,)), jnp.ones((2, 8)), key=key)

    measured = jax.vmap(run)(jax.random.split(key, 4))
    predicted = propagation.predict(network, Moments(log_q=0.0))
    assert (measured - predicted).log_gradient.shape == (4, 3)
    traced = jax.jit(lambda a: (a - predicted).log_gradient)(measured)
    np.testing.assert_allclose(traced, (measured - predicted).log_gradient, rtol=1e-5, atol=1e-6)


def test_exact_minus_exact(key):
    network = cases.mlp()
    params = cases.draw(network, key)
    one = propagation.exact(network, params, jnp.ones((2, 10)), key=key, depths=(2, 5))
    difference = one - one
    np.testing.assert_array_equal(difference.depths, [2, 5])
    np.testing.assert_array_equal(difference.log_layer_gradient[:, 0], 0.0)
    assert one.__sub__(3.0) is NotImplemented
