"""Some 200 functions of JAX whose gradients are right, on domains where they are right.

Most domains are bounded: beyond them many of these functions do lose digits. `TRUE` names those
with findings that arbitrary precision confirms, so that they are no false alarms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxgrad.checking import interval

special, linalg, losses = jax.scipy.special, jnp.linalg, optax.losses

X = jax.ShapeDtypeStruct((), jnp.float32)
UNIT, POSITIVE = interval(0.01, 0.99), interval(0.1, 10.0)
SMALL, LARGE = interval(-3.0, 3.0), interval(-1e6, 1e6)
V3, P3, W4 = interval(-5.0, 5.0, (3,)), interval(0.1, 5.0, (3,)), interval(-2.0, 2.0, (4,))
M2, M23 = interval(-3.0, 3.0, (2, 2)), interval(-3.0, 3.0, (2, 3))
# Why a finding is true, by the name of the function.
TRUE: dict[str, str] = {
    # I0'(0) = I1(0) = 0; the derivative of |x|, which JAX takes for 1 at zero, is left over.
    "special.i0": "1 at zero, and 0 for tiny numbers",
    # 2 x erfcx(x) - 2 / sqrt(pi) = -0.0064 at 9.3: mpmath.diff(lambda x: exp(x^2) erfc(x), 9.3).
    "special.erfcx": "-1.13 instead of -0.0064 near 9.3",
    # (|x| - 1) + 1 loses |x| below half of the machine epsilon.
    "huber": "0 for tiny errors",
}


class Right(NamedTuple):
    """A function, the domains of its arguments, and whether its findings are true."""

    name: str
    f: Callable[..., Any]
    domains: tuple[Any, ...]

    @property
    def true(self) -> bool:
        """Whether its findings are confirmed."""
        return self.name in TRUE


def _names(module: Any, names: str, *domains: Any) -> list[Right]:
    short = module.__name__.split(".")[-1]
    return [Right(f"{short}.{name}", getattr(module, name), domains) for name in names.split()]


def _here(domains: tuple[Any, ...], **functions: Callable[..., Any]) -> list[Right]:
    return [Right(name.replace("_", " "), f, domains) for name, f in functions.items()]


def _positive_definite(a: Any) -> Any:
    return a @ a.T + jnp.eye(len(a))


TARGET = jnp.array([0.0, 1.0, 0.0])

ELEMENTWISE = [
    # On all finite numbers.
    *_names(jnp, "sin cos abs fabs negative positive square exp exp2 sqrt log floor ceil rint", X),
    *_names(jnp, "sign trunc arctan deg2rad rad2deg real nan_to_num reciprocal log2 log10", X),
    *_names(jnp, "arcsin arccos", X),
    *_names(jax.nn, "relu relu6 hard_tanh leaky_relu hard_sigmoid identity", X),
    *_names(jax.lax, "sin cos neg abs sqrt rsqrt exp log floor ceil sign", X),
    # Where no digits are lost.
    *_names(jnp, "tan sinh cosh tanh expm1 arctan arcsinh", SMALL),
    *_names(jnp, "log1p arcsinh sqrt cbrt log2 log10 reciprocal", POSITIVE),
    *_names(jnp, "arctanh arcsin arccos", UNIT),
    *_names(jax.nn, "sigmoid softplus soft_sign silu log_sigmoid elu celu selu", SMALL),
    *_names(jax.nn, "gelu mish squareplus tanh sparse_plus sparse_sigmoid hard_silu", SMALL),
    *_names(special, "erf erfc expit log_ndtr ndtr i0 i0e i1 i1e", SMALL),
    *_names(special, "gammaln digamma gamma exp1 expi entr erfcx dawsn", POSITIVE),
    *_names(special, "erfinv ndtri logit entr spence", UNIT),
    *_names(jax.lax, "erf logistic tanh sinh cosh bessel_i0e bessel_i1e", SMALL),
    *_names(jax.lax, "lgamma digamma", POSITIVE),
]
BINARY = [
    *_names(jnp, "add subtract multiply maximum minimum", X, X),
    *_names(jnp, "hypot arctan2 divide power logaddexp logaddexp2 fmod", POSITIVE, POSITIVE),
    *_names(jnp, "copysign fmax fmin mod", SMALL, POSITIVE),
    *_names(special, "xlogy xlog1py rel_entr kl_div betaln beta", POSITIVE, POSITIVE),
    *_names(jax.lax, "add sub mul max min", X, X),
    *_names(jax.lax, "atan2 pow div rem", POSITIVE, POSITIVE),
]
REDUCTIONS = [
    *_names(jnp, "sum mean max min sort cumsum flip ptp median ravel", V3),
    *_names(jnp, "prod var cumprod nansum nanmean nanmax diff", V3),
    *_names(jnp, "sqrt", P3),
    *_names(jax.nn, "softmax log_softmax logsumexp standardize", V3),
    *_names(jax.nn, "glu", W4),
    *_names(jax.lax, "cumsum cumprod cummax cumlogsumexp", V3),
    *_names(special, "logsumexp softmax", V3),
    *_here(
        (V3,),
        sum_of_squares=lambda x: jnp.sum(x**2),
        dot_with_itself=lambda x: jnp.dot(x, x),
        pad=lambda x: jnp.pad(x, 2),
        convolve=lambda x: jnp.convolve(x, jnp.array([1.0, -2.0])),
        roll=lambda x: jnp.roll(x, 1),
        take=lambda x: x[jnp.array([0, 2, 2])],
        scatter=lambda x: jnp.zeros(5).at[jnp.array([1, 3, 1])].add(x),
        segment_sum=lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 0]), 2),
        segment_max=lambda x: jax.ops.segment_max(x, jnp.array([0, 1, 0]), 2),
        interp=lambda x: jnp.interp(x, jnp.arange(3.0), jnp.array([0.0, 2.0, 1.0])),
        outer=lambda x: jnp.outer(x, x),
        top_k=lambda x: jax.lax.top_k(x, 2)[0],
        scan=lambda x: jax.lax.scan(lambda c, v: (c * 0.5 + v, c), 0.0, x)[0],
        trapezoid=lambda x: jnp.trapezoid(x**2),
        polyval=lambda x: jnp.polyval(x, 1.5),
        quantile=lambda x: jnp.quantile(x, 0.3),
        where_positive=lambda x: jnp.where(x > 0, x, 0.1 * x),
        clip=lambda x: jnp.clip(x, -1.0, 1.0),
        safe_norm=lambda x: optax.safe_norm(x, 1e-3),
    ),
    *_here((P3,), norm=linalg.norm, geometric_mean=lambda x: jnp.exp(jnp.mean(jnp.log(x)))),
    *_here(
        (P3,), normalized=lambda x: x / linalg.norm(x), entropy=lambda x: -jnp.sum(x * jnp.log(x))
    ),
]
LINEAR_ALGEBRA = [
    *_here(
        (M2,),
        trace=jnp.trace,
        transpose=jnp.transpose,
        product=lambda a: a @ a,
        cube=lambda a: linalg.matrix_power(a, 3),
        det=lambda a: linalg.det(_positive_definite(a)),
        slogdet=lambda a: linalg.slogdet(_positive_definite(a))[1],
        inv=lambda a: linalg.inv(_positive_definite(a)),
        solve=lambda a: linalg.solve(_positive_definite(a), jnp.ones(2)),
        cholesky=lambda a: linalg.cholesky(_positive_definite(a)),
        frobenius=lambda a: jnp.sum(a**2),
        triu=jnp.triu,
        diagonal=jnp.diagonal,
        kron=lambda a: jnp.kron(a, a),
        einsum=lambda a: jnp.einsum("ij,jk,ki->", a, a, a),
        expm=lambda a: jax.scipy.linalg.expm(a / 4),
    ),
    *_here((M23,), row_sums=lambda a: jnp.sum(a, 1), gram=lambda a: a @ a.T, flat=jnp.ravel),
    *_here((M23,), row_maxima=lambda a: jnp.max(a, 1), row_softmax=jax.nn.softmax),
    *_here((M2, M2), matmul=jnp.matmul, tensordot=lambda a, b: jnp.tensordot(a, b), dot=jnp.dot),
]
LOSSES = [
    *_here(
        (V3,),
        squared_error=lambda x: losses.squared_error(x, TARGET).mean(),
        huber_loss=lambda x: losses.huber_loss(x, TARGET).mean(),
        log_cosh=lambda x: losses.log_cosh(x / 2, TARGET).mean(),
        softmax_cross_entropy=lambda x: losses.softmax_cross_entropy(x, TARGET),
        sigmoid_cross_entropy=lambda x: losses.sigmoid_binary_cross_entropy(x, TARGET).mean(),
        hinge_loss=lambda x: losses.hinge_loss(x, 2 * TARGET - 1).mean(),
        cross_entropy_of_label=lambda x: losses.softmax_cross_entropy_with_integer_labels(x, 1),
        focal_loss=lambda x: losses.sigmoid_focal_loss(x, TARGET).mean(),
        kl_of_logits=lambda x: losses.kl_divergence(jax.nn.log_softmax(x), TARGET / 2 + 1 / 6),
        perceptron_loss=lambda x: losses.perceptron_loss(x, 2 * TARGET - 1).mean(),
        multiclass_hinge=lambda x: losses.multiclass_hinge_loss(x, 1),
        poly_loss=lambda x: losses.poly_loss_cross_entropy(x, TARGET),
        sparsemax_loss=lambda x: losses.sparsemax_loss(x, jnp.array([0, 1, 0])).mean(),
    ),
    *_here((P3,), cosine=lambda x: losses.cosine_similarity(x, jnp.ones(3), epsilon=1e-6)),
]
COMPOSITIONS = [
    *_here(
        (SMALL,),
        damped_wave=lambda x: jnp.exp(-x) * jnp.sin(3 * x),
        logistic_loss=lambda x: jnp.logaddexp(0.0, -x),
        gaussian=lambda x: jnp.exp(-(x**2) / 2),
        rational=lambda x: x / (1 + x**2),
        softplus_of_square=lambda x: jax.nn.softplus(x**2),
        polynomial=lambda x: x**3 - 2 * x**2 + 1,
        cauchy=lambda x: jnp.log1p(x**2),
        pseudo_huber=lambda x: jnp.sqrt(1 + x**2) - 1,
        loop=lambda x: jax.lax.fori_loop(0, 4, lambda i, y: jnp.sin(y) + x, x),
        branch=lambda x: jax.lax.cond(x > 0.5, jnp.sin, jnp.cos, x),
        checkpointed=jax.checkpoint(lambda x: jnp.tanh(x) ** 2),
        safe_sinc=lambda x: jnp.sinc(x / 8 + 1.3),
        safe_root=lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0),
        two_kinks=lambda x: jnp.abs(x - 1) + jnp.abs(x + 1),
        staircase=lambda x: jnp.floor(3 * x) + x,
        swish_by_hand=lambda x: x * jax.nn.sigmoid(x),
    ),
    *_here((LARGE,), line=lambda x: 3 * x + 1, huber=lambda x: losses.huber_loss(x, 0.0)),
    *_here(
        (LARGE,), wrapped=lambda x: x - 2 * jnp.round(x / 2), clipped=lambda x: jnp.clip(x, -2, 7)
    ),
    *_here((POSITIVE, SMALL), normal=lambda s, x: -((x / s) ** 2) / 2 - jnp.log(s)),
    *_here((POSITIVE, POSITIVE), gamma_density=lambda a, x: jax.scipy.stats.gamma.logpdf(x, a)),
    *_here((POSITIVE, UNIT), beta_density=lambda a, x: jax.scipy.stats.beta.logpdf(x, a, 2.0)),
    *_here((POSITIVE, SMALL), student=lambda n, x: jax.scipy.stats.t.logpdf(x, n)),
    *_here(
        (UNIT, UNIT), mixture=lambda p, q: p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
    ),
]
FUNCTIONS = (*ELEMENTWISE, *BINARY, *REDUCTIONS, *LINEAR_ALGEBRA, *LOSSES, *COMPOSITIONS)
