"""The second stage of a check: the derivatives that autodiff gives."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgrad.checking._directions import SIGNS, Direction, products, tangents
from jaxgrad.checking._precision import first_line
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._programs import STACKED, gradient_coordinates, gradient_of, precision
from jaxgrad.checking._trace import trace

EAGER_LIMIT = 150
"""A function of more operations is not run without `jit`, nor is one with loops."""


NONE = np.empty(0)


class Autodiff(NamedTuple):
    """Gradients of the weighted outputs as coordinates, `[size]`; none without reverse mode.

    Attributes:
      eps: machine epsilon of the narrowest type in the backward pass.
      signs: a tangent of random signs, `[size]`.
      gradient: the gradient.
      original: the gradient in the types of the arguments; `None` if `gradient` is that.
      mapped: the gradient under `vmap`, if the function can be mapped.
      nonlinear: error of the gradient of a linear combination of two cotangents.
      from_zero: the gradient for a cotangent of zero.
      pushed: tangents by forward mode along the part of `signs` in each leaf, `[L]`; `None` if
        forward mode is not defined.
      eager: the gradient without `jit`; `None` if it was not tried.
      swapped: the gradient with the weights of `Problem.swap`.
    """

    eps: float
    signs: np.ndarray
    gradient: np.ndarray | None = None
    original: np.ndarray | None = None
    mapped: np.ndarray = NONE
    nonlinear: np.ndarray = NONE
    from_zero: np.ndarray = NONE
    pushed: np.ndarray | None = None
    eager: np.ndarray | None = None
    swapped: np.ndarray | None = None


@np.errstate(invalid="ignore", over="ignore")
def differentiate(problem: Problem, reverse: bool, generator: np.random.Generator) -> Autodiff:
    """Differentiate by reverse mode, if `reverse`, and by forward mode along one direction."""
    facts, checked, cotangents = problem.facts, problem.checked, problem.cotangents
    # A rule that takes the real part of its cotangent is linear over real numbers only.
    a, b = (0.75 + 0.5j, -1.25j) if problem.holomorphic else (0.75, -1.25)
    signs = generator.choice(SIGNS, len(problem.point))
    stacked = [_stack(cotangent, a, b, generator) for cotangent in cotangents]
    if not reverse:
        return Autodiff(checked.eps, signs)
    inputs = (checked.moved, checked.fixed, cotangents)
    backward = functools.partial(gradient_of, problem.function)
    eps, eager = checked.eps, None
    options = {"batched": problem.batched, "forward": facts is not None and facts.forward}
    try:
        leaves, several, pushed = checked.programs.gradients(*inputs, stacked, signs, **options)
        with precision(checked.wide):
            if facts is not None:
                # The backward pass may round where the function does not, as by a cast in a rule.
                eps = max(eps, trace(backward, *inputs).eps)
            if facts is not None and not facts.loops and facts.equations <= EAGER_LIMIT:
                eager = gradient_coordinates(backward(*inputs))
    except Exception as error:  # whatever a user's rule raises
        raise ValueError(
            f"f cannot be differentiated in reverse mode: {first_line(error)}; mend its rule, or "
            'check forward mode alone with modes=("fwd",)'
        ) from error
    several = list(map(_exact, several))
    rows = [[leaf[i] for leaf in several] for i in range(STACKED)]
    nonlinear = [a * one + b * two - both for one, two, both in zip(*rows[:3], strict=True)]
    return Autodiff(
        eps,
        signs,
        gradient_coordinates(leaves),
        original=_in_original_types(problem),
        mapped=gradient_coordinates(rows[0]),
        nonlinear=gradient_coordinates(nonlinear),
        from_zero=gradient_coordinates(rows[3]),
        pushed=None if pushed is None else np.asarray(pushed, np.float64),
        eager=eager,
        swapped=_swapped(problem),
    )


def slopes(
    problem: Problem, autodiff: Autodiff, directions: Sequence[Direction], mode: str
) -> np.ndarray:
    """Return autodiff's derivative along each direction, `[P]`, by mode "rev" or "fwd"."""
    if mode == "rev" and autodiff.gradient is not None:
        return products(autodiff.gradient, directions)
    try:
        return tangents(problem, directions)
    except Exception as error:  # whatever a user's rule raises
        raise ValueError(
            f"f cannot be differentiated in forward mode: {first_line(error)}; check reverse mode "
            'alone with modes=("rev",)'
        ) from error


def _stack(cotangent: np.ndarray, a, b, generator) -> np.ndarray:
    """Stack a cotangent, another one, `a` times the first plus `b` times the second, and zero."""
    other = np.max(np.abs(cotangent), initial=0.0) * generator.standard_normal(cotangent.shape)
    # An output that is not finite has no weight in any of them.
    other = np.where(cotangent == 0, 0, other)
    rows = [cotangent, other, a * cotangent + b * other, np.zeros_like(cotangent)]
    return np.stack(rows).astype(cotangent.dtype)


def _exact(leaf: object) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _in_original_types(problem: Problem) -> np.ndarray | None:
    """Return the gradient in the types of the user's arguments, if they are others."""
    pairs = zip(problem.moved, problem.checked.moved, strict=True)
    if all(original.dtype == checked.dtype for original, checked in pairs):
        return None
    try:
        program = problem.checked.programs.backward_original
        return gradient_coordinates(program(problem.moved, problem.fixed, problem.cotangents))
    except Exception:  # whatever a user's rule raises in those types
        return None


def _swapped(problem: Problem) -> np.ndarray | None:
    """Return the gradient of the derivative along the other weights."""
    if problem.swap is None:
        return None
    checked, (weights, position) = problem.checked, problem.swap
    fixed = list(checked.fixed)
    for i, (weight, leaf) in enumerate(zip(weights, checked.moved, strict=True)):
        fixed[position + i] = weight.astype(leaf.dtype)
    return gradient_coordinates(checked.programs.backward(checked.moved, fixed, problem.cotangents))
