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


def test_the_drop_in_sees_what_the_original_misses():
    def opposite(x):
        rule = jax.custom_vjp(lambda x: 1e-5 * jnp.sin(x))
        rule.defvjp(lambda x: (1e-5 * jnp.sin(x), x), lambda x, ct: (-1e-5 * ct * jnp.cos(x),))
        return rule(x)

    x = jnp.linspace(0.1, 1.0, 1000)
    jax.test_util.check_grads(opposite, (x,), 1, modes=("rev",))
    with pytest.raises(AssertionError, match="opposite sign"):
        testing.check_grads(opposite, (x,), 1, modes=("rev",))


def test_forward_mode_of_a_custom_vjp_is_refused_as_by_the_original():
    with pytest.raises(ValueError, match="forward mode"):
        testing.check_grads(wrong_cosine, (1.0,), 1, modes=("fwd",))


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
