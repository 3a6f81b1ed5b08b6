"""Where a loss or gradient that is not finite comes from, why, and what to change."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad.inspection._causes import CAUSES, Element, Place, cause
from jaxgrad.inspection._graph import Node, Plan, applied, graph
from jaxgrad.inspection._inputs import capture, first_element, is_bad, is_inexact
from jaxgrad.inspection._operations import MARK, number, rule_line, run
from jaxgrad.inspection._origins import CONSTANT, NEVER, Step, Times, find, origins
from jaxgrad.inspection._problem import Problem, prepare
from jaxgrad.inspection._rewrites import Rewrite, no_change, rewrites

ROUNDINGS = 50  # A changed program may round differently this often.
LIMIT = 5  # Operations that are reported, each with the rewrites of those before it applied.


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

    def __str__(self) -> str:
        """In words."""
        subject = "loss" if self.direction == "forward" else "gradient"
        place = f" in {short(self.line)}" if self.line else ""
        name = self.parameter if self.operation == "argument" else self.operation
        text = f"the {subject} is not finite because of {name}{place}"
        if self.iteration:
            text += f", iteration {', '.join(map(str, self.iteration))}"
        if self.element and self.element.inputs:
            values = ", ".join(f"{x:.6g}" for x in self.element.inputs)
            text += f", where its input is {values}"
            text += f" (element {list(self.element.position)})" if self.element.position else ""
        change = f"; instead, {self.rewrite}" if self.rewrite else ""
        return f"{text}: {self.cause}{change}"


def explain_non_finite(
    loss: Callable[..., Any], *args: Any, argnums: int = 0, has_aux: bool = False
) -> tuple[NonFinite, ...]:
    """Find the operations that make a loss or its gradient infinite or NaN.

    If the loss is not finite, the first operation is looked for that makes an infinite value or NaN
    which the loss depends on; otherwise the first operation of the backward pass, or an infinite
    intermediate value that it meets. Infinite values that neither loss nor gradient notice, such as
    those of a mask, are not reported. Each rewrite is tried, and shown only if loss and gradient
    then are finite and what was finite before is the same to rounding. None is tried in a program
    with a `while` loop, which might never end with other values.

    The program of the gradient is compiled anew, with one reduction for each operation; once more
    to read the inputs of each reported operation; and once for each rewrite that is tried. On a CPU
    that takes about ten times as long to compile as the gradient itself, and the memory of a model
    without `checkpoint`, since what that saves is kept.
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
        return all(np.all(np.isfinite(x)) for x in self.outputs)


def diagnose(problem: Problem) -> tuple[NonFinite, ...]:
    """Return the operations that make the loss or gradient of a problem infinite or NaN."""
    operations = graph(problem.program, problem.call.labels)
    numbers = number(problem.program, operations)
    evaluate = functools.partial(_evaluate, problem, numbers)
    original = latest = evaluate(no_change())
    change, results = no_change(), []
    # With other values a loop might never end.
    endless = any(operation.name == "while" for operation in operations)
    while not latest.finite and len(results) < LIMIT:
        result, place = _explain(problem, numbers, operations, latest, change)
        results.append(result)
        # A rewrite may uncover the next operation, which then is to be changed too.
        proposed = rewrites(place, operations) if place and not endless else ()
        for rewrite in proposed:
            trial = evaluate(change | rewrite, search=False)
            trial = trial if trial.finite else evaluate(change | rewrite)
            better = _is_better(problem, trial, original, change | rewrite)
            if better and _is_same(problem, numbers, change | rewrite):
                results[-1] = result._replace(rewrite=rewrite.text)
                change, latest = change | rewrite, trial
                break
        else:
            break
    # A rewrite is only proposed if all of them together mend the gradient.
    if not latest.finite:
        results = [result._replace(rewrite="") for result in results]
    return tuple(results)


def _evaluate(problem, numbers: Plan, change: Rewrite, search: bool = True) -> _Run:
    """Evaluate the loss and its gradient with a change, and search where they are not finite."""
    # The gradient is a program like any other, so forward and backward are searched at once.
    moved, fixed = jax.tree.map(change.argument, (problem.moved, problem.fixed))
    value = functools.partial(_loss, problem.program, numbers, change)
    gradient = jax.value_and_grad(value)
    if not search:
        return _Run(None, _arrays(jax.jit(gradient)(moved, fixed)), [])
    program = jax.make_jaxpr(gradient)(moved, fixed)
    outputs, times = origins(program, jax.tree.leaves((moved, fixed)))
    return _Run(program, _arrays(outputs), [Times(*map(int, t)) for t in times])


def _arrays(tree: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree)
    return [np.asarray(x, np.promote_types(x.dtype, np.float32)) for x in leaves]


def _loss(program: Any, numbers: Plan, change: Rewrite, moved: Any, fixed: Any) -> Any:
    apply = change.apply_with({})
    return run(program, numbers, [*moved, *fixed], apply, change.literal, change.cast)[0]


def _is_better(problem: Problem, trial: _Run, original: _Run, change: Rewrite) -> bool:
    """Whether a rewrite removes the problem and leaves the same what was finite."""
    # Beside a loss that is not finite, the finite part of the gradient means nothing.
    count = len(trial.outputs) if np.isfinite(original.outputs[0]) else 0
    for x, y in zip(trial.outputs[:count], original.outputs[:count], strict=True):
        finite = np.isfinite(y)
        if not _is_close(np.where(finite, x, 0), np.where(finite, y, 0), problem):
            return False
    if trial.finite:
        return True
    # What is left must come from an operation that has not been changed yet.
    time = _first(trial).first
    index = _number_of(find(trial.program, time)) if 0 <= time < CONSTANT // 2 else None
    return index is not None and index not in change.changes


def _is_close(x: Any, y: Any, problem: Problem) -> bool:
    """Whether two values are the same to the rounding of the narrowest numbers of a program."""
    dtypes = [aval.dtype for aval in problem.program.in_avals if is_inexact(aval)]
    rounding = ROUNDINGS * max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    return bool(np.allclose(x, y, rtol=rounding, atol=rounding * 0.01))


def _is_same(problem: Problem, numbers: Plan, change: Rewrite) -> bool:
    """Whether the loss is the same at smaller parameters, if it is finite there."""

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
    return loss if loss.first != NEVER else min(gradient, default=Times(NEVER, NEVER))


def _explain(problem, numbers: Plan, operations: list[Node], latest: _Run, change: Rewrite):
    """Describe the first operation, and return how it was carried out if its number is known."""
    backward = bool(np.isfinite(latest.outputs[0]))
    time, nan = _first(latest)
    direction = "backward" if backward else "forward"
    unknown = NonFinite(direction, "unknown", "", "", "", (), None, CAUSES["unknown"], "")
    # Compiled with the counting of time, a program may round differently and be finite.
    if time == NEVER:
        return unknown, None
    time = time - CONSTANT if time > CONSTANT // 2 else time
    if time < 0:
        path = _argument(problem, -1 - time)
        described = {"operation": "argument", "parameter": path, "cause": CAUSES["argument"]}
        return unknown._replace(**described), None
    step = find(latest.program, time)
    # The addition of the gradients of several uses has no number.
    index, equation = _number_of(step), step.equations[-1]
    if index is None:
        line = _jaxprs.user_line(equation)
        return unknown._replace(operation=equation.primitive.name, line=line), None
    operation = operations[index]
    line = _jaxprs.user_line(equation, operation.line)
    if rule_line(operation, equation) and 0 <= nan < NEVER:
        # A derivative rule is told by where it makes NaN, perhaps of an infinite result.
        other = find(latest.program, nan)
        step = other if _number_of(other) == index else step
    # Loops in a derivative rule are of no interest.
    iteration = step.indices[: len(operation.lengths)]
    place = _place(problem, numbers, operation, index, iteration, step, backward, change)
    result = NonFinite(
        direction,
        operation.name,
        operation.scope,
        applied(operation, operations)[1],
        (place.rule and rule_line(operation, step.equations[-1])) or line,
        iteration,
        place.element,
        cause(place, operations, short),
        "",
    )
    return result, place


def _number_of(step: Step) -> int | None:
    marks = [_jaxprs.scope(equation) for equation in step.equations]
    matches = re.findall(MARK.format(r"(\d+)"), "/".join(marks))
    return int(matches[-1]) if matches else None


def _place(problem, numbers, operation, index, iteration, step: Step, backward, change) -> Place:
    """Evaluate the gradient once more to read the inputs of an operation."""
    equation, inner = operation.equation, step.equations[-1]
    dtype = str(getattr(equation.outvars[0].aval, "dtype", ""))
    rule = bool(rule_line(operation, inner)) and backward
    same = inner.primitive.name if operation.name != equation.primitive.name else operation.name
    place = Place(index, same, backward, False, None, dtype, rule)
    values = capture(problem, numbers, index, iteration, change)
    if values is None:
        return place
    nan, bad = (any(np.any(test(x)) for x in values["results"]) for test in (np.isnan, is_bad))
    computed = nan or (bad and not any(np.any(is_bad(x)) for x in values["inputs"]))
    element = first_element(equation, values, computed)
    return place._replace(computed=computed, element=element, rule=rule and not computed)


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
