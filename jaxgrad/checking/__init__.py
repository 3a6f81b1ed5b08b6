"""Is a gradient right?"""

from jaxgrad.checking import differences
from jaxgrad.checking.check import check_grads
from jaxgrad.checking.practice import check_along_training, check_terms
from jaxgrad.checking.report import Leaf, Report
from jaxgrad.checking.verdicts import Verdict

__all__ = [
    "Leaf",
    "Report",
    "Verdict",
    "check_along_training",
    "check_grads",
    "check_terms",
    "differences",
]
