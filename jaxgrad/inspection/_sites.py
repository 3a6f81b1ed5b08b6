"""Which operations of a traced program are measured, and where each of them comes from."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgrad._jaxprs import (
    called_program,
    function_name,
    scope,
    split_scan_inputs,
    user_line,
)
from jaxgrad._numerics import float_eps

PRODUCTS = {"dot_general", "conv_general_dilated"}
NON_LINEAR = {
    *("tanh", "logistic", "erf", "max", "min", "exp", "log", "log1p", "sin", "cos"),
    *("rsqrt", "sqrt", "pow"),
}
# Functions with a rule of their own, such as `jax.nn.relu`, stay whole, so that the rule does.
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}
# What is inside of these is not measured, their result is.
CLOSED = {
    *("shard_map", "while", "custom_linear_solve", "pallas_call", "pure_callback", "io_callback"),
}
DETACHED = {"stop_gradient"}
# A result of these is as much a parameter as its first input.
SAME_PARAMETER = {
    *("reshape", "transpose", "convert_element_type", "broadcast_in_dim", "squeeze", "slice"),
    *("dynamic_slice", "copy", "rev", "name", "optimization_barrier"),
}


class Location(NamedTuple):
    """Where an operation comes from.

    Attributes:
      operation: its name, such as `dot_general`, or that of a function with a derivative rule.
      scope: names of the enclosing `jax.named_scope`s, separated by slashes.
      parameter: path of the parameter that it applies to the signal, such as `['w']`, or "".
      line: file, line and function of the user's code.
      lengths: of the enclosing scans, from the outermost on.
      scan: which equation the outermost of these scans is, () outside of any.
      shape, dtype: of one result, without the scans.
      fan_in: number of terms in each sum of a product with a parameter; 0 for anything else, and
        where a factor that follows the product is part of its scale.
      weight: which operand the parameter is, -1 if none.
    """

    operation: str
    scope: str
    parameter: str
    line: str
    lengths: tuple[int, ...]
    scan: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: Any = None
    fan_in: float = 0.0
    weight: int = -1


class Plan(NamedTuple):
    """What to do with each operation of a program; `None` carries it out as it is."""

    entries: list[Any]  # None, a `Location`, a `Plan`, or a list of `Plan`s, one for each branch

    def locations(self) -> list[Location]:
        """Return all locations, in the order in which measurements of them are returned."""
        return [location for entry in self.entries for location in _locations(entry)]


def _locations(entry: Any) -> list[Location]:
    if isinstance(entry, list):
        return [location for branch in entry for location in branch.locations()]
    return entry.locations() if isinstance(entry, Plan) else [] if entry is None else [entry]


class _Context(NamedTuple):
    scope: str
    lengths: tuple[int, ...]
    scan: tuple[int, ...]
    place: tuple[int, ...]  # indices of the equations around


def plan_sites(program: Any, parameters: Sequence[str]) -> Plan:
    """Plan the measurements of a program; `parameters` are labels of its inputs, "" for data."""
    return _plan(program, parameters, _Context("", (), (), ()))[0]


def _plan(program: Any, inputs: Sequence[str], context: _Context) -> tuple[Plan, list[str]]:
    """Return the plan of a program, and which parameter each of its outputs is, or ""."""
    jaxpr = getattr(program, "jaxpr", program)
    labels = dict(zip(jaxpr.invars, inputs, strict=True))
    entries: list[Any] = []
    scaled, softmaxes = _scaled_by_numbers(jaxpr), _softmaxes(jaxpr)
    for i, equation in enumerate(jaxpr.eqns):
        known = ["" if hasattr(atom, "val") else labels.get(atom, "") for atom in equation.invars]
        inner = context._replace(place=(*context.place, i))
        entry, results = _entry(equation, known, inner)
        if softmaxes.intersection(equation.outvars):
            entry = _location("softmax", equation, -1, "", inner)
        if isinstance(entry, Location) and scaled.intersection(equation.outvars):
            entry = entry._replace(fan_in=0.0)
        entries.append(entry)
        labels.update(zip(equation.outvars, results, strict=True))
    outputs = ["" if hasattr(v, "val") else labels.get(v, "") for v in jaxpr.outvars]
    return Plan(entries), outputs


def _scaled_by_numbers(jaxpr: Any) -> set[Any]:
    """Return the variables that a multiplication by a number follows, as in scaled attention."""
    return {
        atom
        for equation in jaxpr.eqns
        if equation.primitive.name in ("mul", "div") and any(map(_is_number, equation.invars))
        for atom in equation.invars
        if not _is_number(atom)
    }


def _entry(equation: Any, known: list[str], context: _Context) -> tuple[Any, list[str]]:
    name, params = equation.primitive.name, equation.params
    nothing = [""] * len(equation.outvars)
    path = "/".join(part for part in (context.scope, scope(equation)) if part)
    if name not in CUSTOM:
        called = called_program(equation)
        if called is not None:
            return _plan(called, known, context._replace(scope=path))
    if name == "scan":
        # Constants, carry and slices of the scanned inputs are the inputs of the inner program.
        inner = context._replace(
            scope=path,
            lengths=(*context.lengths, params["length"]),
            scan=context.scan or context.place,
        )
        return _plan_scan(params, known, inner)
    if name == "cond":
        inner = context._replace(scope=path)
        return [_plan(branch, known[1:], inner)[0] for branch in params["branches"]], nothing
    if name in SAME_PARAMETER:
        return None, [known[0], *nothing[1:]]
    # What is computed from one parameter and numbers is still that parameter.
    labels = {label for label in known if label}
    alone = all(label or _is_number(v) for label, v in zip(known, equation.invars, strict=True))
    results = [labels.pop() if len(labels) == 1 and alone else ""] * len(equation.outvars)
    if not _is_site(equation, known):
        return None, results
    weight = next((i for i, label in enumerate(known) if label), -1)
    title = (name in CUSTOM and function_name(equation)) or name
    return _location(
        title, equation, weight, known[weight] if weight >= 0 else "", context
    ), results


def _location(
    title: str, equation: Any, weight: int, parameter: str, context: _Context
) -> Location:
    """Return where the result of an operation is measured, and what is known of it beforehand."""
    i = measured_output(equation)
    assert i is not None
    aval = equation.outvars[i].aval
    return Location(
        operation=title,
        scope="/".join(part for part in (context.scope, scope(equation)) if part),
        parameter=parameter,
        line=user_line(equation),
        lengths=context.lengths,
        scan=context.scan,
        shape=aval.shape,
        dtype=aval.dtype,
        fan_in=_fan_in(equation, weight),
        weight=weight,
    )


def _plan_scan(params: Any, known: list[str], context: _Context) -> tuple[Plan, list[str]]:
    """Return the plan of a scan. What each iteration leaves as it is stays a parameter."""
    consts, carry, xs = split_scan_inputs(params, known)
    while True:
        plan, results = _plan(params["jaxpr"], [*consts, *carry, *xs], context)
        after = [a if a == b else "" for a, b in zip(carry, results, strict=False)]
        if after == carry:
            return plan, [*carry, *results[len(carry) :]]
        carry = after


def _softmaxes(jaxpr: Any) -> set[Any]:
    """Return the variables that are exponentials divided by their sum."""
    made = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}

    def source(atom):
        # A sum is broadcast before the division.
        equation = None if hasattr(atom, "val") else made.get(atom)
        if equation is None or equation.primitive.name not in SAME_PARAMETER:
            return equation
        return source(equation.invars[0])

    results = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "div":
            above, below = map(source, equation.invars)
            summed = below is not None and below.primitive.name == "reduce_sum"
            if summed and above is not None and above.primitive.name == "exp":
                results.update(equation.outvars)
    return results


def _fan_in(equation: Any, weight: int) -> float:
    """Return the number of terms in each sum of a product with a parameter, else 0."""
    name, params = equation.primitive.name, equation.params
    if weight < 0 or name not in PRODUCTS:
        return 0.0
    shape = equation.invars[weight].aval.shape
    if name == "dot_general":
        return float(math.prod(shape[axis] for axis in params["dimension_numbers"][0][weight]))
    if weight != 1:
        return 0.0
    _, features, *window = params["dimension_numbers"].rhs_spec
    # A transposed convolution puts zeros between its inputs, which are no terms.
    terms = shape[features] * math.prod(shape[axis] for axis in window)
    return terms / math.prod(params["lhs_dilation"])


def _is_site(equation: Any, known: list[str]) -> bool:
    name = equation.primitive.name
    if measured_output(equation) is None:
        return False
    if name in ("add", "add_any"):
        # The sum of two signals, as of a branch and the stream beside it.
        inputs = equation.invars
        same = inputs[0].aval.shape == inputs[1].aval.shape != ()
        return same and not any(known) and not any(hasattr(v, "val") for v in inputs)
    if name == "mul":
        # A scale that is learnt, such as that of a normalization.
        signals = [v for v, label in zip(equation.invars, known, strict=True) if not label]
        return len(signals) == 1 and not _is_number(signals[0])
    return any(name in names for names in (PRODUCTS, NON_LINEAR, CUSTOM, CLOSED, DETACHED))


def measured_output(equation: Any) -> int | None:
    """Return the index of the first output that has a derivative, which integers have not."""
    floating = [bool(float_eps(getattr(v.aval, "dtype", None))) for v in equation.outvars]
    return floating.index(True) if True in floating else None


def _is_number(atom: Any) -> bool:
    return hasattr(atom, "val") or getattr(atom.aval, "shape", None) == ()
