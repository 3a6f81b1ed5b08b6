import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.special import digamma

from jaxgrad import initializers, jacobians, layers, networks
from tests.tolerances import within_errors

ORTHOGONAL = layers.dense(8, 1.0, kernel_init=initializers.orthogonal())


def jacobian(params, block, x):
    """`[batch, out, in]` in float64, of examples one by one."""
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))

        def output(x):
            return networks.apply_blocks(params, x[None], block).ravel()

        found = jax.jit(jax.vmap(jax.jacfwd(output)))(x)
        return np.asarray(found).reshape(len(x), found.shape[1], -1)


def logs_of(matrices):
    with np.errstate(divide="ignore"):
        return np.log(np.linalg.svd(matrices, compute_uv=False))


# All singular values


@pytest.mark.parametrize("size", [6, 7])
def test_equal_those_of_numpy(key, size):
    inner = layers.sequential(layers.dense(size, 1.5, 0.3), layers.activation("tanh"))
    block = layers.residual(inner, 0.7)
    params = networks.init_blocks(key, block, (size,), 5)
    x = jax.random.normal(key, (3, size))
    found = jacobians.singular_values(params, x, block)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, logs_of(jacobian(params, block, x)), atol=1e-11)


def test_equal_those_of_numpy_for_images(key):
    block = layers.sequential(
        layers.convolution(3, (3,), "zero"), layers.layer_norm(0.1), layers.activation("gelu")
    )
    params = networks.init_blocks(key, block, (4, 3), 2)
    x = jax.random.normal(key, (2, 4, 3))
    found = jacobians.singular_values(params, x, block)
    expected = np.exp(logs_of(jacobian(params, block, x)))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-13)
    # Each position loses its mean and its length.
    assert np.sum(np.isfinite(found)) == 2 * 8


def test_keep_their_digits_over_hundreds_of_powers_of_ten(key):
    size, depth = 4, 300
    block = layers.dense(size)
    params = networks.init_blocks(key, block, (size,), depth)
    with mpmath.workdps(500):
        product = mpmath.eye(size)
        for kernel in np.asarray(params["kernel"], np.float64):
            product = mpmath.matrix(kernel.T.tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        expected = np.asarray([float(mpmath.log(value)) for value in values])
    assert expected[0] - expected[-1] > 250
    found = jacobians.singular_values(params, jnp.ones((1, size)), block)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


def test_directions_that_a_network_drops_are_zero(key):
    block = layers.sequential(layers.dense(16), layers.activation("relu"))
    params = networks.init_blocks(key, block, (16,), 3)
    x = jax.random.normal(key, (4, 16))
    found = jacobians.singular_values(params, x, block)
    expected = np.exp(logs_of(jacobian(params, block, x)))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-12)
    rank = np.sum(expected > 1e-12, axis=1)
    np.testing.assert_array_equal(np.sum(np.isfinite(found), axis=1), rank)
    # As many directions are lost in one pass.
    exponents = jacobians.lyapunov(params, x, key, block).exponents
    np.testing.assert_array_equal(np.sum(np.isfinite(exponents), axis=1), rank)
    assert rank.max() < 10


def test_batch_norm_has_one_jacobian_for_the_batch(key):
    block = layers.sequential(layers.dense(3), layers.batch_norm(0.1))
    params = networks.init_blocks(key, block, (3,), 2)
    x = jax.random.normal(key, (4, 3))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
        whole = jax.jacfwd(lambda x: networks.apply_blocks(wide, x, block))(
            jnp.asarray(x, jnp.float64)
        )
    found = jacobians.singular_values(params, x, block)
    assert found.shape == (1, 12)
    expected = np.linalg.svd(np.asarray(whole).reshape(12, 12), compute_uv=False)
    np.testing.assert_allclose(np.exp(found[0]), expected, atol=1e-12)
    # The batch's mean goes at each block.
    assert np.sum(np.isfinite(found)) == 9
    assert jacobians.lyapunov(params, x, key, block, count=2).exponents.shape == (1, 2)


def test_mean_squares_of_gaussian_products():
    size, depth, block = 16, 4, layers.dense(16)

    def run(key):
        params = networks.init_blocks(key, block, (size,), depth)
        return jacobians.singular_values(params, jnp.ones((1, size)), block)[0]

    keys = jax.random.split(jax.random.key(5), 400)
    square = np.exp(2 * np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), np.float64))
    # A Gaussian matrix of variance 1 / n makes of E tr A^2 / n and E (tr A)^2 / n^2 these.
    second = trace = 1.0
    for _ in range(depth):
        second, trace = second * (1 + 1 / size) + trace, trace + 2 * second / size**2
    within_errors(square.mean(axis=1), 1.0)
    within_errors((square**2).mean(axis=1), second)
    within_errors(square.mean(axis=1) ** 2, trace)


def test_spectrum_of_wide_gaussian_products(key):
    size, depth = 128, 4
    block = layers.dense(size)
    params = networks.init_blocks(key, block, (size,), depth)
    found = jacobians.singular_values(params, jnp.ones((1, size)), block)[0]
    edge = (depth + 1) ** (depth + 1) / depth**depth
    # A finite matrix blurs the edge by its size to the power -2/3.
    assert abs(np.exp(2 * found[0]) / edge - 1) < 3 * size ** (-2 / 3)
    assert abs(jacobians.isometry(found).variance / depth - 1) < 3 * depth / size**0.5


# Exponents


def test_exponents_of_gaussian_products(key):
    size, depth = 8, 2000
    block = layers.dense(size)
    params = networks.init_blocks(key, block, (size,), depth)
    found = jacobians.lyapunov(params, jnp.ones((2, size)), key, block)
    k = np.arange(1, size + 1)
    expected = (np.log(2 / size) + digamma((size - k + 1) / 2)) / 2
    np.testing.assert_allclose(expected[[0, -1]], [-0.0651, -1.6749], atol=5e-5)
    within_errors(found.log_growth[:, 0], expected)
    np.testing.assert_allclose(found.exponents, found.log_growth.mean(axis=0), rtol=1e-5)


def test_exponents_are_those_of_the_singular_values(key):
    inner = layers.sequential(layers.dense(6, 2.0), layers.activation("tanh"))
    block = layers.residual(inner, 0.3)
    depth = 200
    params = networks.init_blocks(key, block, (6,), depth)
    x = jax.random.normal(key, (2, 6))
    few = jacobians.lyapunov(params, x, key, block, count=3)
    assert few.log_growth.shape == (depth, 2, 3)
    values = jacobians.singular_values(params, x, block)[:, :3]
    # They differ by how the start lies to the directions, which depth divides.
    np.testing.assert_allclose(few.exponents, values / depth, atol=5 / depth)
    volumes = np.cumsum(few.exponents, axis=1) - np.cumsum(values / depth, axis=1)
    assert np.all(volumes < 1e-4)


# Isometry


def test_orthogonal_weights_are_an_isometry(key):
    params = networks.init_blocks(key, ORTHOGONAL, (8,), 50)
    values = jacobians.singular_values(params, jnp.ones((1, 8)), ORTHOGONAL)
    # The kernels themselves are rounded to float32.
    np.testing.assert_allclose(values, 0.0, atol=1e-5)
    found = jacobians.isometry(values)
    for part in found:
        np.testing.assert_allclose(part, 0.0, atol=1e-5)


def test_isometry_of_known_values():
    squares = np.asarray([[4.0, 1.0, 1.0], [1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])
    with np.errstate(divide="ignore"):
        found = jacobians.isometry(np.log(squares) / 2)
    np.testing.assert_allclose(np.exp(found.log_mean), [2.0, 2 / 3, 2.0], rtol=1e-12)
    np.testing.assert_allclose(found.variance, [0.5, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.log_condition, [np.log(2), np.inf, 0.0], atol=1e-12)
    expected = [np.log(2) / np.sqrt(3), np.inf, np.log(2) / 2]
    np.testing.assert_allclose(found.distance, expected, rtol=1e-12)
    # Next to an isometry nothing cancels, and far from one nothing overflows.
    near = jacobians.isometry(np.asarray([1e-9, -1e-9]))
    np.testing.assert_allclose(near.variance, 4e-18, rtol=1e-6)
    far = jacobians.isometry(np.asarray([3000.0, -3000.0]))
    np.testing.assert_allclose(far.log_mean, 6000 - np.log(2))
    np.testing.assert_allclose(far.variance, 1.0)


# What is wrong is said


def test_bad_arguments(key):
    params = networks.init_blocks(key, ORTHOGONAL, (8,), 2)
    x = jnp.ones((1, 8))
    with pytest.raises(ValueError, match="count must be at most 8"):
        jacobians.lyapunov(params, x, key, ORTHOGONAL, count=9)
    with pytest.raises(ValueError, match="count must be at least 1"):
        jacobians.lyapunov(params, x, key, ORTHOGONAL, count=0)
    with pytest.raises(ValueError, match="x must be finite"):
        jacobians.singular_values(params, x * jnp.nan, ORTHOGONAL)
    with pytest.raises(TypeError, match="block must be a jaxgrad.layers.Layer"):
        jacobians.singular_values(params, x, None)
    with pytest.raises(TypeError, match="block must be a jaxgrad.layers.Layer"):
        jacobians.lyapunov(params, x, key, None)
    with pytest.raises(ValueError, match="log_singular_values must be floating-point"):
        jacobians.isometry(1.0)
