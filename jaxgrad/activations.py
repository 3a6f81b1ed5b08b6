"""Activation functions as one table: the function, where it has kinks, and who proposed it.

Everywhere in jaxgrad an activation is given as a name of the table (`"tanh"`), as an `Activation`
(`leaky_relu(0.2)`), or as any elementwise callable of one array; `get` turns all three into an
`Activation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543778


@dataclass(frozen=True)
class Activation:
    """An elementwise function and what the rest of the library needs to know of it.

    Attributes:
      name: what tables and figures call it.
      function: maps an array to an array of the same shape and dtype, element by element. Called
        as `function(x, **constants, **parameters)`, with `key=` too if `randomized`.
      kinks: the points where the derivative jumps, in increasing order.
      constants: names and values of what the function takes besides the array.
      parameters: names and initial values of the scalars that are trained with the network.
      randomized: whether the function takes a PRNG `key`; with `key=None` it is deterministic.
      mixture: of a randomized function, weights and constants of the deterministic ones that it is
        on average over its draws, as far as fourth moments go.
      degrees: how the function scales near zero and far out, as exponents `(p, q)`: for `c -> 0`
        `phi(c x) ~ c^p`, for `c -> inf` `phi(c x) ~ c^q`. `None` where nobody has said; they are
        then measured.
      scaled_slope: optional `x -> (slope / exp(log_scale), log_scale)` with one `log_scale` for the
        last axis, for functions whose slope underflows where they saturate.
      reference: where the function and its constants come from.

    An `Activation` is hashable, so it can be a static argument of `jax.jit`.

    >>> relu = get("relu")
    >>> relu.kinks
    (0.0,)
    >>> float(relu(-2.0))
    0.0
    """

    name: str
    function: Callable[..., Any]
    kinks: tuple[float, ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    parameters: tuple[tuple[str, float], ...] = ()
    randomized: bool = False
    mixture: tuple[tuple[float, tuple[tuple[str, float], ...]], ...] = ()
    degrees: tuple[float, float] | None = None
    scaled_slope: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None
    reference: str = ""

    def __call__(self, x: Any, **parameters: Any) -> jax.Array:
        """Apply the function; trained parameters not given take their initial values."""
        return self.function(x, **(dict(self.constants + self.parameters) | parameters))


def _sigmoid_scaled_slope(x):
    # From |x| = 20 on the slope is exp(-|x|) to rounding, so a shift of |x| is a factor.
    size = jnp.abs(x)
    shift = jnp.maximum(jnp.min(size, axis=-1, keepdims=True) - 20.0, 0.0)
    power = jnp.exp(shift - size)
    return power / jnp.square(1 + power), -shift


def _tanh_scaled_slope(x):
    slope, log_scale = _sigmoid_scaled_slope(2 * x)
    return 4 * slope, log_scale


def _erf_scaled_slope(x):
    square = x * x
    shift = jnp.min(square, axis=-1, keepdims=True)
    return 2 / jnp.sqrt(jnp.pi) * jnp.exp(shift - square), -shift


def _hard_tanh(x):
    return jnp.clip(x, -1.0, 1.0)


def _leaky_relu(x, slope):
    return jnp.where(x >= 0, x, slope * x)


def _randomized_leaky_relu(x, lower, upper, key=None):
    x = jnp.asarray(x)
    if key is None:
        return _leaky_relu(x, (lower + upper) / 2)
    slope = jax.random.uniform(key, x.shape, jnp.float32, lower, upper)
    return _leaky_relu(x, slope.astype(x.dtype))


def _elu(x, alpha):
    # Not a minimum, whose slope at a tie is one half.
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0.0, x)))


def _selu(x):
    return SELU_SCALE * _elu(x, SELU_ALPHA)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


def _identity(x):
    return jnp.asarray(x)


def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky ReLU: `x` for `x >= 0`, else `slope * x`.

    The course notes prefer a slope of 0.2 to the original 0.01.

    Args:
      slope: finite slope of the negative side.

    Raises:
      ValueError, TypeError: if `slope` is not a finite number.

    >>> float(leaky_relu(0.5)(-2.0))
    -1.0
    """
    _validate.scalar("slope", slope)
    return Activation(
        "leaky_relu" if slope == 0.01 else f"leaky_relu({slope:g})",
        _leaky_relu,
        constants=(("slope", float(slope)),),
        kinks=(0.0,),
        degrees=(1.0, 1.0),
        reference="Maas, Hannun, Ng (2013)",
    )


def randomized_leaky_relu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Randomized leaky ReLU: each negative side draws its slope from `U(lower, upper)`.

    Called with `key=` it draws; without, it uses the mean slope, as at test time.

    Args:
      lower, upper: bounds of the slope, `lower <= upper`.

    Raises:
      ValueError, TypeError: if the bounds are not finite numbers in increasing order.
    """
    _validate.scalar("lower", lower)
    _validate.scalar("upper", upper, minimum=lower)
    # Three Gauss-Legendre slopes have the moments of the uniform one up to the fifth.
    offset = (upper - lower) / 2 * math.sqrt(3 / 5)
    middle = (upper + lower) / 2
    return Activation(
        "randomized_leaky_relu",
        _randomized_leaky_relu,
        mixture=tuple(
            (weight, (("lower", slope), ("upper", slope)))
            for weight, slope in (
                (5 / 18, middle - offset),
                (8 / 18, middle),
                (5 / 18, middle + offset),
            )
        ),
        constants=(("lower", float(lower)), ("upper", float(upper))),
        kinks=(0.0,),
        randomized=True,
        degrees=(1.0, 1.0),
        reference="Xu, Wang, Chen, Li (2015), sec. 3.4",
    )


def parametric_relu(slope: float = 0.25) -> Activation:
    """Parametric ReLU: leaky ReLU whose slope, at first `slope`, is trained with the network.

    Args:
      slope: initial slope of the negative side.

    Raises:
      ValueError, TypeError: if `slope` is not a finite number.
    """
    _validate.scalar("slope", slope)
    return Activation(
        "parametric_relu",
        _leaky_relu,
        kinks=(0.0,),
        parameters=(("slope", float(slope)),),
        degrees=(1.0, 1.0),
        reference="He, Zhang, Ren, Sun (2015), sec. 2.1",
    )


def elu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit: `x` for `x > 0`, else `alpha (e^x - 1)`.

    Args:
      alpha: minus the limit at minus infinity; the derivative jumps at 0 unless it is 1.

    Raises:
      ValueError, TypeError: if `alpha` is not a finite number.
    """
    _validate.scalar("alpha", alpha)
    return Activation(
        "elu" if alpha == 1.0 else f"elu({alpha:g})",
        _elu,
        constants=(("alpha", float(alpha)),),
        kinks=() if alpha == 1.0 else (0.0,),
        degrees=(1.0, 1.0),
        reference="Clevert, Unterthiner, Hochreiter (2016), eq. 15",
    )


def _table() -> Mapping[str, Activation]:
    def row(name, function, degrees, reference, **facts):
        return Activation(name, function, degrees=degrees, reference=reference, **facts)

    both, bounded = (1.0, 1.0), (1.0, 0.0)
    rows = (
        row("linear", _identity, both, "Saxe, McClelland, Ganguli (2014)"),
        row(
            "sigmoid",
            jax.nn.sigmoid,
            (0.0, 0.0),
            "slope at most 1/4; Glorot, Bengio (2010), sec. 3.1",
            scaled_slope=_sigmoid_scaled_slope,
        ),
        row(
            "tanh",
            jnp.tanh,
            bounded,
            "Glorot, Bengio (2010), sec. 3.2",
            scaled_slope=_tanh_scaled_slope,
        ),
        row(
            "erf",
            jax.scipy.special.erf,
            bounded,
            "Williams (1997), Computing with infinite networks",
            scaled_slope=_erf_scaled_slope,
        ),
        row("hard_tanh", _hard_tanh, bounded, "Collobert (2004), thesis", kinks=(-1.0, 1.0)),
        row("sin", jnp.sin, bounded, "Parascandolo, Huttunen, Virtanen (2017)"),
        row("relu", jax.nn.relu, both, "Glorot, Bordes, Bengio (2011)", kinks=(0.0,)),
        leaky_relu(),
        randomized_leaky_relu(),
        parametric_relu(),
        elu(),
        row("selu", _selu, both, "Klambauer et al. (2017), eq. 2", kinks=(0.0,)),
        row("gelu", _gelu, both, "Hendrycks, Gimpel (2016), x Phi(x)"),
        row("gelu_tanh", _gelu_tanh, both, "Hendrycks, Gimpel (2016), sec. 2"),
        row("silu", jax.nn.silu, both, "Elfwing, Uchibe, Doya (2018)"),
        row("softplus", jax.nn.softplus, (0.0, 1.0), "Dugas, Bengio et al. (2001)"),
    )
    return MappingProxyType({row.name: row for row in rows})


TABLE: Mapping[str, Activation] = _table()
"""Every named activation, by name."""


def get(activation: str | Activation | Callable[..., Any]) -> Activation:
    """Turn a name, an `Activation` or an elementwise callable into an `Activation`.

    Args:
      activation: a name of `TABLE`, an `Activation`, or a callable that maps an array to an array
        of the same shape, element by element. A callable counts as smooth; build an `Activation`
        yourself to name its kinks or trained parameters.

    Returns:
      The `Activation`. Equal inputs give equal results, so that `jax.jit` does not retrace.

    Raises:
      ValueError: if the name is unknown, or the callable changes the shape.
      TypeError: if the argument is none of the three, or the callable does not take an array.

    >>> get("tanh").name
    'tanh'
    >>> import jax.numpy as jnp
    >>> get(lambda x: x * jnp.abs(x)).name
    '<lambda>'
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in TABLE:
            raise ValueError(
                f"activation must be one of {', '.join(TABLE)}, or a callable; got {activation!r}"
            )
        return TABLE[activation]
    if not callable(activation):
        raise TypeError(
            f"activation must be a name or a callable, got {activation!r}; "
            "see jaxgrad.activations.TABLE for the names"
        )
    probe = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    try:
        out = jax.eval_shape(activation, probe)
    except Exception as error:
        raise TypeError(
            f"activation must accept one floating-point array, but calling {activation!r} on "
            f"shape (2, 3) raised {type(error).__name__}: {error}"
        ) from error
    if getattr(out, "shape", None) != probe.shape:
        raise ValueError(
            f"activation must act element by element, but {activation!r} maps shape (2, 3) to "
            f"{getattr(out, 'shape', type(out).__name__)}; return an array of the input's shape"
        )
    return Activation(getattr(activation, "__name__", type(activation).__name__), activation)
