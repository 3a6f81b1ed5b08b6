import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import initializers, layers, propagation
from tests.propagation import cases
from tests.tolerances import within_errors


def jacobian(network, params, x):
    """`[batch, out, in]` in float64, of examples one by one."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))

        def output(x):
            return cases.apply(network, params, x[None]).ravel()

        result = jax.jit(jax.vmap(jax.jacfwd(output)))(x)
        return np.asarray(result).reshape(len(x), result.shape[1], -1)


def logs_of(matrices):
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.svd(matrices, compute_uv=False))


@pytest.mark.slow
@pytest.mark.parametrize("size", [6, 7])
def test_equal_those_of_numpy(key, size):
    inner = cases.block_of(size, "tanh", w_variance=1.5, b_variance=0.3, bias=True)
    network = layers.repeat(layers.residual(inner, 0.7), 5)
    params = cases.draw(network, key, (size,))
    x = jax.random.normal(key, (3, size))
    result = propagation.singular_values(network, params, x)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, logs_of(jacobian(network, params, x)), atol=1e-11)


@pytest.mark.slow
def test_equal_those_of_numpy_for_images(key):
    block = layers.sequential(
        layers.convolution(3, (3,), padding="SAME"),
        layers.layer_norm(0.1),
        layers.activation("gelu"),
    )
    network = layers.repeat(block, 2)
    params = cases.draw(network, key, (4, 3))
    x = jax.random.normal(key, (2, 4, 3))
    result = propagation.singular_values(network, params, x)
    expected = np.exp(logs_of(jacobian(network, params, x)))
    np.testing.assert_allclose(np.exp(result), expected, atol=1e-13)
    # Each position loses its mean and its length.
    assert np.sum(np.isfinite(result)) == 2 * 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        layers.mlp(6, 3, "tanh", w_variance=1.5, b_variance=0.2, bias=True, out_features=4),
        layers.sequential(layers.dense(7), layers.repeat(cases.block_of(7), 2), layers.dense(3)),
        layers.sequential(layers.dense(3), layers.dense(8)),
    ],
    ids=["mlp", "narrow end", "narrow middle"],
)
def test_equal_those_of_numpy_for_several_widths(key, network):
    params = cases.draw(network, key, (5,))
    x = jax.random.normal(key, (3, 5))
    result = propagation.singular_values(network, params, x)
    expected = logs_of(jacobian(network, params, x))[:, : result.shape[1]]
    np.testing.assert_allclose(result, expected, atol=1e-10)
    smallest = {"Mlp": 4, "Sequential": 3}[type(network).__name__]
    assert result.shape == (3, smallest)


def test_keep_their_digits_over_hundreds_of_powers_of_ten(key):
    size, depth = 4, 300
    network = layers.repeat(layers.dense(size), depth)
    params = cases.draw(network, key, (size,))
    with mpmath.workdps(500):
        product = mpmath.eye(size)
        for kernel in np.asarray(params["kernel"], np.float64):
            product = mpmath.matrix(kernel.T.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        expected = np.asarray([float(mpmath.log(value)) for value in values])
    assert expected[0] - expected[-1] > 250
    result = propagation.singular_values(network, params, jnp.ones((1, size)))[0]
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.slow
def test_directions_that_a_network_drops_are_zero(key):
    network = layers.repeat(cases.block_of(16, "relu"), 3)
    params = cases.draw(network, key, (16,))
    x = jax.random.normal(key, (4, 16))
    result = propagation.singular_values(network, params, x)
    expected = np.exp(logs_of(jacobian(network, params, x)))
    np.testing.assert_allclose(np.exp(result), expected, atol=1e-12)
    rank = np.sum(expected > 1e-12, axis=1)
    np.testing.assert_array_equal(np.sum(np.isfinite(result), axis=1), rank)
    # As many directions are lost in one pass.
    exponents = propagation.lyapunov(network, params, x, key=key).exponents
    np.testing.assert_array_equal(np.sum(np.isfinite(exponents), axis=1), rank)
    assert rank.max() < 10


@pytest.mark.slow
def test_batch_norm_has_one_jacobian_for_the_batch(key):
    network = layers.repeat(layers.sequential(layers.dense(3), layers.batch_norm(0.1)), 2)
    params = cases.draw(network, key, (3,))
    x = jax.random.normal(key, (4, 3))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        whole = jax.jacfwd(lambda x: cases.apply(network, wide, x))(jnp.asarray(x, jnp.float64))
    result = propagation.singular_values(network, params, x)
    assert result.shape == (1, 12)
    expected = np.linalg.svd(np.asarray(whole).reshape(12, 12), compute_uv=False)
    np.testing.assert_allclose(np.exp(result[0]), expected, atol=1e-12)
    # The batch's mean goes at each block.
    assert np.sum(np.isfinite(result)) == 9
    few = propagation.lyapunov(network, params, x, key=key, count=2)
    assert few.exponents.shape == (1, 2)


def test_mean_squares_of_gaussian_products():
    size, depth = 16, 4
    network = layers.repeat(layers.dense(size), depth)

    def run(key):
        params = cases.draw(network, key, (size,))
        return propagation.singular_values(network, params, jnp.ones((1, size)))[0]

    keys = jax.random.split(jax.random.key(5), 400)
    square = np.exp(2 * np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), np.float64))
    # A Gaussian matrix of variance 1 / n makes of E tr A^2 / n and E (tr A)^2 / n^2 these.
    second = trace = 1.0
    for _ in range(depth):
        second, trace = second * (1 + 1 / size) + trace, trace + 2 * second / size**2
    within_errors(square.mean(axis=1), 1.0)
    within_errors((square**2).mean(axis=1), second)
    within_errors(square.mean(axis=1) ** 2, trace)


@pytest.mark.slow
def test_spectrum_of_wide_gaussian_products(key):
    size, depth = 128, 4
    network = layers.repeat(layers.dense(size), depth)
    params = cases.draw(network, key, (size,))
    result = propagation.singular_values(network, params, jnp.ones((1, size)))[0]
    edge = (depth + 1) ** (depth + 1) / depth**depth
    # A finite matrix blurs the edge by its size to the power -2/3.
    assert abs(np.exp(2 * result[0]) / edge - 1) < 3 * size ** (-2 / 3)
    assert abs(propagation.isometry(result).variance / depth - 1) < 3 * depth / size**0.5


# Isometry


def test_orthogonal_weights_are_an_isometry(key):
    network = layers.repeat(layers.dense(8, kernel_init=initializers.orthogonal()), 50)
    params = cases.draw(network, key, (8,))
    values = propagation.singular_values(network, params, jnp.ones((1, 8)))
    # The kernels themselves are rounded to float32.
    np.testing.assert_allclose(values, 0.0, atol=1e-5)
    for field in propagation.isometry(values):
        np.testing.assert_allclose(field, 0.0, atol=1e-5)


def test_isometry_of_known_values():
    squares = np.asarray([[4.0, 1.0, 1.0], [1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])
    with np.errstate(divide="ignore"):
        result = propagation.isometry(np.log(squares) / 2)
    np.testing.assert_allclose(np.exp(result.log_mean), [2.0, 2 / 3, 2.0], rtol=1e-12)
    np.testing.assert_allclose(result.variance, [0.5, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(result.log_condition, [np.log(2), np.inf, 0.0], atol=1e-12)
    expected = [np.log(2) / np.sqrt(3), np.inf, np.log(2) / 2]
    np.testing.assert_allclose(result.distance, expected, rtol=1e-12)
    # Next to an isometry nothing cancels, and far from one nothing overflows.
    near = propagation.isometry(np.asarray([1e-9, -1e-9]))
    np.testing.assert_allclose(near.variance, 4e-18, rtol=1e-6)
    far = propagation.isometry(np.asarray([3000.0, -3000.0]))
    np.testing.assert_allclose(far.log_mean, 6000 - np.log(2))
    np.testing.assert_allclose(far.variance, 1.0)


def test_bad_arguments(key):
    network = layers.repeat(layers.dense(8), 2)
    params = cases.draw(network, key, (8,))
    with pytest.raises(ValueError, match="x must be finite"):
        propagation.singular_values(network, params, jnp.full((1, 8), jnp.nan))
    with pytest.raises(TypeError, match="layer must be a Layer"):
        propagation.singular_values(None, params, jnp.ones((1, 8)))
    with pytest.raises(ValueError, match="log_singular_values must be floating-point"):
        propagation.isometry(np.asarray(1.0))
