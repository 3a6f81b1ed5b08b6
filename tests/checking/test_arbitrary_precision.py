"""Traced functions in arbitrary precision, operation by operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxgrad.checking import _arbitrary_precision as arbitrary
from jaxgrad.checking._precision import is_program

lax = jax.lax
special = jax.scipy.special

X = np.array([[0.3, -1.7, 2.2], [0.9, 0.4, -0.6]])
UNIT = np.array([0.3, -0.7, 0.05])
POSITIVE = np.array([0.35, 1.75, 4.2])
SQUARE = np.array([[0.4, 1.3, -0.2], [2.1, 0.3, 0.5], [-0.7, 0.8, 1.1]])
SYMMETRIC = SQUARE + SQUARE.T
DEFINITE = SQUARE @ SQUARE.T + np.eye(3)
COMPLEX = SQUARE + 1j * SQUARE[::-1]
INDEX = np.array([2, 0, 7, 1, 1])


def zeta(order):
    return special.zeta(order + 1, 1.5)


def complex_singular_values(a):
    return jnp.linalg.svd(a, compute_uv=False)


def odd_inverse_transform(x):
    return jnp.fft.irfft(x, 5)


def calls():
    """Functions and arguments that together use every operation that is known."""
    yield from ((f, X) for f in (jnp.abs, jnp.sin, jnp.cos, jnp.tan, jnp.arctan, jnp.exp, jnp.exp2))
    yield from ((f, X) for f in (jnp.expm1, jnp.sinh, jnp.cosh, jnp.tanh, jnp.arcsinh, jnp.cbrt))
    yield from ((f, X) for f in (jnp.sign, jnp.floor, jnp.ceil, jnp.round, jnp.square, lax.neg))
    yield from ((f, X) for f in (jax.nn.sigmoid, special.erf, special.erfc, special.i0e))
    yield from ((f, X) for f in (special.i1e, special.gammaln, special.digamma, jnp.isfinite))
    yield from ((f, UNIT) for f in (jnp.arcsin, jnp.arccos, jnp.arctanh, jnp.log1p, special.erfinv))
    yield from ((f, POSITIVE) for f in (jnp.log, jnp.sqrt, lax.rsqrt, lambda x: jnp.arccosh(x + 1)))
    yield lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), X + 0.25
    yield lambda x: lax.integer_pow(x, -3), X
    yield lambda x: lax.integer_pow(x, 4), X
    yield lambda x: x ** jnp.array([2, 0, 3]), X
    yield jnp.power, POSITIVE, X
    yield jnp.arctan2, X, X[::-1]
    yield lax.rem, X[0], POSITIVE
    yield lambda x, y: (x + y) * (x - y) / y, X, POSITIVE
    yield lambda x, y: jnp.where((x < y) | (x > 2) | (x <= -1) | (x >= 5), x, y), X, POSITIVE
    yield lambda x, y: jnp.where((x == y) & (x != 3), x, y), X, POSITIVE
    yield jnp.maximum, X, POSITIVE
    yield jnp.minimum, X, POSITIVE
    yield lambda x: jnp.clip(x, -0.5, 0.7), X
    yield lambda x: lax.clamp(-0.5, x, 0.7), X
    yield special.gammainc, POSITIVE, POSITIVE[::-1]
    yield special.gammaincc, POSITIVE, POSITIVE[::-1]
    yield jax.grad(lambda a: special.gammainc(a, 1.3)), 2.2
    yield lambda a, b: special.betainc(a, b, 0.3), POSITIVE, POSITIVE[::-1]
    yield lambda x: special.polygamma(2, x), POSITIVE
    yield zeta, POSITIVE
    # Complex numbers
    yield lambda x: jnp.real(x) * jnp.imag(x) * jnp.conj(x) * jnp.exp(x) * jnp.abs(x), COMPLEX
    yield lambda x: lax.complex(x, x**2), X
    yield lambda x: x.astype(complex), X
    # Layout
    yield lambda x: jnp.broadcast_to(x[:, None], (2, 4, 3)).transpose(2, 0, 1), X
    yield lambda x: jnp.concatenate([x, jnp.flip(x)], 1).reshape(-1)[1:9:3], X
    yield lambda x: lax.pad(x, 0.5, ((1, 2, 1), (-1, 1, 0))), X
    yield lambda x: lax.dynamic_slice(x, (1, 5), (1, 2)), X
    yield lambda x: lax.dynamic_update_slice(x, x[:1, :2] + 1, (0, 1)), X
    yield lambda x: jnp.concatenate(jnp.split(x, (1,), 1)[::-1], 1), X
    yield lambda x: jnp.tile(x, (2, 2)) + jnp.stack([x[0]] * 4).reshape(2, 2, 3)[0, 0, 1], X
    yield lambda x: x * jnp.arange(3) + lax.iota(float, 3), X
    yield lambda x: jnp.squeeze(x[None], 0), X
    yield lambda x: lax.reduce_precision(x, 11, 52), X
    yield lax.stop_gradient, X
    yield lambda x: lax.optimization_barrier(x) + jnp.copy(x), X
    yield lambda x: checkpoint_name(x, "x"), X
    yield lambda x: x.at[:, INDEX].get(mode="fill"), X
    yield lambda x: jnp.take(x, INDEX, axis=1, mode="clip"), X
    yield lambda x: x[jnp.argmax(x, 0), jnp.arange(3)] + x[jnp.argmin(x, 0), jnp.arange(3)], X
    for method in ("set", "add", "multiply", "min", "max", "subtract"):
        # Two updates of one element have no order, so "set" does not repeat an index.
        index = INDEX[:4] if method == "set" else INDEX
        yield (
            lambda x, u, method=method, index=index: getattr(x.at[:, index], method)(
                u[:, : len(index)], mode="drop"
            ),
            X,
            np.linspace(-2, 3, 10).reshape(2, 5),
        )
    # Sums, products, extremes, windows, sorting
    yield from ((f, X) for f in (jnp.sum, jnp.prod, jnp.max, jnp.min, jnp.cumsum, jnp.cumprod))
    yield lambda x: lax.cummax(x, 1, reverse=True) - lax.cummin(x, 0), X
    yield lambda x: lax.cumlogsumexp(x, 1), X
    yield lambda x: jnp.sort(x, 1), X
    yield lambda x: jnp.argsort(x, 1) * x, X
    yield lambda x: jnp.stack(lax.sort((x, x[::-1]), num_keys=1)), X
    yield lambda x: jnp.concatenate(lax.top_k(x, 2), 1), X
    for operation in (lax.add, lax.max, lax.min):
        start = {lax.add: 0.0, lax.max: -np.inf, lax.min: np.inf}[operation]
        yield (
            lambda x, op=operation, start=start: lax.reduce_window(
                x, start, op, (2, 2), (1, 2), ((1, 0), (0, 1))
            ),
            SQUARE,
        )
    yield (
        jax.grad(
            lambda x: jnp.sum(
                lax.reduce_window(x, -np.inf, lax.max, (2, 2), (1, 1), "SAME") * SQUARE
            )
        ),
        SQUARE,
    )
    # Products
    yield jnp.matmul, X, SQUARE
    yield jnp.vdot, X, X
    yield lambda a: jnp.einsum("bij,bkj->bki", a, a[:, ::-1]), np.stack([X, X + 1])
    yield convolved(), IMAGE, KERNEL
    yield (
        convolved(feature_group_count=2),
        np.linspace(-1, 1, 200).reshape(2, 4, 5, 5),
        KERNEL[:, :2],
    )
    yield convolved(batch_group_count=2), np.linspace(-1, 1, 200).reshape(2, 4, 5, 5), KERNEL
    yield (
        lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        np.linspace(-1, 1, 200).reshape(2, 5, 5, 4),
        np.linspace(-1, 2, 96).reshape(2, 3, 4, 4),
    )
    # Matrices
    yield jnp.linalg.cholesky, DEFINITE
    yield jnp.linalg.solve, SQUARE, SQUARE[:, :2]
    yield jnp.linalg.inv, COMPLEX
    yield lambda a: jnp.concatenate(jnp.linalg.qr(a)), SQUARE
    yield lambda a: jnp.concatenate(jnp.linalg.qr(a)), COMPLEX
    yield lambda a: jnp.linalg.qr(a, mode="complete")[0], SQUARE[:, :2]
    yield lambda a: jnp.concatenate(jnp.linalg.eigh(a)[1:]), SYMMETRIC
    yield lambda a: jnp.linalg.eigh(a)[0], SYMMETRIC
    yield lambda a: jnp.linalg.svd(a, compute_uv=False), X
    yield lambda a: jnp.concatenate([a.ravel() for a in jnp.linalg.svd(a, False)]), X
    yield complex_singular_values, COMPLEX
    for lower, trans, unit in ((True, 0, False), (False, 1, False), (False, 0, True)):
        yield (
            lambda a, lower=lower, trans=trans, unit=unit: jax.scipy.linalg.solve_triangular(
                a, a[:, :2], trans, lower, unit
            ),
            SQUARE,
        )
    yield lambda a: lax.linalg.triangular_solve(a, a, left_side=False, conjugate_a=True), COMPLEX
    yield (
        lambda a, b: lax.linalg.tridiagonal_solve(a, 3 + a, a[::-1], b),
        np.array([0.0, 0.4, 0.7]),
        SQUARE,
    )
    for transform in (jnp.fft.fft, jnp.fft.ifft, jnp.fft.fft2):
        yield transform, COMPLEX
    for count in (4, 5):
        yield lambda x, n=count: jnp.fft.rfft(x, n), X
    yield lambda x: jnp.fft.irfft(x, 4), COMPLEX
    yield odd_inverse_transform, COMPLEX
    # Programs
    yield jax.grad(lambda x: jnp.sum(lax.fori_loop(0, 3, lambda i, c: jnp.sin(c), x))), X
    yield lambda x: lax.scan(lambda c, y: (c * y, c + y), 1.0, x, reverse=True)[1], X[0]
    yield lambda x: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + i * x, x), X
    yield lambda x: lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c * 2, jnp.abs(x)), X
    yield lambda x: lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), X
    yield lambda x: lax.switch(5, [jnp.sin, jnp.cos], x), X
    yield jax.checkpoint(lambda x: jnp.sin(x)), X
    yield jax.grad(lambda x: jnp.sum(jax.nn.relu(jnp.sin(x)))), X
    yield lambda x: x * jax.random.normal(jax.random.key(3), x.shape, float), X
    yield (
        lambda x: (
            jax.vmap(lambda key: jax.random.uniform(key, (), float))(
                jax.random.split(jax.random.key(0), 3)
            )
            * x
        ),
        X,
    )


IMAGE = np.linspace(-1, 1, 200).reshape(2, 4, 5, 5)
KERNEL = np.linspace(-1, 2, 4 * 4 * 2 * 3).reshape(4, 4, 2, 3)


def convolved(**options):
    return lambda x, k: lax.conv_general_dilated(
        x, k, (1, 2), ((2, -1), (0, 1)), (2, 1), (1, 2), **options
    )


CALLS = list(calls())
# Names of operations in other versions of JAX, on other machines, or in backward passes.
ELSEWHERE = {
    *("empty2", "polynomial"),
    *("add_any", "copy_p", "device_put", "expand_dims", "layout_constraint", "log2", "pvary"),
    *(
        "empty",
        "one_minus_square",
        "sharding_constraint",
        "stack",
        "unstack",
        "tile",
        "scatter-sub",
    ),
    *("scatter-sub", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max"),
}


def evaluated(f, args, bits=200):
    rules = arbitrary.arithmetic(bits, lambda count: None)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        closed = jax.make_jaxpr(f)(*map(jnp.asarray, args))
        return arbitrary.evaluate(closed, list(map(np.asarray, args)), rules)


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_values_are_those_of_float64(call):
    f, *args = call
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        expected = f(*map(jnp.asarray, args))
    (result,) = evaluated(f, args)
    assert np.shape(result) == expected.shape
    kind = complex if np.iscomplexobj(expected) else float
    got = np.array([kind(x) for x in np.ravel(result)]).reshape(expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_every_known_operation_is_tried():
    met = set()

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            met.add(equation.primitive.name)
            for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=is_program):
                if is_program(value):
                    collect(getattr(value, "jaxpr", value))

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        for f, *args in CALLS:
            collect(jax.make_jaxpr(f)(*map(jnp.asarray, args)).jaxpr)
    assert set(arbitrary.known_operations()) - met - ELSEWHERE == set()


def test_a_polynomial_begins_with_its_constant():
    rules = arbitrary.arithmetic(100, lambda count: None)
    numbers = map(rules.context.mpf, (3, 5, 0, 7))
    assert rules.scalars["polynomial"]({})(*numbers) == 5 + 0 * 3 + 7 * 9
