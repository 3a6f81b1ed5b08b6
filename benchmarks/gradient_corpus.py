"""Gradients known to be right and gradients known to be wrong, to try a gradient checker on."""

from __future__ import annotations

from benchmarks import (
    gradient_corpus_right_functions,
    gradient_corpus_right_models,
    gradient_corpus_wrong_functions,
    gradient_corpus_wrong_rules,
)
from benchmarks.gradient_corpus_case import Case

__all__ = ["CASES", "Case"]

CASES: tuple[Case, ...] = (
    *gradient_corpus_right_models.CASES,
    *gradient_corpus_right_functions.CASES,
    *gradient_corpus_wrong_rules.CASES,
    *gradient_corpus_wrong_functions.CASES,
)
