"""A function of a moved coordinate equals the function of a copy that has it moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import _jaxprs
from jaxgrad.checking import _moved, finite_differences
from jaxgrad.checking._moved import Moved

RNG = np.random.default_rng(0)
LEFT, RIGHT, CUBE = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 5)), RNG.normal(size=(3, 4, 5))


@jax.custom_jvp
def doubled(w):
    return 2 * w


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))


def scanned(w):
    """A leaf of which each step of a loop takes a slice, and another by all of them."""
    h, out = jax.lax.scan(lambda h, m: (jnp.tanh(h @ m), h @ w[0]), jnp.asarray(LEFT), w)
    return h, out


FUNCTIONS = {
    "right operand": (lambda w: LEFT @ w, (4, 5)),
    "left operand": (lambda w: w @ RIGHT, (3, 4)),
    "vector": (lambda w: LEFT @ w, (4,)),
    "transposed": (lambda w: RIGHT.T @ w.T, (3, 4)),
    "reshaped": (lambda w: LEFT @ w.reshape(4, -1), (2, 2, 6)),
    "both axes summed": (lambda w: jnp.einsum("ij,ij->", w, LEFT), (3, 4)),
    "batches, right": (lambda w: jnp.einsum("bij,bjk->bik", CUBE, w), (3, 5, 2)),
    "batches, left": (lambda w: jnp.einsum("bki,bjk->bij", w, CUBE), (3, 5, 2)),
    "two sums": (lambda w: jnp.einsum("ijk,kjl->il", CUBE, w), (5, 4, 2)),
    "inner call": (lambda w: jax.jit(lambda w: jnp.tanh(LEFT @ w))(w), (4, 5)),
    "returned by a call": (lambda w: LEFT @ jax.jit(jnp.transpose)(w), (5, 4)),
    "rematerialized": (lambda w: jax.checkpoint(lambda w: LEFT @ w)(w), (4, 5)),
    "rule by hand": (lambda w: LEFT @ doubled(w), (4, 5)),
    "with itself": (lambda w: w @ w, (4, 4)),
    "twice": (lambda w: jnp.tanh(LEFT @ w) @ w, (4, 4)),
    "a scan's slices": (scanned, (3, 4, 4)),
    "a scan's constant": (
        lambda w: jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), jnp.asarray(LEFT), length=3)[
            0
        ],
        (4, 4),
    ),
    "a scan's carry": (
        lambda w: jax.lax.scan(lambda h, m: (h @ m, None), w, jnp.ones((2, 4, 4)))[0],
        (3, 4),
    ),
    "backwards": (
        lambda w: jax.lax.scan(
            lambda h, m: (jnp.tanh(h @ m), h), jnp.asarray(LEFT), w, reverse=True
        ),
        (3, 4, 4),
    ),
    "loop": (lambda w: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w), LEFT), (4, 4)),
    "branch": (lambda w: jax.lax.cond(w[0, 0] > 0, lambda: LEFT @ w, lambda: -LEFT @ w), (4, 4)),
    "elementwise": (lambda w: jnp.sin(w) + w, (3, 4)),
    "scalar": (lambda w: w * LEFT, ()),
    "not used": (lambda w: jnp.sum(LEFT), (3,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_function_of_a_copy(x64, name):
    f, shape = FUNCTIONS[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape))
    program = jax.make_jaxpr(f)(x)

    def moved(position):
        return _moved.evaluate(program, [Moved(x, jnp.unravel_index(position, shape), 0.1)])

    expected = [jax.tree.leaves(f(x.ravel().at[i].add(0.1).reshape(shape))) for i in range(x.size)]
    for i, leaves in enumerate(zip(*expected, strict=True)):
        results = jax.vmap(moved)(jnp.arange(x.size))[i]
        np.testing.assert_allclose(results, np.stack(leaves), rtol=1e-13, atol=1e-14)


def largest_copy(f, x):
    """Numbers in the largest value of the program for 7 coordinates."""
    program = jax.make_jaxpr(f)(x)

    def value(position):
        return _moved.evaluate(program, [Moved(x, jnp.unravel_index(position, x.shape), 0.1)])

    batched = jax.make_jaxpr(jax.vmap(value))(jnp.arange(7))
    return max(out.aval.size for e in _jaxprs.equations_of(batched) for out in e.outvars)


@pytest.mark.parametrize("name", ["inner call", "a scan's constant", "scanned"])
def test_a_matrix_is_not_copied(name):
    def deep(w):
        return jax.lax.scan(lambda h, m: (jnp.tanh(h @ m), None), jnp.ones((2, 50)), w)[0]

    x = jnp.ones((50, 50))
    if name == "scanned":
        assert largest_copy(deep, x[None]) < 2 * x.size
        return
    f = {
        "inner call": lambda w: jax.jit(lambda w: jnp.ones((2, 50)) @ w)(w),
        "a scan's constant": lambda w: jax.lax.scan(
            lambda h, _: (jnp.tanh(h @ w), None), jnp.ones((2, 50)), length=3
        )[0],
    }[name]
    assert largest_copy(f, x) < 2 * x.size
    # The measure sees a copy where there is one.
    assert largest_copy(jnp.sin, x) == 7 * x.size


def test_differences_of_a_scanned_stack_equal_autodiff(x64):
    stack = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6, 6)))

    def loss(stack):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), jnp.ones((2, 6)), stack)
        return jnp.sum(h**2)

    numeric = finite_differences.central_difference(loss, stack, 1e-5)
    np.testing.assert_allclose(numeric, jax.grad(loss)(stack), rtol=1e-6, atol=1e-9)
