"""Whether the gradient at a point is wrong, not finite, or lost, by arbitrary precision."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._arbitrary_scalars import UnknownError
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._check import check_grads
from jaxgrad.checking._directions import Direction, unit_directions
from jaxgrad.checking._domain_screen import Target
from jaxgrad.checking._exact_derivatives import (
    ExactFunction,
    budget,
    exact_function,
    exact_gradient,
    exact_slopes,
    exact_value,
    gradient_program,
)
from jaxgrad.checking._programs import gradient_of, precision
from jaxgrad.checking._report import Verdict

DIGITS = 16
FLUSHED = 4  # Results within so many smallest normal numbers of the truth are right.
EDGE = 1 / 16  # Products on the way to a derivative of this share of the largest may overflow.
RTOL = 1e-5


class Judgement(NamedTuple):
    """The state of the gradient at a point, and the worst element of a wrong one."""

    state: str  # a kind of failure, or one of `STATES`
    coordinate: int = 0  # of the worst element
    truth: str = ""
    autodiff: float = math.nan
    unknown: str = ""  # why it could not be judged


FAILURES = ("WRONG", "NONFINITE", "LOST")
STATES = ("right", "kink", "discontinuous", "undefined", "outside", "unknown")


@dataclass(frozen=True)
class _Point:
    """What the exact derivatives need of a problem; see `Problem`."""

    function: Any  # a `Target`
    cotangents: list[np.ndarray]
    leaves: tuple[LeafInfo, ...]
    point: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class Judge:
    """A function with its traces, which are those of all points."""

    target: Target
    exact: ExactFunction
    program: Any  # trace of the gradient, or `None` if there is none
    gradient: Callable[..., Any]
    lost: float  # relative error from which a gradient is lost
    operations: int  # for one point


def judge_of(target: Target, point: Sequence[Any], lost: float, operations: int) -> Judge:
    """Trace a function and its gradient."""
    moved, fixed = target.split(point)
    wide = any(leaf.dtype == np.float64 for leaf in point)
    with precision(wide):
        dtype = target(list(map(jnp.asarray, moved)), list(map(jnp.asarray, fixed)))[0].dtype
        moved, fixed = list(map(jnp.asarray, moved)), list(map(jnp.asarray, fixed))
    problem = _problem(target, moved, dtype)
    exact = exact_function(problem, moved, fixed, wide=wide)
    program = gradient_program(exact)
    compiled = jax.jit(lambda m, x, c: gradient_of(target, m, x, c))
    return Judge(target, exact, program, compiled, lost, operations)


def _problem(target: Any, moved: Sequence[Any], dtype: Any) -> Any:
    leaves, start = [], 0
    for value in moved:
        leaves.append(LeafInfo("", value.shape, value.dtype, start, start + value.size))
        start += value.size
    flat = np.concatenate([np.asarray(v, np.float64).ravel() for v in moved])
    scales = np.array([rms(flat[info.part]) or 1.0 for info in leaves])
    return _Point(target, [np.ones((), dtype)], tuple(leaves), flat, scales)


def judge(judge: Judge, point: Sequence[np.ndarray]) -> tuple[Judgement, int]:
    """Return the state of the gradient at a point, and the number of operations it took."""
    spent: list[int] = []
    limit = budget(judge.operations)

    def spend(count):
        spent.append(count)
        limit(count)

    moved, fixed = judge.target.split(point)
    with precision(judge.exact.wide):
        moved, fixed = (list(map(jnp.asarray, leaves)) for leaves in (moved, fixed))
        dtype = judge.exact.problem.cotangents[0].dtype
        value = float(judge.target(moved, fixed)[0])
        if not math.isfinite(value):
            return Judgement("outside"), 0
        one = [jnp.ones((), dtype)]
        leaves = judge.gradient(moved, fixed, one)
    autodiff = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
    problem = _problem(judge.target, moved, dtype)
    exact = judge.exact._replace(problem=problem, moved=moved, fixed=fixed)
    directions = []
    for j, info in enumerate(problem.leaves):
        directions += unit_directions(j, range(info.start, info.stop))
    try:
        truth = exact_value(exact, DIGITS, spend)
        if not truth.context.isfinite(truth):
            return Judgement("outside"), sum(spent)
        slopes = exact_slopes(exact, directions, DIGITS, spend)
    except UnknownError as error:
        return Judgement("unknown", unknown=str(error)), sum(spent)
    except Exception as error:  # mpmath's own
        return Judgement("unknown", unknown=f"{type(error).__name__}: {error}"), sum(spent)
    try:
        rule = exact_gradient(exact, DIGITS, spend, judge.program)
    except Exception:  # an operation of the backward pass alone is not known
        rule = None
    worst = Judgement("right")
    ranks = (*FAILURES, *STATES[1:5], "right")
    largest = float(np.max(np.abs(problem.point))) or 1.0
    for i, (middle, left, right, jump) in enumerate(zip(*slopes, strict=True)):
        info = next(leaf for leaf in problem.leaves if i < leaf.stop)
        finite = [float(v) for v in slopes.value[info.part] if v.context.isfinite(v)]
        sides = (middle, left, right, bool(jump))
        other = None if rule is None else rule[i]
        typical = rms(np.array(finite)) if finite and info.size > 1 else 0.0
        scale = (typical, abs(float(truth)) / (abs(problem.point[i]) or largest), info.size)
        state, shown = _state(sides, other, autodiff[i], info.dtype, scale, judge.lost)
        if ranks.index(state) < ranks.index(worst.state):
            worst = Judgement(state, i, shown, float(autodiff[i]))
    if worst.state == "WRONG" and len(autodiff) > 1 and not _is_linear(exact, slopes, worst, spend):
        worst = Judgement("kink")
    return worst, sum(spent)


def _is_linear(exact: ExactFunction, slopes: Any, worst: Judgement, spend) -> bool:
    """Whether the derivatives along coordinates add up to the one along another direction.

    They do not at a kink such as the median of equal numbers, which changes along no coordinate.
    """
    usual = np.array([value.context.isfinite(value) for value in slopes.value])
    if not usual[worst.coordinate]:
        return False
    vector = jnp.concatenate([value.ravel() for value in exact.moved])
    # Coordinates that have no derivative stay where they are.
    weights = np.where(usual, np.random.default_rng(0).standard_normal(len(usual)), 0.0)
    shapes = tuple(value.shape for value in exact.moved)
    joined = _Joined(exact.problem.function, shapes)
    problem = _problem(joined, [vector], exact.problem.cotangents[0].dtype)
    one = exact_function(problem, [vector], exact.fixed, wide=exact.wide)
    try:
        along = exact_slopes(one, [Direction(0, 0, weights)], DIGITS, spend).value[0]
    except UnknownError:
        return True
    pairs = zip(weights.tolist(), slopes.value, usual, strict=True)
    total = sum(weight * value for weight, value, known in pairs if known)
    return bool(abs(along - total) <= RTOL * abs(total))


@dataclass(frozen=True)
class _Joined:
    """A target as a function of one vector."""

    target: Target
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[jax.Array]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = zip(jnp.split(moved[0], ends), self.shapes, strict=True)
        return self.target([part.reshape(shape) for part, shape in parts], fixed)


def _state(sides, rule, autodiff, dtype, scales, lost) -> tuple[str, str]:
    """Return the state of one coordinate and its derivative as text."""
    value, left, right, jump = sides
    typical, natural, count = scales
    c, info = left.context, jnp.finfo(dtype)
    top, slack, eps = float(info.max), FLUSHED * float(info.tiny), float(info.eps)
    if jump:
        return "discontinuous", ""
    if not (c.isfinite(left) and c.isfinite(right)):
        return "undefined", ""
    kink = bool(c.isnan(value))
    low, high = (min(left, right), max(left, right)) if kink else (value, value)
    size = max(abs(low), abs(high))
    text = c.nstr(value, 7) if not kink else f"{c.nstr(left, 7)} to {c.nstr(right, 7)}"
    text = "0.0" if size < slack / FLUSHED else text
    # A derivative that the type does not hold, or only just, may be infinite.
    if size > top or (size > EDGE * top and math.isinf(autodiff)):
        return "right", ""
    usual = "kink" if kink else "right"
    if not math.isfinite(autodiff):
        return "NONFINITE", text
    error = max(low - autodiff, autodiff - high, c.zero)
    if error <= slack + 10 * eps * size:
        return usual, ""
    if rule is None or not low - RTOL * size <= rule <= high + RTOL * size:
        # Rules with an approximation, as of a solver, and those that nobody can evaluate exactly.
        bound = RTOL * size if rule is not None else 0.1 * size + 1e3 * eps * natural
        rule_differs = rule is None or not abs(rule - autodiff) > 0.5 * error
        if error > bound and rule_differs and error > 100 * eps * typical:
            return "WRONG", text
    # Where the derivative passes through zero, rounding is larger than it at one point alone.
    # A gradient of one number that is zero where it should not be has no such excuse.
    noise = 100 * eps * (max(typical, natural) if autodiff or count > 1 else 0.0)
    if error >= lost * size and error > noise + slack and size > slack:
        return "LOST", text
    return usual, ""


def judge_numerically(judge: Judge, point: Sequence[np.ndarray]) -> Judgement:
    """Return the state of the gradient where an operation is not known: that of `check_grads`."""
    target, selected = judge.target, judge.target.space.selected
    argnums = tuple(i for i, chosen in enumerate(selected) if chosen)
    function = dataclasses.replace(target)
    with precision(judge.exact.wide):
        try:
            report = check_grads(_Flat(function), *map(jnp.asarray, point), argnums=argnums)
        except ValueError as error:
            return Judgement("unknown", unknown=str(error))
    leaf = report.leaves[0]
    if leaf.verdict not in (Verdict.WRONG, Verdict.NONFINITE):
        states = {Verdict.AGREE: "right", Verdict.KINK: "kink"}
        return Judgement(states.get(leaf.verdict, "unknown"), unknown="error bars are too wide")
    numeric = complex(leaf.numeric).real
    sizes = np.abs(np.concatenate([np.ravel(v).astype(np.float64) for v in point]))
    # At an edge of the domain a difference from one side says nothing, and at a huge or a tiny
    # number its steps are too long.
    usual = np.all((sizes == 0) | ((sizes > 1e-3) & (sizes < 1e3)))
    if not (usual and leaf.error_bar < 0.1 * abs(numeric) + 1e-9):
        return Judgement("unknown", unknown="a difference says too little")
    leaves = [value for value, chosen in zip(point, selected, strict=True) if chosen]
    which = int(leaf.path.strip("[]").split("]")[0] or 0)
    index = sum(v.size for v in leaves[:which])
    if leaf.worst_index:
        index += int(np.ravel_multi_index(leaf.worst_index, leaves[which].shape))
    autodiff = complex(leaf.autodiff).real
    return Judgement(str(leaf.verdict), index, f"{numeric:.6g}", autodiff)


@dataclass(frozen=True)
class _Flat:
    """A target as a function of its leaves, equal to that of an equal target."""

    target: Target

    def __call__(self, *point: Any) -> jax.Array:
        return self.target(*self.target.split(point))[0]
