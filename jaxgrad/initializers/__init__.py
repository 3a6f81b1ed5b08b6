"""Weight initializers with the signature of `jax.nn.initializers`: `(key, shape, dtype) -> Array`.

They are frozen dataclasses and pytrees: variances, scales and gains are leaves, all other options
are static. So an initializer can be an argument of a jitted function, and one compiled program
serves a whole sweep over its variance. Draws are made in float32 and then converted, so a key gives
the same weights in every precision. A shape that does not fit is reported when weights are drawn.
"""

from jaxgrad.initializers._critical import Critical, critical
from jaxgrad.initializers._random import (
    TRUNCATED_STD,
    Fans,
    Fixup,
    Initializer,
    constant,
    delta_orthogonal,
    fans,
    fixup,
    glorot,
    he,
    lecun,
    normal,
    orthogonal,
    uniform,
    variance_scaling,
    zeros,
)
from jaxgrad.initializers._unit_variance import UnitVariance, unit_variance

__all__ = ["TRUNCATED_STD", "Critical", "Fans", "Fixup", "Initializer", "UnitVariance"]
__all__ += ["constant", "glorot", "he", "lecun", "normal", "uniform", "variance_scaling", "zeros"]
__all__ += ["critical", "delta_orthogonal", "fans", "fixup", "orthogonal", "unit_variance"]
