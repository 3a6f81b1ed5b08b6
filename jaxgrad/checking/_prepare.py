"""The first stage of a check: from a function and its arguments to a `Problem` of each order."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad._numerics import norm, rms
from jaxgrad.checking._arguments import Arguments, sort_arguments
from jaxgrad.checking._precision import Computation, Facts, choose_precision
from jaxgrad.checking._programs import (
    Function,
    equal_within,
    forward_derivative,
    gradient_of,
    precision,
)
from jaxgrad.checking._report import Verdict
from jaxgrad.checking._widen import without_rounding

FEW_OUTPUTS = 16  # Gradients of at most so many outputs are made equally large,
LEAST_BALANCE, MOST_BALANCE = 10.0, 1e6  # by factors between these.
CHANGING = (
    Verdict.NONDETERMINISTIC,
    "f returned two values for the same arguments; hold its random key fixed and keep no state "
    "between calls",
)


@dataclass(frozen=True)
class Problem(Arguments):
    """A function at a point, ready to be differentiated.

    In higher orders `swap` holds other weights of the derivative, one for each leaf, and the index
    of the first weight among the fixed arrays.
    """

    checked: Computation  # for autodiff, in float64 if the function allows it
    numeric: Computation  # for differences, if possible without rounding to narrower types inside
    facts: Facts
    cotangents: list[np.ndarray]
    total: float  # sum of the sizes of the weighted outputs; rounding is relative to it
    batched: bool  # whether the function is evaluated under `jax.vmap`
    holomorphic: bool
    notes: tuple[str, ...] = ()
    rejection: tuple[Verdict, str] | None = None  # if the function cannot be checked at all
    partial: bool = False  # whether a part of the outputs is not finite
    order: int = 1
    nearby: bool = False  # whether the arguments are not those of the user, but close to them
    swap: tuple[list[np.ndarray], int] | None = None


def problems(
    f: Callable, args: tuple, order: int, seed: int, reverse: bool = True, **options
) -> Iterator[Problem]:
    """Yield the problems of a check, each prepared when it is asked for.

    The derivative of order `k` along random weights is a function, and its gradient is the problem
    of order `k + 1`. It is taken by reverse mode, or by forward mode if not `reverse`.
    """
    problem = prepare(f, args, seed=seed, **options)
    yield problem
    if order > 1:
        # A backward pass that holds numbers instead of its arguments is right at one point alone.
        # Autodiff and differences of that gradient then both say that its derivative is zero.
        generator, moved = np.random.default_rng([seed, 3]), []
        for value in problem.moved:
            change = 0.03 * generator.standard_normal(value.shape)
            if value.ndim == 2 and np.array_equal(value, np.transpose(value)):
                # A solver may be right for symmetric matrices alone.
                change = (change + change.T) / 2
            moved.append(value * jnp.asarray(1 + change, value.dtype))
        nearby = problem.function.arguments(moved, problem.fixed)[: len(args)]
        yield dataclasses.replace(prepare(f, nearby, seed=seed, **options), nearby=True)
    for level in range(2, order + 1):
        problem = _derivative(problem, level, seed, reverse)
        yield problem


def prepare(
    f: Callable,
    args: tuple,
    *,
    argnums: Any = 0,
    has_aux=False,
    holomorphic=False,
    kwargs=None,
    seed=0,
) -> Problem:
    """Prepare the check of `f` at `args`; see `check_grads` for the arguments."""
    arguments = sort_arguments(f, args, argnums, has_aux, holomorphic, kwargs)
    checked, facts, deterministic, obstacle = choose_precision(arguments)
    cotangents, total, numeric, rejection, notes = [], 0.0, checked, CHANGING, []
    partial = False
    if deterministic:
        evaluate, inputs = checked.programs.outputs, (checked.moved, checked.fixed)
        outputs, again = (list(map(np.asarray, evaluate(*inputs))) for _ in range(2))
        # Parallel sums may be added in another order each time.
        if all(equal_within(1e3 * checked.eps, *pair) for pair in zip(again, outputs, strict=True)):
            rejection = None
            if any(v.size and not np.any(np.isfinite(v)) for v in outputs):
                rejection = (Verdict.NONFINITE, "f itself is not finite at these arguments")
        partial = not all(np.all(np.isfinite(v)) for v in outputs)
        # Gradients of small outputs in a narrow type would overflow.
        ranges = [float(jnp.finfo(info.dtype).max) for info in arguments.leaves]
        largest = min(ranges) ** 0.5
        cotangents = _choose_cotangents(outputs, holomorphic, seed, largest)
        if 1 < len(outputs) <= FEW_OUTPUTS and facts.backward_eps:
            cotangents = _balance(arguments, checked, cotangents, largest)
        total = _total(outputs, cotangents)
        numeric, reason = without_rounding(arguments.function, checked, outputs)
        if reason:
            notes.append(f"f rounds to a narrower type inside, so error bars are wide: {reason}")
        if not numeric.wide:
            notes.append(f"float64 was not possible, so error bars are wide: {obstacle}")
        if not facts.fingerprint:
            notes.append("f cannot be traced: it was called point by point")
    return Problem(
        **vars(arguments),
        checked=checked,
        numeric=numeric,
        facts=facts,
        cotangents=cotangents,
        total=total,
        batched=checked.programs.mapped,
        holomorphic=holomorphic,
        notes=tuple(notes),
        rejection=rejection,
        partial=partial,
    )


def _normal(shape: tuple[int, ...], is_complex: bool, generator: np.random.Generator) -> np.ndarray:
    """Return normal numbers, or complex ones if `is_complex`."""
    draw = generator.standard_normal(shape)
    return draw + 1j * generator.standard_normal(shape) if is_complex else draw


def _choose_cotangents(outputs: list[np.ndarray], holomorphic: bool, seed: int, largest: float):
    """Return 1 for a scalar function, else normal weights such that all outputs count equally.

    Weights of tiny outputs are at most as large as `largest`.
    """
    generator = np.random.default_rng(seed)
    if len(outputs) == 1 and outputs[0].shape == ():
        if np.iscomplexobj(outputs[0]) and not holomorphic:
            raise TypeError(
                "f must return a real number, got a complex one; pass holomorphic=True, or take "
                "its real part or size"
            )
        # With an angle, the real and the imaginary part of a derivative both count.
        angle = np.exp(1j * generator.uniform(0.3, 1.2)) if holomorphic else 1.0
        cotangents = [(np.ones(()) * angle).astype(outputs[0].dtype)]
    else:
        cotangents = []
        for output in outputs:
            draw = _normal(output.shape, np.iscomplexobj(output), generator)
            size = rms(np.asarray(output, np.complex128).ravel()) or 1.0
            size *= np.sqrt(max(output.size, 1))
            draw = draw / max(size, np.max(np.abs(draw), initial=0.0) / largest)
            # An infinite entry has no weight.
            cotangents.append(np.where(np.isfinite(output), draw, 0).astype(output.dtype))
    return cotangents


def _balance(arguments: Arguments, checked: Computation, cotangents, largest: float):
    """Return larger weights of outputs whose gradient would not show beside those of others."""
    changes = []
    for i in range(len(cotangents)):
        alone = [c if k == i else np.zeros_like(c) for k, c in enumerate(cotangents)]
        try:
            with precision(checked.wide):
                leaves = checked.programs.backward(checked.moved, checked.fixed, alone)
        except Exception:  # whatever a rule raises, which the next stage reports
            return cotangents
        # The change of the output if each leaf moves by its size.
        sizes = [norm(np.ravel(np.abs(leaf)).astype(np.float64)) for leaf in leaves]
        changes.append(float(np.dot(arguments.scales, sizes)))
    known = [change for change in changes if np.isfinite(change)]
    balanced = []
    for cotangent, change in zip(cotangents, changes, strict=True):
        factor = min(max(known, default=0.0) / change if change > 0 else 1.0, MOST_BALANCE)
        size = np.max(np.abs(cotangent), initial=0.0)
        if factor > LEAST_BALANCE and size * factor < largest:
            cotangent = (cotangent * factor).astype(cotangent.dtype)
        balanced.append(cotangent)
    return balanced


def _total(outputs: list[np.ndarray], cotangents: list[np.ndarray]) -> float:
    """Return `Problem.total`."""
    total = 0.0
    for output, cotangent in zip(outputs, cotangents, strict=True):
        counted = np.where(cotangent == 0, 0, output)
        total += float(np.sum(np.abs(counted * np.asarray(cotangent, complex))))
    return total


@dataclass(frozen=True)
class _Derivative:
    """The derivative of a function along weights; equal to that of an equal function."""

    function: Function
    reverse: bool

    def __call__(self, moved, fixed, weights, cotangents):
        if not self.reverse:
            return forward_derivative(self.function, moved, fixed, cotangents, weights)
        gradient = gradient_of(self.function, moved, fixed, cotangents)
        pairs = zip(weights, gradient, strict=True)
        return sum(jnp.sum(jnp.real(jnp.asarray(w, g.dtype) * g)) for w, g in pairs)


def _derivative(problem: Problem, level: int, seed: int, reverse: bool) -> Problem:
    """Return the problem whose function is the derivative along random weights."""
    weights, others = (_weights(problem, [2, seed, level, i]) for i in range(2))
    args = (problem.moved, problem.fixed, weights, problem.cotangents)
    derivative = prepare(_Derivative(problem.function, reverse), args, seed=seed)
    pairs = zip(derivative.leaves, problem.leaves, strict=True)
    return dataclasses.replace(
        derivative,
        # A user knows the leaves by their names in the arguments of `f`.
        leaves=tuple(info._replace(path=original.path) for info, original in pairs),
        order=level,
        swap=(others, len(problem.fixed)),
    )


def _weights(problem: Problem, seed: list[int]) -> list[np.ndarray]:
    """Return normal weights of the size of each leaf: no leaf's curvature hides another's."""
    generator = np.random.default_rng(seed)
    return [
        np.asarray(scale * _normal(info.shape, info.complex, generator)).astype(info.dtype)
        for info, scale in zip(problem.leaves, problem.scales, strict=True)
    ]
