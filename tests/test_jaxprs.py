"""What is read of traced programs: a test that fails here says what a version of JAX changed."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad import _jaxprs


def sine(x):
    return jnp.sin(x)


def with_jvp():
    rule = jax.custom_jvp(sine)
    rule.defjvp(lambda x, t: (jnp.sin(x[0]), jnp.cos(x[0]) * t[0]))
    return rule


def with_vjp():
    rule = jax.custom_vjp(sine)
    rule.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (ct * jnp.cos(x),))
    return rule


CALLS = {
    "jit": jax.jit(sine),
    "checkpoint": jax.checkpoint(sine),
    "custom_jvp": with_jvp(),
    "custom_vjp": with_vjp(),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_known_and_evaluated(name):
    closed = jax.make_jaxpr(CALLS[name])(0.5)
    (equation,) = closed.eqns
    called = _jaxprs.called_program(equation)
    assert called is not None, equation.primitive.name
    (value,) = _jaxprs.evaluate(called, [0.5], _jaxprs.bind)
    assert value == jnp.sin(0.5)
    assert [e.primitive.name for e in _jaxprs.equations_of(closed)][1:] == ["sin"]


@pytest.mark.parametrize("name", ["jit", "custom_jvp", "custom_vjp"])
def test_functions_have_their_names(name):
    (equation,) = jax.make_jaxpr(CALLS[name])(0.5).eqns
    assert _jaxprs.function_name(equation) == "sine"


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp"])
def test_rules_have_places_and_arguments(name):
    (equation,) = jax.make_jaxpr(CALLS[name])(0.5).eqns
    assert equation.primitive.name in _jaxprs.RULES
    place = _jaxprs.rule_places(equation)[0]
    file, _, line = place.removeprefix("<lambda> at ").rpartition(":")
    maker = with_jvp if name == "custom_jvp" else with_vjp
    assert (file, int(line)) == (__file__, maker.__code__.co_firstlineno + 2)
    assert _jaxprs.short_place(place) == f"<lambda> defined at test_jaxprs.py:{line}"
    assert _jaxprs.argument_names(equation) == ["x"]
    (stack,) = _jaxprs.stacks(equation.params["call_jaxpr"])
    # Above it are only frames of JAX.
    inner = next(frame for frame in stack if frame[1] == __file__)
    assert inner == ("sine", __file__, sine.__code__.co_firstlineno + 1)


def test_rules_that_jax_assembles_have_the_place_of_their_function():
    rule = jax.custom_jvp(sine)
    rule.defjvps(lambda t, out, x: jnp.cos(x) * t)
    (equation,) = jax.make_jaxpr(rule)(0.5).eqns
    assert _jaxprs.rule_places(equation)[0].startswith("sine at ")


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x),
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=3),
    ],
    ids=["cond", "loop", "scan"],
)
def test_loops_and_branches_are_no_calls(f):
    closed = jax.make_jaxpr(f)(0.5)
    outer = [e for e in closed.eqns if any(_jaxprs.inner_programs(e))]
    assert [_jaxprs.called_program(e) for e in outer] == [None]
    assert "sin" in [e.primitive.name for e in _jaxprs.equations_of(closed)]


def test_lines_and_scopes():
    def f(x):
        with jax.named_scope("outer"):
            return jnp.sin(x)

    (equation,) = jax.make_jaxpr(f)(0.5).eqns
    assert _jaxprs.scope(equation) == "outer"
    assert "test_jaxprs.py:" in _jaxprs.source_line(equation)
    (equation,) = jax.make_jaxpr(lambda x: f(x))(0.5).eqns
    inner, outer = _jaxprs.source_frames(equation)[:2]
    assert inner == _jaxprs.source_line(equation)
    assert "<lambda>" in outer


def test_compiled_functions_of_jax_have_no_lines():
    closed = jax.make_jaxpr(lambda x: jnp.linalg.norm(x))(jnp.ones(2))
    call = closed.eqns[-1]
    inner = _jaxprs.called_program(call).eqns
    assert _jaxprs.source_frames(call)
    assert [_jaxprs.source_frames(e) for e in inner] == [[]] * len(inner)


def test_the_scope_of_an_operation_is_that_of_its_derivative():
    def f(x):
        with jax.named_scope("outer"):
            return jnp.sqrt(x)

    scopes = [_jaxprs.scope(e) for e in jax.make_jaxpr(jax.grad(f))(0.5).eqns]
    assert len(scopes) > 1
    assert all("outer" in scope for scope in scopes)
