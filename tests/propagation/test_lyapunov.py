import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

from jaxgrad import layers, propagation
from tests.propagation import cases
from tests.tolerances import within_errors


def test_exponents_of_gaussian_products(key):
    size, depth = 8, 2000
    network = layers.repeat(layers.dense(size), depth)
    params = cases.draw(network, key, (size,))
    result = propagation.lyapunov(network, params, jnp.ones((2, size)), key=key)
    k = np.arange(1, size + 1)
    expected = (np.log(2 / size) + digamma((size - k + 1) / 2)) / 2
    np.testing.assert_allclose(expected[[0, -1]], [-0.0651, -1.6749], atol=5e-5)
    within_errors(result.log_growth[:, 0], expected)
    np.testing.assert_allclose(result.exponents, result.log_growth.mean(axis=0), rtol=1e-5)


@pytest.mark.slow
def test_exponents_are_those_of_the_singular_values(key):
    inner = cases.block_of(6, "tanh", w_variance=2.0)
    depth = 200
    network = layers.repeat(layers.residual(inner, 0.3), depth)
    params = cases.draw(network, key, (6,))
    x = jax.random.normal(key, (2, 6))
    few = propagation.lyapunov(network, params, x, key=key, count=3)
    assert few.log_growth.shape == (depth, 2, 3)
    assert few.exponents.dtype == np.float64
    values = propagation.singular_values(network, params, x)[:, :3]
    # They differ by the angle of the first directions, which depth divides.
    np.testing.assert_allclose(few.exponents, values / depth, atol=5 / depth)
    volumes = np.cumsum(few.exponents, axis=1) - np.cumsum(values / depth, axis=1)
    assert np.all(volumes < 1e-4)


@pytest.mark.slow
def test_volumes_of_a_network_of_several_widths(key):
    """The growth of all directions together is the volume that the Jacobian makes of a cube."""
    network = layers.sequential(
        layers.dense(7),
        layers.repeat(cases.block_of(7, "tanh", w_variance=1.5), 3),
        layers.mlp(5, 2),
    )
    params = cases.draw(network, key, (5,))
    x = jax.random.normal(key, (2, 5))
    every = propagation.lyapunov(network, params, x, key=key)
    assert every.log_growth.shape == (6, 2, 5)
    values = propagation.singular_values(network, params, x)
    np.testing.assert_allclose(every.log_growth.sum(axis=(0, 2)), values.sum(axis=1), rtol=1e-10)


def test_saturated_units_lose_no_direction(key):
    """Slopes of e^-1000 do not underflow."""
    network = layers.repeat(cases.block_of(4, "tanh", w_variance=1e6), 3)
    params = cases.draw(network, key, (4,))
    result = propagation.lyapunov(network, params, jax.random.normal(key, (2, 4)), key=key, count=1)
    assert np.all(np.isfinite(result.exponents))
    assert np.all(result.exponents < -100)


@pytest.mark.slow
def test_traced_arguments_stay_in_their_precision(key):
    network = layers.repeat(layers.dense(4), 5)
    params = cases.draw(network, key, (4,))
    x = jnp.ones((1, 4))
    traced = jax.jit(lambda x: propagation.lyapunov(network, params, x, key=key).exponents)(x)
    assert traced.dtype == jnp.float32
    known = propagation.lyapunov(network, params, x, key=key).exponents
    np.testing.assert_allclose(traced, known, rtol=1e-4, atol=1e-4)


def test_bad_arguments(key):
    network = layers.repeat(layers.dense(8), 2)
    params = cases.draw(network, key, (8,))
    x = jnp.ones((1, 8))
    with pytest.raises(ValueError, match="count must be at most 8"):
        propagation.lyapunov(network, params, x, key=key, count=9)
    with pytest.raises(ValueError, match="count must be at least 1"):
        propagation.lyapunov(network, params, x, key=key, count=0)
    with pytest.raises(TypeError, match="layer must be a Layer"):
        propagation.lyapunov(None, params, x, key=key)
    narrow = layers.sequential(network, layers.dense(3))
    with pytest.raises(ValueError, match="count must be at most 3"):
        propagation.lyapunov(narrow, cases.draw(narrow, key, (8,)), x, key=key, count=4)
