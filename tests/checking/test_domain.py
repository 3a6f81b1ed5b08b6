"""`check_domain`: points where gradients fail are discovered and shrunk, and no others."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import checking
from jaxgrad.checking import interval

NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


def check_domain(f, *domains, points=256, judged=60, **options):
    """A search that takes about a second."""
    return checking.check_domain(f, *domains, points=points, judged=judged, **options)


def vector(n):
    return jax.ShapeDtypeStruct((n,), jnp.float32)


def sinc(x):
    return jnp.where(x == 0, 1.0, jnp.sin(x) / x)


def late_softplus(x):
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(x)))


def squared_norm(x):
    return jnp.linalg.norm(x) ** 2


@jax.custom_jvp
def nearly_sin(x):
    return jnp.sin(x)


nearly_sin.defjvp(lambda xs, ts: (jnp.sin(xs[0]), 1.01 * jnp.cos(xs[0]) * ts[0]))


@jax.custom_jvp
def wrong_above_seven(x):
    return jnp.sin(x)


wrong_above_seven.defjvp(
    lambda xs, ts: (jnp.sin(xs[0]), jnp.where(xs[0] > 7.3, 0.5, jnp.cos(xs[0])) * ts[0])
)


def gap(x):
    return jnp.sum(jnp.sqrt((x[1:] - x[:-1]) ** 2) ** 3)


FAILURES = [
    (sinc, (NUMBER,), "NONFINITE", 0.0),
    (late_softplus, (NUMBER,), "NONFINITE", 100.0),
    (squared_norm, (vector(3),), "NONFINITE", [0.0, 0.0, 0.0]),
    (nearly_sin, (NUMBER,), "WRONG", None),
    (wrong_above_seven, (NUMBER,), "WRONG", 10.0),
    (jnp.tanh, (NUMBER,), "LOST", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("f", "domains", "kind", "simplest"), FAILURES)
def test_failures_are_discovered_and_shrunk(f, domains, kind, simplest):
    report = check_domain(f, *domains)
    assert not report
    assert report.findings[0].kind == kind
    arguments = [np.asarray(finding.arguments[0]).tolist() for finding in report.findings]
    assert simplest is None or simplest in arguments


RIGHT = [
    (jnp.sin, (NUMBER,)),
    (jnp.exp, (NUMBER,)),
    (jnp.abs, (NUMBER,)),
    (jnp.sqrt, (NUMBER,)),
    (jnp.floor, (NUMBER,)),
    (jnp.arcsin, (NUMBER,)),
    (jnp.max, (vector(3),)),
    (jnp.prod, (interval(-9.0, 9.0, shape=(4,)),)),
    (lambda x, y: x * y, (NUMBER, NUMBER)),
    # Close to 3 the sum with 3 rounds to 6, beyond the kink.
    (jax.nn.hard_sigmoid, (NUMBER,)),
    # Of equal numbers it has no derivative, although it changes along no coordinate.
    (jnp.median, (vector(3),)),
    # The derivative passes through zero at 1 / e.
    (lambda x: x * jnp.log(x), (interval(0.36787, 0.36789),)),
    (lambda x: jnp.where(x > 0, x, 2 * x), (NUMBER,)),
]


@pytest.mark.parametrize(("f", "domains"), RIGHT)
@pytest.mark.slow
def test_right_gradients_give_no_findings(f, domains):
    report = check_domain(f, *domains)
    assert report.ok, str(report)
    assert report.judged > 5


@pytest.mark.slow
def test_the_line_of_a_finding_reproduces_it():
    (finding,) = check_domain(late_softplus, NUMBER).findings
    assert finding.code == "jax.grad(late_softplus)(jnp.float32(100.0))"
    assert math.isnan(eval(finding.code, {"jax": jax, "jnp": jnp, "late_softplus": late_softplus}))
    assert finding.derivative == "1.0"
    # Exp overflows from log(3.4e38) on.
    assert finding.region == "x >= 88.7"


def several(x, y):
    return {"first": jnp.sin(x), "second": late_softplus(y) + jnp.zeros(2)}


def complex_output(x):
    return jnp.exp(1j * x) * late_softplus(x)


def with_data(x):
    return late_softplus(x), {"data": x}


@pytest.mark.parametrize(
    ("f", "count", "has_aux"),
    [(several, 2, False), (complex_output, 1, False), (with_data, 1, True)],
)
@pytest.mark.slow
def test_lines_reproduce_findings_of_several_outputs(f, count, has_aux):
    report = check_domain(f, *[NUMBER] * count, has_aux=has_aux)
    finding = next(finding for finding in report.findings if finding.kind == "NONFINITE")
    gradient = eval(finding.code, {"jax": jax, "jnp": jnp, f.__name__: f})
    assert not all(jnp.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_operations_that_arbitrary_precision_does_not_know_are_checked_numerically():
    @jax.custom_jvp
    def on_host(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(lambda v: np.sin(v), shape, x, vmap_method="sequential")

    on_host.defjvp(lambda xs, ts: (on_host(xs[0]), 1.1 * jnp.cos(xs[0]) * ts[0]))
    report = check_domain(on_host, interval(-2.0, 2.0), points=64, judged=20)
    assert report.findings[0].kind == "WRONG"


@pytest.mark.slow
def test_ranges_end_where_the_failure_ends():
    (finding,) = check_domain(wrong_above_seven, interval(-20.0, 20.0)).findings
    assert finding.region == "x >= 7.3"
    report = check_domain(sinc, NUMBER)
    # The square of a number below the root of the smallest one is zero.
    assert report.findings[0].region == "-1.08e-19 <= x <= 1.08e-19"
    # The difference of 1 / x and 1 / x rounds to zero.
    assert {finding.kind for finding in report.findings[1:]} == {"LOST"}
    assert len(report.findings) <= 3


@pytest.mark.slow
def test_points_without_a_derivative_are_counted():
    states = dict(check_domain(jnp.floor, NUMBER).states)
    assert states["discontinuous"] > 0
    assert dict(check_domain(jnp.abs, NUMBER).states)["kink"] > 0
    assert dict(check_domain(jnp.sqrt, NUMBER).states)["undefined"] > 0


@pytest.mark.slow
def test_intervals_bound_the_search():
    assert check_domain(wrong_above_seven, interval(-20.0, 7.0)).ok
    assert check_domain(jnp.tanh, interval(-2.0, 2.0)).ok
    assert check_domain(squared_norm, interval(0.1, 2.0, shape=(3,))).ok


@pytest.mark.slow
def test_branches_are_entered():
    def narrow(x):
        y = x * 3.7
        wrong = jax.lax.stop_gradient(y) + 0 * x
        return jnp.where((y > 11.13) & (y < 11.1300001 + 1e-5), wrong, y)

    (finding,) = check_domain(narrow, NUMBER).findings
    assert finding.kind == "WRONG"
    assert abs(float(finding.arguments[0]) - 11.13 / 3.7) < 1e-5


@pytest.mark.slow
def test_several_arguments_pytrees_and_fixed_leaves():
    def f(params, count):
        return params["a"] * jnp.sqrt(jnp.sum(params["b"] ** 2) * count) ** 2

    report = check_domain(f, {"a": NUMBER, "b": vector(2)}, jnp.int32(3))
    finding = report.findings[0]
    assert finding.kind == "NONFINITE"
    assert np.all(np.asarray(finding.arguments[0]["b"]) == 0)
    assert int(finding.arguments[1]) == 3


@pytest.mark.slow
def test_argnums_selects_what_is_differentiated():
    def f(x, y):
        return x * sinc(y)

    assert check_domain(f, NUMBER, interval(-1.0, 1.0), argnums=0).ok
    assert not check_domain(f, NUMBER, interval(-1.0, 1.0), argnums=1)


@pytest.mark.slow
def test_types_are_tried_in_turn():
    report = check_domain(late_softplus, NUMBER, dtypes=(jnp.float16, jnp.float64))
    assert {finding.dtype for finding in report.findings} == {"float16", "float64"}
    assert {f.region for f in report.findings if f.dtype == "float64"} == {"x >= 710"}
    assert "jnp.float16(" in str(report)


@pytest.mark.slow
def test_gradients_that_overflow_or_underflow_are_right():
    assert check_domain(lambda x: x**3, NUMBER).ok
    assert check_domain(lambda x: 1 / x, NUMBER).ok
    assert check_domain(lambda x: jnp.exp(-(x**2)), interval(-3.0, 3.0)).ok


@pytest.mark.slow
def test_reports_as_data():
    report = check_domain(squared_norm, vector(2))
    data = json.loads(report.to_json())
    assert data["findings"][0]["arguments"] == [[0.0, 0.0]]
    assert data["findings"][0]["autodiff"] == "nan"
    assert not data["ok"]
    assert "jnp.zeros((2,))" in str(report)


@pytest.mark.slow
def test_searches_can_be_repeated():
    first, second = (str(check_domain(gap, vector(3))) for _ in range(2))
    assert first == second
    other = check_domain(gap, vector(3), key=jax.random.key(1))
    assert not other


@pytest.mark.slow
def test_half_of_the_digits_on_request():
    def cancel(x):
        return (1 + x) ** 2 - 1 - 2 * x

    domain = interval(1e-6, 1e-4)
    assert check_domain(cancel, domain).ok
    assert not check_domain(cancel, domain, lost=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3, NUMBER), {}, "f must be a function"),
        ((jnp.sin, jnp.int32(1)), {}, "floating-point leaf"),
        ((jnp.sin, jax.ShapeDtypeStruct((), jnp.int32)), {}, "domains"),
        ((jnp.abs, jnp.complex64(1)), {}, "must be real"),
        ((lambda x: float(x), NUMBER), {}, "f raised ConcretizationTypeError"),
        ((lambda x: x > 0, NUMBER), {}, "f must return a floating-point"),
        ((jnp.sin, NUMBER), {"points": 1}, "points must be at least"),
        ((jnp.sin, NUMBER), {"lost": 0.0}, "lost must be"),
        ((jnp.sin, NUMBER), {"argnums": -2}, "argnums must be"),
    ],
)
def test_errors_name_the_argument(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_domain(*arguments, **options)


def test_intervals_are_checked():
    with pytest.raises(ValueError, match="low must not exceed high"):
        interval(1.0, 0.0)
    with pytest.raises(TypeError, match="dtype must be"):
        interval(dtype=jnp.int32)
