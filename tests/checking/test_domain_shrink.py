"""Findings become simple, and the ends of ranges exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking._domain_shrink import boundary, complexity, range_text, simplify
from jaxgrad.checking._domain_values import (
    candidates,
    from_order,
    interval,
    next_number,
    space,
    to_order,
)

NUMBER = interval()


def number(x, dtype=np.float32):
    return np.array(x).astype(dtype)


@pytest.mark.parametrize(
    ("start", "fails", "simplest"),
    [
        (37.3219, lambda x: x > 5, 10.0),
        (-2.31e-27, lambda x: -1e-15 < x < 0, -1e-20),
        (3.14159, lambda x: 3.1 < x < 3.2, 3.14),
        (7.77, lambda x: True, 0.0),
        (-8.4, lambda x: abs(x) > 0.5, 1.0),
    ],
)
def test_numbers_become_simple(start, fails, simplest):
    (result,) = simplify([number(start)], [NUMBER], lambda point: fails(float(point[0])))
    assert result == np.float32(simplest)


def test_arrays_become_simple():
    leaf = interval(shape=(3,))
    start = number([1.234, 5.678, -9.1])
    (result,) = simplify([start], [leaf], lambda point: point[0][1] > 2)
    assert sorted(result.tolist())[:2] in ([0.0, 0.0], [10.0, 10.0])
    assert complexity([result]) < complexity([start])
    equal = number([0.37, 0.37, 2.5])
    (result,) = simplify([equal], [leaf], lambda point: point[0][0] == point[0][1] != 0)
    assert result.tolist() == [1.0, 1.0, 1.0]


def test_equal_arguments_stay_equal():
    start = [number(0.37), number(0.37)]
    result = simplify(start, [NUMBER] * 2, lambda point: point[0] == point[1] and point[0] > 0.2)
    assert [float(x) for x in result] == [1.0, 1.0]


def test_boundaries_are_bisected_in_the_order_of_numbers():
    end = boundary(1e30, 1.0, np.float32, lambda x: x > 88.7)
    assert 88.7 < end < 89
    assert range_text(end, float(jnp.finfo(jnp.float32).max), NUMBER) == "x >= 88.7"
    assert range_text(0.0, 0.0, NUMBER) == "x == 0"
    assert range_text(NUMBER.low, -2.5, NUMBER) == "x <= -2.5"
    assert range_text(NUMBER.low, NUMBER.high, NUMBER) == "everywhere"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, np.float32, np.float64])
def test_order_of_numbers(dtype):
    values = number([-3e4, -1.0, -6e-5, 0.0, 6e-5, 1.0, 3e4], dtype)
    ordered = to_order(values)
    assert np.all(np.diff(ordered) > 0)
    assert ordered[3] == 0
    assert np.array_equal(from_order(ordered, dtype), values)
    one = next_number(number([1.0], dtype), 1)[0]
    assert float(one) == 1 + float(jnp.finfo(dtype).eps)
    top = number([float(jnp.finfo(dtype).max)], dtype)
    assert next_number(top, 1)[0] == top[0]


def test_candidates_lie_in_their_domain_and_have_its_edges():
    domain = space((interval(0.25, 4.0), interval(-1.0, 0.0, shape=(2, 2))), None)
    points = candidates(domain, 400, np.random.default_rng(0))
    first, second = (np.stack(leaves) for leaves in zip(*points, strict=True))
    assert np.all((first >= 0.25) & (first <= 4.0))
    assert np.all((second >= -1.0) & (second <= 0.0))
    assert {0.25, 4.0, 1.0} <= set(first.tolist())
    assert np.any(np.all(second == 0, axis=(1, 2)))
    free = candidates(space((NUMBER,), None), 600, np.random.default_rng(0))
    sizes = np.log10(np.abs([float(x[0]) for x in free if x[0] != 0]))
    # As many numbers below one as above.
    assert -40 < np.percentile(sizes, 5) < -20
    assert 20 < np.percentile(sizes, 95) < 39
