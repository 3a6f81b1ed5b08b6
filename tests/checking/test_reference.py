"""`reference`: derivatives to many digits, and where autodiff loses them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import checking
from jaxgrad.checking import Cause, reference
from jaxgrad.checking._directions import unit_directions
from jaxgrad.checking._exact_derivatives import (
    budget,
    exact_function,
    exact_gradient,
    exact_slopes,
)
from jaxgrad.checking._prepare import prepare
from tests.checking.test_arbitrary_precision import (
    CALLS,
    complex_singular_values,
    odd_inverse_transform,
    zeta,
)

special = jax.scipy.special
mp: Any = mpmath.MPContext()
mp.dps = 120
PI = mp.mpf(np.pi)  # as JAX rounds it

# Functions of one number, a float64 argument, and the derivative as mathematics knows it.
CLOSED_FORMS = [
    (jnp.sin, 0.7, lambda x: mp.cos(x)),
    (jnp.cos, 1e9, lambda x: -mp.sin(x)),
    (jnp.tan, 1.2, lambda x: mp.sec(x) ** 2),
    (jnp.arcsin, 0.9, lambda x: 1 / mp.sqrt(1 - x**2)),
    (jnp.arccos, -0.3, lambda x: -1 / mp.sqrt(1 - x**2)),
    (jnp.arctan, 3.0, lambda x: 1 / (1 + x**2)),
    (jnp.sinh, -2.0, lambda x: mp.cosh(x)),
    (jnp.cosh, 1e-8, lambda x: mp.sinh(x)),
    (jnp.tanh, 20.0, lambda x: mp.sech(x) ** 2),
    # Of the size of the smallest numbers of float64, beside a value of 1.
    (jnp.tanh, 340.0, lambda x: mp.sech(x) ** 2),
    (jnp.arcsinh, 1e22, lambda x: 1 / mp.sqrt(1 + x**2)),
    (jnp.arccosh, 1.5, lambda x: 1 / mp.sqrt(x**2 - 1)),
    (jnp.arctanh, 0.99, lambda x: 1 / (1 - x**2)),
    (jnp.exp, -700.0, lambda x: mp.exp(x)),
    (jnp.exp2, 3.3, lambda x: mp.log(2) * mp.power(2, x)),
    (jnp.expm1, -40.0, lambda x: mp.exp(x)),
    (jnp.log, 1e-300, lambda x: 1 / x),
    (jnp.log1p, -0.999, lambda x: 1 / (1 + x)),
    (jnp.sqrt, 1e-12, lambda x: 1 / (2 * mp.sqrt(x))),
    (jax.lax.rsqrt, 2.0, lambda x: -mp.power(x, -1.5) / 2),
    (jnp.cbrt, -8.3, lambda x: mp.power(abs(x), mp.mpf(-2) / 3) / 3),
    (jax.nn.sigmoid, 40.0, lambda x: mp.exp(-x) / (1 + mp.exp(-x)) ** 2),
    (special.erf, 5.0, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-(x**2))),
    (special.erfc, -1.0, lambda x: -2 / mp.sqrt(mp.pi) * mp.exp(-(x**2))),
    (special.erfinv, 0.99, lambda x: mp.sqrt(mp.pi) / 2 * mp.exp(mp.erfinv(x) ** 2)),
    (special.gammaln, -1.5, lambda x: mp.digamma(x)),
    (special.digamma, 0.3, lambda x: mp.zeta(2, x)),
    (lambda x: special.polygamma(3, x), 1.7, lambda x: mp.psi(4, x)),
    (lambda x: special.zeta(2.5, x), 1.7, lambda x: -2.5 * mp.zeta(3.5, x)),
    (
        special.i0e,
        2.0,
        lambda x: (mp.besseli(1, x) - mp.besseli(0, x)) * mp.exp(-x),
    ),
    (
        special.i1e,
        -2.0,
        lambda x: ((mp.besseli(0, x) + mp.besseli(2, x)) / 2 + mp.besseli(1, x)) * mp.exp(x),
    ),
    (
        lambda x: special.gammainc(1.5, x),
        0.8,
        lambda x: mp.power(x, 0.5) * mp.exp(-x) / mp.gamma(1.5),
    ),
    (
        lambda x: special.gammaincc(1.5, x),
        0.8,
        lambda x: -mp.power(x, 0.5) * mp.exp(-x) / mp.gamma(1.5),
    ),
    (
        lambda x: special.betainc(1.5, 2.5, x),
        0.4,
        lambda x: mp.power(x, 0.5) * mp.power(1 - x, 1.5) / mp.beta(1.5, 2.5),
    ),
    (lambda x: x**3.7, 0.2, lambda x: mp.mpf(3.7) * mp.power(x, mp.mpf(3.7) - 1)),
    (lambda x: 2.0**x, 0.2, lambda x: mp.log(2) * mp.power(2, x)),
    (lambda x: x**-5, 1.1, lambda x: -5 * mp.power(x, -6)),
    (lambda x: jnp.arctan2(x, 3.0), 0.2, lambda x: 3 / (9 + x**2)),
    # Values of these cancel in every type of JAX.
    (lambda x: jnp.exp(x) - 1 - x, 1e-6, lambda x: mp.expm1(x)),
    (lambda x: 1 - jnp.cos(x), 1e-30, lambda x: mp.sin(x)),
    (
        lambda x: jnp.sin(np.pi * x) / (np.pi * x),
        1e-9,
        lambda x: (mp.cos(PI * x) - mp.sin(PI * x) / (PI * x)) / x,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CLOSED_FORMS, ids=range(len(CLOSED_FORMS)))
def test_closed_forms_to_40_digits(case):
    f, x, derivative = case
    with jax.enable_x64(True):
        result = reference(f, x)
    expected = derivative(mp.mpf(x))
    assert abs(result.leaves[0].derivative[()] - expected) <= abs(expected) * mp.mpf(10) ** -40


# Autodiff of the first is meant to be wrong. That of the second uses vectors whose phase is open.
EXCLUDED = (jax.lax.stop_gradient, complex_singular_values)


def _is_differentiable(f, *args):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        args = tuple(map(jnp.asarray, args))
        out = jax.eval_shape(f, *args)
        if f not in EXCLUDED and jnp.issubdtype(out.dtype, jnp.inexact):
            try:
                jax.eval_shape(lambda *a: jax.vjp(f, *a)[1](f(*a)), *args)
            except (NotImplementedError, ValueError):  # JAX has no rule
                return False
            return True
    return False


# JAX's rules for these hold a constant, such as the logarithm of 2, as a number of float64.
DIGITS = dict.fromkeys((jnp.exp2, jnp.cbrt, special.erf, special.erfc, special.erfinv), 15)
DIGITS[odd_inverse_transform] = 15
# It sums a series for the derivative by the order.
DIGITS[zeta] = 30


# Integers and logicals, operations for which JAX has no rule, and EXCLUDED.
NOT_DIFFERENTIABLE = {26, 52, 53, 69, 77, 114, 130}


@pytest.mark.slow
def test_all_other_operations_are_differentiated():
    without = {i for i, call in enumerate(CALLS) if not _is_differentiable(*call)}
    assert without == NOT_DIFFERENTIABLE


@pytest.mark.parametrize("i", sorted(set(range(len(CALLS))) - NOT_DIFFERENTIABLE))
@pytest.mark.slow
def test_differences_equal_exact_autodiff_to_40_digits(i):
    # The rules of JAX, evaluated without rounding, are closed forms for all operations.
    f, *args = CALLS[i]
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        problem = prepare(f, tuple(map(jnp.asarray, args)), argnums=tuple(range(len(args))))
        exact = exact_function(problem, problem.moved, problem.fixed, wide=True)
        # A few elements stand for all: the operations are the same.
        starts = [
            range(leaf.start, leaf.stop)[:: max(leaf.size // 3, 1)] for leaf in problem.leaves
        ]
        directions = [d for j, s in enumerate(starts) for d in unit_directions(j, s)]
        slopes = exact_slopes(exact, directions, 45, budget(10**7))
        try:
            gradient = exact_gradient(exact, 45, budget(10**7))
        except NotImplementedError:
            # From JAX 0.11 on these rules work with the bits of a number.
            assert f in (special.erf, special.erfc)
            return
    rule = [gradient[d.start] for d in directions]
    size, digits = max(map(abs, rule)), DIGITS.get(f, 40)
    for value, other in zip(slopes.value, rule, strict=True):
        assert abs(value - other) <= (abs(other) + size / 10**5) * mp.mpf(10) ** -digits


def wrong(factor):
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvp(lambda primals, tangents: (f(primals[0]), factor * jnp.cos(primals[0]) * tangents[0]))
    return f


@pytest.mark.parametrize(
    ("f", "x", "cause"),
    [
        (jnp.sin, 1.0, Cause.RIGHT),
        (wrong(1.001), 1.0, Cause.RULE_WRONG),
        (jnp.tanh, 20.0, Cause.ROUNDING),
        (jax.nn.relu, 0.0, Cause.KINK),
        (jnp.floor, 2.0, Cause.DISCONTINUOUS),
        (jnp.sqrt, 0.0, Cause.UNDEFINED),
        # The slope is that of the branch not taken, times zero.
        (lambda x: jnp.where(x > 0.5, jnp.sqrt(x - 0.5), 0.0), 0.2, Cause.RULE_WRONG),
        # The derivative is zero, and so is autodiff.
        (lambda x: x**3, 0.0, Cause.RIGHT),
        # It is 5e-435, which is zero in every type.
        (lambda x: jax.nn.logsumexp(jnp.stack([x, 1000.0])), 0.0, Cause.RIGHT),
        (lambda x: jnp.abs(x), -1e-30, Cause.RIGHT),
    ],
)
def test_causes(f, x, cause):
    result = reference(f, x)
    assert result.cause is cause
    assert bool(result) == (cause in (Cause.RIGHT, Cause.KINK))
    assert str(cause) in str(result).splitlines()[0]


def test_one_sided_derivatives():
    (leaf,) = reference(lambda x: jnp.where(x < 1, 3 * x, x**2), 1.0).leaves
    assert leaf.cause is Cause.DISCONTINUOUS
    (leaf,) = reference(lambda x: jnp.where(x < 1, 3 * x - 2, x**2), 1.0).leaves
    assert (float(leaf.left), float(leaf.right)) == (3.0, 2.0)
    assert mpmath.isnan(leaf.derivative[()])


def test_a_function_whose_values_are_lost():
    result = reference(lambda x: jnp.cos(x) - 1, 1e-6)
    assert result.cause is Cause.RIGHT
    assert result.function_wrong
    assert result.computed == 0
    x = mp.mpf(float(np.float32(1e-6)))
    assert abs(result.value - (mp.cos(x) - 1)) < mp.mpf(10) ** -60
    assert not reference(jnp.cos, 1.0).function_wrong


def test_pytrees_and_the_worst_element():
    def f(p):
        return wrong(1.01)(p["b"][1]) + jnp.sum(p["a"] ** 2) + p["b"][0]

    result = reference(f, {"a": jnp.arange(4.0).reshape(2, 2), "b": jnp.ones(2), "n": 3})
    worst, other = result.leaves
    assert (worst.path, worst.worst_index, worst.cause) == ("['b']", (1,), Cause.RULE_WRONG)
    assert (other.path, other.cause, other.derivative.shape) == ("['a']", Cause.RIGHT, (2, 2))
    assert [float(x) for x in other.derivative.ravel()] == [0, 2, 4, 6]


def test_complex_arguments_as_in_jax():
    z = np.array([1 + 2j, 0.3 - 1j], np.complex64)
    (leaf,) = reference(lambda z: jnp.sum(jnp.abs(z * z + 1)), z).leaves
    got = np.array([complex(x) for x in leaf.derivative])
    np.testing.assert_allclose(got, jax.grad(lambda z: jnp.sum(jnp.abs(z * z + 1)))(z), rtol=1e-6)
    (leaf,) = reference(jnp.sin, 1 + 2j, holomorphic=True).leaves
    assert leaf.cause is Cause.RIGHT


@pytest.mark.slow
def test_what_is_not_known_is_said():
    callback = jax.custom_jvp(lambda x: jax.pure_callback(np.sin, x, x))
    callback.defjvp(lambda p, t: (callback(*p), jnp.cos(p[0]) * t[0]))
    with pytest.raises(NotImplementedError, match="pure_callback is not known"):
        reference(callback, 1.0)
    with pytest.raises(NotImplementedError, match="more than 1,000 operations"):
        reference(lambda w: jnp.sum(w @ w), jnp.ones((8, 8)), operations=1000)
    with pytest.raises(NotImplementedError, match="phases"):
        reference(lambda a: jnp.abs(jnp.linalg.eigh(a)[1][0, 0]), jnp.diag(jnp.array([1 + 0j, 2])))
    # The series of mpmath would take minutes.
    with pytest.raises(NotImplementedError, match="parameter of 1e\\+10"):
        reference(lambda x: special.gammainc(1e10, x), 1e10)
    # Vectors of equal eigenvalues are whatever LAPACK chooses.
    with pytest.raises(NotImplementedError, match="not unique"):
        reference(lambda a: jnp.linalg.eigh(a)[1][0, 0], jnp.eye(2))


@pytest.mark.slow
def test_a_program_for_each_device_is_not_known():
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("rows")

    # Inside, the program has a fourth of the rows, so it is not one of the whole argument.
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=rows, out_specs=rows)
    def f(x):
        return x - jnp.mean(x)

    with pytest.raises(NotImplementedError, match="shard_map"):
        reference(lambda x: jnp.sum(f(x) ** 2), jnp.arange(8.0))
    assert checking.check_grads(lambda x: jnp.sum(f(x) ** 2), jnp.arange(8.0)).ok


@pytest.mark.parametrize(
    ("options", "error"), [({"digits": 3}, "digits"), ({"rtol": -1.0}, "rtol")]
)
def test_bad_arguments(options, error):
    with pytest.raises(ValueError, match=error):
        reference(jnp.sin, 1.0, **options)


def test_the_precision_of_mpmath_is_left_alone():
    before = mpmath.mp.prec
    reference(jnp.sin, 1.0, digits=200)
    assert mpmath.mp.prec == before


def test_more_digits():
    (leaf,) = reference(jnp.exp, 0.5, digits=300).leaves
    with mpmath.workdps(350):
        assert abs(leaf.derivative[()] - mpmath.exp(0.5)) < mpmath.mpf(10) ** -299


def test_public_names():
    assert {"reference", "Reference", "ReferenceLeaf", "Cause"} <= set(checking.__all__)


def test_derivatives_at_tiny_arguments_are_not_taken_for_zero():
    # A step relative to 1e-300 changes a value of size one in its 340th digit.
    with jax.enable_x64(True):
        result = reference(lambda x: jnp.exp(x) + 1, jnp.float64(1e-300), digits=16)
    assert abs(result.leaves[0].derivative[()] - 1) < 1e-15


def test_products_to_a_single_number():
    result = reference(lambda x: jnp.vdot(jnp.arange(1.0, 4.0), x), jnp.ones(3), digits=16)
    assert [float(value) for value in result.leaves[0].derivative] == [1.0, 2.0, 3.0]
