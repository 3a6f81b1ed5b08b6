"""What may separate autodiff from a numeric derivative besides the error bar of the latter."""

from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._step_sizes import Derivative

SOLVER_RTOL = 1e-3
"""Relative error that may pass where loops stop at a tolerance."""
FEW_COORDINATES = 16
"""A leaf of at most this many coordinates is always checked at each of them."""


class Tolerance(NamedTuple):
    """Differences that are not taken for errors.

    What rounding in the backward pass may leave is relative to the root mean square of a leaf, for
    an `element` or for the derivative along a `direction`.
    """

    rtol: float  # relative error of an element, or of a whole leaf
    element: float
    direction: float
    complete: np.ndarray  # whether each leaf is checked at every element, [L]
    raised: bool = False  # whether `rtol` is larger than the user asked for

    def of(self, leaf: int, numeric: Derivative) -> np.ndarray:
        """Return the tolerance for each derivative of a leaf, `[P]`."""
        size = rms(numeric.value)
        if self.complete[leaf]:
            return self.rtol * np.abs(numeric.value) + self.element * size
        # Along a direction one element counts little, so nothing passes but rounding.
        return np.full(numeric.value.shape, self.direction * size)


def choose_tolerance(problem: Problem, eps: float, rtol: float, exhaustive: int) -> Tolerance:
    """Return the tolerance of a check, where `eps` is the coarsest in the backward pass."""
    # The tolerance of a solver is an error of the function and of its derivative, not a mistake.
    iterates = problem.facts is not None and problem.facts.iterates
    sizes = np.array([leaf.size for leaf in problem.leaves])
    # A backward pass in a narrow type adds many roundings, hence the larger multiple.
    rounding = 300 * eps if eps < 1e-4 else 30 * eps
    raised = max(rtol, SOLVER_RTOL) if iterates else rtol
    return Tolerance(
        rtol=raised,
        element=max(raised / 10, 1e-5, rounding),
        direction=30 * eps if eps > 1e-12 else 1e-11,
        complete=(sizes <= FEW_COORDINATES) | (len(problem.point) <= exhaustive),
        raised=raised > rtol,
    )
