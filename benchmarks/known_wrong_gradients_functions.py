"""Functions whose gradients are known to be wrong somewhere, from issue trackers.

Each is a small function written for this table: either as the installed JAX has it, or again in the
wrong form that the issue describes. Only facts are taken from the issues.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import checking


class Known(NamedTuple):
    """A function, the domains of its arguments, and where its gradient is wrong."""

    name: str
    f: Callable[..., Any]
    domains: tuple[Any, ...]
    source: str  # issue tracker and number
    fact: str


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _with_rule(f: Callable[..., Any], rule: Callable[..., Any]) -> Callable[..., Any]:
    """Return `f` of one argument with the derivative `rule(x) * tangent`."""
    function = jax.custom_jvp(f)
    function.defjvp(lambda xs, ts: (f(xs[0]), rule(xs[0]) * ts[0]))
    return function


def _norm(x: Any) -> Any:
    return jnp.linalg.norm(x)


def _absolute(x: Any) -> Any:
    # With the derivative zero at zero, as in TensorFlow, and as in JAX then.
    return x * jnp.sign(x)


def _sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def _softplus_of_parts(x):
    return jax.nn.relu(x) + jnp.log1p(jnp.exp(-_absolute(x)))


def _logaddexp_of_maximum(x, y):
    return jnp.where(x >= y, x, y) + jnp.log1p(jnp.exp(-_absolute(x - y)))


def _sinc(x):
    return jnp.where(x == 0, 1.0, jnp.sin(x) / x)


def _angle_times_square(x, y):
    square = x**2 + y**2
    return jnp.where(square > 0, square * jnp.arctan2(y, x), 0.0)


def _angle_to_uniform(logits):
    p, q = jax.nn.softmax(logits), jnp.full(logits.shape, 1 / logits.size)
    return jnp.arccos(jnp.clip(jnp.sum(jnp.sqrt(p) * jnp.sqrt(q)), -1.0, 1.0))


def _log_of_weights(b):
    return jax.scipy.special.logsumexp(jnp.zeros(2), b=b)


def _masked_logsumexp(a, mask):
    top = jax.lax.stop_gradient(jnp.max(a, where=mask, initial=-jnp.inf))
    return top + jnp.log(jnp.sum(jnp.where(mask, jnp.exp(a - top), 0.0)))


@jax.custom_vjp
def _prod_by_division(x):
    return jnp.prod(x)


_prod_by_division.defvjp(
    lambda x: (jnp.prod(x), (x, jnp.prod(x))), lambda r, ct: (ct * r[1] / r[0],)
)


@jax.custom_vjp
def _cumprod_by_division(x):
    return jnp.cumprod(x)


_cumprod_by_division.defvjp(
    lambda x: (jnp.cumprod(x), x),
    lambda x, ct: (jnp.cumsum((ct * jnp.cumprod(x))[::-1])[::-1] / x,),
)


def _rebuilt_from_svd(a):
    u, s, vh = jnp.linalg.svd(a, full_matrices=False)
    return jnp.sum(((u * s) @ vh) ** 2)


def _rebuilt_from_eigh(a):
    values, vectors = jnp.linalg.eigh(a + a.T)
    return jnp.sum(((vectors * values) @ vectors.T) ** 2)


def _determinant(a):
    return a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]


@jax.custom_vjp
def _det_by_inverse(a):
    return _determinant(a)


def _inverse(a):
    adjugate = jnp.stack([jnp.stack([a[1, 1], -a[0, 1]]), jnp.stack([-a[1, 0], a[0, 0]])])
    return adjugate / _determinant(a)


_det_by_inverse.defvjp(
    lambda a: (_determinant(a), a), lambda a, ct: (ct * _determinant(a) * _inverse(a).T,)
)


def _axis_angle_to_quaternion(v):
    square = jnp.sum(v**2)
    angle = jnp.sqrt(square)
    factor = jnp.where(square > 0, jnp.sin(angle / 2) / angle, 0.5)
    return jnp.concatenate([jnp.cos(angle / 2)[None], factor * v])


def _quaternion_log(w, v):
    size = jnp.maximum(jnp.sqrt(jnp.sum(jnp.where(v == 0, 1e-12, v) ** 2)), 1e-8)
    return v * jnp.arccos(jnp.clip(w, -1.0, 1.0)) / size


def _quaternion_to_axis_angle(w, v):
    square = jnp.sum(v**2)
    sine = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, 2 * jnp.arctan2(sine, w) / sine, 2.0) * v


@jax.custom_jvp
def _old_xlogy(x, y):
    return jnp.where(x != 0, x * jnp.log(jnp.where(x != 0, y, 1.0)), 0.0)


@_old_xlogy.defjvp
def _old_xlogy_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return _old_xlogy(x, y), dx * jnp.log(y) + dy * x / y


def _celu(x):
    return jnp.where(x > 0, x, 2 * jnp.expm1(x / 2))


@jax.custom_jvp
def _old_remainder(x, y):
    return jax.lax.rem(x, y)


@_old_remainder.defjvp
def _old_remainder_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return _old_remainder(x, y), dx - jnp.floor(x / y) * dy


def _normalized(x):
    return x / jnp.maximum(_norm(x), 1e-12)


def _rbf_of_distance(x, y):
    return jnp.exp(-(_norm(x - y) ** 2) / 2)


def _matern(x, y):
    distance = jnp.sqrt(3.0) * _norm(x - y)
    return (1 + distance) * jnp.exp(-distance)


@jax.custom_vjp
def _clip_with_square(x):
    return jnp.clip(x, -1.0, 1.0)


_clip_with_square.defvjp(
    lambda x: (jnp.clip(x, -1.0, 1.0), x), lambda x, ct: (ct * jnp.where(abs(x) <= 1, ct, 0),)
)


def _continuous_bernoulli_mean(logit):
    near = jnp.abs(logit) < 1e-2
    other = jnp.where(near, 1.0, logit)
    return jnp.where(near, 0.5 + logit / 12, 1 / (1 - jnp.exp(-other)) - 1 / other)


def _square_times_log(x):
    return jnp.where(x > 0, x**2 * jnp.log(x), 0.0)


def _polar_angle(v):
    radius = _norm(v)
    return jnp.where(radius > 0, radius * jnp.arccos(v[2] / radius), 0.0)


@jax.custom_vjp
def _log_softmax_by_division(x):
    return jax.nn.log_softmax(x)


def _log_softmax_backward(p, ct):
    ratio = ct / p
    return (p * (ratio - jnp.sum(p * ratio)),)


_log_softmax_by_division.defvjp(
    lambda x: (jax.nn.log_softmax(x), jax.nn.softmax(x)), _log_softmax_backward
)


def _log_ndtr(x):
    return jax.scipy.special.log_ndtr(x)


X, V2, V3, M2 = _array(), _array(2), _array(3), _array(2, 2)

FUNCTIONS = (
    Known("norm squared", lambda x: _norm(x) ** 2, (V3,), "jax#4177", "NaN at zero"),
    Known("norm of a multiple", lambda a, x: _norm(a * x), (X, V3), "jax#26248", "NaN at a = 0"),
    Known("std", jnp.std, (V2,), "jax#11716", "NaN at equal numbers"),
    Known("sigmoid", _sigmoid, (X,), "jax#777", "NaN below -88"),
    Known("softplus of parts", _softplus_of_parts, (X,), "jax#2107", "0 instead of 1/2 at zero"),
    Known("logaddexp", _logaddexp_of_maximum, (X, X), "keras#23616", "(1, 0) at equal numbers"),
    Known("sinc", _sinc, (X,), "jax#6936", "NaN at zero"),
    Known("polar angle", _angle_times_square, (X, X), "jax#1052", "NaN at zero"),
    Known("angle of states", _angle_to_uniform, (V2,), "jax#15798", "NaN at the optimum"),
    Known(
        "logsumexp weights",
        _log_of_weights,
        (checking.interval(0.0, 10.0, (2,)),),
        "jax#22398",
        "0 at a weight of zero",
    ),
    Known(
        "log_softmax",
        lambda x: jax.nn.log_softmax(x)[0],
        (V2,),
        "jax#40384",
        "0 for a small component",
    ),
    Known(
        "masked logsumexp",
        _masked_logsumexp,
        (V2, jnp.array([True, False])),
        "jax#23842",
        "NaN where a masked number is large",
    ),
    Known(
        "softplus longhand",
        _with_rule(jax.nn.softplus, lambda x: jnp.exp(x) * (1 / (1 + jnp.exp(x)))),
        (X,),
        "tt-metal#56397",
        "NaN beyond 88",
    ),
    Known("prod by division", _prod_by_division, (V3,), "pytorch#773", "NaN at zeros"),
    Known("cumprod by division", _cumprod_by_division, (V3,), "tensorflow#3862", "NaN at zeros"),
    Known("svd rebuilt", _rebuilt_from_svd, (M2,), "jax#8732", "NaN at equal singular values"),
    Known("eigh rebuilt", _rebuilt_from_eigh, (M2,), "CAGPJax#6", "NaN at equal eigenvalues"),
    Known("det by inverse", _det_by_inverse, (M2,), "jax#2380", "NaN at singular matrices"),
    Known("rotation vector", _axis_angle_to_quaternion, (V3,), "kornia#3949", "NaN at identity"),
    Known("quaternion log", _quaternion_log, (X, V3), "kornia#4007", "NaN at identity"),
    Known(
        "quaternion angle",
        _quaternion_to_axis_angle,
        (X, V3),
        "kornia#4237",
        "2 instead of 2 / w at identity",
    ),
    Known(
        "power by division",
        _with_rule(lambda x: x**2, lambda x: 2 * x**2 / x),
        (X,),
        "tinygrad#9075",
        "NaN at zero",
    ),
    Known("xlogy", _old_xlogy, (X, X), "jax#15709", "NaN at zero"),
    Known("celu", _celu, (X,), "jax#9873", "NaN beyond 177"),
    Known("elu", jax.nn.elu, (X,), "jax#39795", "0 instead of exp(x)"),
    Known("expm1", jnp.expm1, (X,), "jax#40820", "0 instead of exp(x)"),
    Known("selu", jax.nn.selu, (X,), "jax#39796", "0 instead of a multiple of exp(x)"),
    Known(
        "digamma",
        jax.lax.digamma,
        (checking.interval(-50.0, 50.0),),
        "jax#37635",
        "wrong sign between negative poles",
    ),
    Known("rem", _old_remainder, (X, X), "jax#11466", "off by one for negative numbers"),
    Known("normalize", _normalized, (V3,), "pytorch#184575", "NaN at zero"),
    Known("rbf kernel", _rbf_of_distance, (V2, V2), "gpytorch#869", "NaN at equal points"),
    Known("matern kernel", _matern, (V2, V2), "jax#26248", "NaN at equal points"),
    Known(
        "hypot",
        lambda x, y: jnp.sqrt(x**2 + y**2),
        (X, X),
        "ForwardDiff.jl#669",
        "NaN at and near zero",
    ),
    Known(
        "log_ndtr by quotient",
        _with_rule(
            _log_ndtr,
            lambda x: (
                jnp.sqrt(2 / jnp.pi)
                * jnp.exp(-(x**2) / 2)
                / jax.scipy.special.erfc(-x / jnp.sqrt(2.0))
            ),
        ),
        (checking.interval(-100.0, 100.0),),
        "chainer#6340",
        "NaN below -14",
    ),
    Known("clip", lambda x: 3 * _clip_with_square(x), (X,), "nx#1779", "the cotangent squared"),
    Known(
        "continuous Bernoulli",
        _continuous_bernoulli_mean,
        (X,),
        "tensorflow-probability#1512",
        "NaN for large negative logits",
    ),
    Known("where of log", _square_times_log, (X,), "jax#347", "NaN at negative numbers"),
    Known(
        "1-norm by powers",
        lambda x: jnp.sum(_with_rule(jnp.abs, lambda v: v * jnp.abs(v) ** -1.0)(x)),
        (V2,),
        "pytorch#3264",
        "NaN at zeros",
    ),
    Known("spherical coordinates", _polar_angle, (V3,), "e3nn#112", "NaN at the poles"),
    Known(
        "log_softmax by division",
        _log_softmax_by_division,
        (V3,),
        "NNlib.jl#68",
        "NaN where a probability underflows",
    ),
)
