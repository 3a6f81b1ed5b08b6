"""Verdicts on numbers: kinks, edges of the domain, tolerances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import Verdict, check_grads
from jaxgrad.checking._compare import judge
from jaxgrad.checking._report import ORDER
from jaxgrad.checking._step_sizes import Derivative
from tests.checking.cases import by_path, with_backward


@pytest.mark.slow
def test_detectable_errors_are_detected_and_smaller_ones_are_not_promised(key):
    w = jax.random.normal(key, (30,))

    def f(w):
        return jnp.sum(jnp.sin(w))

    detectable = check_grads(f, w).leaves[0].minimum_detectable
    for size, expected in ((1.1, Verdict.WRONG), (-1.1, Verdict.WRONG), (1e-3, Verdict.AGREE)):

        def backward(args, ct, size=size):
            return (ct * jnp.cos(args[0]).at[4].add(size * detectable),)

        with jax.enable_x64(True):
            report = check_grads(with_backward(f, backward), w)
        assert report.verdict is expected


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: jnp.sum(jnp.abs(x)), [0.0, 1.0, -2.0]),
        (lambda x: jnp.sum(jax.nn.relu(x)), [0.0, 1.0]),
        (jnp.max, [2.0, 2.0, 1.0]),
        (lambda x: jnp.sum(jnp.clip(x, -1, 1)), [1.0, 0.3]),
        (lambda x: jnp.sum(jnp.sort(x) * jnp.arange(3.0)), [1.0, 1.0, 0.5]),
        (lambda x: jnp.abs(x[0] - x[1]) ** 1.0 + x[2], [3.0, 3.0, 1.0]),
    ],
)
def test_kinks_are_kinks_not_errors(f, x):
    report = check_grads(f, jnp.float32(x))
    assert report.verdict is Verdict.KINK
    assert report.ok
    assert check_grads(f, jnp.float32(x), strict=True).ok
    assert "one-sided slopes" in report.leaves[0].reason


@pytest.mark.slow
def test_outside_of_the_one_sided_slopes_is_wrong():
    rule = with_backward(jax.nn.relu, lambda args, ct: (ct * jnp.where(args[0] >= 0, 1.5, 0.0),))
    report = check_grads(lambda x: jnp.sum(rule(x)), jnp.float32([0.0, -1.0]))
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].worst_index == (0,)


@pytest.mark.slow
def test_a_relu_network_with_a_large_batch_is_not_flagged(key):
    def loss(w, x):
        return jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2)

    for seed in range(4):
        keys = jax.random.split(jax.random.fold_in(key, seed), 3)
        w = [jax.random.normal(k, s) for k, s in zip(keys, ((8, 20), (20, 1)), strict=False)]
        # One function for all seeds, so that it is compiled once.
        report = check_grads(loss, w, jax.random.normal(keys[2], (200, 8)))
        assert report.verdict is Verdict.AGREE


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (jnp.linalg.norm, [0.0, 0.0]),
        (lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0)), [0.0, 1.0]),
        (lambda x: jnp.sum(jnp.where(x != 0, jnp.sin(x) / x, 1.0)), [0.0, 1.0]),
    ],
)
def test_a_nan_where_the_function_is_finite(f, x):
    report = check_grads(f, jnp.float32(x))
    assert report.verdict is Verdict.NONFINITE
    assert not report.ok


@pytest.mark.slow
def test_an_infinite_slope_at_an_edge_of_the_domain_is_no_gradient():
    report = check_grads(lambda x: jnp.sum(jnp.sqrt(x)), jnp.float32([0.0, 1.0]))
    assert report.verdict is Verdict.NONFINITE
    assert "finite here and on one side" in report.leaves[0].reason
    close = jnp.float32([1e-30, 1e-10, 1.0])
    assert check_grads(lambda x: jnp.sum(jnp.log(x)), close).verdict is Verdict.AGREE


@pytest.mark.slow
def test_the_tolerance_of_a_solver_is_no_mistake():
    matrix = jnp.diag(jnp.arange(1.0, 21.0)) + 0.1

    def solved(b, tol):
        solve = functools.partial(jax.scipy.sparse.linalg.cg, tol=tol)
        x = jax.lax.custom_linear_solve(
            lambda v: matrix @ v, b, lambda _, b: solve(matrix, b)[0], symmetric=True
        )
        return jnp.sum(x**3 * jnp.arange(20.0))

    b = jnp.linspace(1.0, 2.0, 20)
    assert check_grads(lambda b: solved(b, 1e-4), b).ok
    rule = with_backward(
        lambda b: solved(b, 1e-4), lambda args, ct: (0.99 * ct * jax.grad(solved)(args[0], 1e-4),)
    )
    assert check_grads(rule, b).verdict is Verdict.WRONG


@pytest.mark.parametrize("counted", [True, False])
def test_a_loop_with_a_counter_has_no_tolerance(counted):
    def f(x):
        # x^8 in both cases, after three steps or as soon as that exceeds 2.
        def test(c):
            return c[1] < 3 if counted else c[0] < 2.0

        return jax.lax.while_loop(test, lambda c: (c[0] ** 2, c[1] + 1), (x, 0))[0]

    rule = with_backward(f, lambda args, ct: (1.0005 * ct * 8 * args[0] ** 7,))
    report = check_grads(rule, 1.15)
    assert report.verdict is (Verdict.WRONG if counted else Verdict.AGREE)
    assert any("stop at a tolerance" in note for note in report.notes) is not counted


@pytest.mark.slow
def test_a_small_leaf_beside_a_large_one_and_a_regulariser(key):
    point = {"w": 1e3 * jax.random.normal(key, (30, 30)), "b": jnp.float32([1e-3, 2e-3])}

    def f(p):
        return 1e6 * jnp.sum(p["w"] ** 2) + jnp.sum(jnp.sin(p["b"]))

    def backward(args, ct):
        return ({"w": ct * 2e6 * args[0]["w"], "b": ct * 0.9 * jnp.cos(args[0]["b"])},)

    report = check_grads(with_backward(f, backward), point)
    found = by_path(report)
    assert found["['w']"].verdict is Verdict.AGREE
    # The bias moves the value by less than its rounding: said, not guessed.
    assert found["['b']"].verdict in (Verdict.WRONG, Verdict.UNRESOLVED)


def numeric(**fields):
    """Three numeric derivatives of value 1 with an error bar of 0.01."""
    ones = np.ones(3)
    values = {"value": ones, "error": 0.01 * ones, "left": ones, "right": ones, "noise": 0 * ones}
    values |= {"kink": np.zeros(3, bool), "sides": np.full(3, 2), "step": ones}
    values |= {"reach": ones} | fields
    return Derivative(**values)


@pytest.mark.parametrize(
    ("autodiff", "fields", "verdicts"),
    [
        ([1.0, 1.019, 0.981], {}, ["AGREE"] * 3),
        # One to two error bars decide nothing.
        ([1.021, 0.979, 1.029], {}, ["UNRESOLVED"] * 3),
        ([1.031, 0.969, -1.0], {}, ["WRONG"] * 3),
        ([np.nan, np.inf, 1.0], {}, ["NONFINITE", "NONFINITE", "AGREE"]),
        # At an edge of the domain an infinite slope may be right, but is no gradient.
        ([np.nan, np.inf, 1.0], {"sides": np.ones(3, int)}, ["NONFINITE", "NONFINITE", "AGREE"]),
        (
            [np.nan, 5.0, 1.0],
            {"sides": np.zeros(3, int), "error": np.full(3, np.inf)},
            ["UNRESOLVED"] * 3,
        ),
        ([1.0, 1.05, 1.2], {"error": np.full(3, 0.06)}, ["UNRESOLVED", "UNRESOLVED", "WRONG"]),
        (
            [0.0, 2.0, 2.03],
            {"kink": np.ones(3, bool), "left": np.zeros(3), "right": np.full(3, 2.0)},
            ["KINK", "KINK", "WRONG"],
        ),
    ],
)
def test_verdicts_on_numbers(autodiff, fields, verdicts):
    allowed, wide = np.full(3, 0.01), np.full(3, 0.05)
    positions = judge(np.array(autodiff), numeric(**fields), allowed, wide)
    assert [ORDER[i] for i in positions] == verdicts


def test_where_an_output_is_not_finite_neither_need_be_the_gradient():
    report = check_grads(jnp.arcsin, jnp.float32([1.2, 0.5]))
    assert report.verdict is Verdict.UNRESOLVED
    assert "an output of f is not finite" in report.leaves[0].reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: jnp.cos(x) - 1, 1e-6),
        (lambda x: jnp.sum(jnp.sqrt(1 + x**2) - 1), 1e-6 * np.arange(1.0, 5.0)),
        (lambda x: 1 - 2 * jax.nn.sigmoid(x), 1e-8),
        (lambda x: (lambda s: s * (1 - s) * (1 - 2 * s))(jax.nn.sigmoid(x)), 1e-8),
    ],
    ids=["cosine", "pseudo-Huber", "sigmoid", "its derivative"],
)
def test_values_that_cancel_are_no_mistake(f, x):
    assert check_grads(f, x).verdict is Verdict.AGREE
    wrong = with_backward(f, lambda args, ct: (1.05 * ct * jax.grad(f)(args[0]),))
    assert check_grads(wrong, x).verdict is Verdict.WRONG


@jax.custom_jvp
def expm1(x):
    """As in JAX before 0.12, where the derivative is 0 at -40."""
    return jnp.expm1(x)


expm1.defjvp(lambda x, t: (jnp.expm1(x[0]), t[0] * (jnp.expm1(x[0]) + 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("f", "x"), [(jnp.tanh, 20.0), (jax.nn.sigmoid, 40.0), (expm1, -40.0)])
def test_a_gradient_of_zero_agrees_only_if_another_one_would_have_been_seen(f, x):
    assert check_grads(f, x).verdict is Verdict.UNRESOLVED
    assert check_grads(lambda x: jnp.sum(x**3), jnp.zeros(3)).verdict is Verdict.AGREE


@pytest.mark.parametrize("modes", [("fwd",), ("rev",), ("fwd", "rev")])
def test_a_leaf_that_has_no_effect_agrees(modes):
    point = {"a": jnp.ones(2), "b": jnp.ones(2), "empty": jnp.ones((0, 3))}
    report = check_grads(lambda p: jnp.sum(p["a"] ** 2) + 0 * p["b"].sum(), point, modes=modes)
    assert report.verdict is Verdict.AGREE


def test_the_mode_that_is_wrong_is_named():
    def half(x):
        # Only the transposed solution is off.
        return jax.lax.custom_linear_solve(
            lambda v: 2 * v, x, lambda _, b: b / 2, lambda _, b: 0.55 * b
        )

    x = jnp.arange(1.0, 4.0)
    both = check_grads(half, x, modes=("fwd", "rev"))
    assert [(leaf.mode, leaf.verdict) for leaf in both.leaves] == [
        ("rev", Verdict.WRONG),
        ("fwd", Verdict.AGREE),
    ]
