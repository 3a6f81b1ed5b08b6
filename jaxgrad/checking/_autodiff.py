"""The second stage of a check: the derivatives that autodiff gives.

They satisfy identities that need no finite differences.
"""

import contextlib
import dataclasses
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad._numerics import norm
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._directions import SIGNS, Direction, evaluate
from jaxgrad.checking._precision import first_line
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._programs import coordinates, gradient_coordinates, gradient_of, precision
from jaxgrad.checking._report import Identity

# A function of more operations or bytes is not run without `jit`, nor is one with loops.
EAGER_LIMIT, EAGER_BYTES = 150, 2**22
ROUNDING = 100  # This many roundings of all terms of a gradient violate no identity.
JOINT = 2  # So many random sums over all leaves show whether both modes are transposes.
UNTRIED = {
    "vmap": "f cannot be mapped",
    "transpose": "f has no forward mode",
    "jit": "f is large, has loops, calls the host or cannot be traced",
}


class Autodiff(NamedTuple):
    """Gradients of the weighted outputs as coordinates, `[size]`; none without reverse mode."""

    eps: float  # machine epsilon of the narrowest type in the backward pass
    gradient: np.ndarray | None = None
    original: np.ndarray | None = None  # in the types of the arguments, if `gradient` is not
    mapped: np.ndarray | None = None  # under `vmap`; none if the function cannot be mapped
    identities: tuple[Identity, ...] = ()


class _Cotangents(NamedTuple):
    """Cotangents by which the outputs are weighted, and others to show that gradients add up."""

    first: list[np.ndarray]
    second: list[np.ndarray]
    a: complex
    b: complex

    def sum(self) -> list[np.ndarray]:
        """Return `a` times the first plus `b` times the second."""
        pairs = zip(self.first, self.second, strict=True)
        return [(self.a * one + self.b * two).astype(one.dtype) for one, two in pairs]


@np.errstate(invalid="ignore", over="ignore")
def differentiate(problem: Problem, reverse: bool, rtol: float, generator) -> Autodiff:
    """Differentiate by reverse mode, if `reverse`; identities may err by `rtol` of a leaf."""
    facts, checked = problem.facts, problem.checked
    signs = generator.choice(SIGNS, len(problem.point))
    cotangents = _draw_cotangents(problem, generator)
    if not reverse:
        return Autodiff(checked.eps)
    # The backward pass may round where the function does not, as by a cast in a rule.
    eps = max(checked.eps, facts.backward_eps)
    try:
        leaves, mapped, nonlinear = _reverse(problem, cotangents)
        gradient = gradient_coordinates(leaves)
        violations = {"linear": nonlinear}
        if mapped is not None:
            mapped = gradient_coordinates(mapped)
            violations["vmap"] = mapped - gradient
        small = checked.programs.memory <= EAGER_BYTES and facts.equations <= EAGER_LIMIT
        if small and not facts.loops:
            # Without `jit`, what runs on the host may refuse float64, and JAX passes a NumPy array
            # that the function holds in the type that its own precision gave it.
            with contextlib.suppress(jax.errors.JaxRuntimeError), precision(checked.wide):
                inputs = (checked.moved, checked.fixed, cotangents.first)
                eager = jax.block_until_ready(gradient_of(problem.function, *inputs))
                violations["jit"] = gradient_coordinates(eager) - gradient
        violations = {name: _leaf_norms(problem, vector) for name, vector in violations.items()}
        size = _leaf_norms(problem, gradient)
        # A backward pass may round as much as if all leaves had moved by their own size.
        lengths = problem.scales * np.sqrt([info.size for info in problem.leaves])
        largest = np.sum((lengths * size)[np.isfinite(size)]) + problem.total
        tolerance = rtol * size + ROUNDING * eps * largest / lengths
        # If a vector `d` is added to every gradient, the sum of two is off by `(a + b - 1) d`.
        violations["zero"] = violations["linear"] / abs(cotangents.a + cotangents.b - 1)
        if np.any(violations["linear"] > tolerance):
            # The rule under `vmap` may be another one, and a rule that adds nothing may not add up.
            exact = _violations_unmapped(problem, cotangents, leaves)
            violations |= {name: _leaf_norms(problem, vector) for name, vector in exact.items()}
    except Exception as error:
        raise ValueError(
            f"f cannot be differentiated in reverse mode: {first_line(error)}; mend its rule, or "
            'check forward mode alone with modes=("fwd",)'
        ) from error
    if facts.forward:
        violations["transpose"] = _transpose(problem, gradient, signs, tolerance, generator)
    identities = _identities(problem, eps, gradient, violations, size, tolerance, rtol)
    return Autodiff(eps, gradient, _in_original_types(problem), mapped, identities)


def _draw_cotangents(problem: Problem, generator) -> _Cotangents:
    # A rule that takes the real part of its cotangent is linear over real numbers only.
    a, b = (0.75 + 0.5j, -1.25j) if problem.holomorphic else (0.75, -1.25)
    second = []
    for c in problem.cotangents:
        other = np.max(np.abs(c), initial=0.0) * generator.standard_normal(c.shape)
        # An output that is not finite has no weight in any of them.
        second.append(np.where(c == 0, 0, other).astype(c.dtype))
    return _Cotangents(problem.cotangents, second, a, b)


def _reverse(problem: Problem, cotangents: _Cotangents):
    """Return the gradient, the same under `vmap` (`None` if `f` cannot be mapped), as leaves.

    Returns by how much gradients do not add up, too, as coordinates.
    """
    both, rows = cotangents.sum(), None
    if problem.batched:
        pairs = zip(cotangents.first, both, strict=True)
        stacked = [np.stack(pair) for pair in pairs]
        checked = problem.checked
        # Whatever a rule raises under `vmap` alone, it is a function that cannot be mapped.
        with contextlib.suppress(Exception):
            rows = checked.programs.mapped_gradients(checked.moved, checked.fixed, stacked)
    first = _gradient(problem, cotangents.first)
    second = _gradient(problem, cotangents.second)
    if rows is None:
        return first, None, _nonlinear(cotangents, first, second, _gradient(problem, both))
    mapped, of_sum = ([leaf[i] for leaf in rows] for i in range(2))
    return first, mapped, _nonlinear(cotangents, mapped, second, of_sum)


def _violations_unmapped(problem: Problem, cotangents: _Cotangents, first) -> dict:
    """Return how far gradients without `vmap` do not add up, and that of a zero cotangent."""
    second, of_sum = (_gradient(problem, c) for c in (cotangents.second, cotangents.sum()))
    zero = _gradient(problem, [np.zeros_like(c) for c in cotangents.first])
    return {
        "linear": _nonlinear(cotangents, first, second, of_sum),
        "zero": gradient_coordinates(zero),
    }


def _gradient(problem: Problem, cotangents: list[np.ndarray]) -> list[Any]:
    checked = problem.checked
    with precision(checked.wide):
        return checked.programs.backward(checked.moved, checked.fixed, cotangents)


def _nonlinear(cotangents: _Cotangents, first, second, of_sum) -> np.ndarray:
    """Return by how much a sum of gradients differs from the gradient of the sum."""
    rows = [[_in_float64(leaf) for leaf in leaves] for leaves in (first, second, of_sum)]
    a, b = cotangents.a, cotangents.b
    return gradient_coordinates([a * x + b * y - z for x, y, z in zip(*rows, strict=True)])


def _in_float64(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.promote_types(leaf.dtype, np.float64))


def _transpose(problem: Problem, gradient, signs, tolerance, generator) -> np.ndarray:
    """Return by how much forward and reverse mode differ along the signs in each leaf, `[L]`.

    `<cotangent, J v>` by forward mode equals `<J^T cotangent, v>` by reverse mode. First all leaves
    are summed, with random weights, so that only equal and opposite errors could cancel: if the
    sums are equal to a fraction of each tolerance, this is a bound for each leaf.
    """
    # Whether the function may be mapped is not known yet.
    problem = dataclasses.replace(problem, batched=False)
    parts, leaves = gradient * signs, problem.leaves
    pulled = np.array([np.sum(parts[info.part]) for info in leaves])
    if len(leaves) > JOINT and np.all(np.isfinite(pulled)) and np.all(tolerance > 0):
        # A violation as large as the tolerance of any leaf counts equally.
        share = np.min(tolerance) / tolerance
        rows = generator.spawn(1)[0].uniform(0.5, 1.5, (JOINT, len(leaves))) * share
        sizes = [info.size for info in leaves]
        vectors = [np.float32(np.repeat(row, sizes)) * signs for row in rows]
        pushed = _push(problem, [Direction(-1, 0, vector) for vector in vectors])
        sums = [np.sum(gradient * vector) for vector in vectors]
        violation = np.max(np.abs(pushed - sums)) / np.min(rows, axis=0)
        if np.all(violation <= 0.25 * tolerance):
            return violation
    directions = [Direction(i, x.start, signs[x.part]) for i, x in enumerate(leaves)]
    return np.abs(_push(problem, directions) - pulled)


def _push(problem: Problem, directions: list[Direction]) -> np.ndarray:
    """Return the derivative along each direction by forward mode, `[P]`."""
    return evaluate(problem, "tangents", directions, np.ones((len(directions), 1)))[:, 0]


def _identities(problem, eps, gradient, violations, size, tolerance, rtol) -> tuple[Identity, ...]:
    """Check every identity that applies; violations are norms for each leaf, all `[L]`."""
    identities = [
        _identity(name, violations[name], size, tolerance)
        if name in violations
        else Identity(name, None, reason=UNTRIED[name])
        for name in ("linear", "zero", *UNTRIED)
    ]
    if problem.holomorphic:
        identities[0] = identities[0]._replace(name="holomorphic")
    if problem.swap is not None:
        # <u, H v> = <v, H u>, where the gradient is H v, and H u after the swap.
        checked, (weights, start) = problem.checked, problem.swap
        stop = start + len(weights)
        others = [w.astype(leaf.dtype) for w, leaf in zip(weights, checked.moved, strict=True)]
        fixed = [*checked.fixed[:start], *others, *checked.fixed[stop:]]
        with precision(checked.wide):
            leaves = checked.programs.backward(checked.moved, fixed, problem.cotangents)
        hv, hu = gradient, gradient_coordinates(leaves)
        pair = (weights, checked.fixed[start:stop])
        u, v = (np.concatenate(list(map(coordinates, part))) for part in pair)
        size = norm(u * hv) + norm(v * hu)
        tolerance = rtol * size + ROUNDING * eps * problem.total
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


def _leaf_norms(problem: Problem, vector: np.ndarray) -> np.ndarray:
    """Return the norm of each leaf's part of a vector of all coordinates, `[L]`."""
    return np.array([norm(vector[info.part]) for info in problem.leaves])


def is_rounding(autodiff: Autodiff, info: LeafInfo, slope: np.ndarray) -> bool:
    """Whether the gradient of a leaf is zero, or another one if it is rounded otherwise."""
    if autodiff.gradient is None:
        return not np.any(slope)
    gradient = autodiff.gradient[info.part]
    others = [g[info.part] for g in (autodiff.original, autodiff.mapped) if g is not None]
    with np.errstate(invalid="ignore", over="ignore"):
        errors = [norm(other - gradient) for other in others]
        return max(errors, default=0.0) >= 0.1 * norm(gradient)


def slopes(problem: Problem, autodiff: Autodiff, directions: list[Direction], mode: str):
    """Return autodiff's derivative along each direction, `[P]`, by mode "rev" or "fwd"."""
    if mode == "rev" and autodiff.gradient is not None:
        with np.errstate(invalid="ignore"):
            parts = [(autodiff.gradient[d.start :][: len(d.values)], d.values) for d in directions]
            return np.array([float(part @ values.astype(np.float64)) for part, values in parts])
    try:
        return _push(problem, directions)
    except Exception as error:
        raise ValueError(
            f"f cannot be differentiated in forward mode: {first_line(error)}; check reverse mode "
            'alone with modes=("rev",)'
        ) from error


def _in_original_types(problem: Problem) -> np.ndarray | None:
    """Return the gradient in the types of the user's arguments, if they are others."""
    pairs = zip(problem.moved, problem.checked.moved, strict=True)
    if all(original.dtype == checked.dtype for original, checked in pairs):
        return None
    inputs = (problem.moved, problem.fixed, problem.cotangents)
    try:
        # JAX warns of a constant in float64, which has nothing to do with the gradient.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gradient_coordinates(problem.checked.programs.backward(*inputs))
    except Exception:  # whatever a user's rule raises in those types
        return None
