"""Why an operation makes a value or a gradient that is not finite."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.inspection._graph import Node

# How the text of each cause begins.
CAUSES = {
    "argument": "the argument is not finite",
    "branch": "0 * inf in a branch that is not taken",
    "branch_nan": "0 * nan in a branch that is not taken",
    "compiled": "only if XLA compiles the whole program, whose operations one by one are finite",
    "definite": "the matrix is not positive definite",
    "difference": "inf - inf",
    "division": "division by 0",
    "domain": "outside of the domain",
    "eigenvalues": "equal eigenvalues or singular values",
    "index": "an index is out of range",
    "log": "log of 0",
    "normalization": "the norm of a zero vector, or the standard deviation of a constant",
    "overflow": "overflow",
    "power": "a power of 0",
    "product": "0 * inf",
    "rule": "the derivative rule of the function",
    "singular": "a singular matrix",
    "slope": "an infinite slope",
    "unknown": "unknown",
}
# These pass a zero gradient to what they do not select.
GATES = {
    *("select_n", "max", "min", "clamp", "reduce_max", "reduce_min", "sort", "gather"),
    *("argmax", "dynamic_slice", "slice", "scatter", "dynamic_update_slice"),
}
# A norm is the root of a sum of squares behind any of these.
TRANSPARENT = {
    *("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "div", "mul", "select_n"),
    *("max", "transpose", "abs", "real", "copy"),
}
MATRICES = {
    **dict.fromkeys(["eigh", "svd", "eig", "schur"], "eigenvalues"),
    **dict.fromkeys(["lu", "triangular_solve", "custom_linear_solve", "qr"], "singular"),
    **dict.fromkeys(["_det", "_slogdet_lu", "_slogdet_qr"], "singular"),
    "cholesky": "definite",
}
LOGS = {"log", "log1p", "xlogy", "xlog1py", "entr", "_xlogx"}
INVERSE = {"acos", "asin", "atanh", "acosh"}


class Element(NamedTuple):
    """The first element that is not finite.

    Attributes:
      position: its index in the result, or in the input whose gradient is not finite.
      inputs: the inputs of the operation at that element, without those of other shapes.
      result: the result there, NaN if it has another shape.
      cotangent: the gradient of the loss with respect to the result there.
    """

    position: tuple[int, ...]
    inputs: tuple[float, ...]
    result: float
    cotangent: float


class Place(NamedTuple):
    """An operation that makes a value that is not finite, and how it was carried out.

    Attributes:
      number: of the operation among `operations`.
      primitive: the operation of JAX, in a function with a derivative rule one of its own.
      backward: whether the loss is finite, so that only the gradient is not.
      computed: whether the result itself is NaN, or infinite though the inputs are finite.
      element: `None` if it could not be measured.
      dtype: of the result.
      rule: whether it is in a derivative rule of the user's code.
      slope: what a zero gradient is multiplied by, infinite or NaN.
    """

    number: int
    primitive: str
    backward: bool
    computed: bool
    element: Element | None
    dtype: str
    rule: bool
    slope: float = np.inf


def cause(place: Place, operations: Sequence[Node], where: Callable[[str], str]) -> str:
    """Return a text that begins with one of `CAUSES`; `where` shortens a line of code."""
    key = _key(place, operations)
    text = CAUSES[key]
    if key in ("branch", "branch_nan"):
        gate = gate_after(place.number, operations)
        text += f" (of {gate.name} in {where(gate.line)})" if gate else ""
        return text if key == "branch" else f"{text}: {CAUSES[_by_inputs(place, operations)]}"
    if key == "slope":
        inputs = place.element.inputs if place.element else ()
        return f"{text} of {place.primitive} at {', '.join(f'{x:.6g}' for x in inputs)}"
    return f"{text} of {place.dtype}" if key == "overflow" else text


def _key(place: Place, operations: Sequence[Node]) -> str:
    operation = operations[place.number]
    if place.rule:
        return "rule"
    key = MATRICES.get(operation.name) or MATRICES.get(place.primitive)
    if key:
        return key
    if place.element is None:
        return "unknown"
    if "gather" in place.primitive:
        return "index"
    # The gradient stops where the result is not selected: 0 times an infinite slope is NaN.
    zero = place.computed or (
        place.element.cotangent == 0 and np.all(np.isfinite(place.element.inputs))
    )
    if place.backward and zero and gate_after(place.number, operations):
        return "branch_nan" if np.isnan(place.slope) else "branch"
    return _by_inputs(place, operations)


def _by_inputs(place: Place, operations: Sequence[Node]) -> str:
    operation = operations[place.number]
    element = place.element
    assert element is not None
    name = operation.name if operation.name in LOGS | INVERSE else place.primitive
    x = element.inputs
    # Of infinite inputs it is NaN that the operation makes.
    if all(np.isfinite(x)):
        return _by_values(name, x, place.number, operations)
    if name in ("sub", "add", "add_any", "reduce_sum", "dot_general", "cumsum"):
        return "difference"
    return "product" if name in ("mul", "div", "integer_pow", "square") else "unknown"


def _by_values(name: str, x: tuple[float, ...], number: int, operations: Sequence[Any]) -> str:
    first, last = (x[0], x[-1]) if x else (np.nan, np.nan)
    if name in LOGS:
        # log1p(x) is log(1 + x).
        zero = -1 if "1" in name else 0
        return "domain" if last < zero else "log"
    if name in ("sqrt", "rsqrt", "cbrt"):
        norm = first == 0 and has_norm(number, 0, operations, {"reduce_sum", "dot_general"})
        other = "slope" if name != "rsqrt" else "division"
        return "domain" if first < 0 else "normalization" if norm else other
    # A quotient by a norm is told as such, by a sum of weights as a division.
    if name == "div" and last == 0:
        norm = has_norm(number, 1, operations, {"sqrt", "norm"})
        return "normalization" if norm else "division"
    if name in ("pow", "integer_pow") and first <= 0:
        return "power" if first == 0 else "domain"
    if name in INVERSE:
        outside = first < 1 if name == "acosh" else abs(first) > 1
        return "domain" if outside else "slope"
    if name == "atan2" and not any(x):
        return "division"
    return "overflow"


def has_norm(number: int, position: int, operations: Sequence[Node], names: set[str]) -> bool:
    """Whether an input is computed by one of `names`, with nothing but scaling between."""
    pending = [operations[number].inputs[position]]
    while pending:
        source = pending.pop()
        operation = operations[source]
        # What else is on the way, such as a difference, makes it another function.
        if operation.name in names:
            return True
        if operation.name in TRANSPARENT:
            pending += [i for i in _data(operation) if i < source]
    return False


def gate_after(number: int, operations: Sequence[Node]) -> Node | None:
    """Return the first operation behind `number` that may select other values."""
    # Numbers are in the order of computation, so one pass reaches all that depends on it.
    reached = {number}
    for index in range(number + 1, len(operations)):
        operation = operations[index]
        if reached.intersection(_data(operation)):
            if operation.name in GATES:
                return operation
            reached.add(index)
    return None


def _data(operation: Node) -> tuple[int, ...]:
    """Return the sources of all inputs but the condition of a selection."""
    return operation.inputs[operation.name == "select_n" :]
