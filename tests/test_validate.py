"""Checks of arguments: what passes, and what the message of each failure says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import _validate

ONES = np.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: _validate.key("key", 3), TypeError, "key must be one PRNG key, got 3; pass jax"),
        (lambda: _validate.key("key", jax.random.split(jax.random.key(0))), TypeError, "use jax.v"),
        (lambda: _validate.key("key", jnp.zeros((3, 2), jnp.uint32)), TypeError, "one PRNG key"),
        (lambda: _validate.integer("n", 2.0, 1), TypeError, "n must be a whole number, got 2.0"),
        (lambda: _validate.integer("n", True, 1), TypeError, "n must be a whole number, got True"),
        (lambda: _validate.integer("n", 0, 1), ValueError, "n must be at least 1, got 0; pass a l"),
        (
            lambda: _validate.scalar("s", ONES),
            ValueError,
            r"s must be one number, got shape \(2,\)",
        ),
        (
            lambda: _validate.scalar("s", "a"),
            TypeError,
            "s must be a number, got 'a'; pass a float",
        ),
        (lambda: _validate.scalar("s", np.nan), ValueError, "s must be finite, got nan"),
        (lambda: _validate.scalar("s", -np.inf), ValueError, "s must be finite, got -inf"),
        (lambda: _validate.scalar("s", -1, minimum=0), ValueError, "s must be at least 0, got -1"),
        (
            lambda: _validate.scalar("s", 0.0, minimum=0, above=True),
            ValueError,
            "s must be greater than 0, got 0",
        ),
        (
            lambda: _validate.scalar("s", 2, maximum=1),
            ValueError,
            "s must be at most 1, got 2; pas",
        ),
        (
            lambda: _validate.choice("c", "x", ("a", "b")),
            ValueError,
            "c must be one of a, b; got 'x",
        ),
        (
            lambda: _validate.shape("shape", 5, 1),
            TypeError,
            "shape must be a sequence of whole num",
        ),
        (
            lambda: _validate.shape("shape", (2.0,), 1),
            TypeError,
            "shape must be a sequence of whol",
        ),
        (
            lambda: _validate.shape("shape", (3,), 2),
            ValueError,
            r"at least 2 dimensions.*got \(3,\)",
        ),
        (lambda: _validate.shape("shape", (3, 0), 2), ValueError, "size 1 or more"),
        (
            lambda: _validate.floating("x", {}, 1, "[n]"),
            TypeError,
            "x must be an array of numbers",
        ),
        (
            lambda: _validate.floating("x", [1, 2], 1, "[n]"),
            TypeError,
            "x must be floating point, ",
        ),
        (lambda: _validate.floating("x", ONES, 2, "[n, m]"), ValueError, r"shape \[n, m\].*\(2,\)"),
        (lambda: _validate.floating("x", ONES[:0], 1, "[n]"), ValueError, "no empty dimension"),
        (
            lambda: _validate.floating("x", [1.0, np.nan, np.inf], 1, "[n]"),
            ValueError,
            "x must be finite, got 2 NaN or infinite of 3 values",
        ),
        (lambda: _validate.distinct("names", []), ValueError, "names must not be empty"),
        (lambda: _validate.distinct("names", [1, 1]), ValueError, r"repeat a value, got \[1, 1\]"),
        (lambda: _validate.numbers("q", "a"), TypeError, "q must be numbers, got 'a'; pass floats"),
        (lambda: _validate.numbers("q", [1, np.nan]), ValueError, "q must be finite .*, got nan"),
        (
            lambda: _validate.numbers("q", [1, -2], minimum=0),
            ValueError,
            "at least 0, got -2; pass",
        ),
        (
            lambda: _validate.numbers("q", [1, 0], minimum=0, above=True),
            ValueError,
            "q must be finite and greater than 0, got 0",
        ),
    ],
)
def test_failures_name_the_argument_and_the_value(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_values_that_pass():
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        _validate.key("key", key)
    assert _validate.integer("n", np.int64(3), 3) == 3
    _validate.scalar("s", 0.0, minimum=0.0)
    _validate.scalar("s", np.float32(1), maximum=1.0)
    _validate.choice("c", "a", ("a", "b"))
    assert _validate.shape("shape", [np.int32(2), 3], 2) == (2, 3)
    _validate.distinct("names", ["a", "b"])
    _validate.numbers("q", [[0.0, 1.0]], minimum=0.0)
    assert _validate.floating("x", np.ones((2, 3)), 2, "[n, m]").shape == (2, 3)


def test_traced_values_pass_but_not_traced_shapes():
    @jax.jit
    def values(x):
        _validate.scalar("s", x[0], minimum=5.0)
        _validate.numbers("q", x, minimum=5.0)
        return _validate.floating("x", x, 1, "[n]")

    values(jnp.ones(2))
    assert _validate.is_traced(1.0) is False

    @jax.jit
    def shapes(x):
        _validate.scalar("s", x)

    with pytest.raises(ValueError, match="s must be one number"):
        shapes(jnp.ones(2))

    @jax.jit
    def dtypes(x):
        _validate.floating("x", x, 1, "[n]")

    with pytest.raises(TypeError, match="x must be floating point"):
        dtypes(jnp.ones(2, int))


def test_known_numbers_must_not_be_traced():
    _validate.known("x", {"a": 1.0}, "split")

    @jax.jit
    def traced(x):
        _validate.known("x", {"a": x}, "split")

    with pytest.raises(TypeError, match=r"x must be known, got a traced array; call split outside"):
        traced(1.0)


def test_vectors():
    assert _validate.vector("v", [1, 2], length=2, axes="[n]").dtype == np.float64
    with pytest.raises(
        ValueError, match=r"v must have shape \[n\] with 3 or more numbers, got shape \(2,\)"
    ):
        _validate.vector("v", [1, 2], length=3, axes="[n]")
    with pytest.raises(TypeError, match=r"v must be numbers \[n\], got 'a'"):
        _validate.vector("v", "a", length=1, axes="[n]")
