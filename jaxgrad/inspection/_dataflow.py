"""How signals flow through a traced program: its products, residual branches and attention."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from jaxgrad._jaxprs import RULES
from jaxgrad.inspection._graph import PRODUCTS, SAME_PARAMETER, Node, Parameter, Plan, graph, plan
from jaxgrad.inspection._sites import fans, locate

# Results of these have the size of their first signal, but for a number.
SCALINGS = SAME_PARAMETER | {"mul", "div", "neg", "reduce_precision"}
# Between the product of queries and keys and the softmax: also masks and biases.
MASKS = SCALINGS | {"select_n", "add", "max", "min"}


class Product(NamedTuple):
    """A product of a parameter with a signal, and the fans of the parameter."""

    node: int
    signal: int
    parameter: Parameter
    fan_in: int
    fan_out: int
    receptive_field: int


class Residual(NamedTuple):
    """A sum of a stream and a branch.

    Attributes:
      total, skip, branch: nodes.
      inside, last: all products in the branch, and those without another one after them.
      biases: leaves that are added to the results of the last products.
    """

    total: int
    skip: int
    branch: int
    inside: frozenset[int]
    last: tuple[int, ...]
    biases: tuple[int, ...]


class Attention(NamedTuple):
    """Nodes of logits and weights; products of queries and keys, and whether those are others'."""

    logits: int
    weights: int
    products: tuple[int, ...]
    shared: bool


class Flow(NamedTuple):
    """The nodes of a program in the order of computation; products by the index of their node."""

    nodes: list[Node]
    products: dict[int, Product]
    residuals: list[Residual]
    attention: list[Attention]


def dataflow(program: Any, labels: Sequence[str]) -> Flow:
    """Return the flow of a closed program; `labels` of its inputs are as for `graph`."""
    nodes = graph(program, labels)
    products = {i: p for i, node in enumerate(nodes) if (p := _product(i, node, nodes))}
    above = _ancestors(nodes)
    residuals: list[Residual] = []
    # A sum may follow sums before it, so they are looked for in the order of computation.
    for i in range(len(nodes)):
        residual = _residual(i, nodes, products, above, {r.total: r for r in residuals})
        residuals += [residual] if residual else []
    attention = [a for i in range(len(nodes)) if (a := _attention(i, nodes, products))]
    return Flow(nodes, products, residuals, attention)


def _product(index: int, node: Node, nodes: list[Node]) -> Product | None:
    if node.primitive not in PRODUCTS:
        return None
    pair = [nodes[i].parameter for i in node.inputs]
    side = 0 if pair[0] else 1
    parameter = pair[side]
    # A product of two parameters is one of a signal only later.
    if parameter is None or pair[1 - side] is not None:
        return None
    return Product(index, node.inputs[1 - side], parameter, *fans(node.equation, side))


def _ancestors(nodes: list[Node]) -> list[int]:
    """Return for each node the set of nodes that it depends on, as the bits of a number.

    Within a scan these are nodes of the same iteration, and its carry.
    """
    above: list[int] = []
    for i, node in enumerate(nodes):
        bits = 1 << i
        for k in node.inputs:
            bits |= above[k] if k < i else 0
        above.append(bits)
    return above


def _residual(index, nodes, products, above, residuals) -> Residual | None:
    node = nodes[index]
    if (
        node.primitive != "add"
        or len(set(node.inputs)) < 2
        or not node.equation.outvars[0].aval.shape
    ):
        return None
    if any(nodes[i].parameter for i in node.inputs):
        return None
    if len({atom.aval.shape for atom in node.equation.invars}) > 1:
        return None
    for skip, branch in (node.inputs, node.inputs[::-1]):
        for origin in _origins(skip, nodes, residuals):
            if not above[branch] >> origin & 1:
                continue
            inside = [p for p in products if above[branch] >> p & 1 and above[p] >> origin & 1]
            # Products that the stream went through before are no part of the branch.
            inside = [p for p in inside if not above[skip] >> p & 1]
            if inside:
                nearest, passed = _nearest(branch, nodes, products)
                last = tuple(p for p in nearest if p in inside)
                biases = (nodes[k].parameter for i in passed for k in nodes[i].inputs)
                added = tuple({p.leaf for p in biases if p})
                return Residual(index, skip, branch, frozenset(inside), last, added)
    return None


def _origins(skip: int, nodes: list[Node], residuals: dict[int, Residual]) -> list[int]:
    """Return the stream, and the streams before it to which branches or factors were applied."""
    result = [skip]
    while True:
        node = nodes[result[-1]]
        if result[-1] in residuals:
            result.append(residuals[result[-1]].skip)
        elif node.primitive in SCALINGS and (i := _signal(node)) is not None:
            result.append(i)
        else:
            return result


def _signal(node: Node) -> int | None:
    """Return the only input that is no number."""
    arrays = [
        i
        for i, atom in zip(node.inputs, node.equation.invars, strict=True)
        if getattr(atom.aval, "shape", ()) != ()
    ]
    return arrays[0] if len(arrays) == 1 else None


def _nearest(index: int, nodes: list[Node], products: dict[int, Product]):
    """Return the products that a node depends on without another one between, and the sums."""
    results, seen, front = set(), set(), [index]
    while front:
        i = front.pop()
        if i in products:
            results.add(i)
        elif i not in seen:
            seen.add(i)
            front += [k for k in nodes[i].inputs if k < i]
    return sorted(results), [i for i in seen if nodes[i].primitive == "add"]


def _attention(index: int, nodes: list[Node], products: dict[int, Product]) -> Attention | None:
    """Return the attention whose exponential, or softmax, a node is."""
    node = nodes[index]
    if node.primitive == "exp" and nodes[node.inputs[0]].primitive == "sub":
        start = nodes[node.inputs[0]].inputs[0]
    elif node.primitive in RULES and node.name in ("softmax", "_softmax"):
        start = node.inputs[-1]
    else:
        return None
    chain = [start]
    # Back to the product of two signals, over scales and masks.
    while nodes[chain[-1]].primitive in MASKS:
        chain.append(next((i for i in nodes[chain[-1]].inputs if _is_logits(i, nodes)), -1))
        if chain[-1] < 0:
            return None
    first = nodes[chain[-1]]
    if first.primitive != "dot_general" or chain[-1] in products:
        return None
    # The size of the logits is taken before a mask, whose entries are huge.
    masked = [
        k for k, i in enumerate(chain) if nodes[i].primitive not in SCALINGS | {"dot_general"}
    ]
    logits = chain[max(masked) + 1] if masked else start
    # A weight that both share with the values cannot scale the logits alone.
    sides = [_nearest(i, nodes, products)[0] for i in first.inputs]
    shared = sides[0] == sides[1] or not all(len(side) == 1 for side in sides)
    return Attention(logits, index, tuple(s[0] for s in sides if s), shared)


def _is_logits(index: int, nodes: list[Node]) -> bool:
    """Whether a product of two signals reaches this node over scales and masks alone."""
    front = [index]
    while front:
        node = nodes[front.pop()]
        if node.primitive == "dot_general" and not any(nodes[i].parameter for i in node.inputs):
            return True
        front += node.inputs if node.primitive in MASKS else ()
    return False


def plan_nodes(program: Any, flow: Flow, measured: Iterable[int]) -> Plan:
    """Plan the measurement of some nodes; it returns them in the order of their keys."""
    nodes = [flow.nodes[i] for i in measured]
    # Nothing is measured of the weights.
    return plan(program, {n.key: replace(locate(n, flow.nodes), weight=-1) for n in nodes})


def split_numbers(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a text with `#` for each number, and the numbers."""
    return re.sub(r"\d+", "#", text), tuple(re.findall(r"\d+", text))
