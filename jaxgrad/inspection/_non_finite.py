"""Where a loss or gradient that is not finite comes from, why, and what to change."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad.inspection._blame import Suspect, causes, hidden_cause
from jaxgrad.inspection._causes import CAUSES, Element, Place, cause
from jaxgrad.inspection._graph import Node, Plan, applied, graph
from jaxgrad.inspection._inputs import capture, first_element, is_bad, is_inexact, slope
from jaxgrad.inspection._operations import number, number_of, rule_line, run
from jaxgrad.inspection._origins import (
    CONSTANT,
    NEVER,
    Step,
    Times,
    by_operations,
    evaluated,
    find,
    origins,
)
from jaxgrad.inspection._problem import Call, Problem, prepare
from jaxgrad.inspection._rewrites import Rewrite, alike, no_change, rewrites

ROUNDINGS = 50  # A changed program may round differently this often.
LIMIT = 5  # Operations that are reported, each with the rewrites of those before it applied.
COMPILED = {
    "finite": "loss and gradient are finite",
    "backward": "the loss is finite and the gradient is not",
    "forward": "the loss is not finite",
}


class NonFinite(NamedTuple):
    """An operation that makes a value which is infinite or NaN and spoils the loss or gradient.

    Attributes:
      direction: "forward" if the loss is not finite, "backward" if only the gradient is not.
      operation: its name, that of a function with a derivative rule, or "argument".
      scope, parameter, line: as in `Site`; of an argument, its path is the parameter.
      iteration: indices in the enclosing scans.
      element: the first element that is not finite, with the inputs there.
      cause: why.
      rewrite: a change to the line after which loss and gradient are finite and what was finite
        before is the same, as was tried; "" if none is known.
      together: the other operations without which the loss is finite, if this one is not enough.
      tried_with: the other operations that were rewritten when `rewrite` was tried.
      compiled: "finite", "backward" or "forward" if the gradient as `jax.jit` compiles it differs
        from its operations one by one; "" if not, and of all operations but the first.
    """

    direction: str
    operation: str
    scope: str
    parameter: str
    line: str
    iteration: tuple[int, ...]
    element: Element | None
    cause: str
    rewrite: str
    together: tuple[str, ...] = ()
    tried_with: tuple[str, ...] = ()
    compiled: str = ""

    def __str__(self) -> str:
        """In words."""
        subject = "loss" if self.direction == "forward" else "gradient"
        text = "operation by operation, " if self.compiled else ""
        text += f"the {subject} is not finite because of {self.label}"
        if self.iteration:
            text += f", iteration {', '.join(map(str, self.iteration))}"
        if self.element and self.element.inputs:
            text += f", where its input is {_numbers(self.element.inputs)}"
            text += f" (element {list(self.element.position)})" if self.element.position else ""
        text += f": {self.cause}"
        if self.together:
            text += f", together with {' and '.join(self.together)}"
        if self.rewrite:
            others = " and ".join(self.tried_with)
            others = others and f" with the rewrite of {others}"
            text += f"; instead, {self.rewrite} (tried{others}: loss and gradient are finite)"
        return text + (self.compiled and f"; compiled by jax.jit, {COMPILED[self.compiled]}")

    @property
    def label(self) -> str:
        """The operation and its line."""
        place = f" in {short(self.line)}" if self.line else ""
        return (self.parameter if self.operation == "argument" else self.operation) + place


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{x:.6g}" for x in values)


def explain_non_finite(
    loss: Callable[..., Any], *args: Any, argnums: int = 0, has_aux: bool = False
) -> tuple[NonFinite, ...]:
    """Find the operations that make a loss or its gradient infinite or NaN.

    If the loss is not finite, the first operation is looked for that makes an infinite value or NaN
    without which the loss is finite, alone or together with others; otherwise the first operation
    of the backward pass, or an infinite intermediate value that it meets. Operations are computed
    one by one: XLA simplifies what it compiles, so that `jax.jit` may give other values, which is
    told by `compiled`. Infinite values that neither loss nor gradient notice, such as
    those of a mask, are not reported. Each rewrite is tried, and shown only if loss and gradient
    then are finite and what was finite before is the same to rounding. None is tried in a program
    with a `while` loop, which might never end with other values.

    The program of the gradient is compiled anew, with one reduction for each operation; once more
    to read the inputs of each reported operation; and once for each cause and rewrite that is
    tried. On a CPU that takes about fifteen times as long to compile as the gradient itself, and
    the memory of a model without `checkpoint`, since what that saves is kept.
    Operations in `jit`, `scan`, `cond` and `checkpoint` are searched; `while` loops, `shard_map`,
    kernels and callbacks are reported as a whole.

    Args:
      loss: a function that returns a real number.
      *args, argnums, has_aux: as for `xray`.

    Returns:
      The operations, in the order in which they are to be changed; empty if all is finite.

    Raises:
      TypeError: as for `xray`.

    >>> import jax.numpy as jnp
    >>> def loss(x):
    ...     return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0))
    >>> (problem,) = explain_non_finite(loss, jnp.array([4.0, 0.0]))
    >>> problem.operation, problem.element.inputs
    ('sqrt', (0.0,))
    >>> problem.rewrite
    'jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)'
    """
    return diagnose(prepare(loss, args, argnums, has_aux))


class _Run(NamedTuple):
    """A gradient program and what it returned."""

    program: Any  # `None` if it was not searched
    outputs: list[np.ndarray]  # the loss, and its gradient for each leaf
    times: list[Times]  # when each first was not finite

    @property
    def finite(self) -> bool:
        return self.state == "finite"

    @property
    def state(self) -> str:
        """What is not finite: "forward" for the loss, "backward" for the gradient; or "finite"."""
        bad = [not np.all(np.isfinite(x)) for x in self.outputs]
        return "forward" if bad[0] else "backward" if any(bad) else "finite"


def diagnose(problem: Problem) -> tuple[NonFinite, ...]:
    """Return the operations that make the loss or gradient of a problem infinite or NaN."""
    operations = graph(problem.program, problem.call.labels)
    search = _Search(problem, operations, number(problem.program, operations))
    original = latest = search.evaluate(no_change())
    compiled = _Run(None, _arrays(jax.jit(jax.value_and_grad(problem.call))(*problem[1:3])), [])
    if original.finite and not compiled.finite:
        return (_unknown(compiled.state)._replace(operation="jit", cause=CAUSES["compiled"]),)
    # The compiled program is right where XLA avoids an overflow.
    hidden = original.state == "forward" != compiled.state
    reference = compiled if hidden else original
    change, results = no_change(), []
    while not latest.finite and len(results) < LIMIT:
        result, place = _explain(search, latest, change)
        results.append(result)
        # A rewrite may uncover the next operation, which then is to be changed too.
        if place is None or search.endless:
            break
        for rewrite in rewrites(place, operations):
            trial = search.evaluate(change | rewrite, timed=False)
            trial = trial if trial.finite else search.evaluate(change | rewrite)
            better = _is_better(search, trial, reference, change | rewrite, place)
            if better and _is_same(search, change | rewrite):
                results[-1] = result._replace(rewrite=rewrite.text)
                change, latest = change | rewrite, trial
                break
        else:
            break
    return tuple(_with_others(results, latest.finite, original.state, compiled.state))


def _with_others(results: list[NonFinite], mended: bool, state: str, compiled: str):
    """Add to each result what the others have to do with it."""
    for i, result in enumerate(results):
        # A rewrite is only proposed if all of them together mend the gradient.
        if not mended:
            result = result._replace(rewrite="")
        others = (r.label for r in results if r.label != result.label)
        result = result._replace(tried_with=tuple(dict.fromkeys(others)) if mended else ())
        # Of several causes of a loss, the first was searched together with the others.
        first = results[0]
        if i and result.direction == "forward" and result.label in first.together:
            together = (first.label, *(x for x in first.together if x != result.label))
            result = result._replace(together=together)
        results[i] = result
    if compiled != state:
        results[0] = results[0]._replace(compiled=compiled)
    return results


class _Search(NamedTuple):
    """A problem and the operations of its program."""

    problem: Problem
    operations: list[Node]
    numbers: Plan

    @property
    def endless(self) -> bool:
        """Whether there is a loop, which with other values might never end."""
        return any(operation.name == "while" for operation in self.operations)

    def evaluate(self, change: Rewrite, timed: bool = True, gradient: bool = True) -> _Run:
        """Evaluate the loss, and its gradient, with a change; count times to search in them."""
        args = jax.tree.map(change.argument, (self.problem.moved, self.problem.fixed))
        value = functools.partial(_loss, self.problem.program, self.numbers, change)
        # The gradient is a program like any other, so forward and backward are searched at once.
        function = jax.value_and_grad(value) if gradient else value
        if not timed:
            return _Run(None, _arrays(evaluated(function, *args)), [])
        program = jax.make_jaxpr(function)(*args)
        outputs, times = origins(program, jax.tree.leaves(args))
        return _Run(program, _arrays(outputs), times)

    def loss(self, change: Rewrite, timed: bool):
        """Return whether the loss is finite with a change, its program and its times."""
        result = self.evaluate(change, timed, gradient=False)
        return result.finite, result.program, result.times


@functools.partial(jax.jit, static_argnums=0)
def outputs_by_operations(call: Call, moved: Any, fixed: Any) -> list[Any]:
    """Return the loss and its gradient, whose operations are computed one by one."""
    program = jax.make_jaxpr(jax.value_and_grad(call))(moved, fixed)
    return by_operations(program, [*moved, *fixed])


def _arrays(tree: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(x, np.promote_types(x.dtype, np.float32)) for x in leaves]


def _loss(program: Any, numbers: Plan, change: Rewrite, moved: Any, fixed: Any) -> Any:
    apply = change.apply_with({})
    return run(program, numbers, [*moved, *fixed], apply, change.literal, change.cast)[0]


def _is_better(search, trial: _Run, original: _Run, change: Rewrite, place: Place) -> bool:
    """Whether a rewrite of an operation mends it and leaves the same what was finite."""
    # Beside a loss that is not finite, the finite part of the gradient means nothing.
    count = len(trial.outputs) if np.isfinite(original.outputs[0]) else 0
    for x, y in zip(trial.outputs[:count], original.outputs[:count], strict=True):
        finite = np.isfinite(y)
        if not _is_close(np.where(finite, x, 0), np.where(finite, y, 0), search.problem):
            return False
    if trial.finite:
        return True
    # What is left must come from an operation that has not been changed yet.
    time = _first(trial).first
    known = 0 <= time < CONSTANT // 2
    index = number_of(find(trial.program, time).equations) if known else None
    changed = {*change.changes, *alike(place.number, search.operations)}
    return index is not None and index not in changed


def _is_close(x: Any, y: Any, problem: Problem) -> bool:
    """Whether two values are the same to the rounding of the narrowest numbers of a program."""
    dtypes = [aval.dtype for aval in problem.program.in_avals if is_inexact(aval)]
    rounding = ROUNDINGS * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    return bool(np.allclose(x, y, rtol=rounding, atol=rounding * 0.01))


def _is_same(search: _Search, change: Rewrite) -> bool:
    """Whether the loss is the same at smaller parameters, if it is finite there."""
    problem, _, numbers = search

    @jax.jit
    def losses(moved, fixed, scale):
        moved = jax.tree.map(lambda x: x * scale.astype(x.dtype), moved)
        changed = jax.tree.map(change.argument, (moved, fixed))
        return problem.call(moved, fixed), _loss(problem.program, numbers, change, *changed)

    for scale in (0.5, 0.1):
        before, after = losses(problem.moved, problem.fixed, np.float32(scale))
        if np.isfinite(before) and not _is_close(before, after, problem):
            return False
    return True


def _first(result: _Run) -> Times:
    """Return the time of the loss if it is not finite, otherwise the first one of a gradient."""
    loss, *gradient = result.times
    return loss if loss.first != NEVER else min(gradient, default=Times(NEVER, NEVER, NEVER))


def _unknown(direction: str) -> NonFinite:
    return NonFinite(direction, "unknown", "", "", "", (), None, CAUSES["unknown"], "")


def _explain(search: _Search, latest: _Run, change: Rewrite) -> tuple[NonFinite, Place | None]:
    """Describe the first operation, and return how it was carried out if its number is known."""
    unknown = _unknown(latest.state)
    times = _first(latest)
    # Compiled with the counting of time, a program may round differently and be finite.
    if times.first == NEVER:
        return unknown, None
    time = times.first - CONSTANT if times.first > CONSTANT // 2 else times.first
    if time < 0:
        path = _argument(search.problem, -1 - time)
        described = {"operation": "argument", "parameter": path, "cause": CAUSES["argument"]}
        return unknown._replace(**described), None
    suspects = []
    if latest.state == "forward" and not search.endless:
        suspects = causes(latest.program, times, search.operations, change, search.loss)
    if not suspects:
        return _describe(search, unknown, latest.program, times._replace(first=time), change)
    first, *others = suspects
    result, place = _describe(search, unknown, first.program, first.times, first.change)
    together = tuple(_label(search, other)[0] for other in others)
    hidden = hidden_cause(suspects, search.operations, change, search.loss)
    cause_before = f", since {' is '.join(_label(search, hidden))}" if hidden else ""
    return result._replace(together=together, cause=result.cause + cause_before), place


def _label(search: _Search, suspect: Suspect) -> tuple[str, str]:
    """Return name and line of an operation, and its result and inputs."""
    operation, equation = search.operations[suspect.number], suspect.step.equations[-1]
    iteration = suspect.step.indices[: len(operation.lengths)]
    place = _place(search, suspect.number, iteration, suspect.step, False, suspect.change)
    element = place.element
    values = ""
    if element:
        values = f"{element.result} where its input is {_numbers(element.inputs)}"
    return f"{operation.name} in {short(_jaxprs.user_line(equation, operation.line))}", values


def _describe(search: _Search, unknown: NonFinite, program: Any, times: Times, change: Rewrite):
    """Describe the operation at a time, and return how it was carried out."""
    operations = search.operations
    step = find(program, times.first)
    # The addition of the gradients of several uses has no number.
    index, equation = number_of(step.equations), step.equations[-1]
    if index is None:
        line = _jaxprs.user_line(equation)
        return unknown._replace(operation=equation.primitive.name, line=line), None
    operation = operations[index]
    line = _jaxprs.user_line(equation, operation.line)
    if rule_line(operation, equation) and 0 <= times.nan < NEVER:
        # A derivative rule is told by where it makes NaN, perhaps of an infinite result.
        other = find(program, times.nan)
        step = other if number_of(other.equations) == index else step
    # Loops in a derivative rule are of no interest.
    iteration = step.indices[: len(operation.lengths)]
    place = _place(search, index, iteration, step, unknown.direction == "backward", change)
    result = unknown._replace(
        operation=operation.name,
        scope=operation.scope,
        parameter=applied(operation, operations)[1],
        line=(place.rule and rule_line(operation, step.equations[-1])) or line,
        iteration=iteration,
        element=place.element,
        cause=cause(place, operations, short),
    )
    return result, place


def _place(search: _Search, index: int, iteration, step: Step, backward: bool, change) -> Place:
    """Evaluate the gradient once more to read the inputs of an operation."""
    operation = search.operations[index]
    equation, inner = operation.equation, step.equations[-1]
    dtype = str(getattr(equation.outvars[0].aval, "dtype", ""))
    rule = bool(rule_line(operation, inner)) and backward
    same = inner.primitive.name if operation.name != equation.primitive.name else operation.name
    place = Place(index, same, backward, False, None, dtype, rule)
    values = capture(search.problem, search.numbers, index, iteration, change)
    if values is None:
        return place
    nan, bad = (any(np.any(test(x)) for x in values["results"]) for test in (np.isnan, is_bad))
    computed = nan or (bad and not any(np.any(is_bad(x)) for x in values["inputs"]))
    element = first_element(equation, values, computed)
    place = place._replace(computed=computed, element=element, rule=rule and not computed)
    # Without a cotangent of 0 the slope is of no interest.
    if element is None or element.cotangent != 0 or not backward:
        return place
    return place._replace(slope=slope(equation, values, element, computed))


def _argument(problem: Problem, index: int) -> str:
    """Return the path of an argument, such as `args[1]['x']`."""
    count = len(problem.moved)
    positions = range(count), range(count, count + len(problem.fixed))
    tree = problem.call.arguments(*map(list, positions), statics=False)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf == index:
            return f"args{jax.tree_util.keystr(path)}"
    return ""


def short(line: str) -> str:
    """Return the name of a file, without its folder, and what follows."""
    return line.rpartition("/")[2]
