import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers
from jaxgrad.theory.spectra import largest_eigenvalue, lyapunov_exponents, spectrum_variance
from tests.tolerances import within_errors


def test_lyapunov_exponents_of_targets():
    found = lyapunov_exponents(8)
    np.testing.assert_allclose(found[[0, -1]], [-0.0651, -1.6749], atol=5e-5)
    # Each differs from the one two places on by 1 / (degrees of freedom).
    np.testing.assert_allclose(found[:-2] - found[2:], 1 / np.arange(6, 0, -1), rtol=1e-12)
    np.testing.assert_allclose(lyapunov_exponents(8, 2.5) - found, np.log(2.5) / 2, rtol=1e-12)


def test_lyapunov_exponents_of_a_product():
    rng = np.random.default_rng(0)
    basis, logs = np.eye(3), []
    for _ in range(20_000):
        basis, upper = np.linalg.qr(rng.standard_normal((3, 3)) / np.sqrt(3) @ basis)
        logs.append(np.log(np.abs(np.diag(upper))))
    within_errors(np.asarray(logs), lyapunov_exponents(3))


def test_largest_eigenvalue(key):
    product = jnp.eye(300)
    for layer in range(3):
        kernel = initializers.lecun()(jax.random.fold_in(key, layer), product.shape)
        product = kernel @ product
    assert float(jnp.linalg.norm(product, 2) ** 2) == pytest.approx(4**4 / 3**3, rel=0.1)
    np.testing.assert_allclose(largest_eigenvalue([1, 4]), [4, 5**5 / 4**4], rtol=1e-14)
    np.testing.assert_allclose(largest_eigenvalue(1e6) / 1e6, np.e, rtol=1e-5)


def test_spectrum_variance_of_targets():
    q = 0.570048  # critical with biases of variance 0.05
    assert float(spectrum_variance("tanh", q, 20, "orthogonal")) == pytest.approx(6.845, abs=1e-3)
    assert float(spectrum_variance("tanh", q, 20)) == pytest.approx(26.845, abs=1e-3)
    assert float(spectrum_variance("linear", 1.0, 7, "orthogonal")) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "init"),
    [("gaussian", initializers.lecun()), ("orthogonal", initializers.orthogonal())],
)
def test_spectrum_variance_of_drawn_networks(key, weights, init):
    width, depth = 120, 3

    def spectrum(key):
        jacobian, x = jnp.eye(width), jax.random.normal(key, (width,))
        for layer in range(depth):
            kernel = init(jax.random.fold_in(key, layer), (width, width)).T
            z = kernel @ x
            x = jax.nn.relu(z) * jnp.sqrt(2.0)
            jacobian = (z > 0)[:, None] * (kernel @ jacobian)
        gram = jacobian @ jacobian.T
        return jnp.mean(jnp.sum(gram**2, axis=1)) / jnp.mean(jnp.diagonal(gram)) ** 2 - 1

    found = np.asarray(jax.lax.map(spectrum, jax.random.split(key, 6)), np.float64)
    # Corrections of a finite width are of the order of depth / width.
    expected = float(spectrum_variance("relu", 1.0, depth, weights))
    assert found.mean() == pytest.approx(expected, rel=2 * depth / width + 0.02)


def test_transforms():
    found = jax.jit(lambda w: lyapunov_exponents(4, w))(2.0)
    np.testing.assert_allclose(found, lyapunov_exponents(4, 2.0), rtol=1e-6)
    slope = jax.grad(lambda q: spectrum_variance("tanh", q, 3.0))(0.6)
    difference = (
        spectrum_variance("tanh", 0.6 + 1e-5, 3) - spectrum_variance("tanh", 0.6 - 1e-5, 3)
    ) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)
    np.testing.assert_allclose(jax.vmap(largest_eigenvalue)(jnp.asarray([1.0])), [4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: lyapunov_exponents(0), "width must be at least 1, got 0"),
        (lambda: lyapunov_exponents(3, 0.0), "w_variance must be greater than 0, got 0"),
        (lambda: largest_eigenvalue(0), "depth must be finite and at least 1, got 0"),
        (lambda: spectrum_variance("relu", -1.0, 3), "q must be greater than 0, got -1"),
        (lambda: spectrum_variance("relu", 1.0, -3), "depth must be at least 0, got -3"),
        (lambda: spectrum_variance("relu", 1.0, 3, "sparse"), "weights must be one of gaussian"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
