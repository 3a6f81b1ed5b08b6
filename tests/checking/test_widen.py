"""A function without its rounding to narrower types inside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import check_grads
from jaxgrad.checking._widen import widen

WEIGHTS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)


def _branches(x):
    return jax.lax.cond(x[0] > 0, lambda v: jnp.sum(v**2), lambda v: jnp.sum(v**3), x)


def _until(x):
    return jax.lax.while_loop(
        lambda c: c[1] < 5, lambda c: (c[0] * 1.5 + c[0] ** 2, c[1] + 1), (x, 0)
    )[0]


def _solved(x):
    a = jnp.eye(3, dtype=jnp.float32) * 3 + jnp.outer(x, x)
    return jax.scipy.linalg.solve(a, x, assume_a="pos")


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: x @ WEIGHTS,
        lambda x: jax.nn.softmax(x),
        _branches,
        _until,
        _solved,
        lambda x: jnp.zeros(5, x.dtype).at[jnp.array([1, 1, 3])].add(x),
        lambda x: jax.checkpoint(jnp.tanh)(x) + jax.random.normal(jax.random.key(0), (3,)),
        lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
        lambda x: jnp.cumsum(jnp.sort(x)) + jnp.linspace(0.0, 1.0, 3),
    ],
    ids=["matmul", "softmax", "cond", "while", "solve", "scatter", "random", "complex", "sort"],
)
@pytest.mark.parametrize("narrow", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_widening_removes_the_rounding_inside(inner, narrow):
    x = np.array([0.3, -0.7, 1.1])

    def f(x):
        return inner(x.astype(narrow).astype(jnp.float32))

    with jax.enable_x64(True):
        wide = widen(lambda moved, fixed: [f(moved[0])], [x], [])
        found = wide([x], [])[0]
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, inner(jnp.asarray(x)), rtol=1e-13, atol=1e-13)
        # A step that float32 does not see moves it.
        moved, back = (wide([x + step], [])[0] for step in (1e-9, -1e-9))
        slope = jax.jvp(inner, (x,), (np.ones(3),))[1]
        np.testing.assert_allclose((moved - back) / 2e-9, slope, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_what_cannot_be_widened_is_left_as_it_is():
    def host(x):
        kind = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda v: np.float32(v.sum()), kind, x)

    with pytest.raises(NotImplementedError, match="pure_callback is not known in float64"):
        widen(lambda moved, fixed: [host(moved[0])], [jnp.ones(2)], [])
    report = check_grads(
        lambda x: jnp.sum(x.astype(jnp.bfloat16)) * host(jax.lax.stop_gradient(x)), jnp.ones(2)
    )
    assert any("pure_callback is not known" in note for note in report.notes)


def test_an_operation_that_fails_in_float64_is_named():
    def f(x):
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
        return jnp.sum(jax.lax.bitcast_convert_type(bits, jnp.float32) * x)

    report = check_grads(f, jnp.ones(2))
    assert any("bitcast_convert_type" in note for note in report.notes)


def test_the_program_of_a_reduction_is_not_one_of_whole_arrays():
    def f(x):
        # Rounded inside, and reduced by a function for which JAX has no operation.
        rounded = x.astype(jnp.float32) + WEIGHTS
        product = lambda a, b: a * b + jnp.float32(1)  # noqa: E731
        return jax.lax.reduce_window(rounded, jnp.float32(1), product, (2, 2), (1, 1), "SAME")

    assert check_grads(f, jnp.asarray(WEIGHTS), modes=("fwd",)).ok
