"""Weight initializers with the signature of `jax.nn.initializers`: `(key, shape, dtype) -> Array`.

They are frozen dataclasses and pytrees: variances, scales and gains are leaves, all other options
are static. So an initializer can be an argument of a jitted function, and one compiled program
serves a whole sweep over its variance. Draws are made in float32 and then converted, so a key gives
the same weights in every precision. A shape that does not fit is reported when weights are drawn.
"""

from jaxgrad.initializers._critical import Critical, critical
from jaxgrad.initializers._fans import Fans, fans
from jaxgrad.initializers._fixup import Fixup, fixup
from jaxgrad.initializers._orthogonal import delta_orthogonal, orthogonal
from jaxgrad.initializers._random import (
    TRUNCATED_STD,
    Initializer,
    constant,
    glorot,
    he,
    lecun,
    normal,
    uniform,
    variance_scaling,
    zeros,
)
from jaxgrad.initializers._unit_variance import UnitVariance, unit_variance

__all__ = [
    "TRUNCATED_STD",
    "Critical",
    "Fans",
    "Fixup",
    "Initializer",
    "UnitVariance",
    "constant",
    "critical",
    "delta_orthogonal",
    "fans",
    "fixup",
    "glorot",
    "he",
    "lecun",
    "normal",
    "orthogonal",
    "uniform",
    "unit_variance",
    "variance_scaling",
    "zeros",
]
