"""Derivatives of second order."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import check_grads
from tests.checking.cases import network, with_backward


def test_second_order(params, x):
    report = check_grads(network, params, x, order=2)
    assert report.ok
    assert {leaf.order for leaf in report.leaves} == {1, 2}
    assert "symmetry" in {i.name for i in report.identities if i.holds}

    def frozen(args, ct):
        # Right to first order; its own derivative is not.
        return (ct * jax.lax.stop_gradient(jnp.cos(args[0])),)

    rule = with_backward(jnp.sin, frozen)
    assert check_grads(rule, 0.5).ok
    second = check_grads(rule, 0.5, order=2)
    assert not second.ok
    assert second.leaves[0].order == 2
    # Of order two everywhere, also where the first derivative vanishes.
    at_rest = check_grads(rule, np.pi / 2, order=2)
    assert at_rest.leaves[0].order == 2
    assert not at_rest.ok
    assert check_grads(jnp.sin, np.pi / 2, order=2).ok


def test_second_order_of_a_rule_that_holds_numbers():
    point = np.float32(0.7)
    rule = with_backward(jnp.sin, lambda args, ct: (ct * np.cos(point),))
    assert check_grads(rule, point).ok
    assert not check_grads(rule, point, order=2).ok
