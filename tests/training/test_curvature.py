"""The largest eigenvalue of a Hessian by Lanczos iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxgrad import layers
from jaxgrad.training import largest_curvature, largest_learning_rate


def quadratic(eigenvalues, key):
    size = len(eigenvalues)
    basis, _ = jnp.linalg.qr(jax.random.normal(key, (size, size)))
    matrix = basis @ jnp.diag(jnp.asarray(eigenvalues, basis.dtype)) @ basis.T
    return lambda x: 0.5 * x @ matrix @ x, basis


@pytest.mark.slow
def test_a_quadratic_loss(key):
    loss, basis = quadratic(np.geomspace(1e-4, 10.0, 60), key)
    result = largest_curvature(loss, jnp.ones(60), key=key)
    assert float(result.value) == pytest.approx(10, rel=1e-5)
    assert float(result.residual) < 1e-3
    assert abs(float(result.vector @ basis[:, -1])) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_few_steps_and_the_residual_bound_the_distance(key):
    loss, _ = quadratic(np.linspace(0.0, 1.0, 200), key)
    values = [largest_curvature(loss, jnp.ones(200), key=key, steps=steps) for steps in (2, 5, 40)]
    errors = [1 - float(result.value) for result in values]
    assert errors[0] > errors[1] > errors[2] > -1e-5
    assert errors[2] < 1e-3
    # An eigenvalue, all of which are multiples of 1 / 199, is as near as the residual.
    for result in values:
        nearest = np.abs(np.linspace(0, 1, 200) - float(result.value)).min()
        assert nearest < float(result.residual) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("eigenvalues", [[-3.0, -2.0, -1.0], [0.0, 0.0, 5.0], [-1e20, 0.0, 1e20]])
def test_few_parameters_and_negative_curvature(eigenvalues, key):
    loss, _ = quadratic(eigenvalues, key)
    value = float(largest_curvature(loss, jnp.ones(3), key=key).value)
    assert value == pytest.approx(eigenvalues[-1], rel=1e-5)


@pytest.mark.slow
def test_no_curvature(key):
    result = largest_curvature(lambda x: jnp.sum(x), jnp.ones(4), key=key)
    assert (float(result.value), float(result.residual)) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_network_agrees_with_its_whole_hessian(key):
    keys = jax.random.split(key, 3)
    network = layers.mlp(8, 3, "tanh", out_features=2, bias=True)
    params, _ = layers.init(network, (4,), key=keys[0], dtype=jnp.float64)
    x = jax.random.normal(keys[1], (10, 4), jnp.float64)

    def loss(params, x):
        return jnp.mean((layers.apply(network, params, None, x)[0] - 1) ** 2)

    flat, unravel = ravel_pytree(params)
    hessian = jax.hessian(lambda flat: loss(unravel(flat), x))(flat)
    expected, vectors = np.linalg.eigh(hessian)
    result = jax.jit(lambda p: largest_curvature(loss, p, x, key=keys[2], steps=60))(params)
    assert float(result.value) == pytest.approx(expected[-1], rel=1e-10)
    assert abs(ravel_pytree(result.vector)[0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-8)
    assert jax.tree.structure(result.vector) == jax.tree.structure(params)


@pytest.mark.slow
def test_it_can_be_mapped(key):
    def value(scale):
        return largest_curvature(lambda x: jnp.sum(scale * x**2), jnp.ones(5), key=key).value

    np.testing.assert_allclose(jax.vmap(value)(jnp.asarray([1.0, 3.0])), [2.0, 6.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"loss": lambda x: x}, "loss must return one floating-point number, got .3"),
        ({"loss": 3}, "loss must be a function"),
        ({"params": jnp.ones(3, int)}, "params must be a pytree of floating-point arrays"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"key": 0}, "key must be one PRNG key"),
    ],
)
def test_errors(change, match, key):
    arguments = {"loss": jnp.sum, "params": jnp.ones(3), "key": key} | change
    with pytest.raises((ValueError, TypeError), match=match):
        largest_curvature(**arguments)


def measured_rate(eigenvalues, start, steps):
    """The largest rate at which descent on a quadratic loss lowers it at each step."""

    def falls(rate):
        x = start * (1 - rate * eigenvalues) ** np.arange(steps + 1)[:, None]
        return np.all(np.diff(0.5 * x**2 @ eigenvalues) <= 0)

    low, high = 0.0, 1e3 / np.abs(eigenvalues).max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return low


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [1, 3, 30])
@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
def test_the_rate_of_a_quadratic_loss_is_that_of_descent(steps, share, key):
    """The gradient's share along the largest curvature sets how soon it raises the loss."""
    eigenvalues = np.array([0.1, 0.5, 1.0, 5.0])
    start = np.array([1.0, 1.0, 1.0, share])
    loss, basis = quadratic(eigenvalues, key)
    rate = largest_learning_rate(loss, basis @ start, descent_steps=steps)
    assert float(rate) == pytest.approx(measured_rate(eigenvalues, start, steps), rel=1e-4)
    assert float(rate) >= 2 / 5 * (1 - 1e-4)


@pytest.mark.slow
def test_the_rate_scales_with_the_loss_and_is_infinite_where_nothing_rises(key):
    loss, _ = quadratic(np.linspace(0.1, 3.0, 20), key)
    x = jax.random.normal(key, (20,))
    rates = [largest_learning_rate(lambda x, c=c: c * loss(x), x) for c in (1e-15, 1.0, 1e15)]
    np.testing.assert_allclose(np.array(rates) * [1e-15, 1.0, 1e15], rates[1], rtol=1e-3)
    assert largest_learning_rate(loss, jnp.zeros(20)) == np.inf
    assert largest_learning_rate(jnp.sum, x) == np.inf
    assert largest_learning_rate(lambda x: -loss(x), x) == np.inf


def test_the_rate_can_be_mapped_and_has_the_dtype_of_the_parameters(key):
    def rate(scale):
        return largest_learning_rate(lambda x: jnp.sum(scale * x**2), jnp.ones(5))

    rates = jax.jit(jax.vmap(rate))(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(rates, [2.0, 1.0], rtol=1e-3)
    assert rates.dtype == jnp.float32
