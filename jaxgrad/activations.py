"""A table of activation functions, with their kinks, their scaling and their sources.

All functions of jaxgrad accept a name of the table (`"tanh"`), an `Activation` (`leaky_relu(0.2)`),
or an elementwise callable of one array; `get` turns all three into an `Activation`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate

# Klambauer et al. (2017): with these constants, mean 0 and variance 1 are a fixed point.
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543778
# Degrees of functions that are linear at both ends, or linear near zero and bounded.
_LINEAR, _BOUNDED = (1.0, 1.0), (1.0, 0.0)
_ZERO = (0.0,)


@dataclass(frozen=True)
class Activation:
    """An elementwise function and the facts about it that the library needs; it is hashable.

    Attributes:
      function: maps an array to an array of the same shape and dtype, element by element. It is
        called as `function(x, **constants, **parameters)`, with `key=` too if `randomized`.
      kinks: the points where the derivative jumps, in increasing order.
      constants: names and values of further arguments of the function.
      parameters: names and initial values of the scalars that are trained with the network.
      randomized: whether the function takes a PRNG `key`; with `key=None` it is deterministic.
      mixture: for a randomized function, weights and constants of deterministic functions with the
        same average over its draws, up to fourth moments.
      degrees: exponents `(p, q)` of `phi(c x) ~ c^p` for `c -> 0` and `phi(c x) ~ c^q` for
        `c -> inf`; they are measured if `None`.
      scaled_slope: optional `x -> (slope / exp(log_scale), log_scale)` with one `log_scale` for the
        last axis, for functions whose slope underflows where they saturate.
      reference: the source of the function and its constants.
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
        """Apply the function; trained parameters take their initial values unless passed."""
        return self.function(x, **(dict(self.constants + self.parameters) | parameters))


def _sigmoid_slope(x):
    # The slope is e / (1 + e)^2, e = exp(-|x|). From |x| = 20 on a shift of |x| is a factor.
    size = jnp.abs(x)
    shift = jnp.maximum(jnp.min(size, axis=-1, keepdims=True) - 20.0, 0.0)
    power = jnp.exp(shift - size)
    return power / jnp.square(1 + power), -shift


def _tanh_slope(x):
    # tanh(x) = 2 sigmoid(2 x) - 1.
    slope, log_scale = _sigmoid_slope(2 * x)
    return 4 * slope, log_scale


def _erf_slope(x):
    # The slope is 2 / sqrt(pi) exp(-x^2).
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
    # In float32, so that a key draws the same slopes in every precision.
    slope = jax.random.uniform(key, x.shape, jnp.float32, lower, upper)
    return _leaky_relu(x, slope.astype(x.dtype))


def _selu(x):
    return SELU_SCALE * jax.nn.elu(x, SELU_ALPHA)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
    return jax.nn.gelu(x, approximate=True)


def _row(name: str, function, degrees, reference: str, kinks=(), **options: Any) -> Activation:
    return Activation(name, function, kinks=kinks, degrees=degrees, reference=reference, **options)


def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky ReLU: `x` for `x >= 0`, else `slope * x`; some course notes recommend a slope of 0.2.

    >>> float(leaky_relu(0.5)(-2.0))
    -1.0
    """
    _validate.scalar("slope", slope)
    name = "leaky_relu" if slope == 0.01 else f"leaky_relu({slope:g})"
    source, constants = "Maas, Hannun, Ng (2013)", (("slope", float(slope)),)
    return _row(name, _leaky_relu, _LINEAR, source, _ZERO, constants=constants)


def randomized_leaky_relu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Randomized leaky ReLU: with `key=` each negative side draws its slope from `U(lower, upper)`.

    Without a key it uses the mean slope, as at test time.
    """
    _validate.scalar("lower", lower)
    _validate.scalar("upper", upper, minimum=lower)
    # Three Gauss-Legendre nodes have the moments of the uniform distribution up to the fifth.
    offset = (upper - lower) / 2 * math.sqrt(3 / 5)
    middle = (upper + lower) / 2
    nodes = ((5 / 18, middle - offset), (8 / 18, middle), (5 / 18, middle + offset))
    options = {
        "mixture": tuple((w, (("lower", slope), ("upper", slope))) for w, slope in nodes),
        "constants": (("lower", float(lower)), ("upper", float(upper))),
    }
    name, source = "randomized_leaky_relu", "Xu, Wang, Chen, Li (2015), sec. 3.4"
    return _row(name, _randomized_leaky_relu, _LINEAR, source, _ZERO, randomized=True, **options)


def parametric_relu(slope: float = 0.25) -> Activation:
    """Parametric ReLU: a leaky ReLU whose slope is trained; `slope` is its initial value."""
    _validate.scalar("slope", slope)
    name, parameters = "parametric_relu", (("slope", float(slope)),)
    source = "He, Zhang, Ren, Sun (2015), sec. 2.1"
    return _row(name, _leaky_relu, _LINEAR, source, _ZERO, parameters=parameters)


def elu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit: `x` for `x > 0`, else `alpha (e^x - 1)`; smooth if `alpha` is 1."""
    _validate.scalar("alpha", alpha)
    name, kinks = ("elu", ()) if alpha == 1.0 else (f"elu({alpha:g})", _ZERO)
    source = "Clevert, Unterthiner, Hochreiter (2016), eq. 15"
    return _row(name, jax.nn.elu, _LINEAR, source, kinks, constants=(("alpha", float(alpha)),))


_ERF = "Williams (1997), Computing with infinite networks"
_SIGMOID = "slope at most 1/4; Glorot, Bengio (2010), sec. 3.1"
_ROWS = (
    _row("linear", jnp.asarray, _LINEAR, "Saxe, McClelland, Ganguli (2014)"),
    _row("sigmoid", jax.nn.sigmoid, (0.0, 0.0), _SIGMOID, scaled_slope=_sigmoid_slope),
    _row("tanh", jnp.tanh, _BOUNDED, "Glorot, Bengio (2010), sec. 3.2", scaled_slope=_tanh_slope),
    _row("erf", jax.scipy.special.erf, _BOUNDED, _ERF, scaled_slope=_erf_slope),
    _row("hard_tanh", _hard_tanh, _BOUNDED, "Collobert (2004), thesis", (-1.0, 1.0)),
    _row("sin", jnp.sin, _BOUNDED, "Parascandolo, Huttunen, Virtanen (2017)"),
    _row("relu", jax.nn.relu, _LINEAR, "Glorot, Bordes, Bengio (2011)", _ZERO),
    *(leaky_relu(), randomized_leaky_relu(), parametric_relu(), elu()),
    _row("selu", _selu, _LINEAR, "Klambauer et al. (2017), eq. 2", _ZERO),
    _row("gelu", _gelu, _LINEAR, "Hendrycks, Gimpel (2016), x Phi(x)"),
    _row("gelu_tanh", _gelu_tanh, _LINEAR, "Hendrycks, Gimpel (2016), sec. 2"),
    _row("silu", jax.nn.silu, _LINEAR, "Elfwing, Uchibe, Doya (2018)"),
    _row("softplus", jax.nn.softplus, (0.0, 1.0), "Dugas, Bengio et al. (2001)"),
)
TABLE: Mapping[str, Activation] = MappingProxyType({row.name: row for row in _ROWS})
"""All named activations, by name."""


def get(activation: str | Activation | Callable[..., Any]) -> Activation:
    """Turn a name, an `Activation` or an elementwise callable into an `Activation`.

    A callable must map an array to one of the same shape, element by element. It is assumed to be
    smooth; construct an `Activation` to declare kinks or trained parameters. Equal inputs give
    equal results, so `jax.jit` does not retrace. A `ValueError` names an unknown name or a change
    of shape, a `TypeError` an argument of another type or a callable that does not accept an array.

    >>> get("tanh").name
    'tanh'
    """
    # Rows of the table are shared, so that equal names are the same object.
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in TABLE:
            rule = f"be one of {', '.join(TABLE)}, or a callable"
            raise ValueError(f"activation must {rule}; got {activation!r}")
        return TABLE[activation]
    if not callable(activation):
        remedy = "see jaxgrad.activations.TABLE for the names"
        raise TypeError(f"activation must be a name or a callable, got {activation!r}; {remedy}")
    example = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    try:
        out = jax.eval_shape(activation, example)
    except Exception as error:
        raised = f"calling {activation!r} on shape (2, 3) raised {type(error).__name__}: {error}"
        message = f"activation must accept one floating-point array, but {raised}"
        raise TypeError(message) from error
    shape = getattr(out, "shape", type(out).__name__)
    if shape != example.shape:
        rest = f"{activation!r} maps shape (2, 3) to {shape}; return an array of the input's shape"
        raise ValueError(f"activation must act element by element, but {rest}")
    return Activation(getattr(activation, "__name__", type(activation).__name__), activation)
