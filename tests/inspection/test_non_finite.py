"""Which operation makes a loss or gradient infinite or NaN, where, why, and what mends it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import nan_gradients
from benchmarks.nan_gradients_clean import CLEAN
from benchmarks.nan_gradients_functions import CASES
from jaxgrad.inspection import _xray, explain_non_finite, xray
from jaxgrad.inspection._causes import CAUSES


def line_of(function, text):
    """File and line of the first line of a function that has a text."""
    lines, start = inspect.getsourcelines(function)
    number = start + next(i for i, line in enumerate(lines) if text in line)
    return f"{__file__}:{number}:"


def branch_not_taken(x):
    y = jnp.sqrt(x)
    return jnp.sum(jnp.where(x > 0, y, 0.0))


def test_a_branch_that_is_not_taken_is_named_and_mended():
    (problem,) = explain_non_finite(branch_not_taken, jnp.array([4.0, 0.0, 9.0]))
    assert (problem.direction, problem.operation) == ("backward", "sqrt")
    assert problem.line.startswith(line_of(branch_not_taken, "sqrt"))
    assert problem.element == ((1,), (0.0,), 0.0, 0.0)
    assert problem.cause.startswith(CAUSES["branch"])
    # The line of the selection.
    assert line_of(branch_not_taken, "where").split("/")[-1] in problem.cause
    assert problem.rewrite == "jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)"


@pytest.mark.slow
def test_the_first_operation_of_the_forward_pass_is_told():
    def loss(w, x):
        y = jnp.log(x - 1) * w
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sqrt(w))

    first, *others = explain_non_finite(loss, jnp.array([2.0, 0.0]), jnp.array([1.0, 3.0]))
    assert (first.direction, first.operation) == ("forward", "log")
    assert first.cause == CAUSES["log"]
    assert first.element.inputs == (0,)
    # With that line changed, the gradient of the other is still infinite.
    assert [(r.direction, r.operation) for r in others] == [("backward", "sqrt")]
    assert first.rewrite
    assert others[0].rewrite


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_iterations_are_those_of_the_data(reverse):
    def loss(scale, x):
        def row(total, values):
            def element(total, value):
                return total + jnp.sqrt(scale * value), None

            return jax.lax.scan(element, total, values, reverse=reverse)[0], None

        return jax.lax.scan(row, 0.0, x)[0]

    x = jnp.ones((3, 5)).at[1, 3].set(0.0)
    (problem,) = explain_non_finite(loss, jnp.float32(1), x)
    assert (problem.operation, problem.iteration) == ("sqrt", (1, 3))
    assert problem.element.inputs == (0,)


@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "vmap", "cond"])
def test_transformations_are_searched(wrap):
    def root(x):
        return jnp.sqrt(x)

    wrapped = {
        "jit": jax.jit(root),
        "checkpoint": jax.checkpoint(root),
        "vmap": jax.vmap(root),
        "cond": lambda x: jax.lax.cond(x[0] > 0, root, lambda x: x, x),
    }[wrap]
    (problem,) = explain_non_finite(lambda x: wrapped(x).sum(), jnp.array([1.0, 0.0]))
    assert problem.operation == "sqrt"
    assert problem.line.startswith(line_of(root, "sqrt"))
    assert problem.element.position == (1,)
    assert problem.rewrite


@pytest.mark.slow
def test_intended_infinities_are_not_accused():
    def loss(w):
        mask = jnp.tril(jnp.ones((2, 2), bool))
        weights = jax.nn.softmax(jnp.where(mask, w, -jnp.inf) + jnp.log(mask.astype(w.dtype)))
        return jnp.sum(weights**2) + jnp.sqrt(w[0, 0])

    (problem,) = explain_non_finite(loss, jnp.array([[0.0, 1.0], [2.0, 3.0]]))
    assert problem.operation == "sqrt"
    assert explain_non_finite(lambda w: loss(w + 1), jnp.array([[0.0, 1.0], [2.0, 3.0]])) == ()


@pytest.mark.slow
def test_an_empty_row_of_a_mask_is_not_the_fault_of_the_mask():
    def loss(scores, mask):
        return jnp.sum(jax.nn.softmax(scores + mask) ** 2)

    mask = jnp.array([[0.0, 0.0], [-jnp.inf, -jnp.inf]])
    (problem,) = explain_non_finite(loss, jnp.ones((2, 2)), mask)
    assert (problem.operation, problem.cause) == ("sub", CAUSES["difference"])
    assert problem.line.startswith(line_of(loss, "softmax"))
    assert problem.element.position[0] == 1


@jax.custom_vjp
def double(x):
    return 2 * x


def double_backward(_, g):
    return (g / 0,)


double.defvjp(lambda x: (2 * x, None), double_backward)


@jax.custom_jvp
def treble(x):
    return 3 * x


@treble.defjvp
def treble_rule(x, t):
    return treble(*x), t[0] / (x[0] - x[0])


@pytest.mark.parametrize(
    ("f", "rule", "text"), [(double, double_backward, "def"), (treble, treble_rule, "return")]
)
def test_the_rule_of_the_user_is_named(f, rule, text):
    (problem,) = explain_non_finite(lambda x: jnp.sum(f(x)), jnp.ones(2))
    assert problem.cause == CAUSES["rule"]
    assert problem.operation == f.__name__
    assert (problem.line + ":").startswith(line_of(rule, text)[:-1])
    assert problem.rewrite == ""


def test_an_argument_that_is_not_finite():
    params, data = {"w": jnp.ones(2)}, {"x": jnp.array([1.0, jnp.nan])}
    (problem,) = explain_non_finite(lambda p, d: jnp.sum(p["w"] * d["x"]), params, data)
    assert (problem.operation, problem.parameter) == ("argument", "args[1]['x']")


def test_a_rewrite_that_changes_the_value_is_not_shown():
    def loss(x):
        return jnp.sum(x ** jnp.zeros(1))

    # The mask with 0, which is tried first, makes the loss 0 instead of 1.
    (problem,) = explain_non_finite(loss, jnp.array([0.0]))
    assert (problem.operation, problem.cause) == ("pow", CAUSES["power"])
    assert problem.rewrite == "jnp.where(x > 0, jnp.where(x > 0, x, 1) ** y, 1)"


@pytest.mark.slow
def test_a_rewrite_must_hold_for_other_parameters():
    # At 2 the loss is NaN, so that it cannot show whether the bound is right; at 0.2 it can.
    def loss(x):
        return jnp.sum(jnp.arctanh(x))

    (problem,) = explain_non_finite(loss, jnp.array([2.0]))
    assert problem.rewrite == "jnp.arctanh(jnp.clip(x, -1 + 1e-6, 1 - 1e-6))"

    # The diagonal that makes a matrix positive definite changes the loss of one which is that.
    def determinant(scale):
        points = jnp.arange(3.0)
        kernel = jnp.exp(-(((points[:, None] - points[None]) / scale) ** 2))
        return jnp.linalg.cholesky(kernel)[-1, -1] ** 2 * 1e6

    (problem,) = explain_non_finite(determinant, 1e4)
    assert problem.operation == "cholesky"
    assert problem.rewrite == ""


@pytest.mark.slow
def test_float16_is_computed_in_float32():
    (problem,) = explain_non_finite(lambda x: jnp.mean(x * x), jnp.full(4, 300, jnp.float16))
    assert problem.cause == "overflow of float16"
    assert problem.rewrite == "compute in float32"


def test_words():
    trace = xray(branch_not_taken, jnp.array([4.0, 0.0]))
    line = line_of(branch_not_taken, "sqrt").split("/")[-1]
    assert str(trace).startswith(f"the gradient is not finite because of sqrt in {line}")
    assert "where its input is 0 (element [1])" in str(trace)
    assert [problem.operation for problem in trace.non_finite] == ["sqrt"]


def masked_by_a_product(x):
    return jnp.sum((x > 0) * jnp.sqrt(x))


@pytest.mark.slow
@pytest.mark.parametrize(("x", "direction"), [(-4.0, "forward"), (0.0, "backward")])
def test_what_xla_hides_is_told(x, direction):
    args = jnp.array([x, 9.0])
    assert np.all(np.isfinite(jax.jit(jax.grad(masked_by_a_product))(args)))
    with jax.disable_jit():
        assert np.isnan(jax.grad(masked_by_a_product)(args)[0])
    for (problem,) in (
        explain_non_finite(masked_by_a_product, args),
        xray(masked_by_a_product, args).non_finite,
    ):
        assert (problem.direction, problem.operation) == (direction, "sqrt")
        assert problem.element.inputs == (x,)
        assert problem.compiled == "finite"
        assert str(problem).startswith("operation by operation, the ")
        assert str(problem).endswith("compiled by jax.jit, loss and gradient are finite")
        assert problem.rewrite


def test_a_rewrite_keeps_what_xla_computes():
    (problem,) = explain_non_finite(lambda x: jnp.log(jnp.exp(x)), 100.0)
    assert (problem.operation, problem.compiled) == ("exp", "finite")
    # A bound of the exponent would make the loss 88 instead of 100.
    assert problem.rewrite == ""


def test_what_only_xla_makes_is_told():
    def loss(x, y):
        return x / y[0] / y[1] * 1e-30

    # XLA divides by the product of both, which underflows.
    args = 1e-30, jnp.array([1e-25, 1e-25])
    assert np.isinf(jax.jit(loss)(*args))
    (problem,) = explain_non_finite(loss, *args)
    assert (problem.operation, problem.cause) == ("jit", CAUSES["compiled"])
    assert problem.compiled == ""


def test_zero_is_multiplied_by_what_is_there():
    for x, text in ((0.0, "inf"), (-4.0, "nan")):
        (problem,) = explain_non_finite(branch_not_taken, jnp.array([x, 9.0]))
        assert problem.cause.startswith(f"0 * {text} in a branch that is not taken")
        assert problem.cause.endswith(CAUSES["domain"]) == (text == "nan")
        assert problem.rewrite


def in_a_branch(x):
    return jnp.sum(jnp.where(x > 0, jnp.log(x), jnp.sqrt(x) * 0.0))


def in_a_part(x):
    return jnp.sum(jnp.concatenate([jnp.log(x), jnp.sqrt(x - 3)])[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("f", "x"), [(in_a_branch, [-1.0]), (in_a_part, [-1.0, 5.0])])
def test_an_operation_without_part_in_the_loss_is_not_its_cause(f, x):
    first, *others = explain_non_finite(f, jnp.array(x))
    assert (first.direction, first.operation, first.together) == ("forward", "sqrt", ())
    # The logarithm spoils at most the gradient.
    assert all(other.direction == "backward" for other in others)


@pytest.mark.slow
def test_several_causes_and_rewrites_are_told_together():
    def loss(x):
        return jnp.sum(jnp.log(x)) + jnp.sum(jnp.sqrt(x - 1))

    results = explain_non_finite(loss, jnp.array([0.0, 3.0]))
    assert {problem.operation for problem in results} == {"log", "sqrt"}
    for problem, other in (results, results[::-1]):
        assert problem.direction == "forward"
        assert problem.together == problem.tried_with == (other.label,)
        assert f", together with {other.label}; instead, {problem.rewrite} " in str(problem)
        assert f"(tried with the rewrite of {other.label}: loss and" in str(problem)
    # Alone it is enough.
    (problem,) = explain_non_finite(loss, jnp.array([1.0, 3.0]))
    assert problem.together == problem.tried_with == ()
    assert str(problem).endswith("(tried: loss and gradient are finite)")


@pytest.mark.slow
def test_an_overflow_that_became_finite_is_named():
    def loss(x):
        return -jnp.log(jnp.exp(x[0]) / jnp.sum(jnp.exp(x)))

    first = explain_non_finite(loss, jnp.array([0.0, 120.0]))[0]
    assert first.cause.startswith(f"{CAUSES['log']}, since exp in test_non_finite.py:")
    assert first.cause.endswith("is inf where its input is 120")
    # Without an overflow there is nothing to name.
    (problem,) = explain_non_finite(lambda x: jnp.log(x[0]) + jnp.exp(-x[1]), jnp.array([0.0, 120]))
    assert problem.cause == CAUSES["log"]


def test_a_finite_model_is_not_searched(monkeypatch):
    monkeypatch.setattr(_xray, "diagnose", lambda problem: 1 / 0)
    assert xray(branch_not_taken, jnp.array([4.0, 1.0])).non_finite == ()


def test_a_while_loop_is_told_as_a_whole():
    def loss(x):
        y = jax.lax.while_loop(lambda y: y < 1e38, lambda y: y * 1e30, x)
        return x * jax.lax.stop_gradient(y)

    (problem,) = explain_non_finite(loss, 1e20)
    assert (problem.direction, problem.operation) == ("forward", "while")
    assert problem.line.startswith(line_of(loss, "while_loop"))


def test_no_rewrite_is_tried_where_a_loop_might_never_end():
    def loss(x):
        y = jnp.log(x - 1)
        # With NaN or a positive number it ends.
        end = jax.lax.while_loop(lambda y: y[0] < 3, lambda y: y + y, jax.lax.stop_gradient(y))
        return jnp.sum(y * end)

    (problem,) = explain_non_finite(loss, jnp.array([3.0, 1.0]))
    assert (problem.operation, problem.rewrite) == ("log", "")


def test_a_choice_without_operations_is_computed_in_a_wider_type_too():
    def loss(x):
        chosen = jax.lax.cond(x[0] > 0, lambda x, y: x, lambda x, y: y, x, 2 * x)
        return jnp.sum(jnp.cosh(chosen)) / 1000

    (problem,) = explain_non_finite(loss, jnp.array([12.0, 1.0], jnp.float16))
    assert problem.cause == f"{CAUSES['overflow']} of float16"
    assert problem.rewrite == "compute in float32"


def with_callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jnp.sum(x * jax.pure_callback(np.sin, shape, jax.lax.stop_gradient(x)))


def with_keys(x):
    keys = jax.random.split(jax.random.key(0), 3)
    return jnp.sum(jax.lax.scan(lambda c, k: (c * jax.random.normal(k), None), x, keys)[0])


def with_complex_numbers(x):
    return jnp.sum(jnp.abs(2j * jnp.fft.rfft(x)) ** 2)


def with_a_linear_solve(x):
    return jnp.sum(jnp.linalg.solve(jnp.diag(x + 1), x))


@pytest.mark.slow
@pytest.mark.parametrize("f", [with_callback, with_keys, with_complex_numbers, with_a_linear_solve])
def test_what_cannot_be_opened_does_not_disturb(f):
    (problem,) = explain_non_finite(lambda x: f(x) + jnp.sqrt(x[0]), jnp.array([0.0, 1.0, 2.0]))
    assert (problem.operation, problem.element.inputs) == ("sqrt", (0,))
    assert problem.rewrite


def test_bad_arguments():
    with pytest.raises(TypeError, match="loss must be a function"):
        explain_non_finite(3, 1.0)


# `python -m benchmarks.nan_gradients` runs all of them.
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.loss.__name__)
def test_reports_of_issue_trackers(case):
    with jax.numpy_rank_promotion("allow"):
        result = nan_gradients.run(case)
    assert result[:3] == (True, True, True), result.text


@pytest.mark.slow
@pytest.mark.parametrize(("f", "args"), CLEAN[::4], ids=lambda x: getattr(x, "__name__", ""))
def test_nothing_is_accused_in_clean_functions(f, args):
    with jax.numpy_rank_promotion("allow"):
        value, gradient = jax.value_and_grad(f, allow_int=True)(*args)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((value, gradient)))
        assert nan_gradients.accusations(f, args) == []
