"""A second check of a function compiles nothing, and a changed function is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import Verdict, check_grads
from jaxgrad.checking._programs import reuse
from tests.checking.cases import network, with_backward


def test_the_same_function_is_compiled_once(params, x):
    traces = []

    def f(params, x):
        traces.append(1)
        return network(params, x)

    check_grads(f, params, x)
    first = len(traces)
    again = jax.tree.map(lambda v: 1.1 * v, params)
    report = check_grads(f, again, x)
    # Two traces to compare, one of the backward pass; nothing is compiled anew.
    assert len(traces) - first <= 5 < first
    assert report.ok


def test_a_changed_closure_is_seen():
    scale = [1.0]

    def f(x):
        return scale[0] * jnp.sin(x)

    first = check_grads(f, 0.5).leaves[0].numeric
    scale[0] = 3.0
    assert check_grads(f, 0.5).leaves[0].numeric == pytest.approx(3 * first)


def test_results_are_reused_for_equal_keys_only():
    built = []

    def build(name):
        return reuse(("test", name), lambda: built.append(name) or object())

    first = build("a")
    assert build("a") is first
    assert build("b") is not first
    assert built == ["a", "b"]


def test_a_key_that_cannot_be_hashed_is_built_each_time():
    assert reuse(("test", []), object) is not reuse(("test", []), object)


def test_another_function_of_the_same_shape_is_compiled_anew():
    x = jnp.arange(1.0, 4.0)
    for slope in (2.0, 3.0):
        report = check_grads(lambda x, slope=slope: jnp.sum(slope * x), x)
        assert report.leaves[0].numeric == pytest.approx(slope)


def test_functions_that_differ_in_their_rule_alone_are_told_apart():
    for factor, verdict in ((1.0, Verdict.AGREE), (2.0, Verdict.WRONG)):
        rule = with_backward(
            jnp.sin, lambda args, ct, factor=factor: (factor * ct * jnp.cos(args[0]),)
        )
        report = check_grads(rule, 0.5)
        assert report.verdict is verdict
        assert report.leaves[0].autodiff == pytest.approx(factor * np.cos(0.5))
