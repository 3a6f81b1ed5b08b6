"""Is a gradient right?"""

from jaxgrad.checking import differences
from jaxgrad.checking.check import check_grads
from jaxgrad.checking.report import Leaf, Report
from jaxgrad.checking.verdicts import Verdict

__all__ = ["Leaf", "Report", "Verdict", "check_grads", "differences"]
