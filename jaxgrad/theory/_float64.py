"""Until its users have moved: `in_float64` is in `jaxgrad._numerics`."""

from jaxgrad._numerics import in_float64 as in_float64
