"""The operations of a traced program, numbered, and the program evaluated with changes to some."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import _jaxprs
from jaxgrad.inspection._sites import CUSTOM, SAME_PARAMETER

LIBRARIES = ("site-packages", "dist-packages")
CHECKPOINTS = ("checkpoint", "remat", "remat2")
EVALUATION = (str(Path(__file__).parent), _jaxprs.__file__)
MARK = "operation_{}_"  # Name of the scope around an operation, which its derivative carries too.


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
      equation: the operation itself.
      name: of the operation, or of a function with a derivative rule.
      scope, parameter, line: as in `Location`.
      function: of JAX that contains the operation, if the user's code calls that; or "".
      lengths: of the enclosing scans, from the outermost on.
      region: the loop bodies, branches and checkpointed functions that it is in.
      sources: numbers of the operations that compute its inputs; `None` for arguments and numbers.
    """

    equation: Any
    name: str
    scope: str
    parameter: str
    line: str
    function: str
    lengths: tuple[int, ...]
    region: tuple[int, ...]
    sources: tuple[int | None, ...]


class Numbers(NamedTuple):
    """The number of each operation of a program, in the order of computation.

    Entries are numbers, or `Numbers` of an inner program, or a list with one for each branch.
    """

    entries: list[Any]


class _Value(NamedTuple):
    source: int | None
    parameter: str


class _Context(NamedTuple):
    scope: str
    line: str
    function: str
    lengths: tuple[int, ...]
    region: tuple[int, ...]


def number(program: Any, labels: Sequence[str]) -> tuple[Numbers, list[Operation]]:
    """Number the operations of a program whose inputs have `labels`, "" for data.

    Operations of `jit`, `checkpoint`, `scan` and `cond` are included. A loop of unknown length, a
    function with a derivative rule and what cannot be opened are one operation each.
    """
    operations: list[Operation] = []
    inputs = [_Value(None, label) for label in labels]
    numbers, _ = _number(program, inputs, _Context("", "", "", (), ()), operations)
    return numbers, operations


def _number(program, inputs: Sequence[_Value], context: _Context, operations: list[Operation]):
    jaxpr = getattr(program, "jaxpr", program)
    values = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return _Value(None, "") if hasattr(atom, "val") else values.get(atom, _Value(None, ""))

    entries = []
    for equation in jaxpr.eqns:
        entry, results = _entry(equation, list(map(read, equation.invars)), context, operations)
        entries.append(entry)
        values.update(zip(equation.outvars, results, strict=True))
    return Numbers(entries), list(map(read, jaxpr.outvars))


def _entry(equation: Any, known: list[_Value], context: _Context, operations: list[Operation]):
    name, params = equation.primitive.name, equation.params
    path = "/".join(part for part in (context.scope, _jaxprs.scope(equation)) if part)
    # What a compiled function of JAX does has no line in the user's code, but its call has.
    line = user_line(equation)
    function, line = ("", line) if line else (context.function, context.line)
    inner = context._replace(scope=path, line=line)
    body = inner._replace(region=(*context.region, len(operations)))
    # A function with a derivative rule stays whole, so that the rule is used.
    called = None if name in CUSTOM else _jaxprs.called_program(equation)
    if called is not None:
        inner = inner._replace(function=function or _jaxprs.function_name(equation))
        return _number(called, known, body if name in CHECKPOINTS else inner, operations)
    if name == "scan":
        body = body._replace(lengths=(*body.lengths, params["length"]))
        return _number(params["jaxpr"], known, body, operations)
    if name == "cond":
        branches = [
            _number(b, known[1:], body._replace(region=(*body.region, i)), operations)
            for i, b in enumerate(params["branches"])
        ]
        return [numbers for numbers, _ in branches], branches[0][1]
    index = len(operations)
    title = (name in CUSTOM and _jaxprs.function_name(equation)) or name
    parameter = next((value.parameter for value in known if value.parameter), "")
    sources = tuple(value.source for value in known)
    place = (path, parameter, line, function, context.lengths, context.region, sources)
    operations.append(Operation(equation, title, *place))
    label = known[0].parameter if known and name in SAME_PARAMETER else ""
    return index, [_Value(index, label)] * len(equation.outvars)


def user_line(equation: Any) -> str:
    """Return file, line and function of the user's code, installed libraries left out if any."""
    frames = []
    for frame in _jaxprs.source_frames(equation):
        # What is outside of the evaluation only calls it.
        if frame.startswith(EVALUATION):
            break
        frames.append(frame)
    named = [f for f in frames if not any(folder in f for folder in LIBRARIES)]
    return next(iter([*named, *frames]), "")


def rule_line(operation: Operation, equation: Any) -> str:
    """Return the line of the user's derivative rule that an operation of the gradient is in."""
    if operation.equation.primitive.name not in CUSTOM:
        return ""
    # The operations of a backward rule have no line, but the rule has one.
    function, _, place = next(iter(_jaxprs.rule_places(operation.equation)), "").rpartition(" at ")
    line = user_line(equation) or (f"{place} ({function})" if function else "")
    return "" if any(folder in line for folder in LIBRARIES) else line


# The number of an operation, the operation, its inputs and the indices of the enclosing scans.
Apply = Callable[[int, Any, list[Any], tuple[Any, ...]], Sequence[Any]]


def run(
    program: Any,
    numbers: Numbers,
    args: Sequence[Any],
    apply: Apply,
    literal: Callable[[Any], Any] = lambda atom: atom.val,
    convert: Callable[[Any], Any] = lambda value: value,
    indices: tuple[Any, ...] = (),
) -> list[Any]:
    """Evaluate a program, each operation by `apply`, in a scope that has its number."""
    entries: Iterator[Any] = iter(numbers.entries)

    def step(equation, inputs):
        entry = next(entries)
        # JAX names the operations of the derivative after the scope, so their number is known.
        if isinstance(entry, int):
            with jax.named_scope(MARK.format(entry)):
                return apply(entry, equation, inputs, indices)
        inner = functools.partial(run, apply=apply, literal=literal, convert=convert)
        if equation.primitive.name == "scan":
            return _scan(equation.params, entry, inputs, inner, indices)
        inner = functools.partial(inner, indices=indices)
        if isinstance(entry, list):
            branches = [
                functools.partial(inner, branch, part)
                for branch, part in zip(equation.params["branches"], entry, strict=True)
            ]
            return jax.lax.switch(inputs[0], branches, inputs[1:])
        called = functools.partial(inner, _jaxprs.called_program(equation), entry)
        if equation.primitive.name in CHECKPOINTS:
            params = equation.params
            options = {key: params[key] for key in ("policy", "prevent_cse") if key in params}
            called = jax.checkpoint(called, **options)
        return called(inputs)

    return _jaxprs.evaluate(program, args, step, convert, literal)


def _scan(params: Any, numbers: Numbers, inputs: list[Any], inner: Any, indices: tuple[Any, ...]):
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
