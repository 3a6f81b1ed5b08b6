import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers
from jaxgrad.theory import slope_moment
from jaxgrad.theory.spectra import (
    largest_eigenvalue,
    lyapunov_exponents,
    singular_value_spectrum,
    spectrum_variance,
)
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


@pytest.mark.slow
def test_largest_eigenvalue(key):
    product = jnp.eye(300)
    for layer in range(3):
        kernel = initializers.lecun()(jax.random.fold_in(key, layer), product.shape)
        product = kernel @ product
    assert float(jnp.linalg.norm(product, 2) ** 2) == pytest.approx(4**4 / 3**3, rel=0.1)
    np.testing.assert_allclose(largest_eigenvalue([1, 4]), [4, 5**5 / 4**4], rtol=1e-14)
    np.testing.assert_allclose(largest_eigenvalue(1e6) / 1e6, np.e, rtol=1e-5)


def test_largest_eigenvalue_of_relu_in_closed_form():
    depth = np.array([2.0, 3.0, 10.0, 1000.0])
    # Stationary points of log((1 + m) / m) + L log(1 + 2 m), Gaussian, and with 1 + 2 m divided by
    # 1 + m, orthogonal.
    m = (np.sqrt(depth**2 + 1) - (depth - 1)) / (2 * depth)
    gaussian = np.exp(np.log1p(1 / m) + depth * np.log1p(2 * m))
    np.testing.assert_allclose(largest_eigenvalue(depth, "relu", 3.0), gaussian, rtol=1e-11)
    orthogonal = np.exp(depth * np.log(depth) - (depth - 1) * np.log(depth - 1))
    values = largest_eigenvalue(depth, "relu", 3.0, "orthogonal")
    np.testing.assert_allclose(values, orthogonal, rtol=1e-11)
    # Of one layer, the values are those of its slopes.
    assert float(largest_eigenvalue(1, "relu", 3.0, "orthogonal")) == pytest.approx(2, rel=1e-12)


def average(spectrum, function):
    atoms = np.sum(spectrum.atom_share * function(np.exp(2 * spectrum.atom)))
    return atoms + np.sum(spectrum.share * function(np.exp(2 * spectrum.log_singular_value)))


CASES = [
    *((name, 1, "gaussian") for name in ("linear", "relu", "leaky_relu")),
    *(
        (name, 30, weights)
        for name in ("relu", "hard_tanh")
        for weights in ("gaussian", "orthogonal")
    ),
    ("linear", 1000, "gaussian"),
    ("relu", 1000, "orthogonal"),
    ("hard_tanh", 2, "orthogonal"),
    ("leaky_relu", 2, "orthogonal"),
    ("leaky_relu", 1000, "orthogonal"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("gelu", 3, "gaussian"),
            ("tanh", 1000, "orthogonal"),
            ("selu", 50, "orthogonal"),
            ("tanh", 2, "orthogonal"),
            ("softplus", 100, "gaussian"),
        ]
    ),
]


@pytest.mark.parametrize(("name", "depth", "weights"), CASES)
def test_moments_of_the_density(name, depth, weights):
    q = 0.57
    spectrum = singular_value_spectrum(name, q, depth, weights)
    # Of selu, whose slope has no smallest value, a share of 5e-9 is of values too small to count.
    assert average(spectrum, np.ones_like) == pytest.approx(1, abs=1e-8 if name == "selu" else 2e-9)
    assert average(spectrum, lambda x: x) == pytest.approx(1, abs=1e-8)
    second = 1 + float(spectrum_variance(name, q, depth, weights))
    assert average(spectrum, lambda x: x**2) == pytest.approx(second, rel=1e-8)
    largest = float(largest_eigenvalue(depth, name, q, weights))
    ends = [*np.exp(2 * spectrum.log_singular_value[-1:]), *np.exp(2 * spectrum.atom)]
    assert largest * 0.999 < max(ends) < largest * (1 + 1e-12)
    assert np.all(np.diff(spectrum.cumulative) > -1e-9)
    assert np.all(spectrum.density >= 0)


def test_density_of_one_linear_layer_is_the_quarter_circle():
    spectrum = singular_value_spectrum("linear", 1.0, 1)
    # The singular values of a square Gaussian matrix have the density sqrt(4 - x^2) / pi.
    x = np.exp(spectrum.log_singular_value)
    np.testing.assert_allclose(spectrum.density, x * np.sqrt(4 - x**2) / np.pi, atol=1e-10)
    cumulative = (x * np.sqrt(4 - x**2) / 2 + 2 * np.arcsin(x / 2)) / np.pi
    np.testing.assert_allclose(spectrum.cumulative, cumulative, atol=2e-10)


def test_density_of_two_orthogonal_layers_of_relu_is_an_arcsine():
    spectrum = singular_value_spectrum("relu", 1.0, 2, "orthogonal")
    # Of two free projections of half the rank: x = 4 cos^2 of an angle, uniform, for half of them.
    angle = np.arccos(np.exp(spectrum.log_singular_value) / 2)
    np.testing.assert_allclose(spectrum.cumulative, 1 - angle / np.pi, atol=2e-9)


def test_atoms():
    spectrum = singular_value_spectrum("hard_tanh", 0.25, 3, "orthogonal")
    # With probability p the slope is 1; p = erf(1 / sqrt(2 q)).
    p = float(slope_moment("hard_tanh", 0.25))
    np.testing.assert_allclose(spectrum.atom_share, [1 - p, 3 * p - 2], rtol=1e-9)
    np.testing.assert_allclose(spectrum.atom[1], -1.5 * np.log(p), rtol=1e-9)
    spectrum = singular_value_spectrum("linear", 1.0, 5, "orthogonal")
    assert (spectrum.atom.tolist(), spectrum.atom_share.tolist()) == ([0.0], [1.0])
    assert spectrum.density.size == 0


def measured_logs(name, w_variance, b_variance, q, weights, depth, width, seed):
    """Sorted logs of the singular values of a drawn network, relative to infinite width."""
    rng = np.random.default_rng(seed)
    phi = {
        "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
        "relu": (lambda z: z * (z > 0), lambda z: z > 0),
    }
    value, slope = phi[name]
    # The first pre-activations have the variance of the fixed point, as all others.
    h, jacobian = rng.standard_normal(width), np.eye(width)
    h *= np.sqrt(width / np.sum(h**2) * (q - b_variance) / w_variance)
    for _ in range(depth):
        kernel = rng.standard_normal((width, width)) / np.sqrt(width)
        if weights == "orthogonal":
            kernel, upper = np.linalg.qr(kernel)
            kernel *= np.sign(np.diag(upper))
        kernel *= np.sqrt(w_variance)
        z = kernel @ h + np.sqrt(b_variance) * rng.standard_normal(width)
        h, jacobian = value(z), slope(z)[:, None] * (kernel @ jacobian)
    return np.log(np.sort(np.linalg.svd(jacobian, compute_uv=False)) + 1e-12)


@pytest.mark.parametrize(
    ("name", "w_variance", "b_variance", "q", "weights"),
    [
        ("relu", 2.0, 0.0, 1.0, "gaussian"),
        ("relu", 2.0, 0.0, 1.0, "orthogonal"),
        ("tanh", 1.760955, 0.05, 0.570048, "gaussian"),
        pytest.param(*("tanh", 1.760955, 0.05, 0.570048, "orthogonal"), marks=pytest.mark.slow),
    ],
)
def test_density_of_drawn_networks(name, w_variance, b_variance, q, weights):
    depth, width, seeds = 6, 200, 5
    args = (name, w_variance, b_variance, q, weights, depth, width)
    logs = np.stack([measured_logs(*args, seed) for seed in range(seeds)])

    def distance(depth):
        """Largest difference of the cumulative shares, without the lowest values."""
        predicted = singular_value_spectrum(name, q, depth, weights)
        points = predicted.log_singular_value[predicted.cumulative > 0.55]
        expected = np.interp(points, predicted.log_singular_value, predicted.cumulative)
        shares = np.mean(logs[:, None] <= points[:, None], axis=2)
        error = shares.std(axis=0, ddof=1) / np.sqrt(seeds)
        return np.abs(shares.mean(axis=0) - expected).max(), error.max()

    difference, error = distance(depth)
    assert error < 0.01
    # Fluctuations of a spectrum are of the order of one value of `width`.
    assert difference < 3 * error + 2 / width
    assert distance(depth + 2)[0] > 2 * difference + 0.02


def test_spectrum_variance_of_targets():
    q = 0.570048  # critical with biases of variance 0.05
    assert float(spectrum_variance("tanh", q, 20, "orthogonal")) == pytest.approx(6.845, abs=1e-3)
    assert float(spectrum_variance("tanh", q, 20)) == pytest.approx(26.845, abs=1e-3)
    assert float(spectrum_variance("linear", 1.0, 7, "orthogonal")) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "init"),
    [
        ("gaussian", initializers.lecun()),
        pytest.param("orthogonal", initializers.orthogonal(), marks=pytest.mark.slow),
    ],
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
        (lambda: largest_eigenvalue(3, "relu", 0.0), "q must be finite and greater than 0"),
        (lambda: singular_value_spectrum("relu", 0.0, 3), "q must be greater than 0, got 0"),
        (lambda: singular_value_spectrum("relu", 1.0, 1, "orthogonal"), "depth must be at least 2"),
        (lambda: singular_value_spectrum("relu", 1.0, 1, "sparse"), "weights must be one of"),
        (
            lambda: singular_value_spectrum("randomized_leaky_relu", 1.0, 3),
            "activation must not be randomized",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
