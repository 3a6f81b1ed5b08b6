"""Moments of activations against closed forms and mpmath, and activations without moments."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import activations, theory
from jaxgrad.theory import _moments, _quadrature

SCALES = (1e-8, 1e-3, 0.3, 1.0, 30.0, 1e4)
PI = np.pi
SELU, ALPHA = activations.SELU_SCALE, activations.SELU_ALPHA


def _half_normal_exp(q, a):
    """E exp(a x) for x < 0, x ~ N(0, q), in 40 digits."""
    s = mpmath.sqrt(q)
    return mpmath.exp(a * a * q / 2) * mpmath.erfc(a * s / mpmath.sqrt(2)) / 2


def _selu_square(q):
    q = mpmath.mpf(q)
    negative = _half_normal_exp(q, 2) - 2 * _half_normal_exp(q, 1) + mpmath.mpf(1) / 2
    return SELU**2 * (q / 2 + ALPHA**2 * negative)


def _selu_slope(q):
    q = mpmath.mpf(q)
    return SELU**2 * (mpmath.mpf(1) / 2 + ALPHA**2 * _half_normal_exp(q, 2))


CLOSED = {
    "linear": (lambda q: q, lambda q: 1),
    "relu": (lambda q: q / 2, lambda q: 0.5),
    "leaky_relu": (lambda q: q * (1 + 1e-4) / 2, lambda q: (1 + 1e-4) / 2),
    # The mean square of a slope that is uniform between 1/8 and 1/3.
    "randomized_leaky_relu": (lambda q: q * (1 + 97 / 1728) / 2, lambda q: (1 + 97 / 1728) / 2),
    "erf": (
        lambda q: 2 / PI * mpmath.asin(2 * q / (1 + 2 * q)),
        lambda q: 4 / PI / mpmath.sqrt(1 + 4 * q),
    ),
    "sin": (lambda q: -mpmath.expm1(-2 * q) / 2, lambda q: (1 + mpmath.exp(-2 * q)) / 2),
    "hard_tanh": (
        lambda q: (
            q * mpmath.erf(1 / mpmath.sqrt(2 * q))
            - mpmath.sqrt(2 * q / mpmath.pi) * mpmath.exp(-1 / (2 * mpmath.mpf(q)))
            + mpmath.erfc(1 / mpmath.sqrt(2 * q))
        ),
        lambda q: mpmath.erf(1 / mpmath.sqrt(2 * mpmath.mpf(q))),
    ),
    "selu": (_selu_square, _selu_slope),
}


@pytest.mark.parametrize("q", SCALES)
@pytest.mark.parametrize("name", CLOSED)
def test_moments_equal_closed_forms(name, q):
    with mpmath.workdps(40):
        square, slope = (float(f(mpmath.mpf(q))) for f in CLOSED[name])
    np.testing.assert_allclose(theory.second_moment(name, q), square, rtol=1e-12)
    np.testing.assert_allclose(theory.slope_moment(name, q), slope, rtol=1e-12)


@pytest.mark.parametrize("q", [1e-8, 0.7, 1e4])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu", "gelu", "elu"])
def test_moments_equal_those_of_mpmath(name, q):
    functions = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log1p(mpmath.exp(-abs(x))) + max(x, 0),
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "gelu": lambda x: x * mpmath.ncdf(x),
        "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    }
    with mpmath.workdps(20):
        s = mpmath.sqrt(q)

        def density(z):
            return functions[name](s * z) ** 2 * mpmath.npdf(z)

        # Panels that double away from zero, where the function turns.
        ends = [
            mpmath.mpf(2) ** k / max(s, 1) for k in range(-2, 5 + int(mpmath.log(max(s, 1), 2)))
        ]
        ends = [end for end in ends if end < 13] + [13]
        exact = mpmath.quad(density, [-e for e in reversed(ends)] + [0, *ends], maxdegree=5)
    np.testing.assert_allclose(theory.second_moment(name, q), float(exact), rtol=1e-12)


def test_kinks_that_are_not_declared_are_found():
    found = _quadrature.mesh(activations.get(lambda x: jnp.abs(x - 0.3) + (x > 1.7)))
    np.testing.assert_allclose(found.kinks, [0.3, 1.7], atol=1e-12)
    told = activations.Activation("told", lambda x: jnp.abs(x - 0.3), kinks=(0.3,))
    hidden = activations.get(lambda x: jnp.abs(x - 0.3))
    for q in SCALES:
        expected = theory.second_moment(told, q)
        np.testing.assert_allclose(theory.second_moment(hidden, q), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_activations_of_another_scale(scale):
    scaled = theory.second_moment(lambda x: jnp.tanh(scale * x), 0.5)
    np.testing.assert_allclose(scaled, theory.second_moment("tanh", 0.5 * scale**2), rtol=1e-11)


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "gelu", "selu", "relu"])
def test_derivatives_of_moments(name):
    with jax.enable_x64(True):
        for function in (theory.second_moment, theory.slope_moment):
            by_autodiff = jax.jit(jax.grad(lambda q, f=function: f(name, q)))(0.7)
            h = 1e-4
            steps = (function(name, 0.7 + h) - function(name, 0.7 - h)) / (2 * h)
            np.testing.assert_allclose(by_autodiff, steps, rtol=1e-6, atol=1e-9)
        slope = jax.grad(lambda q: theory.second_moment(name, q))(0.7)
        np.testing.assert_allclose(theory.chi_par(name, 0.7, 1.3), 1.3 * slope, rtol=1e-11)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x / jnp.linalg.norm(x), "element by element"),
        (lambda x: jax.nn.softmax(x), "element by element"),
        (lambda x: x - jnp.mean(x), "element by element"),
        (jnp.log, "NaN"),
        (jnp.sqrt, "NaN"),
        (lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)), "rough"),
        (lambda x: jnp.zeros_like(x), "second moment"),
    ],
    ids=["norm", "softmax", "mean", "log", "sqrt", "cusp", "zero"],
)
def test_wrong_activations_are_refused(function, match):
    with pytest.raises(ValueError, match=match):
        theory.fixed_points(function, 1.0, 0.1)


def test_moments_that_diverge_are_not_numbers():
    def steep(x):
        return jnp.exp(x * x / 8)

    np.testing.assert_allclose(theory.second_moment(steep, 0.5), (1 - 0.25) ** -0.5, rtol=1e-12)
    assert np.isnan(theory.second_moment(steep, np.array([2.0, 2.5, 8.0]))).all()
    assert np.isnan(theory.second_moment(jnp.exp, 100.0))
    np.testing.assert_allclose(theory.second_moment(jnp.exp, 1.0), np.exp(2.0), rtol=1e-12)


def test_moments_of_one_example_have_no_gap():
    with pytest.raises(ValueError, match="2 examples"):
        theory.moments_of(jnp.ones((1, 3)), gap=True)


@pytest.mark.slow
@pytest.mark.parametrize("gap", [1.0, 1e-3, 1e-12, 1e-22])
def test_gap_of_slopes_of_relu(gap):
    # E phi'(u) phi'(v) = (pi - arccos c) / (2 pi), and half of that angle is arcsin sqrt(gap / 2).
    with jax.enable_x64(True):
        pair = _moments.pair(activations.get("relu"), 0.3, gap)
    np.testing.assert_allclose(pair.slope_gap, 2 * np.arcsin(np.sqrt(gap / 2)) / np.pi, rtol=1e-7)


@pytest.mark.slow
def test_gap_of_slopes_of_a_smooth_activation():
    # To first order gap q E phi''^2 / E phi'^2; tanh'' = -2 tanh (1 - tanh^2).
    z, weights = np.polynomial.hermite_e.hermegauss(120)
    t = np.tanh(0.5 * z)
    square, slope = (np.sum(weights * a**2) for a in (2 * t * (1 - t * t), 1 - t * t))
    with jax.enable_x64(True):
        pair = _moments.pair(activations.get("tanh"), np.log(0.25), 1e-20)
    np.testing.assert_allclose(pair.slope_gap, 1e-20 * 0.25 * square / slope, rtol=1e-6)
