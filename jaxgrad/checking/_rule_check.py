"""Derivative rules one by one: each is called again alone, at inputs of a program that uses it."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad import _jaxprs, _validate
from jaxgrad._jaxprs import is_rule
from jaxgrad._numerics import float_eps
from jaxgrad.checking._precision import first_line, pull_back, trace
from jaxgrad.checking._programs import to_float64
from jaxgrad.checking._report import Leaf, Verdict
from jaxgrad.checking._rule_body import BodyComparison, compare_with_body, no_comparison
from jaxgrad.checking._rule_calls import RuleCall, rule_calls, traced_call
from jaxgrad.checking._rule_functions import (
    Rebuilt,
    is_float,
    is_moved,
    rebuild,
    without_rounding,
)
from jaxgrad.checking._rule_report import RULE_ORDER, Rule, RuleVerdict
from jaxgrad.checking._stages import Settings, run_check, seed_of

EPS64, COARSE = float(np.finfo(np.float64).eps), 1e-4
PASSED = (RuleVerdict.KINK, RuleVerdict.AGREE)
FACTOR = re.compile(r"autodiff is (zero|of the opposite sign|(\S+) times the numeric one)")


class RuleChecks(NamedTuple):
    """The rows of all rules of a program, worst first, and the operations that were not opened."""

    rules: tuple[Rule, ...]
    closed: tuple[str, ...]


class _Located(NamedTuple):
    """A derivative with respect to one input, at one of the samples."""

    leaf: Leaf
    body: BodyComparison
    input: int


def check_rules(
    f: Callable[..., Any],
    *args: Any,
    primitives: bool = False,
    samples: int = 3,
    rtol: float = 1e-5,
    key: jax.Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
    select: Callable[[Any], bool] = bool,
    progress: Callable[[int, int], Any] | None = None,
) -> RuleChecks:
    """Check each derivative rule that `f(*args)` uses by itself; see `jaxgrad.audit`.

    Rules are left out if `select` returns false for the operation that has them; `bool` selects
    all. `progress` is called with numbers of rules.
    """
    _validate.function("f", f)
    _validate.function("select", select)
    _validate.flag("primitives", primitives)
    samples = _validate.integer("samples", samples, 1)
    _validate.scalar("rtol", rtol, minimum=0.0)
    seed, progress = seed_of(key), _validate.progress(progress)
    generator = np.random.default_rng([seed, 7])
    keywords = {} if kwargs is None else _validate.mapping("kwargs", kwargs)
    options = {"primitives": primitives, "limit": samples, "generator": generator}
    calls, closed = rule_calls(f, args, keywords, **options)
    # Calls in one line whose derivatives are the same program are one rule.
    merged: dict[tuple[str, str], RuleCall] = {}
    for call in calls:
        if not (is_checkable(call.equation) and select(call.equation)):
            continue
        identity = (call.line if is_rule(call.equation) else "", _fingerprint(call))
        if identity in merged:
            former = merged[identity]
            call = former._replace(samples=[*former.samples, *call.samples])
        merged[identity] = call
    # One input is enough for an operation of JAX, of which a program may have hundreds.
    rows: list[Any] = []
    progress(0, len(merged))
    for (_, fingerprint), call in merged.items():
        count = samples if is_rule(call.equation) else 1
        rows.append(_rows(call, fingerprint, spread(call.samples, count), rtol, seed))
        progress(len(rows), len(merged))
    return RuleChecks(_sorted(_with_causes(rows, list(merged.values()))), closed)


def wrong_rules(f: Callable[..., Any], args: tuple, kwargs: Any, key: Any) -> list[str] | None:
    """Return which of several rules that `f` uses are wrong, `None` if it does not use several."""
    program, _ = traced_call(f, args, kwargs or {})
    equations = filter(is_rule, _jaxprs.equations_of(program))
    if len({tuple(_jaxprs.rule_places(equation)) for equation in equations}) < 2:
        return None
    rules = check_rules(f, *args, kwargs=kwargs, key=key).rules
    wrong = [rule for rule in rules if rule.fails and not rule.through]
    names = [
        f"{rule.name} (rule: {_jaxprs.short_place(rule.rule)}, {rule.subject})" for rule in wrong
    ]
    return list(dict.fromkeys(names))


def spread(samples: list[Any], count: int) -> list[Any]:
    """Return `count` of the samples, the first and the last among them."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)))
    return [samples[i] for i in np.unique(places.astype(int))]


def is_checkable(equation: Any) -> bool:
    """Whether an operation has an input that can be moved, and an output that may follow."""
    return any(is_moved(equation)) and any(is_float(v.aval) for v in equation.outvars)


def _fingerprint(call: RuleCall) -> str:
    function, leaves, fixed = _of_moved(call)
    for derivative in (pull_back, push_forward):
        try:
            return trace(functools.partial(derivative, function), leaves, fixed).fingerprint
        except Exception:  # whatever a rule raises, which its check reports
            continue
    return str(id(call.equation))


def _of_moved(call: RuleCall):
    """Return a call as a function of the inputs that are moved, as leaves, and its arguments."""
    function, (inputs, fixed) = rebuild("", call.equation, call.samples[0])
    leaves, structure = jax.tree.flatten(inputs)
    return lambda m, f: function(jax.tree.unflatten(structure, m), f), leaves, fixed


def push_forward(function: Callable, moved: Any, fixed: Any) -> Any:
    """Return the outputs of a function, and their derivative along its arguments themselves."""
    return jax.jvp(lambda leaves: function(leaves, fixed), (moved,), (moved,))


def _rows(call: RuleCall, fingerprint: str, samples: list[Any], rtol: float, seed: int):
    """Return the rows of a rule, one for each argument and mode."""
    equation = call.equation
    modes = ("rev",) if "vjp" in equation.primitive.name else ("rev", "fwd")
    worst: dict[tuple[str, int], _Located] = {}
    body = None
    for inputs in samples:
        leaves = _leaves(*rebuild(fingerprint, equation, inputs), modes, rtol, seed)
        # The comparison takes a compilation, so there is one more only where something is wrong.
        alarming = any(RuleVerdict(leaf.verdict) not in PASSED for leaf in leaves)
        if is_rule(equation) and (body is None or alarming):
            body = compare_with_body(equation, inputs)
        for leaf in leaves:
            place = (leaf.mode, int(leaf.path[1:-1]))
            located = _Located(leaf, body or no_comparison(inputs), place[1])
            if place not in worst or _rank(leaf) < _rank(worst[place].leaf):
                worst[place] = located
    return [_row(call, located, len(samples)) for located in worst.values()]


def _rank(leaf: Leaf) -> tuple[int, float]:
    return RULE_ORDER.index(RuleVerdict(leaf.verdict)), -leaf.relative_error


def _leaves(function: Rebuilt, arguments: tuple, modes, rtol: float, seed: int) -> list[Leaf]:
    """Return the derivatives in each mode, or why one could not be taken."""
    movable = [i for i, v in enumerate(arguments[0]) if v is not None and v.size]
    if not movable:
        return [Leaf("[0]", Verdict.UNRESOLVED, (), reason="no input is finite", mode=modes[0])]

    def check(f, arguments, modes):
        options = {"argnums": 0, "has_aux": False, "holomorphic": False}
        return list(run_check(f, arguments, Settings(modes, rtol=rtol), seed, **options).leaves)

    try:
        leaves = check(function, arguments, tuple(modes))
    except ValueError as error:
        # Either mode may be missing; the other one is checked all the same.
        if len(modes) > 1:
            parts = [_leaves(function, arguments, (mode,), rtol, seed) for mode in modes]
            return [leaf for part in parts for leaf in part]
        path, reason = f"[{movable[0]}]", first_line(error)
        return [Leaf(path, Verdict.UNRESOLVED, (), reason=reason, mode=modes[0])]
    results = []
    for mode in modes:
        part = [leaf for leaf in leaves if leaf.mode == mode]
        if any(map(_is_doubtful, part)):
            # What rounding does to a rule is no mistake, and may hide one.
            wide = without_rounding(function, arguments, mode)
            if wide is not None:
                with jax.enable_x64(True):
                    leaves_of_wide = check(wide, jax.tree.map(to_float64, arguments), (mode,))
                part = _decided(part, leaves_of_wide)
        results += part
    return results


def _is_doubtful(leaf: Leaf) -> bool:
    eps = float_eps(leaf.dtype)
    coarse = eps > COARSE
    return eps > EPS64 and (coarse or leaf.verdict in (Verdict.WRONG, Verdict.UNRESOLVED))


def _decided(native: list[Leaf], wide: list[Leaf]) -> list[Leaf]:
    """Return the leaves as they are without rounding, but those that are not finite with it."""
    by_path = {leaf.path: leaf for leaf in wide}
    final = (Verdict.NONFINITE, Verdict.NONDETERMINISTIC)
    return [leaf if leaf.verdict in final else by_path[leaf.path] for leaf in native]


def _row(call: RuleCall, located: _Located, samples: int) -> Rule:
    equation, (leaf, body, index) = call.equation, located
    verdict, reason = RuleVerdict(leaf.verdict), leaf.reason.replace("autodiff", "the rule")
    error, equal = body.errors[index], body.equal[index]
    name = equation.primitive.name
    custom = is_rule(equation)
    if verdict is RuleVerdict.WRONG and equal:
        # Numbers close to underflow, or an operation of JAX whose derivative is wrong.
        verdict = RuleVerdict.UNRESOLVED
        reason = "differences say otherwise, but JAX's derivative of the body is that of the rule"
    elif verdict in (RuleVerdict.WRONG, RuleVerdict.UNRESOLVED) and body.meant and not equal:
        verdict = RuleVerdict.DIFFERS
        details = f"; {reason}" * (leaf.verdict is Verdict.WRONG)
        reason = f"the body {body.meant}, so it may be meant to differ from the rule{details}"
    elif verdict is RuleVerdict.UNRESOLVED and math.isfinite(error):
        reason += f"; relative distance from the derivative of the body {error:.1e}"
    words = FACTOR.search(leaf.reason)
    factor = {"zero": 0.0, "of the opposite sign": -1.0}.get(words[1]) if words else None
    if words and factor is None:
        factor = float(words[2])
    names = _jaxprs.argument_names(equation) if custom else []
    shapes = [f"{v.aval.dtype}{list(v.aval.shape)}" for v in equation.invars]
    return Rule(
        name=(custom and _jaxprs.function_name(equation)) or name,
        kind=name.removesuffix("_jaxpr").removesuffix("_call") if custom else "primitive",
        rule=next(iter(_jaxprs.rule_places(equation)), "") if custom else "",
        call=call.line,
        mode=leaf.mode,
        argument=(names[index] if names else "") or f"input {index}",
        output=_output(names, index) if "vjp" in name else 0,
        verdict=verdict,
        element=leaf.worst_index,
        value=leaf.autodiff,
        numeric=leaf.numeric,
        relative_error=leaf.relative_error,
        body_error=error,
        factor=factor,
        reason=reason,
        through="",
        inputs=", ".join(shapes),
        samples=samples,
    )


def _output(names: list[str], index: int) -> int:
    """Return the position of an argument among all, from 1; 0 if they have no names."""
    # A leaf of an argument has a path behind its name.
    arguments = list(dict.fromkeys(re.split(r"[\[.]", name)[0] for name in names))
    return 0 if "" in arguments else 1 + arguments.index(re.split(r"[\[.]", names[index])[0])


def _with_causes(rows: list[list[Rule]], calls: list[RuleCall]) -> list[Rule]:
    """Name the wrong rule that another wrong rule uses."""
    # The backward pass leaves no trace of its lines, the forward pass beside it does.
    places = [_jaxprs.rule_places(call.equation)[:2] for call in calls]
    known = [place for several in places for place in several]
    failing = [i for i, part in enumerate(rows) if any(row.fails for row in part)]
    used = {i: _used(calls[i], places[i], known) for i in failing}
    results = []
    for i, part in enumerate(rows):
        causes = [rows[k][0].name for k in failing if used.get(i, set()) & set(places[k])]
        results += [row._replace(through=next(iter(causes), "")) for row in part]
    return results


def _used(call: RuleCall, rule: list[str], places: list[str]) -> set[str]:
    """Return which of some places the derivative of a call goes through, called by its `rule`."""
    function, leaves, fixed = _of_moved(call)
    try:
        program = jax.make_jaxpr(functools.partial(pull_back, function))(leaves, fixed)
    except Exception:  # whatever the rule raises
        return set()
    used: set[str] = set()
    for stack in _jaxprs.stacks(program):
        # The innermost call comes first, and whatever called the rule does not count.
        inner = [_place(frame, places) for frame in stack]
        last = max((i for i, place in enumerate(inner) if place in rule), default=0)
        used |= {place for place in inner[:last] if place and place not in rule}
    return used


def _place(frame: tuple[str, str, int], places: list[str]) -> str:
    """Return the place that a frame belongs to, or ""."""
    name, file, line = frame
    # A frame has the line that runs; of functions of one name, it is in the last one before.
    beginning = f"{name.rpartition('.')[2]} at {file}:"
    lines = [int(p[len(beginning) :]) for p in places if p.startswith(beginning)]
    before = [first for first in lines if first <= line]
    return f"{beginning}{max(before)}" if before else ""


def _sorted(rows: list[Rule]) -> tuple[Rule, ...]:
    """Sort by verdict, worst first, causes before their consequences."""
    return tuple(sorted(rows, key=lambda row: (RULE_ORDER.index(row.verdict), row.through != "")))
