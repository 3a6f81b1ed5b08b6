"""Mean-field theory: the numbers of 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, theory
from jaxgrad._numerics import in_float64
from jaxgrad.theory import Moments, finite_width, spectra
from tests.reference.record import difference, hold, recorded

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

Q = np.asarray([1e-4, 0.3, 1.0, 7.0, 100.0])
QUICK = ("linear", "tanh", "relu", "callable")
WEIGHTS = ("orthogonal", "gaussian")


def callable_activation(x):
    return x * x * x / (1 + x * x) + 0.2


def every(*, quick=QUICK):
    """All activations and one that is in no table; those that are not quick as slow tests."""
    names = [*activations.TABLE, "callable"]
    marks = {name: () if name in quick else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n]) for n in names])


def named(name):
    return callable_activation if name == "callable" else name


def compiled(function, *args, **options):
    """Results of one program, in which integrals that several of them need are computed once."""
    return in_float64(jax.jit(function, **options))(*args)


@every()
def test_maps(name):
    phi = named(name)

    def maps(q, gap, w, b):
        return {
            "second_moment": theory.second_moment(phi, q),
            "slope_moment": theory.slope_moment(phi, q),
            "q_map": theory.q_map(phi, q, w, b),
            "c_map": theory.c_map(phi, gap, 0.8, w, b),
            "chi_perp": theory.chi_perp(phi, q, w),
            "chi_par": theory.chi_par(phi, q, w),
        }

    hold(f"theory.maps.{name}", compiled(maps, Q, np.asarray([1e-6, 0.1, 1.0, 1.6]), 1.7, 0.2))


@every()
def test_fixed_points(name):
    phi, w = named(name), np.asarray([0.5, 1.3, 2.0, 4.0])
    variances = np.broadcast_arrays(w[:, None], np.asarray([[0.0, 0.05]]))
    limit = theory.limit(phi, *variances, q=0.7)
    out = {
        "fixed_points": {
            "biased": theory.fixed_points(phi, 1.3, 0.05),
            "unbiased": theory.fixed_points(phi, 2.0, 0.0),
        },
        "limit": limit,
    }
    hold(f"theory.fixed_points.{name}", out, left_out=("xi",))
    # A depth scale is 1 / log(chi), which rounding decides where chi is 1.
    old = recorded()[f"theory.fixed_points.{name}"]
    for scale in ("xi_q", "xi_gradient"):
        assert difference(1 / getattr(limit, scale), 1 / old[scale], log=True) <= 1


@every()
def test_correlation(name):
    correlation = theory.correlation(named(name), np.asarray([1.3, 2.5]), 0.05)
    hold(f"theory.correlation.{name}", {"correlation": correlation, "xi_c": correlation.xi_c})


@every()
def test_critical(name):
    phi = named(name)
    out = {
        "smallest": theory.critical(phi),
        "bias": theory.critical(phi, 0.05),
        "bias_large": theory.critical(phi, 0.5),
        "line": theory.critical_line(phi, Q),
    }
    hold(f"theory.critical.{name}", out)


@every()
def test_finite_width(name):
    phi = named(name)

    def laws(q, w, b, square):
        variances = [spectra.spectrum_variance(phi, q, 10, weights) for weights in WEIGHTS]
        return {
            "layer_law": finite_width.layer_law(phi, q, w, 32),
            "critical_w_variance": finite_width.critical_w_variance(phi, q, 32),
            "gradient_law": finite_width.gradient_law(
                phi, 5, w - 0.1, b, width=32, input_square=square
            ),
            "spectrum_variance": jnp.stack(variances),
        }

    hold(f"theory.finite_width.{name}", compiled(laws, 0.8, 1.7, 0.1, 0.9))


def test_alive_probability():
    width, depth = np.asarray([1, 3, 10, 50]), np.asarray([5, 10, 20, 50])
    hold("theory.finite_width.alive_probability", finite_width.alive_probability(width, depth))


def test_linear_spectra():
    out = {
        "lyapunov_exponents": spectra.lyapunov_exponents(8, 1.3),
        "largest_eigenvalue": spectra.largest_eigenvalue(np.asarray([1.0, 4.0, 100.0])),
    }
    hold("theory.spectra.linear", out)


def test_tailored_relu():
    points = ((10, 0.6), (20, 0.9), (100, 0.9), (1000, 0.99))
    slopes = {str(d): dict(theory.tailored_relu(d, t).constants)["slope"] for d, t in points}
    hold("theory.tailored_relu", slopes)


def fields(moments):
    return {name: getattr(moments, name) for name in ("log_q", "log_gradient", "mean", "gap")}


def test_moments_of():
    x = jax.random.normal(jax.random.key(1), (5, 4, 3)) + 0.2
    out = {
        "plain": fields(theory.moments_of(x)),
        "gap": fields(theory.moments_of(x, gap=True)),
        "flat": fields(theory.moments_of(x[:, 0], gap=True)),
    }
    hold("theory.moments_of", out)


def test_activate():
    log_q, gap = np.asarray([-2.0, 0.3, 3.0]), np.asarray([0.01, 0.5, 1.0])
    moments = Moments(log_q, 0.1, 0.2, gap, gaussian=True)
    moments = compiled(theory.activate, moments, activations.get("gelu"), static_argnums=1)
    kind = {"gaussian": moments.gaussian, "fresh": moments.fresh}
    hold("theory.activate", fields(moments) | kind)
