"""What `pytest --jaxgrad` does: calls of derivative rules in tests are recorded, and audited.

While tests run, calls of functions by `jax.custom_jvp` and `jax.custom_vjp` are noted and go on as
they are: nothing is computed, drawn or changed. After the last test each rule is audited once for
each shape and type.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad.inspection import RuleVerdict, audit

CLASSES: tuple[Any, ...] = (jax.custom_jvp, jax.custom_vjp)
VARIANTS = 20  # of functions with one rule, which differ in what they capture
LARGEST = 2**22  # Larger inputs, in bytes, are not stored; random ones take their place.
ORDER = [str(verdict) for verdict in RuleVerdict]
SHOWN = ORDER[: ORDER.index("DIFFERS") + 1]
FAILED = "could not be called again"


class Recorded(NamedTuple):
    """The first call of a rule with arguments of some shapes and types.

    `leaves` are those of the arguments. An array whose values are not known, since the call was
    traced, is a `jax.ShapeDtypeStruct`.
    """

    function: Any
    structure: Any
    leaves: list[Any]
    test: str

    @property
    def random(self) -> bool:
        """Whether the inputs have to be drawn."""
        return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.leaves)


class Audited(NamedTuple):
    """The outcome for one rule with inputs of some shapes, in a form that is sent by workers."""

    verdict: str
    name: str
    rule: str
    inputs: str
    words: str
    test: str
    random: bool


Records = dict[Any, dict[int, Recorded]]  # for each rule, structure and shapes, by function


@contextlib.contextmanager
def recording(records: Records, test: Callable[[], str]) -> Iterator[None]:
    """Record all calls of functions with a derivative rule; the classes are restored."""
    originals = {cls: cls.__call__ for cls in CLASSES}
    # The frame of the wrapper is no line of the user's.
    _jaxprs.hide_frames(__file__)
    for cls, original in originals.items():
        cls.__call__ = _recorded(original, records, test)
    try:
        yield
    finally:
        for cls, original in originals.items():
            cls.__call__ = original


def _recorded(original: Any, records: Records, test: Callable[[], str]) -> Any:
    @functools.wraps(original)
    def call(self, *args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        values = [_jaxprs.concrete(leaf) for leaf in leaves]
        if sum(getattr(v, "nbytes", 0) for v in values) > LARGEST:
            values = [_shape(v) if isinstance(v, jax.Array) else v for v in values]
        shapes = tuple(
            (np.shape(v), str(v.dtype)) if hasattr(v, "dtype") else type(v).__name__ for v in values
        )
        variants = records.setdefault((_code(self), str(structure), shapes), {})
        before = variants.get(id(self))
        new = Recorded(self, structure, values, before.test if before else test())
        if (before is None and len(variants) < VARIANTS) or (before and before.random > new.random):
            variants[id(self)] = new
        return original(self, *args, **kwargs)

    return call


def _code(function: Any) -> tuple[Any, ...]:
    """Return the code of a function and of its rule, which closures of one factory share."""
    parts = (function.fun, getattr(function, "bwd", None) or getattr(function, "jvp", None))
    return tuple(getattr(getattr(p, "func", p), "__code__", id(p)) for p in parts)


def audit_records(records: Records) -> list[Audited]:
    """Audit all recorded calls, those with known inputs first, and return the worst outcomes."""
    calls = [call for variants in records.values() for call in variants.values()]
    worst: dict[tuple[str, ...], Audited] = {}
    for call in sorted(calls, key=lambda call: call.random):
        for outcome in _audit(call):
            key = (outcome.name, outcome.rule, outcome.inputs)
            if key not in worst or _rank(outcome) < _rank(worst[key]):
                worst[key] = outcome
    return sorted(worst.values(), key=_rank)


def _rank(outcome: Audited) -> int:
    return ORDER.index(outcome.verdict) if outcome.verdict in ORDER else len(ORDER)


def _audit(call: Recorded) -> list[Audited]:
    generator = np.random.default_rng(0)
    values = [_draw(v, generator) if _is_abstract(v) else v for v in call.leaves]
    wide = any(getattr(v, "dtype", None) in (np.float64, np.complex128) for v in values)
    args, kwargs = jax.tree.unflatten(call.structure, values)
    try:
        with jax.enable_x64(True) if wide else contextlib.nullcontext():
            rules = audit(functools.partial(_call, call.function), *args, kwargs=kwargs).rules
    except Exception as error:  # whatever a function raises that is called outside of its test
        line = (str(error).strip().splitlines() or [""])[0][:100]
        name = getattr(call.function, "__name__", "a function")
        return [Audited(FAILED, name, "", "", f"{type(error).__name__}: {line}", call.test, False)]
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in rules:
        groups.setdefault((row.name, row.rule, row.inputs), []).append(row)
    outcomes = []
    for (name, rule, inputs), rows in groups.items():
        verdict = str(rows[0].verdict)
        # A random point may lie outside of the domain.
        if call.random and verdict in ("NONFINITE", "NONDETERMINISTIC"):
            verdict = "UNRESOLVED"
        words = "; ".join(row.words for row in rows if row.verdict is rows[0].verdict)
        if rows[0].through:
            words += f"; it uses {rows[0].through}, which is wrong"
        outcomes.append(Audited(verdict, name, rule, inputs, words, call.test, call.random))
    return outcomes


def _call(function: Any, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _shape(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _is_abstract(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct)


def _draw(shape: Any, generator: np.random.Generator) -> Any:
    """Draw numbers between 0.2 and 0.8, where most functions are defined, or zeros and ones."""
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        raise TypeError("a random key under jit is not known")
    if jnp.issubdtype(shape.dtype, jnp.inexact):
        return jnp.asarray(generator.uniform(0.2, 0.8, shape.shape), shape.dtype)
    return jnp.asarray(generator.integers(0, 2, shape.shape), shape.dtype)


def summary(outcomes: list[Audited]) -> list[str]:
    """Return the lines of pytest's summary."""
    verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict != FAILED]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ORDER if v in verdicts) or "none"
    lines = [f"derivative rules that the tests call, by shapes and types: {counts}"]
    count = sum(outcome.random for outcome in outcomes)
    if count:
        lines.append(
            f"{count} of them were called under jit alone, where values are not known, and were "
            "audited at random inputs; the others at inputs of the tests"
        )
    # One rule may be wrong for many shapes.
    groups: dict[tuple[str, ...], list[Audited]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.verdict, outcome.name, outcome.rule), []).append(outcome)
    for (verdict, name, rule), (first, *others) in groups.items():
        if verdict not in SHOWN:
            continue
        more = f" and {len(others)} other inputs" if others else ""
        lines.append(f"{verdict}: {name}, {_jaxprs.short_place(rule)}, of {first.inputs}{more}")
        lines += [f"  {first.words}{' (at random inputs)' * first.random}"]
        lines += [f"  first called in {first.test}"]
    failed = [outcome for outcome in outcomes if outcome.verdict == FAILED]
    if failed:
        lines.append(f"{len(failed)} {FAILED}: {failed[0].name}, {failed[0].words}, for one")
    return lines


def hooks(config: Any) -> types.ModuleType:
    """Return the hooks of a session; recording begins here and ends with the last test."""
    records: Records = {}
    outcomes: list[Audited] = []
    current = ["the collection of tests"]
    stack = contextlib.ExitStack()
    stack.enter_context(recording(records, lambda: current[0]))

    def pytest_runtest_logstart(nodeid):
        current[0] = nodeid

    def pytest_sessionfinish():
        stack.close()
        outcomes.extend(audit_records(records))
        # A worker of pytest-xdist sends its outcomes, and prints nothing.
        if hasattr(config, "workeroutput"):
            config.workeroutput["jaxgrad"] = [tuple(outcome) for outcome in outcomes]

    def pytest_testnodedown(node):
        sent = getattr(node, "workeroutput", {}).get("jaxgrad", [])
        known = {outcome[:4] for outcome in outcomes}
        outcomes.extend(o for o in map(Audited._make, sent) if o[:4] not in known)

    def pytest_terminal_summary(terminalreporter):
        terminalreporter.section("jaxgrad audit")
        for line in summary(sorted(outcomes, key=_rank)):
            terminalreporter.write_line(line)

    def pytest_unconfigure():
        stack.close()

    functions = [pytest_runtest_logstart, pytest_sessionfinish, pytest_terminal_summary]
    functions += [pytest_unconfigure]
    if config.pluginmanager.hasplugin("xdist"):
        functions.append(pytest_testnodedown)
    plugin = types.ModuleType("jaxgrad-audit")
    vars(plugin).update({function.__name__: function for function in functions})
    return plugin
