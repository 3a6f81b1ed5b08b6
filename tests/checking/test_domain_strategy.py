"""`testing.arguments`: property tests over a domain see its edges, and shrink to simple numbers."""

import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxgrad import testing
from jaxgrad.checking import interval

NUMBER = jax.ShapeDtypeStruct((), jnp.float32)
PAIR = jax.ShapeDtypeStruct((2,), jnp.float32)
FEW = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@jax.custom_jvp
def wrong_below(x):
    return jnp.sin(x)


wrong_below.defjvp(
    lambda xs, ts: (jnp.sin(xs[0]), jnp.where(xs[0] < -1e9, 2.0, jnp.cos(xs[0])) * ts[0])
)


def test_a_property_test_discovers_a_planted_wrong_region():
    gradient = jax.jit(jax.grad(wrong_below))
    seen = []

    @FEW
    @given(testing.arguments(NUMBER))
    def derivative_is_at_most_one(args):
        (x,) = args
        if abs(gradient(x)) > 1 + 1e-6:
            seen.append(float(x))
            raise AssertionError

    with pytest.raises(AssertionError):
        derivative_is_at_most_one()
    # The last one is the example that hypothesis shows.
    assert seen[-1] < -1e9
    assert len(f"{seen[-1]:g}") <= 8


def test_examples_shrink_to_simple_numbers():
    def minimal(*domains, where):
        strategy = testing.arguments(*domains)
        return hypothesis.find(strategy, where, settings=settings(FEW, max_examples=500))

    assert minimal(NUMBER, where=lambda args: True) == (0.0,)
    (large,) = minimal(NUMBER, where=lambda args: args[0] > 30)
    assert large in (31.0, 100.0)
    equal = minimal(NUMBER, NUMBER, where=lambda args: args[0] == args[1] != 0)
    assert equal == (1.0, 1.0)
    (pair,) = minimal(PAIR, where=lambda args: args[0][0] != args[0][1])
    assert sorted(pair.tolist()) in ([0.0, 1.0], [-1.0, 0.0])


@FEW
@given(
    testing.arguments({"a": interval(0.25, 4.0, shape=(3,)), "n": jnp.int32(3)}, interval(-1, 0))
)
def test_arguments_lie_in_their_domains(args):
    first, second = args
    assert first["a"].shape == (3,)
    assert first["a"].dtype == np.float32
    assert np.all((first["a"] >= 0.25) & (first["a"] <= 4.0))
    assert first["n"] == 3
    assert -1 <= second <= 0


def test_arguments_are_often_equal():
    equal = []

    @settings(FEW, max_examples=200)
    @given(testing.arguments(NUMBER, NUMBER))
    def collect(args):
        equal.append(bool(args[0] == args[1]))

    collect()
    assert np.mean(equal) > 0.6, np.mean(equal)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
def test_types(dtype):
    @FEW
    @given(testing.arguments(interval(-2.0, 50.0, dtype=dtype)))
    def numbers_have_the_type(args):
        assert args[0].dtype == dtype
        assert -2 <= args[0] <= 50

    numbers_have_the_type()


def test_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"jaxgrad\[test\]"):
        testing.arguments(NUMBER)
