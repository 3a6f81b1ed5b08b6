"""Which operations a loss is not finite because of, by evaluating it without what they make.

That an infinite value or NaN comes before another does not make it the cause: it may be in another
part of an array, or in a branch that is not taken. So what an operation makes is replaced by 1, and
it is a cause only if the loss is finite then, perhaps together with others.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgrad import _jaxprs
from jaxgrad.inspection._graph import Node
from jaxgrad.inspection._inputs import is_inexact
from jaxgrad.inspection._operations import number_of
from jaxgrad.inspection._origins import CONSTANT, ELEMENTWISE, Step, Times, find
from jaxgrad.inspection._rewrites import Change, Rewrite, alike

LIMIT = 5  # Operations that are replaced together.


class Suspect(NamedTuple):
    """An operation that makes a value which is not finite.

    Attributes:
      number: of the operation.
      step: how it was carried out.
      program: in which it was found.
      times: of the loss in that program.
      change: to the program, by which earlier suspects are replaced.
    """

    number: int
    step: Step
    program: Any
    times: Times
    change: Rewrite


# From a change and whether times are counted: whether the loss is finite, the program, its times.
Evaluate = Callable[[Rewrite, bool], tuple[bool, Any, list[Times]]]


def causes(
    program: Any, times: Times, operations: Sequence[Node], change: Rewrite, evaluate: Evaluate
) -> list[Suspect]:
    """Return the fewest of the first operations without which the loss is finite.

    The first alone is returned if that cannot be said, and none if it has no number.
    """
    suspects: list[Suspect] = []
    replaced = change
    while len(suspects) < LIMIT:
        index, step = _search(program, times.first)
        if index is None or any(index == suspect.number for suspect in suspects):
            return suspects[:1]
        suspects.append(Suspect(index, step, program, times, replaced))
        replaced = without([index], operations, replaced)
        if evaluate(replaced, False)[0]:
            break
        _, program, (times, *_) = evaluate(replaced, True)
    else:
        return suspects[:1]
    # An operation that is not needed is innocent, even if it was the first.
    for suspect in tuple(suspects):
        others = [other for other in suspects if other != suspect]
        numbers = [other.number for other in others]
        if others and evaluate(without(numbers, operations, change), False)[0]:
            suspects = others
    return suspects


def hidden_cause(
    suspects: list[Suspect], operations: Sequence[Node], change: Rewrite, evaluate: Evaluate
) -> Suspect | None:
    """Return an earlier operation whose infinite result became a finite one, as in `1 / inf`.

    Without it the first of the suspects would not make anything that is not finite.
    """
    first, *others = suspects
    change = without([other.number for other in others], operations, change)
    program, times, replaced = first.program, first.times, change
    for _ in range(LIMIT):
        index, step = _search(program, times.hidden)
        if index is None or index == first.number or index in replaced.changes:
            return None
        if evaluate(without([index], operations, change), False)[0]:
            return Suspect(index, step, program, times, replaced)
        replaced = without([index], operations, replaced)
        _, program, (times, *_) = evaluate(replaced, True)
    return None


def without(numbers: Sequence[int], operations: Sequence[Node], change: Rewrite) -> Rewrite:
    """Return a change that also replaces by 1 what some operations make that is not finite."""
    indices = [i for number in numbers for i in alike(number, operations)]
    masks = {i: _replaced(change.changes.get(i)) for i in indices}
    return change | Rewrite(change.text, masks)


def _search(program: Any, time: int) -> tuple[int | None, Any]:
    """Return the number of the operation at a time, if it has one, and how it was carried out."""
    step = find(program, time) if 0 <= time < CONSTANT // 2 else None
    return (number_of(step.equations) if step else None), step


def _replaced(change: Change | None) -> Change:
    def replaced(equation, inputs, memory):
        results = change(equation, inputs, memory) if change else _jaxprs.bind(equation, inputs)
        floats = [jnp.asarray(x) for x in inputs if is_inexact(x)]
        return [_replace(equation, floats, y) if is_inexact(y) else y for y in results]

    return replaced


def _replace(equation: Any, inputs: Sequence[Any], result: Any) -> Any:
    """Replace the elements that are not finite though those of the inputs are."""

    def any_input(test):
        same = equation.primitive.name in ELEMENTWISE
        parts = (test(x) if same and x.shape == result.shape else test(x).any() for x in inputs)
        return functools.reduce(jnp.logical_or, parts, jnp.zeros(result.shape, bool))

    bad = ~jnp.isfinite(result)
    # What makes NaN of infinite inputs makes it itself.
    blameless = jnp.where(
        jnp.isnan(result), any_input(jnp.isnan), any_input(lambda x: ~jnp.isfinite(x))
    )
    return jnp.where(bad & ~blameless, jnp.ones((), result.dtype), result)
