from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import finite_differences

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


@pytest.mark.slow
def test_pytree_equals_autodiff(params):
    numeric = finite_differences.central_difference(loss, params, eps=1e-5)
    exact = jax.grad(loss)(params)
    assert jax.tree.structure(numeric) == jax.tree.structure(exact)
    # Rounding 1e-16 / 1e-5, and 1e-10 of the third derivative.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8), numeric, exact
    )
    assert finite_differences.relative_error(numeric, exact) < 1e-9
    assert (
        finite_differences.tier(float(finite_differences.relative_error(numeric, exact))) == "right"
    )


@pytest.mark.slow
def test_jit_and_vmap_agree_with_eager(params):
    def numeric(params):
        return finite_differences.central_difference(loss, params)

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
    errors = [float(finite_differences.central_difference(f, theta, eps)) - exact for eps in steps]
    np.testing.assert_allclose(errors[:-1] / np.array(errors[1:]), 4, rtol=1e-3)
    # The leading term of Taylor's series.
    assert errors[-1] == pytest.approx(third(0.7) * steps[-1] ** 2 / 6, rel=1e-3)


def test_course_example(x64):
    numeric = finite_differences.central_difference(jnp.square, jnp.float64(3.0), eps=1e-4)
    assert float(numeric) == pytest.approx(6.0, abs=1e-10)
    assert float(finite_differences.relative_error(numeric, jnp.float64(6.0))) < 1e-11


@pytest.mark.parametrize(
    ("f", "second"),
    [(jnp.exp, np.exp), (jnp.sin, lambda x: -np.sin(x)), (lambda x: x**2, lambda x: 2)],
)
def test_one_sided_error_is_of_first_order(x64, f, second):
    theta, exact = jnp.float64(0.7), float(jax.grad(f)(jnp.float64(0.7)))
    errors = [
        float(finite_differences.one_sided_difference(f, theta, eps)) - exact
        for eps in (2e-4, 1e-4, -1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=1e-3)
    assert errors[1] == pytest.approx(second(0.7) * 1e-4 / 2, rel=1e-3)
    assert errors[2] == pytest.approx(-errors[1], rel=1e-3)


def test_complex_step_is_right_to_rounding(params):
    numeric = finite_differences.complex_step(loss, params)
    exact = jax.grad(loss)(params)
    assert jax.tree.structure(numeric) == jax.tree.structure(exact)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), numeric, exact)
    # Not analytic: it does not notice.
    assert float(finite_differences.complex_step(jnp.abs, jnp.float64(-2.0))) != -1.0


@pytest.mark.slow
def test_taylor_remainder_falls_by_the_square_only_for_the_right_gradient(params, key):
    exact = jax.grad(loss)(params)
    direction = jax.tree.map(jnp.ones_like, params)
    right = finite_differences.taylor_remainder(loss, params, exact, direction)
    wrong = finite_differences.taylor_remainder(
        loss, params, jax.tree.map(lambda g: 1.1 * g, exact), direction
    )
    assert right.remainder.shape == right.steps.shape == (10,)
    assert float(right.slope) == pytest.approx(2, abs=0.1)
    assert float(wrong.slope) == pytest.approx(1, abs=0.15)
    linear = finite_differences.taylor_remainder(jnp.sum, jnp.ones(3), jnp.ones(3), jnp.ones(3))
    assert jnp.isnan(linear.slope)


def test_derivative_along_a_direction_lies_in_its_bar(params):
    exact = jax.grad(loss)(params)
    direction = jax.tree.map(lambda a: jnp.cos(7 * a), params)
    true = sum(
        float(jnp.vdot(a, b))
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(direction), strict=True)
    )
    found = finite_differences.derivative(loss, params, direction)
    assert abs(found.value - true) <= found.error < 1e-8 * abs(true)
    assert not found.kink
    twice = finite_differences.derivative(loss, params, jax.tree.map(lambda a: 2e5 * a, direction))
    assert twice.value == pytest.approx(2e5 * true, rel=1e-9)


def test_gradient_with_bars_in_the_structure_of_the_argument(params):
    found = finite_differences.gradient(loss, params)
    exact = jax.grad(loss)(params)
    assert jax.tree.structure(found.value) == jax.tree.structure(exact)

    def inside(value, error, true):
        assert value.shape == true.shape
        assert np.all(np.abs(value - true) <= error)
        assert np.all(error <= 1e-8 * (1 + np.abs(true)))

    jax.tree.map(inside, found.value, found.error, exact)


def test_gradient_of_a_float32_function_is_found_in_float64():
    found = finite_differences.gradient(lambda x: jnp.sum(jnp.exp(x)), jnp.float32([0.5, -1.0]))
    np.testing.assert_allclose(found.value, np.exp([0.5, -1.0]), rtol=1e-9)


def test_the_other_leaves_are_not_perturbed(x64):
    seen = []

    def f(p):
        seen.append({name: leaf.shape for name, leaf in p.items()})
        return jnp.sum(p["a"]) * jnp.sum(p["b"])

    point = {"a": jnp.arange(300.0), "b": jnp.ones((2, 2))}
    numeric = finite_differences.central_difference(f, point, eps=1e-2)
    np.testing.assert_allclose(numeric["a"], jnp.full(300, 4.0), rtol=1e-9)
    assert set(map(str, seen)) == {str({"a": (300,), "b": (2, 2)})}


def test_empty_leaves_stay_empty(x64):
    point = {"a": jnp.ones(2), "empty": jnp.zeros((0, 3))}

    def f(p):
        return jnp.sum(p["a"] ** 2) + jnp.sum(p["empty"])

    for numeric in (
        finite_differences.central_difference(f, point),
        finite_differences.one_sided_difference(f, point),
        finite_differences.complex_step(f, point),
        finite_differences.gradient(f, point).value,
        finite_differences.gradient(f, point).error,
    ):
        assert numeric["empty"].shape == (0, 3)
    np.testing.assert_allclose(numeric["a"], 0, atol=1e-8)


def test_default_step_and_dtype():
    numeric = finite_differences.central_difference(jnp.square, jnp.float32(3.0))
    assert numeric.dtype == jnp.float32
    # The step that gives 6.0 is 1e-4, whose rounding error in float32 is 9 * 2^-24 / 1e-4.
    assert 0 < abs(float(numeric) - 6.0) < 0.02


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1.0, 1e25, 1e36])
@pytest.mark.parametrize("error", [1e-3, 0.25])
def test_relative_error_of_planted_sizes(size, error):
    numeric = {"w": jnp.full((2, 2), size), "b": jnp.full(2, size)}
    autodiff = jax.tree.map(lambda a: a * ((1 - error) / (1 + error)), numeric)
    # Squares of most of these sizes underflow or overflow in float32.
    assert float(finite_differences.relative_error(numeric, autodiff)) == pytest.approx(
        error, rel=1e-3
    )
    assert float(finite_differences.relative_error(autodiff, numeric)) == pytest.approx(
        error, rel=1e-3
    )
    assert finite_differences.relative_error(numeric, numeric) == 0


def test_relative_error_by_hand():
    numeric = {"a": jnp.float32(3.0), "b": jnp.float32([0.0, 4.0])}
    autodiff = {"a": jnp.float32(0.0), "b": jnp.float32([0.0, 8.0])}
    assert float(finite_differences.relative_error(numeric, autodiff)) == pytest.approx(5 / 13)
    opposite = jax.tree.map(jnp.negative, numeric)
    assert float(finite_differences.relative_error(numeric, opposite)) == pytest.approx(1.0)
    one_is_zero = jax.tree.map(jnp.zeros_like, numeric)
    assert float(finite_differences.relative_error(numeric, one_is_zero)) == pytest.approx(1.0)
    assert finite_differences.relative_error(one_is_zero, one_is_zero) == 0
    assert finite_differences.relative_error({}, {}) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("good", [0.0, 1.0])
def test_an_unusable_gradient_is_wrong_not_right(bad, good):
    broken, fine = jnp.float32([good, bad]), jnp.float32([good, good])
    for pair in ((broken, fine), (fine, broken), (broken, broken)):
        error = finite_differences.relative_error(*pair)
        assert jnp.isnan(error)
        for text in finite_differences.TIERS:
            assert finite_differences.tier(float(error), text) == "wrong"


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
    assert finite_differences.tier(error, text) == name
    if text == "course":
        assert finite_differences.tier(error) == name


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: finite_differences.central_difference(jnp.sin, 1.0, 0.0),
            ValueError,
            "eps.*than 0, got 0",
        ),
        (
            lambda: finite_differences.central_difference(jnp.sin, 1.0, -1e-4),
            ValueError,
            "eps.*-0.0001",
        ),
        (
            lambda: finite_differences.central_difference(jnp.sin, 1.0, jnp.nan),
            ValueError,
            "eps.*finite",
        ),
        (
            lambda: finite_differences.central_difference(jnp.sin, 1.0, WORD),
            TypeError,
            "eps must be a num",
        ),
        (
            lambda: finite_differences.central_difference(jnp.sum, jnp.arange(3)),
            TypeError,
            "x must have floating-point leaves, got int32; close over",
        ),
        (
            lambda: finite_differences.central_difference(jnp.sin, jnp.ones(3)),
            ValueError,
            r"f must return a scalar, got .*shape=\(3,\)",
        ),
        (
            lambda: finite_differences.central_difference(PAIR, 1.0),
            ValueError,
            "f must return a scalar, got",
        ),
        (
            lambda: finite_differences.relative_error({"a": jnp.ones(2)}, {"b": jnp.ones(2)}),
            ValueError,
            "autodiff must have the structure of numeric, .*'a'.*got.*'b'",
        ),
        (
            lambda: finite_differences.relative_error(jnp.ones(3), jnp.ones(1)),
            ValueError,
            r"autodiff must have the shapes of numeric, \[\(3,\)\], got \[\(1,\)\]",
        ),
        (
            lambda: finite_differences.relative_error(jnp.ones((2, 3)), jnp.ones((3, 2))),
            ValueError,
            r"shapes of numeric, \[\(2, 3\)\]",
        ),
        (
            lambda: finite_differences.one_sided_difference(jnp.sin, 1.0, 0.0),
            ValueError,
            "eps must not be 0",
        ),
        (lambda: finite_differences.complex_step(jnp.sin, 1.0, -1.0), ValueError, "eps.*-1"),
        (
            lambda: finite_differences.complex_step(jnp.sum, jnp.arange(3)),
            TypeError,
            "x must have floating",
        ),
        (
            lambda: finite_differences.taylor_remainder(
                jnp.sum, jnp.ones(3), jnp.ones(2), jnp.ones(3)
            ),
            ValueError,
            "gradient must have the structure and shapes of x",
        ),
        (
            lambda: finite_differences.derivative(jnp.sum, jnp.ones(3), jnp.ones(2)),
            ValueError,
            "direction must have the structure",
        ),
        (
            lambda: finite_differences.derivative(jnp.sum, jnp.ones(3), jnp.zeros(3)),
            ValueError,
            "direction must be finite and not zero",
        ),
        (
            lambda: finite_differences.gradient(jnp.sin, jnp.ones(3)),
            ValueError,
            "f must return a scalar",
        ),
        (
            lambda: finite_differences.tier(0.1, "third"),
            ValueError,
            "text must be one of course, second text; got 'third'",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
