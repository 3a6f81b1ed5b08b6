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
    # Values are traced as called, the backward pass in float64; it is run without `jit`, too.
    assert len(traces) - first == 3 < first
    assert report.ok


@pytest.mark.slow
def test_a_second_check_traces_what_may_have_changed():
    traces = []

    @jax.custom_jvp
    def rule(x):
        traces.append("rule")
        return jnp.sin(x)

    rule.defjvp(lambda x, t: (jnp.sin(x[0]), jnp.cos(x[0]) * t[0]))
    for make in (lambda x: jax.nn.relu(x) + jax.nn.gelu(x), rule):

        def f(x, make=make):
            traces.append("f")
            return jnp.sum(make(x))

        counts = []
        for _ in range(2):
            traces.clear()
            assert check_grads(f, jnp.linspace(0.5, 1.0, 3)).ok
            counts.append(traces.count("f"))
        # JAX's own rules are not traced twice; others are, with and without a derivative.
        assert counts[1] == (6 if make is rule else 3) < counts[0]


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


@pytest.mark.slow
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


def with_rule(scale):
    """The sine, whose rule multiplies its derivative by `scale`."""
    return with_backward(jnp.sin, lambda args, ct: (ct * jnp.cos(args[0]) * scale,))


def test_a_rule_that_is_mended_is_seen():
    layer, x = with_rule(1.1), jnp.arange(1.0, 4.0)

    def f(x):
        return jnp.sum(layer(x))

    assert check_grads(f, x).verdict is Verdict.WRONG
    layer = with_rule(1.0)
    assert check_grads(f, x).verdict is Verdict.AGREE


def test_values_that_change_under_an_unchanged_rule_are_seen():
    def with_values(scale):
        def values(x):
            return scale * jnp.sin(x)

        rule = jax.custom_vjp(values)
        rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))
        return rule

    layer = with_values(1.0)

    def f(x):
        return jnp.sum(layer(x))

    x = jnp.linspace(0.1, 1.0, 3)
    assert check_grads(f, x).verdict is Verdict.AGREE
    layer = with_values(2.0)
    assert check_grads(f, x).verdict is Verdict.WRONG


@pytest.mark.slow
def test_a_rule_in_a_loop_that_breaks_is_seen():
    layer, x = with_rule(1.0), jnp.arange(1.0, 4.0)

    def f(x):
        return jnp.sum(jax.lax.scan(lambda carry, _: (layer(carry), None), x, length=3)[0])

    assert check_grads(f, x).verdict is Verdict.AGREE
    layer = with_rule(1.1)
    assert check_grads(f, x).verdict is Verdict.WRONG


def _plain(matrix, index):
    return lambda w: jnp.mean(jnp.tanh(jnp.dot(matrix, w)) ** 2) + w[index].sum()


def _operator(matrix, index):
    return lambda w: jnp.mean(jnp.tanh(matrix @ w))


def _within(matrix, index):
    inner = jax.jit(_plain(matrix, index))
    return lambda w: inner(w) ** 2


def _with_rule(matrix, index):
    def forward(w):
        return jnp.dot(matrix, w).sum() + w[index].sum()

    def backward(args, ct):
        slope = jnp.dot(matrix.T, jnp.ones(8, ct.dtype))
        return (ct * slope.at[index].add(1),)

    return with_backward(forward, backward)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        _plain,
        _operator,
        lambda *arrays: jax.jit(_plain(*arrays)),
        lambda *arrays: jax.checkpoint(_plain(*arrays)),
        _within,
        _with_rule,
        lambda *arrays: jax.jit(_with_rule(*arrays)),
    ],
    ids=["plain", "operator", "jit", "checkpoint", "jit within", "rule", "rule in jit"],
)
def test_arrays_of_numpy_that_a_function_holds_stay_usable(make):
    matrix, index = np.linspace(-1.0, 1.0, 24).reshape(8, 3), np.arange(3)
    f, w = make(matrix, index), jnp.ones(3)
    expected = jax.value_and_grad(make(matrix.copy(), index.copy()))(w)
    for _ in range(2):
        report = check_grads(f, w)
        assert report.precision == "float64"
        assert report.verdict is Verdict.AGREE
        assert report.leaves[0].error_bar < 1e-8
        for value, other in zip(jax.value_and_grad(f)(w), expected, strict=True):
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, other, rtol=1e-6)


def test_a_function_on_the_host_may_refuse_float64():
    def on_host(x):
        # The type of the result is that of the argument, but the host computes in float32.
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x, np.float32)), out, x)

    rule = with_backward(on_host, lambda args, ct: (ct * jnp.cos(args[0]),))
    report = check_grads(rule, jnp.float32([0.5, 1.2]))
    assert report.ok
    assert report.precision == "the type of the arguments"
