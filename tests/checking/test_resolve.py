"""Doubtful derivatives in arbitrary precision: what float64 cannot show."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import check_grads
from jaxgrad.checking import Verdict


def with_factor(f, factor):
    """Return `f` with a derivative that is off by a factor."""
    right = jax.grad(f)
    wrong = jax.custom_jvp(f)
    wrong.defjvp(lambda primals, tangents: (f(*primals), factor * right(*primals) * tangents[0]))
    return wrong


def tilted(x):
    return jnp.exp(x) - 1 - x


@pytest.mark.parametrize(
    ("f", "x", "derivative"),
    [
        (jnp.tanh, 20.0, 1.6993417021166355e-17),
        (jax.nn.sigmoid, 40.0, 4.248354255291589e-18),
        (jnp.expm1, -40.0, 4.248354255291589e-18),
        (jax.grad(jax.grad(jax.nn.softplus)), 37.4, -5.719864149e-17),
        (jnp.sinc, 1e-9, -3.2898682237504674e-9),
        # The backward pass has s (1 - s), which needs 290 digits.
        (lambda x: jax.nn.sigmoid(100 * x), 6.65, 1.56374305e-287),
    ],
)
def test_a_gradient_that_rounding_loses_does_not_agree(f, x, derivative):
    report = check_grads(f, x)
    (leaf,) = report.leaves
    assert report.ok
    np.testing.assert_allclose(leaf.numeric, derivative, rtol=1e-6)
    if leaf.autodiff == 0:
        assert leaf.verdict is Verdict.UNRESOLVED
        assert "rounding loses the gradient" in leaf.reason
    else:
        # Later versions of JAX have better rules for some of them.
        assert jax.__version_info__ >= (0, 11)
        assert leaf.verdict is Verdict.AGREE


@pytest.mark.slow
def test_values_that_cancel():
    (leaf,) = check_grads(tilted, 1e-7).leaves
    assert leaf.verdict is Verdict.AGREE
    assert leaf.error_bar < 1e-12 * abs(leaf.numeric)
    (leaf,) = check_grads(with_factor(tilted, 1.01), 1e-7).leaves
    assert leaf.verdict is Verdict.WRONG
    assert "1.01 times" in leaf.reason


def test_a_wrong_rule_in_a_tail_is_seen():
    # The derivative is 1.7e-17, far below the rounding of the values in float64.
    @jax.custom_jvp
    def f(x):
        return jnp.tanh(x)

    f.defjvp(lambda p, t: (f(*p), 1.01 * t[0] / jnp.cosh(p[0]) ** 2))
    (leaf,) = check_grads(f, 20.0).leaves
    assert leaf.verdict is Verdict.WRONG


def test_zeros_agree_where_the_derivative_is_zero():
    def f(p):
        return jnp.sum(jax.nn.relu(p["x"])) + 0 * jnp.sum(p["unused"])

    report = check_grads(f, {"x": jnp.array([-1.0, 2.0]), "unused": jnp.ones(2)})
    assert report.verdict is Verdict.AGREE


def test_kinks_stay_kinks():
    assert check_grads(lambda x: jnp.abs(jnp.tanh(x)), 0.0).verdict is Verdict.KINK


def test_a_large_function_costs_no_exact_evaluation(monkeypatch):
    from jaxgrad.checking import _resolve

    def evaluated(*args):
        raise AssertionError

    monkeypatch.setattr(_resolve, "exact_slopes", evaluated)
    w = jnp.ones((40, 40))
    check_grads(lambda x: jnp.sum(jax.nn.relu(w @ w @ (w @ x))), -jnp.ones(40))


def test_without_mpmath_float64_decides(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (leaf,) = check_grads(jnp.tanh, 20.0).leaves
    assert leaf.verdict is Verdict.UNRESOLVED
    assert abs(leaf.numeric) > 1e-16
