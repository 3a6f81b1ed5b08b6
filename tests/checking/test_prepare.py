"""Precision, functions that cannot be checked, and derivatives of second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import network, with_backward


def test_an_infinite_output_entry_counts_nothing():
    def f(x):
        return jnp.where(jnp.arange(4) < 2, jax.nn.log_softmax(x), -jnp.inf)

    assert check_grads(f, jnp.arange(4.0)).verdict is Verdict.AGREE


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_narrow_types_are_checked_in_float64(dtype):
    x = jnp.linspace(0.5, 2.0, 8).astype(dtype)
    report = check_grads(lambda x: jnp.sum(jnp.log(x)), x)
    leaf = report.leaves[0]
    assert leaf.verdict is Verdict.AGREE
    assert leaf.relative_error < 1e-8
    assert leaf.dtype == dtype
    assert leaf.working_error < 4 * float(jnp.finfo(dtype).eps)


def test_tiny_outputs_in_a_narrow_type():
    # With weights in inverse proportion to the outputs, the gradient would overflow.
    x = jnp.linspace(0.5, 2.0, 8).astype(jnp.float16)
    report = check_grads(lambda x: 1e-6 * jnp.outer(x, x), x)
    assert report.verdict is Verdict.AGREE
    assert report.leaves[0].relative_error < 1e-8


def test_an_output_with_a_small_gradient_counts_as_much_as_another():
    def f(x):
        return {"steep": 1e-9 * jnp.sin(1e3 * x), "flat": 1e3 + jnp.sin(x)}

    def backward(args, ct):
        (x,) = args
        return (1e-6 * ct["steep"] * jnp.cos(1e3 * x) + 1.001 * ct["flat"] * jnp.cos(x),)

    assert check_grads(f, 0.3).verdict is Verdict.AGREE
    assert check_grads(with_backward(f, backward), 0.3).verdict is Verdict.WRONG


def test_a_loop_that_starts_at_an_array_of_numpy():
    start = np.array([1.0, 2.0])

    def body(state):
        i, x, _ = state
        return i + 1, x, x * x

    def f(x):
        # JAX has converted `start` in the trace without float64, but the loop is one in float64.
        return jnp.sum(jax.lax.while_loop(lambda state: state[0] < 2, body, (0, x, start))[1])

    assert check_grads(f, jnp.ones(2), modes="fwd").verdict is Verdict.AGREE


@pytest.mark.slow
def test_a_gradient_that_xla_compiles_so_that_it_fails():
    matrix = jnp.eye(4) + jnp.arange(16.0).reshape(4, 4) / 20

    def f(x):
        return jnp.sum(jnp.abs(jnp.fft.fft(jnp.linalg.solve(matrix, x))) ** 2)

    x = jnp.sin(jnp.arange(16.0)).reshape(4, 4)
    report = check_grads(f, x)
    assert (report.verdict, report.precision) == (Verdict.AGREE, "float64")
    wrong = with_backward(f, lambda args, ct: (1.001 * ct * jax.grad(f)(args[0]),))
    assert check_grads(wrong, x).verdict is Verdict.WRONG


@pytest.mark.slow
def test_a_function_that_must_stay_in_float32():
    def f(x):
        return jax.lax.scan(
            lambda c, v: (c + jnp.sin(v).astype(jnp.float32), None), jnp.float32(0), x
        )[0]

    def strict_scan(x):
        # In float64 the carry changes its type, which `scan` refuses.
        return jax.lax.scan(lambda c, v: (c + jnp.sin(v), None), jnp.float32(0), x)[0]

    x = jnp.linspace(0.3, 2.0, 6)
    inside = check_grads(f, x)
    assert (inside.verdict, inside.precision) == (Verdict.AGREE, "float64")
    strict = check_grads(strict_scan, x)
    assert (strict.verdict, strict.precision) == (Verdict.AGREE, "float64")

    def host(x):
        kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), kind, x)

    right = with_backward(host, lambda args, ct: (ct * jnp.cos(args[0]),))
    wrong = with_backward(host, lambda args, ct: (1.2 * ct * jnp.cos(args[0]),))
    # What the host computes cannot be computed in another precision.
    given = check_grads(lambda x: strict_scan(right(x)), x)
    assert (given.verdict, given.precision) == (Verdict.AGREE, "the type of the arguments")
    assert given.leaves[0].minimum_detectable < 0.05
    assert "float64 was not possible" in str(given)
    assert check_grads(lambda x: strict_scan(wrong(x)), x).verdict is Verdict.WRONG


@pytest.mark.slow
def test_functions_that_cannot_be_traced_or_mapped(key):
    def branches(x):
        return jnp.sum(x**2) if x[0] > 0 else jnp.sum(x)

    x = jnp.arange(1.0, 4.0)
    report = check_grads(branches, x)
    assert report.ok
    assert "cannot be traced" in str(report)

    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), shape, x)

    good = with_backward(host, lambda args, ct: (ct * jnp.cos(args[0]),))
    bad = with_backward(host, lambda args, ct: (ct * jnp.sin(args[0]),))
    assert check_grads(lambda x: jnp.sum(good(x)), x).verdict is Verdict.AGREE
    assert check_grads(lambda x: jnp.sum(bad(x)), x).verdict is Verdict.WRONG


def test_a_tracer_that_may_not_be_used_is_an_error_of_the_function():
    def f(x):
        raise jax.errors.UnexpectedTracerError("a tracer of vmap")

    with pytest.raises(ValueError, match="f raised UnexpectedTracerError: a tracer of vmap"):
        check_grads(f, 1.0)


def test_a_function_that_is_not_finite():
    report = check_grads(lambda x: jnp.log(-jnp.sum(x)), jnp.ones(2))
    assert report.verdict is Verdict.NONFINITE
    assert "f itself" in report.leaves[0].reason


class Stateful:
    def __init__(self):
        self.calls = 0
        self.key = jax.random.key(0)

    def counter(self, x):
        self.calls += 1
        return jnp.sum(x) * self.calls

    def draw(self, x):
        self.key, key = jax.random.split(self.key)
        return jnp.sum(x * jax.random.normal(key, x.shape))

    @staticmethod
    def numpy(x):
        return jnp.sum(x * np.random.default_rng().normal(size=x.shape))

    @staticmethod
    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = jax.pure_callback(
            lambda: np.random.default_rng().normal(size=shape.shape).astype(shape.dtype), shape
        )
        return jnp.sum(x * noise)


@pytest.mark.parametrize("name", ["counter", "draw", "numpy", "host"])
def test_two_values_for_one_input(name):
    report = check_grads(getattr(Stateful(), name), jnp.ones(3))
    assert report.verdict is Verdict.NONDETERMINISTIC
    assert not report.ok
    assert "key" in report.leaves[0].reason


@pytest.mark.slow
def test_inside_jit_vmap_scan_and_a_large_scan(key):
    x = jax.random.normal(key, (6, 4))

    @jax.jit
    def f(x):
        rows = jax.vmap(lambda r: jax.lax.scan(lambda c, v: (jnp.tanh(c + v), c), 0.0 * r[0], r))(x)
        return jnp.sum(rows[0]) + jnp.sum(rows[1] ** 2)

    assert check_grads(f, x).verdict is Verdict.AGREE


@pytest.mark.slow
def test_functions_that_round_to_float32_are_checked_without_the_rounding(key):
    shifts = jax.random.uniform(key, (3000,), jnp.float32, -1.0, 1.0)

    def f(x):
        # Refused in float64, since the carry would change its type; kinks at every float32 step.
        return jax.lax.scan(
            lambda c, s: (c + jnp.sum(jax.nn.relu(x * 1e-2 + s)), None), jnp.float32(0), shifts
        )[0]

    x = jax.random.normal(key, (3,))
    report = check_grads(f, x)
    assert report.precision == "float64"
    assert report.leaves[0].error_bar < 1e-6
    slightly = with_backward(f, lambda args, ct: (1.001 * ct * jax.grad(f)(args[0]),))
    assert check_grads(slightly, x).verdict is Verdict.WRONG


def test_a_function_that_is_another_without_its_rounding_is_left_as_it_is():
    def f(x):
        # In float32 the large constant swallows the rest; the barrier keeps it from cancelling.
        swallowed = jax.lax.optimization_barrier(x.astype(jnp.float32) + 1e8) - 1e8
        return jnp.sum(swallowed) + 1e-3 * jnp.sum(x)

    assert check_grads(f, jnp.array([0.3, -0.7])).verdict is Verdict.WRONG


@pytest.mark.slow
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


@pytest.mark.slow
def test_second_order_of_a_solver_for_symmetric_matrices():
    def f(a):
        def solve(_, b):
            return jnp.linalg.solve(a, b)

        b = jnp.arange(1.0, 4.0)
        return jnp.sum(jax.lax.custom_linear_solve(lambda v: a @ v, b, solve, symmetric=True))

    matrix = jnp.float32([[3.0, 1.0, 0.0], [1.0, 4.0, 0.5], [0.0, 0.5, 5.0]])
    assert check_grads(f, matrix, order=2).verdict is Verdict.AGREE


@pytest.mark.slow
def test_second_order_in_forward_mode_alone():
    def f(x):
        def step(carry):
            return jnp.sin(carry[0]) * carry[0], carry[1] + 1

        return jax.lax.while_loop(lambda carry: carry[1] < 3, step, (x, 0))[0].sum()

    report = check_grads(f, jnp.arange(1.0, 3.0), modes=("fwd",), order=2)
    assert report.verdict is Verdict.AGREE
    assert {leaf.order for leaf in report.leaves} == {1, 2}


@pytest.mark.slow
def test_second_order_of_complex_arguments_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        z = jnp.array([1 + 2j, 0.5 - 1j], jnp.complex64)
        report = check_grads(lambda z: jnp.sum(jnp.real(z * z * jnp.conj(z))), z, order=2)
    assert report.verdict is Verdict.AGREE


def test_arguments_by_name_are_held_fixed():
    def f(x, *, mask, power):
        return jnp.sum(mask * x**power)

    options = {"mask": jnp.array([1.0, 0.0, 1.0]), "power": 3}
    report = check_grads(f, jnp.arange(1.0, 4.0), kwargs=options, order=2)
    assert report.verdict is Verdict.AGREE
    assert report.left_out == ()


def test_arguments_in_the_order_of_jax_get_a_hint():
    with pytest.raises(ValueError, match="jaxgrad.testing.check_grads takes"):
        check_grads(jnp.sin, (1.0,), 1)
