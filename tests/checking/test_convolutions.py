"""Convolutions in float64 become matrix products without another result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from jaxgrad.checking._convolutions import with_products

CPU = jax.default_backend() == "cpu"
pytestmark = pytest.mark.skipif(not CPU, reason="other devices have fast convolutions in float64")

CASES = {
    "plain": ((2, 7, 6, 3), (3, 2, 3, 4), {"padding": "SAME"}),
    "strides": ((2, 7, 6, 3), (3, 2, 3, 4), {"window_strides": (2, 3)}),
    "dilations": (
        (2, 7, 6, 3),
        (2, 3, 3, 4),
        {"lhs_dilation": (2, 1), "rhs_dilation": (1, 2), "padding": [(1, 2), (-1, 3)]},
    ),
    "groups of features": ((2, 6, 5, 6), (3, 3, 2, 9), {"feature_group_count": 3}),
    "groups of examples": ((6, 6, 5, 2), (3, 3, 2, 4), {"batch_group_count": 2}),
    "large window": ((2, 12, 12, 3), (11, 10, 3, 4), {}),
}


def convolution(options):
    options = {"window_strides": (1, 1), "padding": "VALID"} | options

    def f(x, w):
        return jax.lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NCHW"), **options
        )

    return f


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield from primitives(getattr(inner, "jaxpr", inner))


def check(program, *args):
    """Compare a program with and without the change, which has to remove all convolutions."""
    closed = jax.make_jaxpr(program)(*args)
    changed = with_products(closed)
    assert "conv_general_dilated" in primitives(closed.jaxpr)
    assert "conv_general_dilated" not in primitives(changed.jaxpr)
    pairs = zip(jaxpr_as_fun(changed)(*args), jaxpr_as_fun(closed)(*args), strict=True)
    for result, expected in pairs:
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_values_gradients_and_mapped_ones_are_equal(name):
    *shapes, options = CASES[name]
    f, generator = convolution(options), np.random.default_rng(0)

    def program(x, w, other):
        out, pullback = jax.vjp(f, x, w)
        both = jax.vmap(f)(jnp.stack([x, 2 * x]), jnp.stack([w, other]))
        kernels = jax.vmap(f, (None, 0))(x, jnp.stack([w, other]))
        return out, *pullback(jnp.cos(out)), both, kernels

    with jax.enable_x64(True):
        x, w = (generator.standard_normal(shape) for shape in shapes)
        check(program, x, w, generator.standard_normal(w.shape))


@pytest.mark.slow
def test_convolutions_in_loops_branches_and_functions_with_a_rule_are_changed():
    f = convolution({"padding": "SAME"})

    @jax.custom_vjp
    def rule(x, w):
        return f(x, w)

    rule.defvjp(lambda x, w: (f(x, w), w), lambda w, ct: (ct, w))

    def nhwc(x):
        return jnp.moveaxis(x, 1, -1)

    def program(x, w):
        scanned = jax.lax.scan(lambda h, _: (nhwc(f(h, w)), None), x, length=2)[0]
        looped = jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, nhwc(f(c[1], w))), (0, x)
        )[1]
        branch = jax.lax.cond(jnp.sum(x) > 0, lambda x: nhwc(f(x, w)), lambda x: x, x)
        return scanned, looped, branch, jax.jit(rule)(x, w), jax.checkpoint(f)(x, w)

    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        check(program, generator.standard_normal((2, 5, 4, 3)), generator.normal(size=(3, 3, 3, 3)))


def test_other_programs_stay_as_they_are():
    f = convolution({})
    narrow = jax.make_jaxpr(f)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
    assert with_products(narrow) is narrow
    with jax.enable_x64(True):
        product = jax.make_jaxpr(jnp.dot)(jnp.ones(3), jnp.ones(3))
    assert with_products(product) is product
