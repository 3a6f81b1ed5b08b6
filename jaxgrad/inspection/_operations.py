"""A traced program evaluated with changes to some of its operations."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _jaxprs
from jaxgrad.inspection._graph import CHECKPOINTS, Node, Plan, plan

MARK = "operation_{}_"  # Name of the scope around an operation, which its derivative carries too.


def number(program: Any, nodes: Sequence[Node]) -> Plan:
    """Return a plan in which each operation of a program has the number of its node."""
    numbers = {node.key: i for i, node in enumerate(nodes) if node.equation is not None}
    return plan(program, numbers)


def number_of(equations: Sequence[Any]) -> int | None:
    """Return the number of an operation, or of the one whose derivative it is a part of."""
    names = "/".join(map(_jaxprs.scope, equations))
    matches = re.findall(MARK.format(r"(\d+)"), names)
    return int(matches[-1]) if matches else None


def rule_line(node: Node, equation: Any) -> str:
    """Return the line of the user's derivative rule that an operation of the gradient is in."""
    if node.primitive not in _jaxprs.RULES:
        return ""
    # The operations of a backward rule have no line, but the rule has one.
    function, _, place = next(iter(_jaxprs.rule_places(node.equation)), "").rpartition(" at ")
    line = _jaxprs.user_line(equation, f"{place} ({function})" if function else "")
    return "" if _jaxprs.is_installed(line) else line


# The number of a node, its operation, its inputs and the indices of the enclosing scans.
Apply = Callable[[int, Any, list[Any], tuple[Any, ...]], Sequence[Any]]


def run(
    program: Any,
    numbers: Plan,
    args: Sequence[Any],
    apply: Apply,
    literal: Callable[[Any], Any] = lambda atom: atom.val,
    convert: Callable[[Any], Any] = lambda value: value,
    indices: tuple[Any, ...] = (),
) -> list[Any]:
    """Evaluate a program, each operation by `apply`, in a scope that has its number."""
    entries: Iterator[Any] = iter(numbers.entries)

    def step(equation, inputs):
        entry = next(entries, None)
        # JAX names the operations of the derivative after the scope, so their number is known.
        if isinstance(entry, int):
            with jax.named_scope(MARK.format(entry)):
                return apply(entry, equation, inputs, indices)
        inner = functools.partial(run, apply=apply, literal=literal, convert=convert)
        programs = _jaxprs.opened(equation)
        # Programs without operations, such as the choice of an argument, have no numbers.
        parts = entry if isinstance(entry, list) else len(programs) * [entry or Plan([])]
        if equation.primitive.name == "scan":
            return _scan(equation.params, parts[0], inputs, inner, indices)
        inner = functools.partial(inner, indices=indices)
        called, *others = [
            functools.partial(inner, *pair) for pair in zip(programs, parts, strict=True)
        ]
        if equation.primitive.name == "cond":
            return jax.lax.switch(inputs[0], [called, *others], inputs[1:])
        if equation.primitive.name in CHECKPOINTS:
            params = equation.params
            options = {key: params[key] for key in ("policy", "prevent_cse") if key in params}
            called = jax.checkpoint(called, **options)
        return called(inputs)

    return _jaxprs.evaluate(program, args, step, convert, literal)


def _scan(params: Any, numbers: Plan, inputs: list[Any], inner: Any, indices: tuple[Any, ...]):
    consts, carry, xs = _jaxprs.split_scan_inputs(params, inputs)

    def body(state, x):
        index, values = x
        args = [*consts, *state, *values]
        out = inner(params["jaxpr"], numbers, args, indices=(*indices, index))
        return out[: len(carry)], out[len(carry) :]

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    # The index is scanned with the data, so that it is that of the data if `reverse` is true.
    count = jnp.arange(params["length"], dtype=jnp.int32)
    last, ys = jax.lax.scan(body, carry, (count, xs), **options)
    return [*last, *ys]
