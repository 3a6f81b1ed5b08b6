"""All fixed points of the length with their stability."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import theory
from jaxgrad.theory import Stability


@pytest.mark.slow
def test_all_fixed_points_with_their_stability():
    def kinds(*args):
        found = theory.fixed_points(*args)
        there = found.stability != Stability.NONE
        return found.q[there], [Stability(s).name for s in found.stability[there]], found

    q, names, _ = kinds("tanh", 2.0, 0.0)
    np.testing.assert_allclose(q, [0.0, 0.617965], atol=1e-6)
    assert names == ["UNSTABLE", "STABLE"]
    assert kinds("tanh", 0.9, 0.0)[1] == kinds("tanh", 1.0, 0.0)[1] == ["STABLE"]
    assert kinds("relu", 2.0, 0.0)[1] == ["NEUTRAL"]
    np.testing.assert_allclose(kinds("relu", 1.5, 0.1)[0], [0.4], rtol=1e-12)
    assert len(kinds("relu", 2.5, 0.1)[0]) == 0
    # Near the point where both slopes are 1, GELU has three.
    q, names, found = kinds("gelu", 1.99, 0.16)
    assert names == ["STABLE", "UNSTABLE", "STABLE"]
    for value, slope in zip(q, found.chi_par, strict=False):
        np.testing.assert_allclose(theory.q_map("gelu", value, 1.99, 0.16), value, rtol=1e-12)
        np.testing.assert_allclose(theory.chi_par("gelu", value, 1.99), slope, rtol=1e-9)


def _step(x):
    return jnp.tanh(x / 4) ** 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phi", "w", "b"), [(_step, 60.0, 0.5), ("gelu", 1.985, 0.17)], ids=["step", "gelu"]
)
def test_several_fixed_points_are_those_of_a_fine_scan(phi, w, b):
    grid = np.geomspace(1e-4, 1e4, 20001)
    gain = theory.q_map(phi, grid, w, b) - grid
    crossings = np.sqrt(grid[1:] * grid[:-1])[gain[1:] * gain[:-1] < 0]
    found = theory.fixed_points(phi, w, b)
    there = found.stability >= 0
    assert len(crossings) == 3
    np.testing.assert_allclose(found.q[there], crossings, rtol=1e-3)
    down = np.sign(gain[:-1])[gain[1:] * gain[:-1] < 0] > 0
    expected = np.where(down, Stability.STABLE, Stability.UNSTABLE)
    np.testing.assert_array_equal(found.stability[there], expected)


@pytest.mark.slow
def test_a_touching_fixed_point_is_half_stable():
    # The second moment is convex and then concave, so that a line can touch it from below: the
    # length map has slope 1 at q and, with this bias, passes through it.
    q = 2.0
    w = 1 / theory.chi_par(_step, q, 1.0)
    b = q - w * theory.second_moment(_step, q)
    found = theory.fixed_points(_step, w, b)
    there = found.stability >= 0
    assert Stability.HALF_STABLE in found.stability[there]
    at = int(np.flatnonzero(found.stability == Stability.HALF_STABLE)[0])
    np.testing.assert_allclose(found.q[at], q, rtol=1e-4)


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="w_variance"):
        theory.fixed_points("tanh", np.nan)
