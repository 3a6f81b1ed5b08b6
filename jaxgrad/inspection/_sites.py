"""Which operations of a traced program are measured, and where each of them comes from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgrad._jaxprs import called_program, function_name, scope, source_line
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
# A result of these is as much a parameter as its first input.
SAME_PARAMETER = {
    *("reshape", "transpose", "convert_element_type", "broadcast_in_dim", "squeeze", "slice"),
    *("dynamic_slice", "copy", "rev", "gather", "name", "optimization_barrier"),
}


class Location(NamedTuple):
    """Where an operation comes from.

    Attributes:
      operation: its name, such as `dot_general`, or that of a function with a derivative rule.
      scope: names of the enclosing `jax.named_scope`s, separated by slashes.
      parameter: path of the parameter that it applies to the signal, such as `['w']`, or "".
      line: file, line and function of the user's code.
      lengths: of the enclosing scans, from the outermost on.
    """

    operation: str
    scope: str
    parameter: str
    line: str
    lengths: tuple[int, ...]


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


def plan_sites(program: Any, parameters: Sequence[str]) -> Plan:
    """Plan the measurements of a program; `parameters` are labels of its inputs, "" for data."""
    return _plan(program, parameters, _Context("", ()))[0]


def _plan(program: Any, inputs: Sequence[str], context: _Context) -> tuple[Plan, list[str]]:
    """Return the plan of a program, and which parameter each of its outputs is, or ""."""
    jaxpr = getattr(program, "jaxpr", program)
    labels = dict(zip(jaxpr.invars, inputs, strict=True))
    entries: list[Any] = []
    for equation in jaxpr.eqns:
        known = ["" if hasattr(atom, "val") else labels.get(atom, "") for atom in equation.invars]
        entry, results = _entry(equation, known, context)
        entries.append(entry)
        labels.update(zip(equation.outvars, results, strict=True))
    outputs = ["" if hasattr(v, "val") else labels.get(v, "") for v in jaxpr.outvars]
    return Plan(entries), outputs


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
        inner = _Context(path, (*context.lengths, params["length"]))
        plan, results = _plan(params["jaxpr"], known, inner)
        return plan, results
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
    parameter = next((label for label in known if label), "")
    title = (name in CUSTOM and function_name(equation)) or name
    place = (path, parameter, source_line(equation), context.lengths)
    return Location(title, *place), results


def _is_site(equation: Any, known: list[str]) -> bool:
    name = equation.primitive.name
    if measured_output(equation) is None:
        return False
    if name in ("add", "add_any"):
        # The sum of two signals, as of a branch and the stream beside it.
        inputs = equation.invars
        same = inputs[0].aval.shape == inputs[1].aval.shape != ()
        return same and not any(known) and not any(hasattr(v, "val") for v in inputs)
    return any(name in names for names in (PRODUCTS, NON_LINEAR, CUSTOM, CLOSED))


def measured_output(equation: Any) -> int | None:
    """Return the index of the first output that has a derivative, which integers have not."""
    floating = [bool(float_eps(getattr(v.aval, "dtype", None))) for v in equation.outvars]
    return floating.index(True) if True in floating else None


def _is_number(atom: Any) -> bool:
    return hasattr(atom, "val") or getattr(atom.aval, "shape", None) == ()
