"""Identities that every derivative satisfies; they need no finite differences."""

import math
from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import norm
from jaxgrad.checking._autodiff import Autodiff
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._programs import coordinates

NAMES = {
    "linear": "the backward pass is linear in its cotangent",
    "zero": "a zero cotangent gives a zero gradient",
    "holomorphic": "the derivative is linear over the complex numbers",
    "transpose": "forward and reverse mode are transposes of each other",
    "vmap": "the gradient under vmap is the one without",
    "jit": "the gradient under jit is the one without",
    "symmetry": "second derivatives are symmetric",
}
ROUNDING = 100
"""This many roundings of all terms of a gradient are no violation."""


class Identity(NamedTuple):
    """The outcome of one identity.

    Attributes:
      name: a key of `NAMES`.
      holds: whether it holds; `None` if it was not tried.
      error: its largest error, relative to the size of that leaf's gradient.
      leaf: index of the leaf with that error.
      reason: why it was not tried, or "".
    """

    name: str
    holds: bool | None
    error: float = 0.0
    leaf: int = 0
    reason: str = ""


@np.errstate(invalid="ignore", over="ignore")
def check_identities(problem: Problem, autodiff: Autodiff, rtol: float) -> tuple[Identity, ...]:
    """Check every identity that applies, none without reverse mode.

    `rtol` is the error that may pass relative to the gradient of a leaf.
    """
    gradient = autodiff.gradient
    if gradient is None:
        return ()

    def by_leaf(vector):
        return np.array([norm(vector[info.start : info.stop]) for info in problem.leaves])

    size = by_leaf(gradient)
    # A backward pass may round as much as if all leaves had moved by their own size.
    lengths = problem.scales * np.sqrt([info.size for info in problem.leaves])
    moved = np.sum((lengths * size)[np.isfinite(size)]) + problem.total
    tolerance = rtol * size + ROUNDING * autodiff.eps * moved / lengths
    linear = "holomorphic" if problem.holomorphic else "linear"
    identities = [
        _identity(linear, by_leaf(autodiff.nonlinear), size, tolerance),
        _identity("zero", by_leaf(autodiff.from_zero), size, tolerance),
        Identity("vmap", None, reason="f cannot be mapped"),
        Identity("transpose", None, reason="f has no forward mode"),
        Identity("jit", None, reason="f is large, has loops or cannot be traced"),
    ]
    if problem.batched:
        identities[2] = _identity("vmap", by_leaf(autodiff.mapped - gradient), size, tolerance)
    if autodiff.pushed is not None:
        # <cotangent, J v> by forward mode equals <J^T cotangent, v> by reverse mode.
        parts = gradient * autodiff.signs
        pulled = [math.fsum(parts[info.start : info.stop]) for info in problem.leaves]
        identities[3] = _identity("transpose", abs(autodiff.pushed - pulled), size, tolerance)
    if autodiff.eager is not None:
        identities[4] = _identity("jit", by_leaf(autodiff.eager - gradient), size, tolerance)
    if problem.swap is not None and autodiff.swapped is not None:
        # <u, H v> = <v, H u>, where the gradient is H v, and H u after the swap.
        weights, position = problem.swap
        fixed = problem.checked.fixed[position : position + len(weights)]
        u, v = (np.concatenate(list(map(coordinates, w))) for w in (weights, fixed))
        hv, hu = gradient, autodiff.swapped
        size = norm(u * hv) + norm(v * hu)
        tolerance = rtol * size + ROUNDING * autodiff.eps * problem.total
        identities.append(_identity("symmetry", [abs(u @ hv - v @ hu)], [size], [tolerance]))
    return tuple(identities)


def _identity(name: str, difference, size, tolerance) -> Identity:
    """Compare the differences of each leaf with a tolerance, all `[L]`.

    A difference that is not finite shows nothing; such gradients are judged elsewhere.
    """
    difference, size, tolerance = (np.asarray(a, np.float64) for a in (difference, size, tolerance))
    known = np.isfinite(difference) & np.isfinite(size)
    error = np.where(known, difference / np.where(size > 0, size, 1.0), 0.0)
    excess = np.where(known, difference - tolerance, -np.inf)
    holds = bool(np.all(excess <= 0))
    leaf = int(np.argmax(error if holds else excess))
    return Identity(name, holds, float(error[leaf]), leaf)
