"""Any JAX program opened up: the size of its signals and gradients, operation by operation.

`xray(loss, *args)` measures them at every product, non-linear function and sum of a model, with
the parameter and the line of code that each comes from. The model needs no change.
"""

from jaxgrad.inspection._depth import Growth
from jaxgrad.inspection._taps import Statistics
from jaxgrad.inspection._xray import Site, XRay, xray

__all__ = ["Growth", "Site", "Statistics", "XRay", "xray"]
