import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.inspection import RuleVerdict

X = jnp.linspace(0.3, 1.2, 3)


def sine(factor, function=jnp.sin, slope=jnp.cos):
    """The sine with a backward pass that is multiplied by `factor`."""
    f = jax.custom_vjp(lambda x: function(x))
    f.defvjp(lambda x: (f(x), x), lambda x, ct: (factor * ct * slope(x),))
    return f


def square(factor):
    """The square with a forward rule that is multiplied by `factor`."""
    f = jax.custom_jvp(lambda x: x**2)
    f.defjvp(lambda x, t: (f(*x), factor * 2 * x[0] * t[0]))
    return f


def failing(report):
    return [(row.argument, row.mode, row.factor) for row in report.rules if row.fails]


RIGHT, WRONG = sine(1.0), sine(1.01)
PLACES = {
    "alone": lambda f, x: f(x),
    "jit": lambda f, x: jax.jit(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x),
    "checkpoint": lambda f, x: jax.checkpoint(f)(x),
    "scan": lambda f, x: jax.lax.scan(lambda c, _: (f(c), c), x, None, length=5),
    "reverse scan": lambda f, x: jax.lax.scan(lambda c, a: (c * a, f(a)), 1.0, x, reverse=True),
    "while": lambda f, x: jax.lax.while_loop(lambda c: c[0] > 0.2, f, x),
    "cond": lambda f, x: jax.lax.cond(x[0] > 0, f, jnp.cos, x),
    "integers beside": lambda f, x: (f(x)[jnp.arange(2)], jnp.arange(3)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_rule_is_named_wherever_it_is_called(place):
    report = jaxgrad.audit(partial(PLACES[place], WRONG), X)
    assert failing(report) == [("x", "rev", 1.01)]
    (row,) = report.wrong
    line = WRONG.bwd.__code__.co_firstlineno
    assert row.rule == f"<lambda> at {__file__}:{line}"
    assert "the rule is 1.01 times the numeric one" in str(report)
    assert jaxgrad.audit(partial(PLACES[place], RIGHT), X).verdict is RuleVerdict.AGREE


def test_the_line_of_the_call():
    def f(x):
        return WRONG(x)

    (row,) = jaxgrad.audit(f, X).wrong
    assert f"test_audit.py:{f.__code__.co_firstlineno + 1}:" in row.call


def test_the_branch_that_is_not_taken_is_not_met():
    report = jaxgrad.audit(lambda x: jax.lax.cond(x[0] < 0, WRONG, jnp.cos, x), X)
    assert not report.rules
    assert report
    assert "no function with a derivative rule is called" in str(report)


@pytest.mark.slow
def test_forward_and_reverse_mode_apart():
    report = jaxgrad.audit(lambda x: square(0.5)(x), X)
    assert failing(report) == [("x", "rev", 0.5), ("x", "fwd", 0.5)]

    # The transpose of a linear function is a rule of reverse mode alone.
    @jax.custom_jvp
    def double(x):
        return 2 * x

    @double.defjvp
    def _(x, t):
        (out,) = jax.custom_derivatives.linear_call(
            lambda _, v: [2 * v[0]], lambda _, ct: [-2 * ct[0]], (), [t[0]]
        )
        return double(*x), out

    assert failing(jaxgrad.audit(lambda x: double(x), X)) == [("x", "rev", -1.0)]


@pytest.mark.slow
def test_argument_and_element():
    @jax.custom_vjp
    def dense(x, params):
        return x @ params["w"] + params["b"]

    def backward(saved, ct):
        x, params = saved
        w = jnp.outer(x, ct).at[2, 1].multiply(1.5)
        return ct @ params["w"].T, {"w": w, "b": jnp.zeros_like(ct)}

    dense.defvjp(lambda x, p: (dense(x, p), (x, p)), backward)
    params = {"w": jnp.arange(12.0).reshape(3, 4) / 7, "b": jnp.ones(4)}
    report = jaxgrad.audit(dense, X, params)
    rows = {row.argument: row for row in report.rules}
    assert rows["x"].verdict is RuleVerdict.AGREE
    assert rows["p['w']"].element == (2, 1)
    assert rows["p['w']"].value == pytest.approx(1.5 * rows["p['w']"].numeric, rel=1e-5)
    assert rows["p['b']"].factor == 0
    # The leaves of an argument are in one output of the rule.
    assert [rows[name].output for name in ("x", "p['w']", "p['b']")] == [1, 2, 2]
    line = backward.__code__.co_firstlineno
    assert f"dense, backward defined at test_audit.py:{line}, called at" in str(report)
    assert "reverse mode, output 2 (p['b']): the rule is zero" in str(report)


def test_the_cause_comes_before_its_consequence():
    @jax.custom_vjp
    def outer(x):
        return 3 * WRONG(x)

    outer.defvjp(lambda x: jax.vjp(lambda x: 3 * WRONG(x), x), lambda pull, ct: pull(ct))
    report = jaxgrad.audit(lambda x: outer(x), X)
    assert [row.through for row in report.rules if row.fails] == ["", "<lambda>"]
    assert [row.rule for row in report.wrong] == [report.rules[0].rule]
    assert "it uses <lambda>, which is wrong" in str(report)


def straight_through(function):
    f = jax.custom_vjp(lambda x: function(x))
    f.defvjp(lambda x: (f(x), None), lambda _, ct: (ct,))
    return f


def with_cotangent(change):
    f = jax.custom_vjp(lambda x: x)
    f.defvjp(lambda x: (x, None), lambda _, ct: (change(ct),))
    return f


MEANT = {
    "rounding": straight_through(jnp.round),
    "sign": straight_through(jnp.sign),
    "saturation": straight_through(lambda x: jnp.clip(x, -0.5, 0.5)),
    "stopped": straight_through(lambda x: jax.lax.stop_gradient(jnp.sin(x))),
    "reversal": with_cotangent(jnp.negative),
    "clipping": with_cotangent(lambda ct: jnp.clip(ct, -0.1, 0.1)),
}


@pytest.mark.parametrize("name", MEANT)
def test_functions_that_mean_to_differ_from_their_derivative(name):
    report = jaxgrad.audit(lambda x: MEANT[name](x), jnp.array([-1.2, 0.3, 0.7]))
    assert [row.verdict for row in report.rules] == [RuleVerdict.DIFFERS]
    assert report
    assert "may differ from its body on purpose" in str(report)


def test_a_wrong_rule_is_no_purpose():
    # The clipped function has a slope where the rule is wrong.
    f = jax.custom_vjp(lambda x: jnp.clip(x, -0.5, 0.5))
    f.defvjp(lambda x: (f(x), x), lambda x, ct: (jnp.where(jnp.abs(x) < 0.4, ct, 0),))
    assert not jaxgrad.audit(lambda x: f(x), jnp.array([-1.2, 0.3, 0.45]))


@pytest.mark.slow
def test_inputs_are_those_of_the_program():
    # The rule is wrong beyond 1 only, which the last of 40 iterations alone reaches.
    f = sine(1.0, jnp.exp, lambda x: jnp.where(x > 1, 2.0, 1.0) * jnp.exp(x))
    steps = jnp.append(jnp.zeros(39), 1.5)
    report = jaxgrad.audit(lambda s: jax.lax.scan(lambda c, a: (f(a), None), 0.0, s), steps)
    assert failing(report) == [("x", "rev", 2.0)]
    assert report.rules[0].samples == 3
    assert jaxgrad.audit(lambda x: f(x), 0.5)


@pytest.mark.slow
def test_infinite_inputs_stay_as_they_are():
    mask = jnp.array([0.0, -jnp.inf, 0.3])
    report = jaxgrad.audit(lambda x: jnp.logaddexp(x, mask), X)
    assert report.verdict is RuleVerdict.AGREE


@pytest.mark.slow
def test_rounding_is_no_mistake():
    # The rule rounds as much as its arguments are large.
    x = jnp.array([-1e5, -1e5 + 1])
    assert jaxgrad.audit(lambda x: jnp.logaddexp(x, x[::-1]), x).verdict is RuleVerdict.AGREE
    # In bfloat16 an error of 1 % is as large as rounding.
    x = X.astype(jnp.bfloat16)
    assert failing(jaxgrad.audit(lambda x: WRONG(x), x))[0][:2] == ("x", "rev")
    assert jaxgrad.audit(lambda x: RIGHT(x), x).verdict is RuleVerdict.AGREE


@pytest.mark.slow
def test_matrices_that_are_taken_for_symmetric():
    matrix = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    report = jaxgrad.audit(lambda a: jnp.linalg.cholesky(a), matrix, primitives=True)
    assert "cholesky" in {row.name for row in report.rules}
    assert report.verdict is RuleVerdict.AGREE


def test_numbers_of_the_program_are_not_moved():
    report = jaxgrad.audit(lambda x: jax.lax.clamp(0.5, x, 1.0), X, primitives=True)
    (row,) = {row.argument for row in report.rules if row.name == "clamp"}
    assert row == "input 1"


def test_numbers_close_to_underflow_accuse_nobody():
    assert jaxgrad.audit(lambda x: square(1.0)(x), jnp.full(3, 1e-30))


@pytest.mark.slow
def test_operations_of_jax():
    report = jaxgrad.audit(lambda x: jnp.sin(jnp.cumsum(x)) @ (2 * x), X, primitives=True)
    names = {row.name for row in report.rules}
    assert {"sin", "cumsum", "dot_general", "mul"} <= names
    assert {row.kind for row in report.rules} == {"primitive"}
    assert report.verdict is RuleVerdict.AGREE


def test_rules_are_compared_with_the_derivative_of_the_body():
    errors = [jaxgrad.audit(lambda x, f=f: f(x), X).rules[0].body_error for f in (RIGHT, WRONG)]
    assert errors[0] < 1e-6
    assert errors[1] == pytest.approx(0.01, rel=1e-4)


def test_dictionaries():
    report = jaxgrad.audit(lambda x: WRONG(x), X)
    fields = report.to_dict()
    assert fields["rules"][0]["verdict"] == fields["verdict"] == "WRONG"
    assert not fields["ok"]
    assert json.loads(json.dumps(fields, default=str))


def test_the_same_key_samples_the_same_iterations():
    def f(xs):
        return jax.lax.scan(lambda c, a: (RIGHT(a) + c, None), 0.0, xs)[0]

    xs = jnp.linspace(0.1, 1, 50)
    values = [jaxgrad.audit(f, xs, key=jax.random.key(k)).rules[0].value for k in (1, 1)]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jaxgrad.audit(3, X), "f must be a function, got int"),
        (lambda: jaxgrad.audit(jnp.sin, X, iterations=0), "iterations must be"),
        (lambda: jaxgrad.audit(jnp.sin, X, rtol=-1.0), "rtol must be"),
        (lambda: jaxgrad.audit(jnp.sin, X, key=3), "key must be one PRNG key"),
        (lambda: jax.jit(lambda x: jaxgrad.audit(jnp.sin, x))(X), "got a tracer"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.slow
def test_check_grads_names_the_wrong_rule_of_several():
    right, wrong = square(1.0), sine(1.01)
    report = jaxgrad.check_grads(lambda x: jnp.sum(right(wrong(x)) + jax.nn.relu(x)), X)
    line = wrong.bwd.__code__.co_firstlineno
    assert (
        f"wrong by itself: <lambda> (rule: <lambda> defined at test_audit.py:{line}, output 1 (x))"
        in report.notes
    )
    assert np.isfinite(report.leaves[0].numeric)
