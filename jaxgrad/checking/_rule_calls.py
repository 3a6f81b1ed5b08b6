"""Calls of functions with a derivative rule in a program, with the inputs that they get there.

The program is traced and evaluated on the host, operation by operation, so that loops run as often
as they do, branches are those that are taken, and every input has its value.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad._jaxprs import LOOPS, called_program, equations_of, inner_programs, is_rule
from jaxgrad._numerics import float_eps

ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class RuleCall(NamedTuple):
    """An operation with a derivative rule, in one place of a program.

    Attributes:
      equation: the operation.
      line: file, line and function of the user's code.
      samples: inputs of the first call, of the last, and of some chosen by chance between them.
    """

    equation: Any
    line: str
    samples: list[list[Any]]


class RuleCalls(NamedTuple):
    """All operations with a rule that a program carries out, and those that it hides.

    `closed` are names of operations, such as `shard_map`, that have rules inside but are not
    opened.
    """

    calls: list[RuleCall]
    closed: tuple[str, ...]


def rule_calls(f: Callable[..., Any], args: Any, kwargs: Any, *, primitives, limit, generator):
    """Return the `RuleCalls` of `f(*args, **kwargs)`, with at most `limit` inputs for each.

    With `primitives` they include all operations of JAX that have a derivative.
    """
    closed, arrays = traced_call(f, args, kwargs)
    wanted = is_operation if primitives else is_rule
    walk = _Walk(wanted, limit, generator, {}, {}, {}, {})
    _evaluate(closed, list(map(jnp.asarray, arrays)), walk)
    return RuleCalls(list(walk.calls.values()), tuple(sorted(set(walk.closed))))


def traced_call(f: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, list[Any]]:
    """Return the program of `f(*args, **kwargs)` and its inputs, the arrays among the leaves."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, ARRAYS)]

    def flat(arrays):
        values = dict(enumerate(leaves)) | dict(zip(positions, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(structure, [values[i] for i in range(len(leaves))])
        out = jax.tree.leaves(f(*args, **kwargs))
        return [leaf for leaf in out if isinstance(leaf, ARRAYS)]

    arrays = [leaves[i] for i in positions]
    return jax.make_jaxpr(flat)(arrays), arrays


def is_operation(equation: Any) -> bool:
    """Whether an operation has a derivative rule, by hand or JAX's, and is no loop or call."""
    if is_rule(equation):
        return True
    if equation.primitive.name in LOOPS or called_program(equation) is not None:
        return False
    variables = [
        [bool(float_eps(getattr(v.aval, "dtype", None))) for v in side]
        for side in (equation.invars, equation.outvars)
    ]
    return all(map(any, variables)) and not equation.effects


class _Walk(NamedTuple):
    """What an evaluation looks for, and what it has met."""

    wanted: Callable[[Any], bool]
    limit: int
    generator: np.random.Generator
    calls: dict[int, RuleCall]
    counts: dict[int, int]  # of calls so far
    inside: dict[int, bool]  # whether a program, by its identity, has operations that are wanted
    closed: dict[str, None]
    line: str = ""  # of the innermost operation around, for those without one


def _evaluate(program: Any, args: list[Any], walk: _Walk) -> list[Any]:
    return _jaxprs.evaluate(program, args, lambda e, inputs: _apply(e, inputs, walk))


def _apply(equation: Any, inputs: list[Any], walk: _Walk) -> Any:
    name = equation.primitive.name
    walk = walk._replace(line=_jaxprs.source_line(equation) or walk.line)
    if walk.wanted(equation):
        _record(equation, inputs, walk)
    if not any(_has_wanted(program, walk) for program in inner_programs(equation)):
        return _jaxprs.bind(equation, inputs)
    if name == "scan":
        return _scan(equation.params, inputs, walk)
    if name == "while":
        return _while(equation.params, inputs, walk)
    if name == "cond":
        branches = equation.params["branches"]
        return _evaluate(branches[int(inputs[0])], inputs[1:], walk)
    called = called_program(equation)
    if called is not None:
        return _evaluate(called, inputs, walk)
    walk.closed[name] = None
    return _jaxprs.bind(equation, inputs)


def _has_wanted(program: Any, walk: _Walk) -> bool:
    inner = getattr(program, "jaxpr", program)
    if id(inner) not in walk.inside:
        walk.inside[id(inner)] = any(map(walk.wanted, equations_of(inner)))
    return walk.inside[id(inner)]


def _record(equation: Any, inputs: list[Any], walk: _Walk) -> None:
    """Add the inputs of a call to the sample of its operation."""
    # A number in the program may be no array.
    pairs = zip(inputs, equation.invars, strict=True)
    inputs = [v if isinstance(v, jax.Array) else jnp.asarray(v, a.aval.dtype) for v, a in pairs]
    # The trace lives as long as the walk, so identities are unique.
    identity = id(equation)
    samples = walk.calls.setdefault(identity, RuleCall(equation, walk.line, [])).samples
    count = walk.counts.get(identity, 0)
    walk.counts[identity] = count + 1
    if count < walk.limit:
        samples.append(inputs)
    elif walk.limit > 1:
        # The call that was the last one joins the others, all of which are as likely to be chosen.
        position = int(walk.generator.integers(1, count))
        if position < walk.limit - 1:
            samples[position] = samples[-1]
        samples[-1] = inputs


def _scan(params: Any, inputs: list[Any], walk: _Walk) -> list[Any]:
    consts, carry, xs = _jaxprs.split_scan_inputs(params, inputs)
    length, program = params["length"], params["jaxpr"]

    def body(run, state, i):
        i = length - 1 - i if params["reverse"] else i
        out = run([*consts, *state, *(x[i] for x in xs)])
        return out[: len(carry)], out[len(carry) :]

    carry, rows = _iterate(program, body, carry, length, walk)
    if not rows:
        shapes = [v.aval for v in getattr(program, "jaxpr", program).outvars[len(carry) :]]
        return [*carry, *(jnp.zeros((0, *s.shape), s.dtype) for s in shapes)]
    rows = rows[::-1] if params["reverse"] else rows
    return [*carry, *map(jnp.stack, zip(*rows, strict=True))]


def _while(params: Any, inputs: list[Any], walk: _Walk) -> list[Any]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    test, body = inputs[:first], inputs[first : first + second]
    carry = start = inputs[first + second :]
    goes_on = _jitted(params["cond_jaxpr"])
    step, length = _jitted(params["body_jaxpr"]), 0
    # The number of iterations decides which of them are looked into.
    while goes_on([*test, *carry])[0]:
        carry, length = step([*body, *carry]), length + 1
    _evaluate(params["cond_jaxpr"], [*test, *start], walk)
    inner = params["body_jaxpr"]
    return _iterate(inner, lambda run, s, _: (run([*body, *s]), []), start, length, walk)[0]


def _iterate(program: Any, body: Callable, carry: list[Any], length: int, walk: _Walk):
    """Return the last carry and the further results of each iteration, some of them looked into."""
    middle = walk.generator.permutation(np.arange(1, max(length - 1, 1)))[: max(walk.limit - 2, 0)]
    chosen = {0, *middle.tolist(), *([length - 1] if walk.limit > 1 else [])}
    compiled, rows = _jitted(program), []
    for i in range(length):
        run = (lambda args: _evaluate(program, args, walk)) if i in chosen else compiled
        carry, results = body(run, carry, i)
        rows.append(results)
    return carry, rows


def _jitted(program: Any) -> Callable[[list[Any]], list[Any]]:
    return jax.jit(lambda args: _jaxprs.evaluate(program, args, _jaxprs.bind))
