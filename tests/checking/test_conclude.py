"""What the report adds: lost digits, and rules that are meant to differ."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import with_backward


@pytest.mark.slow
def test_a_loss_of_digits_in_the_working_type_is_said():
    def f(x):
        return jnp.sum((x + 1e4) ** 2 - x**2 - 1e8)

    x = jnp.linspace(0.5, 2.0, 8)
    report = check_grads(lambda x: jnp.sum(jnp.cos(1e3 * x)), 3 * x)
    assert report.ok
    assert report.leaves[0].working_error > 1e-5
    assert check_grads(f, x).ok
    cancelling = check_grads(lambda x: jnp.sum(jnp.log(1 + x) ** 2), 1e-4 * x)
    assert cancelling.ok
    assert "float32 loses" in str(cancelling)


def test_an_overflow_of_the_working_type_alone():
    # In float32 the square overflows in the backward pass, the value does not.
    def f(x):
        return jnp.sum(jnp.sqrt(jnp.log1p(x**2)))

    rule = with_backward(
        f, lambda args, ct: (ct * jax.grad(f)(args[0]) * (args[0] ** 4) / args[0] ** 4,)
    )
    report = check_grads(rule, jnp.float32([1e12, 1.0]))
    assert report.verdict is Verdict.NONFINITE
    assert report.leaves[0].worst_index == (0,)
    assert "float32" in report.leaves[0].reason


def test_meant_to_differ(key):
    def straight_through(x):
        return jnp.sum((x + jax.lax.stop_gradient(jnp.round(x) - x)) ** 2)

    report = check_grads(straight_through, jnp.float32([0.3, 1.8]))
    assert report.verdict is Verdict.WRONG
    assert "meant to differ" in str(report)
