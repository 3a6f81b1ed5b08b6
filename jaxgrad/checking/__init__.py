"""Is a gradient right? Checks of any function against numeric derivatives."""

from jaxgrad.checking import finite_differences
from jaxgrad.checking._check import check_grads
from jaxgrad.checking._domain import check_domain
from jaxgrad.checking._domain_report import DomainReport, Finding
from jaxgrad.checking._domain_strategy import arguments
from jaxgrad.checking._domain_values import Interval, interval
from jaxgrad.checking._expectation import check_expectation
from jaxgrad.checking._expectation_report import (
    ExpectationLeaf,
    ExpectationReport,
    ExpectationVerdict,
)
from jaxgrad.checking._loss import check_along_training, check_terms
from jaxgrad.checking._reference import Cause, Reference, ReferenceLeaf, reference
from jaxgrad.checking._report import Leaf, Report, Verdict
from jaxgrad.checking._rule_check import RuleChecks, check_rules
from jaxgrad.checking._rule_report import Rule, RuleVerdict

__all__ = [
    "Cause",
    "DomainReport",
    "ExpectationLeaf",
    "ExpectationReport",
    "ExpectationVerdict",
    "Finding",
    "Interval",
    "Leaf",
    "Reference",
    "ReferenceLeaf",
    "Report",
    "Rule",
    "RuleChecks",
    "RuleVerdict",
    "Verdict",
    "arguments",
    "check_along_training",
    "check_domain",
    "check_expectation",
    "check_grads",
    "check_rules",
    "check_terms",
    "finite_differences",
    "interval",
    "reference",
]
