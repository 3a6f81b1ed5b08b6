"""`jaxgrad.testing`: what a test suite calls."""

import inspect

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from jaxgrad import testing


def wrong_cosine(x):
    rule = jax.custom_vjp(jnp.sin)
    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (1.01 * ct * jnp.cos(x),))
    return rule(x)


def test_assert_grads_returns_the_report_or_raises_its_table():
    assert testing.assert_grads(jnp.sin, jnp.arange(3.0)).ok
    with pytest.raises(AssertionError, match="WRONG") as caught:
        testing.assert_grads(lambda p: wrong_cosine(p["a"]) + p["b"], {"a": 1.0, "b": 2.0})
    table = str(caught.value)
    assert "['a']" in table
    assert "1.01 times the numeric one" in table


def test_strict_assertion_fails_on_what_cannot_be_told():
    testing.assert_grads(jnp.tanh, 20.0)
    with pytest.raises(AssertionError, match="UNRESOLVED"):
        testing.assert_grads(jnp.tanh, 20.0, strict=True)


def test_the_message_has_the_label():
    with pytest.raises(AssertionError, match="^the sine\n"):
        testing.assert_grads(wrong_cosine, 0.5, label="the sine")


@pytest.mark.slow
def test_assert_expectation_returns_the_report_or_raises_it_with_the_label(key):
    def sample(key, mean):
        return mean * jax.random.normal(key) + mean**2

    assert testing.assert_expectation(sample, 1.0, key=key, samples=512).ok
    with pytest.raises(AssertionError, match="^the sample\nBIASED: the mean gradient is not"):
        testing.assert_expectation(
            sample, 1.0, key=key, samples=512, label="the sample", grad=lambda key, mean: mean
        )


def test_the_drop_in_has_the_same_arguments():
    ours, theirs = (
        inspect.signature(module.check_grads).parameters for module in (testing, jax.test_util)
    )
    # Ours may lack the newest ones, not reorder or rename the others.
    shared = [name for name, one in ours.items() if one.kind is not one.KEYWORD_ONLY]
    assert shared == list(theirs)[: len(shared)]
    for name in shared:
        parameter = ours[name]
        assert parameter.default == theirs[name].default or name == "modes"
    assert set(ours["modes"].default) == set(theirs["modes"].default)


@pytest.mark.parametrize("modes", [("fwd",), ("rev",), ("lin", "fwd", "rev"), ["rev"]])
@pytest.mark.parametrize("order", [1, 2])
def test_the_drop_in_passes_right_functions(modes, order):
    def f(x, y):
        return jnp.tanh(x @ y) * jnp.sum(x)

    x, y = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.ones((3, 2))
    testing.check_grads(f, (x, y), order, modes)


@pytest.mark.slow
def test_the_drop_in_sees_what_the_original_misses():
    def opposite(x):
        rule = jax.custom_vjp(lambda x: 1e-5 * jnp.sin(x))
        rule.defvjp(lambda x: (1e-5 * jnp.sin(x), x), lambda x, ct: (-1e-5 * ct * jnp.cos(x),))
        return rule(x)

    x = jnp.linspace(0.1, 1.0, 1000)
    jax.test_util.check_grads(opposite, (x,), 1, modes=("rev",))
    with pytest.raises(AssertionError, match="opposite sign"):
        testing.check_grads(opposite, (x,), 1, modes=("rev",))


@pytest.mark.parametrize("check", [testing.check_grads, jax.test_util.check_grads])
def test_errors_of_the_function_are_raised_as_by_the_original(check):
    with pytest.raises(TypeError, match="forward-mode"):
        check(wrong_cosine, (1.0,), 1, modes=("fwd",))

    def f(x):
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such thing"):
        check(f, (1.0,), 1)


def test_the_drop_in_lets_pass_what_rtol_says_and_no_more():
    # One per cent off, whatever atol says.
    asked = {"use_rtol": True, "eps": 1e-3}
    testing.check_grads(wrong_cosine, (0.5,), 1, ("rev",), rtol=0.02, **asked)
    by_dtype = {np.float32: 0.02, np.dtype("float64"): 1e-9}
    testing.check_grads(wrong_cosine, (jnp.float32(0.5),), 1, ("rev",), rtol=by_dtype, **asked)
    loose = {"rtol": 0.02}, {"rtol": by_dtype}, {"rtol": 5e-3, "use_rtol": True}
    for tolerance in (*loose, {"atol": 10.0}, {}):
        with pytest.raises(AssertionError, match="WRONG"):
            testing.check_grads(wrong_cosine, (0.5,), 1, ("rev",), **tolerance)


def test_strict_promotion_does_not_forbid_float64():
    # Arguments in float64 meet an array that stays in float32.
    half = np.float32([0.5, 0.25])

    def f(x):
        return jnp.sum(jnp.sin(x) * jnp.asarray(half, jnp.float32))

    with jax.numpy_dtype_promotion("strict"):
        jax.test_util.check_grads(f, (jnp.float32([0.3, 1.2]),), 1, ("rev",))
        testing.check_grads(f, (jnp.float32([0.3, 1.2]),), 1, ("rev",))
        report = testing.assert_grads(f, jnp.float32([0.3, 1.2]))
    assert report.precision == "float64"


@pytest.mark.slow
@pytest.mark.parametrize("check", [testing.check_grads, jax.test_util.check_grads])
@pytest.mark.parametrize("x", [-np.inf, np.nan])
def test_an_infinite_argument_is_held_fixed(check, x):
    check(jax.nn.softplus, (x,), 1)
    check(lambda x, y: jnp.tanh(x) * y, (x, 0.5), 1)

    def unsafe(x):
        # Without a slope at minus infinity, but 0 times infinity in the derivative.
        return jnp.where(jnp.isfinite(x), jnp.exp(x) * x, 0.0)

    with pytest.raises(AssertionError, match="nan"):
        check(unsafe, (x,), 1)


@pytest.mark.slow
def test_finite_elements_beside_infinite_ones_are_checked():
    x = jnp.array([0.5, -np.inf, 1.5])
    testing.check_grads(lambda x: jnp.sum(jnp.tanh(x)), (x,), 2)
    with pytest.raises(AssertionError, match="WRONG"):
        testing.check_grads(lambda x: wrong_cosine(jnp.maximum(x, 0.0)).sum(), (x,), 1, "rev")
