"""A derivative rule beside the derivative that JAX would take of the same function without it.

Some functions mean to differ from their derivative: a gradient that is reversed or clipped leaves
the signal as it is, and a straight-through estimator pretends that steps have a slope.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad._jaxprs import LOOPS, called_program, equations_of, repeat
from jaxgrad._numerics import float_eps

# Operations that have parts without a slope.
FLAT = frozenset(
    ["round", "floor", "ceil", "sign", "clamp", "max", "min", "select_n", "argmax", "argmin"]
    + ["lt", "le", "gt", "ge", "eq", "ne", "sort", "top_k", "reduce_max", "reduce_min"]
    + ["rem", "is_finite"]
)
# A result of these is their input.
SAME = frozenset(["copy", "copy_p", "name", "optimization_barrier", "pvary"])
TOLERANCE, ROUNDING = 1e-3, 1e-4


class BodyComparison(NamedTuple):
    """How far a rule is from the derivative of its body.

    Attributes:
      errors: relative distance for each input, NaN where there is no derivative.
      equal: whether all elements are equal up to rounding, for each input.
      meant: why the function may be meant to differ from its derivative, or "".
    """

    errors: list[float]
    equal: list[bool]
    meant: str


def no_comparison(inputs: Sequence[Any]) -> BodyComparison:
    """Return the comparison of an operation that has no body."""
    return BodyComparison([float("nan")] * len(inputs), [False] * len(inputs), "")


def compare_with_body(equation: Any, inputs: Sequence[Any]) -> BodyComparison:
    """Compare the derivatives by reverse mode, or by forward mode if there is no reverse mode."""
    program, comparison = called_program(equation), no_comparison(inputs)
    if program is None:
        return comparison
    names = {e.primitive.name for e in equations_of(program)}
    meant = "returns its input as it is" if _returns_inputs(program) else ""
    functions = [
        functools.partial(_jaxprs.bind, equation),
        functools.partial(evaluate_body, program),
        functools.partial(evaluate_body, program, stop=False),
    ]
    for derivative in (_reverse, _forward):
        try:
            results = jax.jit(lambda a, d=derivative: [d(f, a) for f in functions])(inputs)
        except Exception:  # whatever a rule raises, which the check of the rule reports
            continue
        of_rule, of_body, not_stopped = [
            [np.asarray(v, np.complex128) for v in leaves] for leaves in results
        ]
        # Where a largest number is subtracted, for one, stopping its gradient changes nothing.
        if not meant and not all(map(_equal, of_body, not_stopped)):
            meant = "calls stop_gradient"
        pairs = list(zip(of_rule, of_body, strict=True))
        errors, equal = [_distance(*pair) for pair in pairs], [_equal(*pair) for pair in pairs]
        if not meant and names & FLAT and all(_only_where_flat(*pair) for pair in pairs):
            meant = "has no slope wherever the rule differs"
        if derivative is _forward:
            # Forward mode moves all inputs together.
            errors, equal = [max(errors)] * len(inputs), [all(equal)] * len(inputs)
            return BodyComparison(errors, equal, meant)
        moved = zip(errors, equal, strict=True)
        rows = [next(moved) if m else (float("nan"), False) for m in map(_moves, inputs)]
        return BodyComparison([error for error, _ in rows], [same for _, same in rows], meant)
    return comparison._replace(meant=meant)


def evaluate_body(program: Any, args: Sequence[Any], *, stop: bool = True) -> list[Any]:
    """Evaluate a program without derivative rules, and if not `stop` without `stop_gradient`."""
    run = functools.partial(evaluate_body, stop=stop)

    def apply(equation, inputs):
        called = called_program(equation)
        if called is not None:
            return run(called, inputs)
        if equation.primitive.name in LOOPS:
            return repeat(equation, inputs, run)
        if equation.primitive.name == "stop_gradient" and not stop:
            return inputs
        return _jaxprs.bind(equation, inputs)

    return _jaxprs.evaluate(program, args, apply)


def _moves(value: Any) -> bool:
    return bool(float_eps(getattr(value, "dtype", None)))


def _with_moved(function: Callable, args: Sequence[Any]) -> tuple[Callable, list[Any]]:
    """Return the function of the floating-point inputs alone, and those inputs."""
    moves = list(map(_moves, args))

    def call(moved):
        parts = iter(moved)
        out = function([next(parts) if m else a for m, a in zip(moves, args, strict=True)])
        return [v for v in out if _moves(v)]

    return call, [a for m, a in zip(moves, args, strict=True) if m]


def _reverse(function: Callable, args: Sequence[Any]) -> list[Any]:
    out, pullback = jax.vjp(*_with_moved(function, args))
    return pullback([_weights(v, i) for i, v in enumerate(out)])[0]


def _forward(function: Callable, args: Sequence[Any]) -> list[Any]:
    call, moved = _with_moved(function, args)
    return jax.jvp(call, (moved,), ([_weights(v, i) for i, v in enumerate(moved)],))[1]


def _weights(value: Any, seed: int) -> Any:
    draw = np.random.default_rng([seed, value.size]).standard_normal(value.shape)
    return jnp.asarray(draw, value.dtype)


def _distance(rule: np.ndarray, body: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        # Infinite numbers may be equal.
        difference = float(np.linalg.norm(np.where(rule == body, 0, rule - body).ravel()))
    size = float(np.linalg.norm(body.ravel()))
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def _equal(rule: np.ndarray, body: np.ndarray) -> bool:
    size = np.sqrt(np.mean(np.abs(body) ** 2)) if body.size else 0.0
    with np.errstate(invalid="ignore"):
        near = np.abs(rule - body) <= ROUNDING * np.abs(body) + ROUNDING / 10 * size
    return bool(np.all(near | (rule == body)))


def _only_where_flat(rule: np.ndarray, body: np.ndarray) -> bool:
    """Whether the rule differs from the body's derivative only where that is zero."""
    size = np.max(np.abs(body), initial=0.0, where=np.isfinite(body))
    with np.errstate(invalid="ignore"):
        differs = ~(np.abs(rule - body) <= TOLERANCE * max(size, 0.0))
    return bool(np.all(body[differs] == 0))


def _returns_inputs(program: Any) -> bool:
    """Whether each floating-point result of a program is one of its inputs."""
    return all(
        isinstance(source, int) or not _moves(v.aval)
        for source, v in zip(
            _sources(program, range(10**9)), getattr(program, "jaxpr", program).outvars, strict=True
        )
    )


def _sources(program: Any, inputs: Sequence[Any]) -> list[Any]:
    """Return for each result of a program which of its `inputs` it is, or `None`."""
    jaxpr = getattr(program, "jaxpr", program)
    labels = dict(zip(jaxpr.invars, inputs, strict=False))

    def read(atom):
        return None if hasattr(atom, "val") else labels.get(atom)

    for equation in jaxpr.eqns:
        values, called = list(map(read, equation.invars)), called_program(equation)
        if called is not None:
            labels |= dict(zip(equation.outvars, _sources(called, values), strict=True))
        elif equation.primitive.name in SAME:
            labels |= dict(zip(equation.outvars, values, strict=True))
    return list(map(read, jaxpr.outvars))
