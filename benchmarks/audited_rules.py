"""Broken derivative rules, and the same rules unbroken: does `jaxgrad.audit` name the broken ones?

Run `python -m benchmarks.audited_rules [--names ...]`. It prints a line for each rule and fails if
a broken one is missed or named with a wrong line, or if an unbroken one is accused.

Rules by hand (`audited_rules_written.py`) are broken by 1 %, in sign, by a sum that is dropped, in
one element, by a permutation, by a wrong residual, or by a cotangent that is missing. They are
called in loops, branches, transformations and other rules, beside rules that are right. Rules of
JAX's operations are those of `broken_rules.py`, multiplied by 1.01 in forward or in reverse mode.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxgrad
from benchmarks import broken_rules
from benchmarks.audited_rules_written import FUNCTIONS
from jaxgrad.inspection import Audit

LOOPS = ("scan", "while", "cond")  # An audit looks into them, not at them.


class Break(NamedTuple):
    """A way to break a rule, and the indices of the arguments that it makes wrong."""

    name: str
    arguments: tuple[int, ...]
    change: Callable[[Any], Any] = lambda values: values
    residual: Callable[[Any], Any] = lambda saved: saved


class Case(NamedTuple):
    """A rule, whole or broken.

    Attributes:
      name: of the rule, how it is broken, and where it is called.
      audit: returns the audit of a program, with the rule broken or not.
      wrong: names of rules that an audit has to blame, all of them and no other.
      place: the place of the broken rule as `Rule.rule` has it, or "" for an operation of JAX.
      arguments: numbers or names of the wrong arguments; `None` if that is not checked.
      modes: in which the rule is wrong.
    """

    name: str
    audit: Callable[[bool], Audit]
    wrong: str
    place: str
    arguments: tuple[str, ...] | None
    modes: tuple[str, ...]


# Ways to break.


def _changed(index: int, change: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    return lambda values: tuple(change(v) if i == index else v for i, v in enumerate(values))


def scaled(index: int, factor: float) -> Break:
    """The derivative with respect to one argument is multiplied by a factor."""
    words = {-1.0: "sign", 0.0: "missing"}.get(factor, f"x{factor:g}")
    return Break(f"{words} [{index}]", (index,), _changed(index, lambda v: factor * v))


def reversed_along(index: int, axis: int) -> Break:
    """The elements are in the opposite order."""
    return Break(f"reversed [{index}]", (index,), _changed(index, lambda v: jnp.flip(v, axis)))


def element(index: int) -> Break:
    """The last element alone is off, by 1 %."""
    change = _changed(index, lambda v: v.ravel().at[-1].multiply(1.01).reshape(v.shape))
    return Break(f"element [{index}]", (index,), change)


def averaged(index: int, count: int) -> Break:
    """A mean is taken for a sum over the broadcast axis."""
    return scaled(index, 1 / count)._replace(name=f"mean for sum [{index}]")


def stale(arguments: tuple[int, ...], index: int) -> Break:
    """A residual is not the one of this call."""
    name = f"residual {index}"
    return Break(name, arguments, residual=_changed(index, lambda v: 1.05 * v))


def mixed(arguments: tuple[int, ...], *order: int) -> Break:
    """Cotangents are returned in another order."""
    return Break("mixed up", arguments, lambda values: tuple(values[i] for i in order))


BREAKS: dict[str, list[Break]] = {
    "gated": [
        *(scaled(0, 1.01), scaled(0, -1.0), scaled(1, 1.01), scaled(1, -1.0), scaled(1, 0.0)),
        *(stale((0,), 1), stale((0, 1), 0), element(0), reversed_along(1, 0), mixed((0, 1), 1, 0)),
    ],
    "dense": [
        *(scaled(0, 1.01), scaled(1, 1.01), scaled(2, 1.01), scaled(2, 0.0), averaged(2, 3)),
        *(scaled(1, -1.0), element(1), reversed_along(2, 0), stale((1,), 0), stale((0,), 1)),
        *(reversed_along(1, 1), averaged(1, 3)),
    ],
    "layer_norm": [
        *(scaled(0, 1.01), scaled(1, -1.0), averaged(1, 3), element(0), stale((0,), 1)),
        *(reversed_along(1, 0), scaled(1, 0.0)),
    ],
    "cross_entropy": [scaled(0, 1.01), scaled(0, -1.0), element(0), stale((0,), 0)],
    "attention": [
        *(scaled(0, 1.01), scaled(1, -1.0), scaled(2, 0.0), mixed((0, 1), 1, 0, 2), element(2)),
        *(stale((0, 1), 2), reversed_along(0, 0), scaled(2, 1.01)),
    ],
    "smoothed": [
        *(scaled(0, 1.01), scaled(1, -1.0), scaled(1, 0.0), reversed_along(0, 0)),
        *(stale((1,), 0), element(0)),
    ],
    "embedding": [scaled(0, 1.01), scaled(0, -1.0), reversed_along(0, 1), element(0)],
    "fixed_point": [
        *(scaled(0, 1.01), scaled(1, -1.0), stale((0, 1), 0), element(0), scaled(1, 0.0)),
    ],
    "softplus": [
        *(scaled(0, 1.01), scaled(1, 1.01), scaled(0, -1.0), scaled(1, 0.0), stale((0, 1), 0)),
    ],
    "unit": [scaled(0, 1.01), scaled(0, -1.0), reversed_along(0, 0), element(0)],
    "huber": [scaled(0, 1.01), scaled(1, -1.0), scaled(1, 0.0), element(1)],
}


# Where a rule is called.


def _stacked(args: tuple[Any, ...], count: int) -> list[jax.Array]:
    """Return copies of the arguments with a first axis, of different numbers."""
    factors = [1.0 - 0.1 * i for i in range(count)]
    return [
        jnp.stack([(a * f).astype(a.dtype) if a.dtype == jnp.float32 else a for f in factors])
        for a in map(jnp.asarray, args)
    ]


def _in_scan(rule: Any, *args: Any) -> Any:
    return jax.lax.scan(lambda c, a: (c + 1, rule(*a)), 0, _stacked(args, 4))


def _in_while(rule: Any, *args: Any) -> Any:
    start = (0, jnp.zeros_like(rule(*args)))
    return jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, rule(*args)), start)


def _in_branch(rule: Any, *args: Any) -> Any:
    first, second = (lambda *a: rule(*a)), (lambda *a: 0 * rule(*a))
    return jax.lax.cond(jnp.sum(args[0]) < 1e6, first, second, *args)


def _in_rule(rule: Any, *args: Any) -> Any:
    """The derivative of a right rule goes through the broken one."""

    @jax.custom_vjp
    def outer(*args):
        return 2 * rule(*args)

    def outer_forward(*args):
        return jax.vjp(lambda *args: 2 * rule(*args), *args)

    def outer_backward(pullback, ct):
        return pullback(ct)

    outer.defvjp(outer_forward, outer_backward)
    return outer(*args)


PLACES: dict[str, Callable[..., Any]] = {
    "alone": lambda rule, *args: rule(*args),
    "scan": _in_scan,
    "vmap": lambda rule, *args: jax.vmap(rule)(*_stacked(args, 2)),
    "cond": _in_branch,
    "checkpoint": lambda rule, *args: jax.checkpoint(rule)(*args),
    "rule": _in_rule,
    "while": _in_while,
    "jit of scan": lambda rule, *args: jax.jit(functools.partial(_in_scan, rule))(*args),
}


def written() -> Iterator[Case]:
    """Yield the rules that are written by hand, each break in another place."""
    places = itertools.cycle(PLACES.items())
    for name, breaks in BREAKS.items():
        for way in breaks:
            place, call = next(places)
            maker = FUNCTIONS[name]
            rule, _ = maker(way.change, way.residual)
            code = (rule.bwd if hasattr(rule, "bwd") else rule.jvp).__code__
            where = f"{code.co_name} at {code.co_filename}:{code.co_firstlineno}"
            modes = ("rev",) if hasattr(rule, "bwd") else ("rev", "fwd")
            yield Case(
                f"{name} {way.name} in {place}",
                functools.partial(_audit_written, maker, way, call),
                name,
                where,
                _names(rule, way.arguments),
                modes,
            )


def _names(rule: Any, indices: tuple[int, ...]) -> tuple[str, ...]:
    code = rule.__wrapped__.__code__
    return tuple(code.co_varnames[i] for i in indices)


def _audit_written(maker: Any, way: Break, call: Callable[..., Any], broken: bool) -> Audit:
    whole = Break("", ())
    rule, args = maker(*(way if broken else whole)[2:])

    def program(*args):
        # A right rule beside, and one of JAX.
        return call(rule, *args), jax.nn.relu(beside(args[0], args[0]))

    beside, _ = FUNCTIONS["huber" if maker is FUNCTIONS["gated"] else "gated"](*whole[2:])
    return jaxgrad.audit(program, *args)


def operations(factor: float = 1.01) -> Iterator[Case]:
    """Yield the rules of JAX's operations and functions."""
    for rule in broken_rules.rules():
        if rule.name in LOOPS:
            continue
        # A rule of forward mode is transposed for reverse mode.
        modes = ("rev",) if rule.kind == "transpose" else ("rev", "fwd")
        audit = functools.partial(_audit_operation, rule, factor)
        name = rule.name.rpartition(".")[2]
        # Several functions have the rule of `logaddexp`.
        label = f"{rule.label} in {rule.f.__name__}" if rule.kind == "custom" else rule.label
        yield Case(f"{label} x{factor:g}", audit, name, "", None, modes)


def _audit_operation(rule: broken_rules.Rule, factor: float, broken: bool) -> Audit:
    with broken_rules.broken(rule, factor) if broken else contextlib.nullcontext():
        args = [jnp.asarray(a) for a in rule.args]
        return jaxgrad.audit(rule.f, *args, primitives=rule.kind != "custom")


def problem(case: Case) -> str:
    """Return how an audit fails on a rule, broken and unbroken, or "" if it does not."""
    report, whole = case.audit(True), case.audit(False)
    if not whole or any(str(row.verdict) == "DIFFERS" for row in whole.rules):
        row = whole.rules[0]
        return f"ACCUSED although right: {row.name} {row.argument} {row.mode}: {row.reason}"
    if report:
        return "MISSED"
    names = {row.name for row in report.wrong}
    if names != {case.wrong}:
        return f"BLAMED {names}"
    if {row.rule for row in report.wrong} != {case.place} and case.place:
        return f"WRONG LINE {report.wrong[0].rule}"
    if {row.mode for row in report.wrong} != set(case.modes):
        return f"WRONG MODE {[row.mode for row in report.wrong]}"
    if case.arguments is not None and {r.argument for r in report.wrong} != set(case.arguments):
        return f"WRONG ARGUMENT {[row.argument for row in report.wrong]}"
    return ""


def cases() -> list[Case]:
    """Return all rules."""
    return [*written(), *operations()]


def main() -> None:
    """Audit each rule, broken and unbroken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--names", nargs="+", help="parts of names of rules; by default all")
    options = parser.parse_args()
    start, bad, count = time.process_time(), 0, 0
    for case in cases():
        if options.names and not any(name in case.name for name in options.names):
            continue
        failure = problem(case)
        bad, count = bad + bool(failure), count + 1
        print(f"{case.name:44s} {failure or 'caught, right one passes'}", flush=True)
    seconds = time.process_time() - start
    words = "broken rules are named, and their right forms are not accused"
    print(f"{count - bad} of {count} {words}; {seconds:.0f} s of CPU time")
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
