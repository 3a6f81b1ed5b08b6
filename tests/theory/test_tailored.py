"""The leaky ReLU that is tailored to a depth."""

import numpy as np
import pytest

from jaxgrad.activations import leaky_relu
from jaxgrad.theory import c_map, tailored_relu


@pytest.mark.parametrize(("depth", "target"), [(1, 0.3), (100, 0.99)])
def test_tailored_relu_meets_its_target(depth, target):
    phi = tailored_relu(depth, target)
    slope = dict(phi.constants)["slope"]
    assert 0 <= slope < 1
    assert phi == leaky_relu(slope)
    gap = 1.0
    for _ in range(depth):
        gap = c_map(phi, gap, 1.0, 2 / (1 + slope**2))
    assert float(gap) == pytest.approx(1 - target, rel=1e-9)


def test_tailored_relu_bends_less_in_deeper_networks():
    slopes = [dict(tailored_relu(depth).constants)["slope"] for depth in (20, 100, 1000)]
    assert 0 < slopes[0] < slopes[1] < slopes[2] < 1
    assert dict(tailored_relu(1, 1 / np.pi - 1e-12).constants)["slope"] < 1e-5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tailored_relu(0), "depth must be at least 1, got 0"),
        (lambda: tailored_relu(10, 1.0), "target must be less than 1, got 1"),
        (lambda: tailored_relu(10, 0.0), "target must be greater than 0, got 0"),
        (lambda: tailored_relu(2, 0.9), "depth 2 needs no tailoring, use 'relu'"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
