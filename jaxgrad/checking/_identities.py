"""Identities that every derivative satisfies; they need no finite differences."""

import numpy as np

from jaxgrad._numerics import norm
from jaxgrad.checking._autodiff import Autodiff, leaf_norms
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._programs import coordinates
from jaxgrad.checking._report import Identity

ROUNDING = 100  # This many roundings of all terms of a gradient are no violation.
UNTRIED = {
    "vmap": "f cannot be mapped",
    "transpose": "f has no forward mode",
    "jit": "f is large, has loops or cannot be traced",
}


@np.errstate(invalid="ignore", over="ignore")
def check_identities(problem: Problem, autodiff: Autodiff, rtol: float) -> tuple[Identity, ...]:
    """Check every identity that applies; `rtol` of the gradient of a leaf may pass."""
    gradient, violations = autodiff.gradient, autodiff.violations
    if gradient is None or violations is None:
        return ()
    size = leaf_norms(problem, gradient)
    # A backward pass may round as much as if all leaves had moved by their own size.
    lengths = problem.scales * np.sqrt([info.size for info in problem.leaves])
    moved = np.sum((lengths * size)[np.isfinite(size)]) + problem.total
    tolerance = rtol * size + ROUNDING * autodiff.eps * moved / lengths
    identities = [
        _identity(name, violations[name], size, tolerance)
        if name in violations
        else Identity(name, None, reason=UNTRIED[name])
        for name in ("holomorphic" if problem.holomorphic else "linear", "zero", *UNTRIED)
    ]
    if problem.swap is not None and autodiff.swapped is not None:
        # <u, H v> = <v, H u>, where the gradient is H v, and H u after the swap.
        weights, position = problem.swap
        fixed = problem.checked.fixed[position : position + len(weights)]
        u, v = (np.concatenate(list(map(coordinates, w))) for w in (weights, fixed))
        hv, hu = gradient, autodiff.swapped
        size = norm(u * hv) + norm(v * hu)
        tolerance = rtol * size + ROUNDING * autodiff.eps * problem.total
        identities.append(_identity("symmetry", abs(u @ hv - v @ hu), size, tolerance))
    return tuple(identities)


def _identity(name: str, violation, size, tolerance) -> Identity:
    """Compare the violation of each leaf, or of the whole, with a tolerance, all `[L]`."""
    violation, size, tolerance = map(np.atleast_1d, (violation, size, tolerance))
    # A violation that is not finite shows nothing; such gradients are judged elsewhere.
    known = np.isfinite(violation) & np.isfinite(size)
    error = np.where(known, violation / np.where(size > 0, size, 1.0), 0.0)
    excess = np.where(known, violation - tolerance, -np.inf)
    holds = bool(np.all(excess <= 0))
    leaf = int(np.argmax(error if holds else excess))
    return Identity(name, holds, float(error[leaf]), leaf)
