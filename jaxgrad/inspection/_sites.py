"""Which operations of a traced program are measured, and where each of them comes from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxgrad._jaxprs import RULES
from jaxgrad._numerics import float_eps
from jaxgrad.inspection._graph import (
    PRODUCTS,
    SAME_PARAMETER,
    Node,
    Plan,
    applied,
    graph,
    is_number,
    plan,
)

NON_LINEAR = {
    *("tanh", "logistic", "erf", "max", "min", "exp", "log", "log1p", "sin", "cos"),
    *("rsqrt", "sqrt", "pow"),
}
# What is inside of these is not measured, their result is.
CLOSED = {
    *("shard_map", "while", "custom_linear_solve", "pallas_call", "pure_callback", "io_callback"),
}
DETACHED = {"stop_gradient"}


@dataclass(frozen=True)
class Location:
    """Where an operation comes from.

    Attributes:
      operation: its name, such as `dot_general`, or that of a function with a derivative rule.
      scope: names of the enclosing `jax.named_scope`s, separated by slashes.
      parameter: path of the parameter that it applies to the signal, such as `['w']`, or "".
      line: file, line and function of the user's code.
      lengths: of the enclosing scans, from the outermost on.
      scan: which equation the outermost of these scans is, () outside of any.
      shape, dtype: of one result, without the iterations of scans.
      fan_in: number of terms in each sum of a product with a parameter; 0 for anything else, and
        where a factor that follows the product is part of its scale.
      weight: which operand the parameter is, -1 if none.
    """

    operation: str
    scope: str
    parameter: str
    line: str
    lengths: tuple[int, ...]
    scan: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    fan_in: float
    weight: int


def plan_sites(program: Any, parameters: Sequence[str]) -> Plan:
    """Plan the measurements of a program; `parameters` are labels of its inputs, "" for data."""
    nodes = graph(program, parameters)
    scaled, locations = _scaled_by_numbers(nodes), {}
    for i, node in enumerate(nodes):
        if _is_softmax(node, nodes):
            changes = {"operation": "softmax", "parameter": "", "weight": -1}
            locations[node.key] = replace(locate(node, nodes), **changes)
        elif _is_site(node, nodes):
            location = locate(node, nodes)
            locations[node.key] = replace(location, fan_in=0.0) if i in scaled else location
    return plan(program, locations)


def locate(node: Node, nodes: Sequence[Node]) -> Location:
    """Return where the result of an operation is measured, and what is known of it beforehand."""
    weight, parameter = applied(node, nodes)
    i = measured_output(node.equation)
    assert i is not None
    aval = node.equation.outvars[i].aval
    return Location(
        operation=node.name,
        scope=node.scope,
        parameter=parameter,
        line=node.place,
        lengths=node.lengths,
        scan=node.scan,
        shape=aval.shape,
        dtype=aval.dtype,
        fan_in=_fan_in(node.equation, weight),
        weight=weight,
    )


def _scaled_by_numbers(nodes: Sequence[Node]) -> set[int]:
    """Return the nodes that a multiplication by a number follows, as in scaled attention."""
    return {
        i
        for node in nodes
        if node.primitive in ("mul", "div") and any(map(is_number, node.equation.invars))
        for i, atom in zip(node.inputs, node.equation.invars, strict=True)
        # A factor within a compiled function, such as an activation, is no scale of its argument.
        if not is_number(atom) and nodes[i].key[:-1] == node.key[:-1]
    }


def _is_softmax(node: Node, nodes: Sequence[Node]) -> bool:
    """Whether a result is exponentials divided by their sum."""
    if node.primitive != "div":
        return False
    sources = list(node.inputs)
    for k, i in enumerate(sources):
        # A sum is broadcast before the division.
        while nodes[i].primitive in SAME_PARAMETER:
            i = nodes[i].inputs[0]
        sources[k] = i
    return [nodes[i].primitive for i in sources] == ["exp", "reduce_sum"]


def fans(equation: Any, weight: int) -> tuple[int, int, int]:
    """Return fan-in, fan-out and receptive field of an operand of a product."""
    shape, numbers = equation.invars[weight].aval.shape, equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        contracted, batch = numbers[0][weight], numbers[1][weight]
        others = set(range(len(shape))) - {*contracted, *batch}
        return math.prod(shape[i] for i in contracted), math.prod(shape[i] for i in others), 1
    features_out, features_in, *window = numbers.rhs_spec
    field = math.prod(shape[i] for i in window)
    return shape[features_in] * field, shape[features_out] * field, field


def _fan_in(equation: Any, weight: int) -> float:
    """Return the number of terms in each sum of a product with a parameter, else 0."""
    name, params = equation.primitive.name, equation.params
    # An image that is a parameter has no fan.
    if weight < 0 or name not in PRODUCTS or (weight == 0 and name != "dot_general"):
        return 0.0
    # A transposed convolution puts zeros between its inputs, which are no terms.
    return fans(equation, weight)[0] / math.prod(params.get("lhs_dilation", ()))


def _is_site(node: Node, nodes: Sequence[Node]) -> bool:
    name = node.primitive
    if not measurable(node):
        return False
    inputs, known = node.equation.invars, [nodes[i].parameter for i in node.inputs]
    if name in ("add", "add_any"):
        # The sum of two signals, as of a branch and the stream beside it.
        same = inputs[0].aval.shape == inputs[1].aval.shape != ()
        return same and not any(known) and not any(hasattr(v, "val") for v in inputs)
    if name == "mul":
        # A scale that is learnt, such as that of a normalization.
        signals = [v for v, parameter in zip(inputs, known, strict=True) if not parameter]
        return len(signals) == 1 and not is_number(signals[0])
    return any(name in names for names in (PRODUCTS, NON_LINEAR, RULES, CLOSED, DETACHED))


def measurable(node: Node) -> bool:
    """Whether the statistics of a node can be taken."""
    return node.equation is not None and measured_output(node.equation) is not None


def measured_output(equation: Any) -> int | None:
    """Return the index of the first output that has a derivative, which integers have not."""
    floating = [bool(float_eps(getattr(v.aval, "dtype", None))) for v in equation.outvars]
    return floating.index(True) if True in floating else None
