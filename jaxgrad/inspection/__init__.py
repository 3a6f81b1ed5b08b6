"""Any JAX program opened up: its signals, gradients and derivative rules, one by one.

`xray(loss, *args)` measures the size of signals and gradients at every product, non-linear function
and sum of a model, with the parameter and the line of code that each comes from. The model needs no
change.
`explain_non_finite(loss, *args)` finds the operation that makes a loss or gradient infinite or NaN.
`audit(f, *args)` checks each derivative rule that a program uses by itself.
`prescribe(trace)` returns the factors of the weights with which signals and gradients stay level.
`measure_blocks(loss, blocks)` makes a function that measures the blocks of a model, to be mapped.
`coordinate_check(make, ...)` measures how they, and their changes in training, depend on width.
"""

from jaxgrad.checking import Rule, RuleVerdict
from jaxgrad.inspection._audit import Audit, audit
from jaxgrad.inspection._blocks import BlockSizes, measure_blocks
from jaxgrad.inspection._coordinates import CoordinateCheck, Exponent, coordinate_check
from jaxgrad.inspection._depth import Growth
from jaxgrad.inspection._faults import Fault
from jaxgrad.inspection._non_finite import NonFinite, explain_non_finite
from jaxgrad.inspection._prescribe import Change, Prescription, prescribe
from jaxgrad.inspection._site import Bits, Site
from jaxgrad.inspection._statistics import Details, Statistics
from jaxgrad.inspection._xray import Measurement, XRay, instrument, xray

__all__ = [
    "Audit",
    "Bits",
    "BlockSizes",
    "Change",
    "CoordinateCheck",
    "Details",
    "Exponent",
    "Fault",
    "Growth",
]
__all__ += ["Measurement", "NonFinite", "Prescription", "Rule", "RuleVerdict", "Site", "Statistics"]
__all__ += ["XRay", "audit", "coordinate_check", "explain_non_finite", "instrument"]
__all__ += ["measure_blocks", "prescribe", "xray"]
