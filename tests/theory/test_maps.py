"""The maps of a layer against closed forms and sampled networks."""

import mpmath
import numpy as np
import pytest

from jaxgrad import theory


@pytest.mark.slow
def test_the_correlation_map_equals_closed_forms():
    gaps = [2.0, 1.3, 1.0, 0.1, 1e-3, 1e-6, 1e-9, 1e-12]
    with mpmath.workdps(40):

        def relu(gap):
            c = 1 - mpmath.mpf(gap)
            return 1 - (mpmath.sqrt(1 - c * c) + (mpmath.pi - mpmath.acos(c)) * c) / mpmath.pi

        def erf(gap, q=0.7):
            q, c = mpmath.mpf(q), 1 - mpmath.mpf(gap)
            top = mpmath.asin(2 * q / (1 + 2 * q))
            return (top - mpmath.asin(2 * q * c / (1 + 2 * q))) / top

        exact = {"relu": [float(relu(g)) for g in gaps], "erf": [float(erf(g)) for g in gaps]}
    for name, expected in exact.items():
        found = theory.c_map(name, np.array(gaps), 0.7, 2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-13)
    # Two examples with draws of their own come apart even if they are equal.
    apart = theory.c_map("randomized_leaky_relu", 1e-14, 1.0, 2.0)
    mean, square = 11 / 48, 97 / 1728
    np.testing.assert_allclose(apart, (square - mean**2) / (1 + square), rtol=1e-6)


@pytest.mark.slow
def test_the_correlation_map_with_biases_follows_sampled_networks(key):
    q, gap, w, b = 0.8, 0.3, 1.7, 0.1
    u = np.random.default_rng(0).standard_normal((2, 4_000_000)) * np.sqrt(q)
    v = (1 - gap) * u[0] + np.sqrt(1 - (1 - gap) ** 2) * u[1]
    product = np.tanh(u[0]) * np.tanh(v)
    error = product.std() / np.sqrt(product.size)
    after = float(theory.q_map("tanh", q, w, b))
    expected = ((1 - theory.c_map("tanh", gap, q, w, b)) * after - b) / w
    assert abs(product.mean() - expected) < 3 * error


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: theory.second_moment("tanh", -1.0), "q must be finite and greater than 0, got -1"),
        (lambda: theory.q_map("tanh", 1.0, -1.0), "w_variance .* got -1"),
        (lambda: theory.second_moment("tan", 1.0), "activation must be one of"),
    ],
)
def test_wrong_numbers_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
