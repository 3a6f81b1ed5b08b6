"""A traced program as one graph, in which every operation has a number and its place in the code.

Calls are written out, the body of a scan stands once, and all branches of a `cond` are there. A
loop of unknown length, a function with a derivative rule and what cannot be opened are one
operation each. This is the only place where operations are numbered and described.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxgrad import _jaxprs

PRODUCTS = {"dot_general", "conv_general_dilated"}
# A result of these is as much a parameter as its first input.
SAME_PARAMETER = {
    *("reshape", "transpose", "convert_element_type", "broadcast_in_dim", "squeeze", "slice"),
    *("dynamic_slice", "copy", "rev", "name", "optimization_barrier"),
}
CHECKPOINTS = ("checkpoint", "remat", "remat2")


class Parameter(NamedTuple):
    """A leaf of the parameters, or what is computed from it and numbers alone.

    Attributes:
      leaf: index among the inputs of the program.
      path: such as `['w']`.
      lengths: of the scans that slice it, `None` if not known.
      whole: whether it is the leaf itself, or slices of its first axes.
    """

    leaf: int
    path: str
    lengths: tuple[int, ...] | None = ()
    whole: bool = True


class Node(NamedTuple):
    """One result in a program.

    Attributes:
      key: the index of the operation in its program, after those of the programs around it; of a
        branch of `cond`, its index comes between.
      equation: the operation; `None` for an input, a number, a carry and the result of branches.
      inputs: indices of nodes. A carry has its first value and that after an iteration.
      parameter: which parameter the result is, if it is one.
      scope: names of the enclosing `jax.named_scope`s, separated by slashes.
      line: file, line, column and function of the user's code, or of the call around it.
      function: of a package that contains the operation, if the user's code calls that; or "".
      lengths: of the enclosing scans, from the outermost on.
      scan: key of the outermost of these scans, () outside of any.
      region: key of the innermost loop body, branch or checkpointed function around.
    """

    key: tuple[int, ...] = ()
    equation: Any = None
    inputs: tuple[int, ...] = ()
    parameter: Parameter | None = None
    scope: str = ""
    line: str = ""
    function: str = ""
    lengths: tuple[int, ...] = ()
    scan: tuple[int, ...] = ()
    region: tuple[int, ...] = ()

    @property
    def primitive(self) -> str:
        """The name of the operation, such as `dot_general`."""
        return "" if self.equation is None else self.equation.primitive.name

    @property
    def name(self) -> str:
        """The name of the operation, or of a function with a derivative rule."""
        rule = self.primitive in _jaxprs.RULES
        return (rule and _jaxprs.function_name(self.equation)) or self.primitive

    @property
    def place(self) -> str:
        """The line without the column, since blocks that are written on one line are alike."""
        return re.sub(r"(:\d+):\d+(?= \()", r"\1", self.line)


def graph(program: Any, labels: Sequence[str]) -> list[Node]:
    """Return the nodes of a closed program in the order of computation, those of its inputs first.

    Args:
      labels: of the inputs, the paths of parameters and "" for data.
    """
    nodes = [
        Node(parameter=Parameter(i, label) if label else None) for i, label in enumerate(labels)
    ]
    _walk(program, list(range(len(nodes))), Node(), nodes)
    return nodes


def _walk(program: Any, inputs: Sequence[int], around: Node, nodes: list[Node]) -> list[int]:
    """Append the nodes of a program, and return those of its outputs."""
    positions = itertools.count()

    def constant(_):
        nodes.append(around._replace(equation=None, inputs=(), parameter=None))
        return len(nodes) - 1

    def step(equation, inputs):
        path = "/".join(part for part in (around.scope, _jaxprs.scope(equation)) if part)
        # What a compiled function of JAX does has no line in the user's code, but its call has.
        line = _jaxprs.user_line(equation, around.line)
        node = around._replace(
            key=(*around.key, next(positions)),
            equation=equation,
            inputs=tuple(inputs),
            scope=path,
            line=line,
            function=around.function if line == around.line else "",
        )
        return _step(node, nodes)

    # Results and inputs are numbers of nodes, and constants arrays.
    index = lambda value: value if isinstance(value, int) else constant(value)  # noqa: E731
    return _jaxprs.evaluate(program, inputs, step, index, constant)


def _step(node: Node, nodes: list[Node]) -> list[int]:
    equation, inputs, name = node.equation, list(node.inputs), node.primitive
    # A function with a derivative rule stays whole, so that the rule is used.
    called = None if _jaxprs.is_rule(equation) else _jaxprs.called_program(equation)
    if called is not None:
        region = node.key if name in CHECKPOINTS else node.region
        function = node.function or _jaxprs.function_name(equation)
        return _walk(called, inputs, node._replace(region=region, function=function), nodes)
    if name == "scan":
        return _scan(node, nodes)
    if name == "cond":
        keys = [(*node.key, i) for i in range(len(equation.params["branches"]))]
        branches = [
            _walk(branch, inputs[1:], node._replace(key=key, region=key), nodes)
            for branch, key in zip(equation.params["branches"], keys, strict=True)
        ]
        # What any branch may return.
        nodes += [node._replace(equation=None, inputs=r) for r in zip(*branches, strict=True)]
        return list(range(len(nodes) - len(equation.outvars), len(nodes)))
    nodes.append(node._replace(parameter=_derived(node, nodes)))
    return [len(nodes) - 1] * len(equation.outvars)


def _scan(node: Node, nodes: list[Node]) -> list[int]:
    """Append the nodes of a scan. What each iteration leaves as it is stays a parameter."""
    params, first = node.equation.params, len(nodes)
    consts, carry, xs = _jaxprs.split_scan_inputs(params, node.inputs)
    around = node._replace(
        lengths=(*node.lengths, params["length"]), scan=node.scan or node.key, region=node.key
    )
    known = [nodes[i].parameter for i in carry]
    sliced = [_slice(nodes[i].parameter, params["length"]) for i in xs]
    while True:
        for i, parameter in zip([*carry, *xs], [*known, *sliced], strict=True):
            nodes.append(around._replace(equation=None, inputs=(i,), parameter=parameter))
        body = [*consts, *range(first, len(nodes))]
        outputs = _walk(params["jaxpr"], body, around, nodes)
        results = [nodes[i].parameter for i in outputs[: len(carry)]]
        after = [_common(a, b) for a, b in zip(known, results, strict=True)]
        if after == known:
            break
        known = after
        del nodes[first:]
    # The value after an iteration is known only now.
    for k, last in enumerate(outputs[: len(carry)], first):
        nodes[k] = nodes[k]._replace(inputs=(*nodes[k].inputs, last))
    return outputs


def _common(first: Parameter | None, second: Parameter | None) -> Parameter | None:
    if first is None or second is None or first.leaf != second.leaf:
        return None
    return first if first == second else first._replace(lengths=None, whole=False)


def _slice(parameter: Parameter | None, length: int) -> Parameter | None:
    if parameter is None:
        return None
    # Only of an untouched leaf is it known that the first axis is that of the iterations.
    known = parameter.whole and parameter.lengths is not None
    return parameter._replace(lengths=(*(parameter.lengths or ()), length) if known else None)


def _derived(node: Node, nodes: list[Node]) -> Parameter | None:
    """Return the parameter that a result is: one of a single parameter and numbers is that one."""
    known, equation = [nodes[i].parameter for i in node.inputs], node.equation
    leaves = {p.leaf for p in known if p}
    # Operations with numbers alone, such as a scale, leave a parameter what it is.
    alone = all(p or is_number(v) for p, v in zip(known, equation.invars, strict=True))
    if alone and len(leaves) == 1 and node.primitive not in PRODUCTS:
        same = next(p for p in known if p)
    else:
        same = known[0] if node.primitive in SAME_PARAMETER and len(equation.outvars) == 1 else None
    return same._replace(whole=False) if same else None


def is_number(atom: Any) -> bool:
    """Whether an input of an operation is a number, in the code or computed."""
    return hasattr(atom, "val") or getattr(atom.aval, "shape", None) == ()


def applied(node: Node, nodes: Sequence[Node]) -> tuple[int, str]:
    """Return which input of an operation is the first parameter, and its path; or -1 and ""."""
    parameters = ((k, nodes[i].parameter) for k, i in enumerate(node.inputs))
    return next(((k, p.path) for k, p in parameters if p), (-1, ""))


class Plan(NamedTuple):
    """What to do with each operation of a program; `None` carries it out as it is."""

    entries: list[Any]  # None, a value, a `Plan`, or a list of `Plan`s, one for each branch

    def locations(self) -> list[Any]:
        """Return all values, in the order in which measurements of them are returned."""
        return [value for entry in self.entries for value in _values(entry)]


def _values(entry: Any) -> list[Any]:
    if isinstance(entry, list):
        return [value for branch in entry for value in branch.locations()]
    return entry.locations() if isinstance(entry, Plan) else [] if entry is None else [entry]


def plan(program: Any, values: Mapping[tuple[int, ...], Any]) -> Plan:
    """Return a plan with values for some operations of a program, by the keys of their nodes."""
    # Every program around one of these is opened.
    return _plan(program, (), values, {key[:n] for key in values for n in range(len(key))})


def _plan(program: Any, key: tuple[int, ...], values: Mapping, around: set) -> Plan:
    entries: list[Any] = []
    for i, equation in enumerate(getattr(program, "jaxpr", program).eqns):
        inner = (*key, i)
        if inner in values or inner not in around:
            entries.append(values.get(inner))
        elif equation.primitive.name == "cond":
            branches = enumerate(_jaxprs.opened(equation))
            entries.append([_plan(branch, (*inner, k), values, around) for k, branch in branches])
        else:
            entries.append(_plan(_jaxprs.opened(equation)[0], inner, values, around))
    return Plan(entries)
