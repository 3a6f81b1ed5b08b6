from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import differences

WORD: Any = "a"
PAIR: Any = lambda x: (x, x)  # noqa: E731


def loss(params):
    h = jnp.tanh(params["w"] @ params["v"][0] + params["b"])
    return jnp.sum(h**2) + jnp.exp(params["v"][1]) * jnp.sum(params["w"] ** 3)


@pytest.fixture
def params(x64, key):
    keys = jax.random.split(key, 3)
    return {
        "w": jax.random.normal(keys[0], (4, 3), jnp.float64),
        "v": (jax.random.normal(keys[1], (3,), jnp.float64), jnp.float64(0.3)),
        "b": jax.random.normal(keys[2], (4,), jnp.float64),
    }


def test_pytree_equals_autodiff(params):
    numeric = differences.central_difference(loss, params, eps=1e-5)
    exact = jax.grad(loss)(params)
    assert jax.tree.structure(numeric) == jax.tree.structure(exact)
    # Rounding 1e-16 / 1e-5, and 1e-10 of the third derivative.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8), numeric, exact
    )
    assert differences.relative_error(numeric, exact) < 1e-9
    assert differences.tier(float(differences.relative_error(numeric, exact))) == "right"


def test_jit_and_vmap_agree_with_eager(params):
    def numeric(params):
        return differences.central_difference(loss, params)

    several = jax.tree.map(lambda a: jnp.stack([a, 2 * a, -a]), params)
    mapped = jax.vmap(numeric)(several)
    jitted = jax.jit(numeric)(jax.tree.map(lambda a: a[1], several))
    eager = numeric(jax.tree.map(lambda a: a[1], several))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), jitted, eager)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-9), mapped, eager)


@pytest.mark.parametrize(
    ("f", "third"),
    [(jnp.exp, np.exp), (jnp.sin, lambda x: -np.cos(x)), (lambda x: x**3, lambda x: 6)],
)
def test_error_is_of_second_order(x64, f, third):
    theta = jnp.float64(0.7)
    steps = (0.02, 0.01, 0.005)
    exact = float(jax.grad(f)(theta))
    errors = [float(differences.central_difference(f, theta, eps)) - exact for eps in steps]
    np.testing.assert_allclose(errors[:-1] / np.array(errors[1:]), 4, rtol=1e-3)
    # The leading term of Taylor's series.
    assert errors[-1] == pytest.approx(third(0.7) * steps[-1] ** 2 / 6, rel=1e-3)


def test_course_example(x64):
    numeric = differences.central_difference(jnp.square, jnp.float64(3.0), eps=1e-4)
    assert float(numeric) == pytest.approx(6.0, abs=1e-10)
    assert float(differences.relative_error(numeric, jnp.float64(6.0))) < 1e-11


def test_default_step_and_dtype():
    numeric = differences.central_difference(jnp.square, jnp.float32(3.0))
    assert numeric.dtype == jnp.float32
    # The step that gives 6.0 is 1e-4, whose rounding error in float32 is 9 * 2^-24 / 1e-4.
    assert 0 < abs(float(numeric) - 6.0) < 0.02


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1.0, 1e25, 1e36])
@pytest.mark.parametrize("error", [1e-3, 0.25])
def test_relative_error_of_planted_sizes(size, error):
    numeric = {"w": jnp.full((2, 2), size), "b": jnp.full(2, size)}
    autodiff = jax.tree.map(lambda a: a * ((1 - error) / (1 + error)), numeric)
    # Squares of most of these sizes underflow or overflow in float32.
    assert float(differences.relative_error(numeric, autodiff)) == pytest.approx(error, rel=1e-3)
    assert float(differences.relative_error(autodiff, numeric)) == pytest.approx(error, rel=1e-3)
    assert differences.relative_error(numeric, numeric) == 0


def test_relative_error_by_hand():
    numeric = {"a": jnp.float32(3.0), "b": jnp.float32([0.0, 4.0])}
    autodiff = {"a": jnp.float32(0.0), "b": jnp.float32([0.0, 8.0])}
    assert float(differences.relative_error(numeric, autodiff)) == pytest.approx(5 / 13)
    opposite = jax.tree.map(jnp.negative, numeric)
    assert float(differences.relative_error(numeric, opposite)) == pytest.approx(1.0)
    one_is_zero = jax.tree.map(jnp.zeros_like, numeric)
    assert float(differences.relative_error(numeric, one_is_zero)) == pytest.approx(1.0)
    assert differences.relative_error(one_is_zero, one_is_zero) == 0
    assert differences.relative_error({}, {}) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("good", [0.0, 1.0])
def test_an_unusable_gradient_is_wrong_not_right(bad, good):
    broken, fine = jnp.float32([good, bad]), jnp.float32([good, good])
    for pair in ((broken, fine), (fine, broken), (broken, broken)):
        error = differences.relative_error(*pair)
        assert jnp.isnan(error)
        for text in differences.TIERS:
            assert differences.tier(float(error), text) == "wrong"


@pytest.mark.parametrize(
    ("text", "error", "name"),
    [
        ("course", 0.0, "right"),
        ("course", 0.99e-7, "right"),
        ("course", 1e-7, "look again"),
        ("course", 0.99e-5, "look again"),
        ("course", 1e-5, "suspicious"),
        ("course", 0.99e-3, "suspicious"),
        ("course", 1e-3, "wrong"),
        ("course", 1.0, "wrong"),
        ("course", float("inf"), "wrong"),
        ("course", float("nan"), "wrong"),
        ("second text", 0.0, "right"),
        ("second text", 0.99e-7, "right"),
        ("second text", 1e-7, "acceptable"),
        ("second text", 0.99e-4, "acceptable"),
        ("second text", 1e-4, "look"),
        ("second text", 0.99e-2, "look"),
        ("second text", 1e-2, "wrong"),
        ("second text", float("nan"), "wrong"),
    ],
)
def test_tiers(text, error, name):
    assert differences.tier(error, text) == name
    if text == "course":
        assert differences.tier(error) == name


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: differences.central_difference(jnp.sin, 1.0, 0.0),
            ValueError,
            "eps.*than 0, got 0",
        ),
        (lambda: differences.central_difference(jnp.sin, 1.0, -1e-4), ValueError, "eps.*-0.0001"),
        (lambda: differences.central_difference(jnp.sin, 1.0, jnp.nan), ValueError, "eps.*finite"),
        (
            lambda: differences.central_difference(jnp.sin, 1.0, WORD),
            TypeError,
            "eps must be a num",
        ),
        (
            lambda: differences.central_difference(jnp.sum, jnp.arange(3)),
            TypeError,
            "x must have floating-point leaves, got int32; close over",
        ),
        (
            lambda: differences.central_difference(jnp.sin, jnp.ones(3)),
            ValueError,
            r"f must return a scalar, got .*shape=\(3,\)",
        ),
        (
            lambda: differences.central_difference(PAIR, 1.0),
            ValueError,
            "f must return a scalar, got",
        ),
        (
            lambda: differences.relative_error({"a": jnp.ones(2)}, {"b": jnp.ones(2)}),
            ValueError,
            "autodiff must have the structure of numeric, .*'a'.*got.*'b'",
        ),
        (
            lambda: differences.relative_error(jnp.ones(3), jnp.ones(1)),
            ValueError,
            r"autodiff must have the shapes of numeric, \[\(3,\)\], got \[\(1,\)\]",
        ),
        (
            lambda: differences.relative_error(jnp.ones((2, 3)), jnp.ones((3, 2))),
            ValueError,
            r"shapes of numeric, \[\(2, 3\)\]",
        ),
        (
            lambda: differences.tier(0.1, "third"),
            ValueError,
            "text must be one of course, second text; got 'third'",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
