"""Derivatives to as many digits as wanted, and where the error of a gradient comes from.

Differences in arbitrary precision show what the derivative is. The trace of the gradient, evaluated
in arbitrary precision too, shows what the rules for derivatives give without any rounding.
"""

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad._numerics import float_eps
from jaxgrad.checking._arbitrary_arrays import objects
from jaxgrad.checking._arbitrary_scalars import UnknownError
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._directions import Direction, unit_directions
from jaxgrad.checking._exact_derivatives import (
    Slopes,
    budget,
    exact_function,
    exact_gradient,
    exact_slopes,
    exact_value,
)
from jaxgrad.checking._prepare import prepare
from jaxgrad.checking._programs import gradient_coordinates, gradient_of


class Cause(enum.StrEnum):
    """Where the error of a gradient comes from, worst first."""

    RULE_WRONG = "RULE WRONG"
    """Without any rounding, too, autodiff differs from the derivative."""
    DISCONTINUOUS = "DISCONTINUOUS"
    """The function jumps at the point, so it has no derivative."""
    UNDEFINED = "UNDEFINED"
    """The function is not a number close by, or its slope is infinite."""
    ROUNDING = "ROUNDING"
    """Autodiff is right in exact arithmetic; its type loses half of its digits or more."""
    KINK = "KINK"
    """The derivatives from both sides differ, and autodiff lies between them."""
    RIGHT = "RIGHT"
    """Autodiff equals the derivative."""


CAUSES = tuple(Cause)


@dataclass(frozen=True)
class ReferenceLeaf:
    """The derivative with respect to one leaf.

    Attributes:
      path: `jax.tree_util.keystr` in the pytree that `jax.grad` returns; "" for a bare array.
      derivative: numbers of mpmath in an array of the leaf's shape, in JAX's convention for complex
        leaves; NaN where there is no derivative.
      left, right: the derivatives from below and from above, likewise.
      autodiff: the gradient that JAX computes in the type of the leaf.
      exact_autodiff: the same operations without rounding; `None` if one of them is not known.
      causes: the `Cause` for each element.
      cause: the worst of them.
      worst_index: of an element with that cause, the one with the largest error.
    """

    path: str
    derivative: np.ndarray
    left: np.ndarray
    right: np.ndarray
    autodiff: np.ndarray
    exact_autodiff: np.ndarray | None
    causes: np.ndarray
    cause: Cause
    worst_index: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """The derivative of a function in arbitrary precision; `print` it.

    Attributes:
      value: the value of the function, a number of mpmath; the weighted sum of its outputs if there
        are several.
      computed: the same as JAX computes it.
      function_wrong: whether the computed value has lost half of its digits or more.
      leaves: worst first.
      digits: number of digits that are right.
      notes: further remarks for the reader.
    """

    value: Any
    computed: float
    function_wrong: bool
    leaves: tuple[ReferenceLeaf, ...]
    digits: int
    notes: tuple[str, ...] = ()

    @property
    def cause(self) -> Cause:
        """The worst cause of a leaf."""
        return min((leaf.cause for leaf in self.leaves), key=CAUSES.index)

    @property
    def ok(self) -> bool:
        """Whether autodiff is right in every element, or lies between two sides of a kink."""
        return self.cause in (Cause.RIGHT, Cause.KINK)

    def __bool__(self) -> bool:
        """Whether the gradient is `ok`, so that the result can be asserted."""
        return self.ok

    def __str__(self) -> str:
        """The conclusion, then a row for each leaf."""
        lines = [f"{self.cause}: {_MEANING[self.cause]}"]
        if self.function_wrong:
            lines.append(
                f"FUNCTION WRONG: f computes {self.computed:.6g}, its value is "
                f"{_short(self.value)}: rounding loses half of the digits or more"
            )
        for leaf in self.leaves:
            place = leaf.worst_index
            where = (leaf.path or "args") + (str(list(place)) if place else "")
            line = f"{leaf.cause}  {where}: derivative {_digits(leaf.derivative[place])}"
            if (
                leaf.left[place] != leaf.right[place]
                and leaf.derivative[place] != leaf.derivative[place]
            ):
                line = f"{leaf.cause}  {where}: derivative from below {_short(leaf.left[place])}"
                line += f", from above {_short(leaf.right[place])}"
            line += f", autodiff {leaf.autodiff[place]:.6g}"
            if leaf.exact_autodiff is not None and leaf.cause is not Cause.RIGHT:
                line += f", without rounding {_short(leaf.exact_autodiff[place])}"
            lines.append(line)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


_MEANING = {
    Cause.RULE_WRONG: "a rule of f gives another derivative, also without rounding",
    Cause.DISCONTINUOUS: "f jumps at these arguments",
    Cause.UNDEFINED: "f has no finite derivative at these arguments",
    Cause.ROUNDING: "the rules of f are right, but the gradient is lost in rounding",
    Cause.KINK: "the derivatives from both sides differ, and autodiff lies between them",
    Cause.RIGHT: "autodiff is the derivative",
}


def _short(number: Any) -> str:
    return _digits(number, 10)


def _digits(number: Any, count: int = 16) -> str:
    import mpmath

    return str(mpmath.nstr(number, count))


def reference(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    digits: int = 50,
    rtol: float = 1e-5,
    operations: int = 5_000_000,
) -> Reference:
    """Return the derivative of `f` to many digits, and where autodiff loses it.

    The operations of `f` are carried out by mpmath, in arithmetic without rounding to the types of
    JAX, at the point and close to it. It takes some microseconds for each operation on a number,
    four times for each element of the arguments: it is made for functions of moderate size.

    Args:
      f, *args, argnums, has_aux, holomorphic, kwargs: as for `check_grads`.
      digits: number of digits of the derivative, at least 10.
      rtol: relative difference from which the exact arithmetic of autodiff is called wrong. Rules
        with an approximation, as of an iterative solver, are not right to all digits.
      operations: bound on the number of operations on single numbers, about a million in 5 s.

    Raises:
      NotImplementedError: if `f` has an operation that is not known in arbitrary precision, or its
        value at these arguments is not known, or if there are too many operations.
      ImportError: if mpmath is not installed; `pip install jaxgrad[reference]` installs it.
      TypeError, ValueError: as for `check_grads`.

    >>> import jax, jax.numpy as jnp
    >>> print(reference(jnp.tanh, 20.0))
    ROUNDING: the rules of f are right, but the gradient is lost in rounding
    ROUNDING  args: derivative 1.699341702116636e-17, autodiff 0, without rounding 1.699341702e-17
    """
    _validate.function("f", f)
    digits = _validate.integer("digits", digits, 10)
    operations = _validate.integer("operations", operations, 1)
    _validate.scalar("rtol", rtol, minimum=0.0)
    _validate.installed("checking.reference", "reference", "mpmath")
    problem = prepare(
        f, args, argnums=argnums, has_aux=has_aux, holomorphic=holomorphic, kwargs=kwargs
    )
    if problem.rejection is not None:
        raise ValueError(f"f cannot be differentiated: {problem.rejection[1]}")
    exact = exact_function(problem, problem.moved, problem.fixed, wide=False)
    directions: list[Direction] = []
    for j, info in enumerate(problem.leaves):
        directions += unit_directions(j, range(info.start, info.stop))
    spend, notes = budget(operations), []
    slopes = exact_slopes(exact, directions, digits, spend)
    # The function may be known where an operation of its backward pass is not.
    try:
        rule = exact_gradient(exact, digits, spend)
    except UnknownError as error:
        rule = None
        notes.append(f"autodiff was not evaluated without rounding: {error}")
    value = exact_value(exact, digits, spend)
    # What the user computes, in the types of the arguments.
    inputs = (problem.moved, problem.fixed, problem.cotangents)
    leaves = jax.jit(lambda m, x, c: gradient_of(problem.function, m, x, c))(*inputs)
    outputs = list(map(np.asarray, problem.function(problem.moved, problem.fixed)))
    pairs = zip(outputs, problem.cotangents, strict=True)
    computed = float(sum(np.sum(np.real(np.where(c == 0, 0, o) * c)) for o, c in pairs))
    autodiff = gradient_coordinates(leaves)
    rows = [_leaf(info, slopes, rule, autodiff, rtol) for info in problem.leaves]
    eps = max(float_eps(output.dtype) for output in outputs)
    # A value that cancels may be wrong where its derivative is right.
    lost = not abs(value - computed) <= math.sqrt(eps) * abs(value)
    rows.sort(key=lambda row: CAUSES.index(row.cause))
    return Reference(value, computed, lost, tuple(rows), digits, tuple(notes))


def _leaf(info: LeafInfo, slopes: Slopes, rule, autodiff, rtol: float) -> ReferenceLeaf:
    """Return the row of a leaf from the coordinates of its derivative, all `[P]`."""
    value, left, right, jumps = (column[info.part] for column in slopes)
    numbers, exact = autodiff[info.part], None if rule is None else rule[info.part]
    finite = [abs(v) for v in value if v.context.isfinite(v)]
    typical = math.sqrt(float(sum(v * v for v in finite)) / max(len(finite), 1))
    # A complex element has two coordinates, and the worse cause of them.
    causes = []
    for i in range(info.size):
        sides = (left[i], right[i], jumps[i])
        other = None if exact is None else exact[i]
        causes.append(_cause(value[i], *sides, other, numbers[i], rtol, info.dtype, typical))
    errors = np.abs(np.array([float(v) for v in value]) - numbers)
    ranks = [CAUSES.index(cause) for cause in causes]
    worst = min(range(info.size), key=lambda i: (ranks[i], -np.nan_to_num(errors[i], nan=np.inf)))
    count = info.size // 2 if info.complex else info.size

    # In JAX's convention the gradient is df/dx - i df/dy.
    def shaped(column):
        if info.complex:
            c = value[0].context
            column = [c.mpc(x, -y) for x, y in zip(column[:count], column[count:], strict=True)]
        return objects(list(column), info.shape)

    by_element = [min(causes[i::count], key=CAUSES.index) for i in range(count)]
    gradient = numbers[:count] - 1j * numbers[count:] if info.complex else numbers
    index = np.unravel_index(worst % count, info.shape) if info.shape else ()
    return ReferenceLeaf(
        path=info.path,
        derivative=shaped(value),
        left=shaped(left),
        right=shaped(right),
        autodiff=gradient.reshape(info.shape),
        exact_autodiff=None if exact is None else shaped(exact),
        causes=objects(by_element, info.shape),
        cause=causes[worst],
        worst_index=tuple(int(i) for i in index),
    )


def _cause(value, left, right, jump, exact, autodiff, rtol, dtype, typical) -> Cause:
    """Return where the error of one number comes from; `exact` is autodiff without rounding."""
    c, info = left.context, jnp.finfo(dtype)
    # Without a derivative the function is to blame, whatever autodiff gives.
    if jump:
        return Cause.DISCONTINUOUS
    if not (c.isfinite(left) and c.isfinite(right)):
        return Cause.UNDEFINED
    kink = c.isnan(value)
    low, high = (min(left, right), max(left, right)) if kink else (value, value)
    # Beyond the smallest numbers of the type all are zero.
    eps, tiny = float(info.eps), float(info.smallest_subnormal)
    slack = rtol * max(abs(low), abs(high)) + tiny
    lost = math.sqrt(eps) * float(max(abs(low), abs(high))) + 100 * eps * typical + tiny
    if exact is None:
        # Nothing shows whether an error is one of rounding, so only a large one is a mistake.
        if not low - lost - slack <= autodiff <= high + lost + slack:
            return Cause.RULE_WRONG
    elif not low - slack <= exact <= high + slack:
        return Cause.RULE_WRONG
    elif not abs(exact - autodiff) <= lost:
        return Cause.ROUNDING
    return Cause.KINK if kink else Cause.RIGHT
