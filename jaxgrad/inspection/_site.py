"""What is measured at one operation of a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.inspection._sites import Location
from jaxgrad.inspection._statistics import Details, Statistics


class Bits(NamedTuple):
    """Powers of two that are left in a floating-point type; negative ones are missing.

    Attributes:
      overflow: from the largest absolute value up to the largest number of the type.
      underflow: from the root mean square down to the smallest normal number of the type.
    """

    overflow: Any
    underflow: Any


@dataclass(frozen=True)
class Site(Location):
    """Where an operation of a model is, and statistics of its result and of the cotangent.

    Attributes:
      operation, scope, parameter, line, lengths, scan, shape, dtype, fan_in, weight: as in
        `Location`.
      forward, backward: arrays of the shape of the enclosing scans, `()` outside of any. A branch
        that was not taken has NaN; `backward` is zero where the loss does not depend on the result.
      details: of the parameter and of the units, arrays of the same shape.
    """

    forward: Statistics
    backward: Statistics
    details: Details

    @classmethod
    def create(cls, location: Location, forward, backward, details) -> "Site":
        """Return a site from where it is and what was measured there."""
        return cls(**vars(location), forward=forward, backward=backward, details=details)

    @property
    def variance(self) -> np.ndarray:
        """Mean square of the weights of a product, times their fan-in; NaN for anything else."""
        with np.errstate(over="ignore"):
            return np.exp(self.details.log_weight) * (self.fan_in or math.nan)

    def bits(self, direction: str = "forward", dtype: Any = None) -> Bits:
        """Return how far the signal or, if `direction` is "backward", its cotangent is from limits.

        Args:
          dtype: any floating-point type, such as `jnp.float8_e4m3fn`; `None` is that of the result.
        """
        part, info = getattr(self, direction), jnp.finfo(self.dtype if dtype is None else dtype)
        largest, smallest = math.log2(float(info.max)), math.log2(float(info.smallest_normal))
        # The logs are natural ones, that of the size is the log of a square.
        value = np.asarray(part.log_largest, np.float64) / math.log(2)
        size = np.asarray(part.log_mean_square, np.float64) / (2 * math.log(2))
        return Bits(largest - value, size - smallest)


def site_columns(sites: Sequence[Site]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the variables and the coordinates of a data set with the axes site and iteration."""
    length = max((site.forward.zeros.size for site in sites), default=0)

    def column(values):
        # Sites outside of scans have one iteration.
        rows = [np.ravel(np.asarray(value, np.float64)) for value in values]
        rows = [np.pad(r, (0, length - r.size), constant_values=np.nan) for r in rows]
        return ("site", "iteration"), np.array(rows).reshape(len(sites), length)

    to_log10 = 2 * math.log(10)
    variables = {}
    for name, part in (("signal", "forward"), ("gradient", "backward")):
        parts = [getattr(site, part) for site in sites]
        variables[name] = column([p.log_mean_square / to_log10 for p in parts])
        variables[f"{name}_zeros"] = column([p.zeros for p in parts])
        variables[f"{name}_non_finite"] = column([p.non_finite for p in parts])
    variables["variance"] = column([site.variance for site in sites])
    variables["dead"] = column([site.details.dead for site in sites])
    variables["saturated"] = column([site.details.saturated for site in sites])
    names = ("operation", "scope", "parameter", "line")
    labels = {name: ("site", [getattr(site, name) for site in sites]) for name in names}
    return variables, labels
