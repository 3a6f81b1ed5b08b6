"""Rules that break an identity of derivatives are found without finite differences."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import with_backward


def test_a_rule_that_ignores_its_cotangent():
    rule = with_backward(lambda x: jnp.sum(x), lambda args, ct: (jnp.ones_like(args[0]),))
    report = check_grads(rule, jnp.ones(3))
    assert {i.name: i.holds for i in report.identities}["linear"] is False
    assert {i.name: i.holds for i in report.identities}["zero"] is False
    assert report.verdict is Verdict.WRONG
    assert "linear in its cotangent" in str(report)


def test_a_rule_that_adds_a_constant_and_one_that_is_not_linear_are_told_apart():
    for backward, zero in (
        (lambda args, ct: (ct * jnp.cos(args[0]) + 1e-3,), False),
        (lambda args, ct: (jnp.abs(ct) * jnp.cos(args[0]),), True),
    ):
        rule = with_backward(jnp.sin, backward)
        identities = {i.name: i.holds for i in check_grads(rule, 0.5).identities}
        assert (identities["linear"], identities["zero"]) == (False, zero)


def test_forward_and_reverse_mode_that_are_no_transposes():
    def f(x):
        return jnp.sum(
            jax.custom_derivatives.linear_call(
                lambda _, x: 2 * x, lambda _, ct: 3 * ct, (), jnp.sin(x)
            )
        )

    report = check_grads(f, jnp.ones(3))
    assert {i.name: i.holds for i in report.identities}["transpose"] is False
    assert report.leaves[0].reason.startswith("autodiff is 1.5 times")
    forward = check_grads(f, jnp.ones(3), modes=("fwd",))
    assert forward.verdict is Verdict.AGREE


def test_a_wrong_batching_rule():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.sin(x)

    @f.def_vmap
    def _(axis_size, in_batched, x):
        return 2 * jnp.sin(x), True

    rule = with_backward(lambda x: jnp.sum(f(x)), lambda args, ct: (ct * f(jnp.pi / 2 - args[0]),))
    report = check_grads(rule, jnp.linspace(0.1, 1.0, 3))
    identities = {i.name: i.holds for i in report.identities}
    # Without vmap nothing is wrong, which one call under vmap and one without do not show.
    assert (identities["vmap"], identities["linear"], identities["zero"]) == (False, True, True)
    assert report.leaves[0].numeric == pytest.approx(report.leaves[0].autodiff)
    assert not report.ok


def test_a_rule_that_differs_under_jit():
    def backward(args, ct):
        traced = isinstance(ct, jax.core.Tracer)
        return (ct * jnp.cos(args[0]) * (1 if traced else 2),)

    rule = with_backward(jnp.sin, backward)
    report = check_grads(rule, 0.5)
    assert {i.name: i.holds for i in report.identities}["jit"] is False
    assert not report.ok


@pytest.mark.slow
def test_holomorphic_functions():
    z = jnp.complex64(0.3 + 0.4j)
    assert check_grads(lambda z: jnp.sin(z) ** 2, z, holomorphic=True).verdict is Verdict.AGREE
    report = check_grads(lambda z: z * jnp.conj(z), z, holomorphic=True)
    assert not report.ok
    assert "linear over the complex numbers" in str(report)


@pytest.mark.slow
def test_terms_that_cancel_in_the_backward_pass_violate_no_identity():
    # A matrix of rank one: its cofactors are zero, and autodiff gives their rounding.
    matrix = jnp.outer(jnp.float32([6, -7, 3]), jnp.float32([6, -7, 3]))
    report = check_grads(jnp.linalg.det, matrix, modes=("rev", "fwd"))
    assert report.ok, f"\n{report}"
