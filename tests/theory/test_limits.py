"""Limits of the length and of the correlation."""

import numpy as np
import pytest

from jaxgrad import theory


@pytest.mark.slow
def test_limits_are_where_iteration_ends():
    for name, w, b, start in (
        ("tanh", 2.5, 0.3, 7.0),
        ("gelu", 1.9, 0.2, 0.01),
        ("selu", 1.0, 0.0, 5.0),
        ("sigmoid", 4.0, 0.1, 1.0),
    ):
        q = start
        for _ in range(3000):
            q, before = float(theory.q_map(name, q, w, b)), q
            if abs(q - before) < 1e-14 * q:
                break
        np.testing.assert_allclose(theory.limit(name, w, b, start).q, q, rtol=1e-10)
    assert theory.limit("relu", 3.0).q == np.inf
    assert theory.limit("relu", 1.0).q == 0
    assert theory.limit("relu", 2.0, 0.0, 3.0).q == 3.0


@pytest.mark.slow
def test_correlations_of_arrays_are_those_of_their_elements():
    w, b = np.array([0.8, 1.3, 2.5]), np.array([[0.05], [0.3]])
    together = theory.correlation("tanh", w, b)
    for i, j in np.ndindex(2, 3):
        alone = theory.correlation("tanh", w[j], b[i, 0])
        np.testing.assert_allclose(together.gap[i, j], alone.gap, rtol=1e-10)
        np.testing.assert_allclose(together.chi[i, j], alone.chi, rtol=1e-10)


@pytest.mark.slow
def test_the_chaotic_angle_is_a_fixed_point_of_the_correlation_map():
    w, b = 2.5, 0.05
    where, angle = theory.limit("tanh", w, b), theory.correlation("tanh", w, b)
    assert where.chi_perp > 1
    np.testing.assert_allclose(
        theory.c_map("tanh", angle.gap, where.q, w, b), angle.gap, rtol=1e-10
    )
    h = 1e-5
    above, below = (theory.c_map("tanh", angle.gap + s * h, where.q, w, b) for s in (1, -1))
    np.testing.assert_allclose(angle.chi, (above - below) / (2 * h), rtol=1e-7)
    assert theory.correlation("tanh", 1.3, 0.05).gap == 0


@pytest.mark.slow
def test_a_phase_diagram_has_no_nan():
    w, b = np.meshgrid(np.linspace(0.01, 4.0, 60), np.linspace(0.0, 1.0, 50))
    found = theory.limit("tanh", w, b)
    assert found.q.shape == w.shape
    for field in found:
        assert not np.isnan(field).any()
    ordered = found.chi_perp < 1
    line = np.array([theory.critical("tanh", value).w_variance for value in b[::10, 0]])
    np.testing.assert_array_equal(ordered[::10], w[::10] < line[:, None])


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="b_variance .* got -0.1"):
        theory.limit("tanh", 1.0, -0.1)
