"""Is a gradient right? Checks of any function against numeric derivatives."""

from jaxgrad.checking import finite_differences
from jaxgrad.checking._check import check_grads
from jaxgrad.checking._loss import check_along_training, check_terms
from jaxgrad.checking._reference import Cause, Reference, ReferenceLeaf, reference
from jaxgrad.checking._report import Leaf, Report, Verdict

__all__ = [
    "Cause",
    "Leaf",
    "Reference",
    "ReferenceLeaf",
    "Report",
    "Verdict",
    "check_along_training",
    "check_grads",
    "check_terms",
    "finite_differences",
    "reference",
]
