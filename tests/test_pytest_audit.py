import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxgrad import _jaxprs, _pytest_audit

pytest_plugins = "pytester"
SUITE = """
import jax, jax.numpy as jnp, pytest

@jax.custom_vjp
def scaled(x):
    return jnp.sin(x)

def scaled_backward(x, ct):
    return (1.01 * ct * jnp.cos(x),)

scaled.defvjp(lambda x: (scaled(x), x), scaled_backward)

@jax.custom_vjp
def straight(x):
    return jnp.round(x)

straight.defvjp(lambda x: (straight(x), None), lambda _, ct: (ct,))

def test_right():
    assert jax.nn.relu(jnp.ones(3)).sum() == 3

def test_twice():
    x = jnp.full(3, 0.3)
    assert jax.grad(lambda x: scaled(x).sum())(x).shape == scaled(x).shape
    assert straight(x).sum() == 0

@pytest.mark.parametrize("n", [2, 5])
def test_compiled(n):
    assert jax.jit(scaled)(jnp.ones(n)).shape == (n,)

def test_failing():
    assert jax.random.normal(jax.random.key(0)) == 100
"""


def run(pytester, *options):
    pytester.makepyfile(test_suite=SUITE)
    options = ("-p", "pytest_jaxgrad", "-p", "no:cacheprovider", "-n0", *options)
    return pytester.runpytest_inprocess(*options)


@pytest.mark.slow
def test_wrong_rules_are_named_with_line_and_test(pytester):
    before = [cls.__call__ for cls in _pytest_audit.CLASSES]
    result = run(pytester, "--jaxgrad")
    result.assert_outcomes(passed=4, failed=1)
    line = SUITE.strip().splitlines().index("def scaled_backward(x, ct):") + 1
    result.stdout.fnmatch_lines(
        [
            "* jaxgrad audit *",
            "*: 3 WRONG, 1 DIFFERS, 1 AGREE",
            "2 of them were called under jit alone*",
            f"WRONG: scaled, scaled_backward defined at test_suite.py:{line}, *3* and 2 other*",
            "  reverse mode, output 1 (x): the rule is 1.01 times the numeric one",
            "  first called in test_suite.py::test_twice",
            "DIFFERS: straight, <lambda> defined at test_suite.py:*",
        ]
    )
    assert [cls.__call__ for cls in _pytest_audit.CLASSES] == before


def test_nothing_happens_without_the_option(pytester):
    result = run(pytester)
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.no_fnmatch_line("*jaxgrad audit*")


def test_jax_is_not_imported_before_it_is_needed():
    code = "import sys, pytest_jaxgrad; assert not {'jax', 'jaxgrad'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def recorded(call):
    records = {}
    with _pytest_audit.recording(records, lambda: "test"):
        call()
    return [r for variants in records.values() for r in variants.values()]


def test_inputs_of_gradients_are_known_and_those_under_jit_are_not():
    x = jnp.arange(3.0)
    (eager,) = recorded(lambda: jax.grad(lambda x: jax.nn.relu(x).sum())(x))
    assert eager.leaves[0] is x
    (traced,) = recorded(lambda: jax.jit(lambda x: jax.nn.relu(x + 1))(x))
    assert traced.random
    assert traced.leaves == [jax.ShapeDtypeStruct((3,), x.dtype)]


def test_known_inputs_replace_those_that_are_not():
    def both():
        jax.jit(lambda x: jax.nn.relu(x - 1))(jnp.arange(3.0))
        jax.nn.relu(jnp.arange(3.0))

    assert [r.random for r in recorded(both)] == [False]


def test_results_programs_and_lines_stay_what_they_are():
    def program():
        return jax.make_jaxpr(lambda x: jax.nn.relu(x) + 1)(jnp.arange(3.0))

    programs = [program()]
    recorded(lambda: programs.append(program()))
    lines = [list(map(_jaxprs.source_line, p.eqns)) for p in programs]
    assert str(programs[0]) == str(programs[1])
    assert lines[0] == lines[1]
    assert "test_pytest_audit.py" in lines[0][0]


@pytest.mark.parametrize("wide", [True, False])
def test_float64_is_audited_in_float64(wide):
    records = {}
    with _pytest_audit.recording(records, lambda: "test"), jax.enable_x64(wide):
        jax.nn.relu(jnp.array([1.0, 2.0]))
    (outcome,) = _pytest_audit.audit_records(records)
    assert outcome.inputs == ("float64[2]" if wide else "float32[2]")
    assert outcome.verdict == "AGREE"


def test_a_function_that_needs_what_a_trace_held_is_counted():
    def closure():
        def outer(c):
            f = jax.custom_jvp(lambda x: c * x)
            f.defjvp(lambda x, t: (f(*x), c * t[0]))
            return f(jnp.ones(3))

        jax.jit(outer)(2.0)

    records = {}
    with _pytest_audit.recording(records, lambda: "test"):
        closure()
    outcomes = _pytest_audit.audit_records(records)
    assert [o.verdict for o in outcomes] == [_pytest_audit.FAILED]
    assert "1 could not be called again" in _pytest_audit.summary(outcomes)[-1]
