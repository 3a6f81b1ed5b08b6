"""The public functions of JAX and optax's losses, and arguments with which each can be searched.

Every public function ends in one of three lists: searched, another name or the same program of one
that is searched, or not searched for a reason that is named.
"""

from __future__ import annotations

import inspect
import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import jax.scipy.stats
import numpy as np
import optax

from experiments.gradient_atlas.calls import CALLS, DOMAINS, NOT_SEARCHED

NAMESPACES = (
    *("jax.numpy", "jax.numpy.linalg", "jax.nn", "jax.scipy.special", "jax.scipy.stats"),
    *("jax.lax", "optax.losses"),
)
GLOBALS = {"jax": jax, "jnp": jnp, "np": np, "optax": optax}
# Shapes that are tried in turn; the first with a real output is searched.
SHAPES = (*itertools.product([()], [1, 2, 3]), *itertools.product([(3,), (2, 2)], [1, 2, 3]))
SHAPES += (((2, 2), (2,)),)
REFUSED = "no arguments are known that it accepts"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Argument:
    """An array whose elements lie in a domain, a key of `DOMAINS`."""

    name: str
    domain: str = "real"
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The name, the interval and the shape: `x in [0, 1], (3,)`."""
        shape = f", shape {self.shape}" if self.shape else ""
        return f"{self.name} {DOMAINS[self.domain].text}{shape}"

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """The shape in float32."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)


@dataclass(frozen=True)
class Entry:
    """A public function: `source` is the Python expression that is searched.

    It is not searched if there is a `reason`, or if it is the `same` as another entry.
    """

    name: str
    source: str = ""
    arguments: tuple[Argument, ...] = ()
    aliases: tuple[str, ...] = ()
    same: str = ""
    reason: str = ""

    @property
    def function(self) -> Callable[..., Any]:
        """The function of the arguments, all of them arrays."""
        return eval(self.source, dict(GLOBALS))


def public(namespaces: tuple[str, ...] = NAMESPACES) -> Iterator[tuple[str, Any]]:
    """All public functions, those of the modules in `jax.scipy.stats` included."""
    for name in namespaces:
        module = eval(name, dict(GLOBALS))
        for key in sorted(dir(module)):
            value, path = getattr(module, key), f"{name}.{key}"
            if key.startswith("_"):
                continue
            if name == "jax.scipy.stats" and isinstance(value, types.ModuleType):
                yield from ((f"{path}.{k}", v) for k, v in vars(value).items() if k[0] != "_")
            # Types and constants of `jax.numpy`, primitives and enumerations of `jax.lax`.
            elif callable(value) and not isinstance(value, type):
                yield path, value


def catalog(namespaces: tuple[str, ...] = NAMESPACES) -> list[Entry]:
    """Every public function once, with arguments or the reason why it is not searched."""
    entries: dict[int, Entry] = {}
    programs: dict[Any, str] = {}
    for name, value in public(namespaces):
        known = entries.get(id(value))
        if known is not None:
            entries[id(value)] = replace(known, aliases=(*known.aliases, name))
            continue
        entry = entry_of(name, value)
        program = None if entry.reason else program_of(entry)
        same = programs.setdefault(program, name) if program else name
        entries[id(value)] = entry if same == name else replace(entry, same=same)
    return list(entries.values())


def program_of(entry: Entry) -> tuple[str, str] | None:
    """The trace with the domains; functions with the same one have the same gradients.

    A trace that shows the address of a rule could equal another one only by accident: `None`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = str(jax.make_jaxpr(entry.function)(*(a.struct for a in entry.arguments)))
    domains = " ".join(f"{a.domain}{a.shape}" for a in entry.arguments)
    return None if ADDRESS.search(trace) else (trace, domains)


def looked_up(table: dict[str, str], name: str) -> str | None:
    """The row of a function: under its full name, a distribution's or the last part of it."""
    *parents, last = name.split(".")
    keys = (name, f"{parents[-1]}.{last}", f"{parents[-1]}.*", last)
    return next((table[key] for key in keys if key in table), None)


def entry_of(name: str, value: Any) -> Entry:
    """The entry of a function: from the table, or with the first arguments that it accepts."""
    reason = looked_up(NOT_SEARCHED, name)
    if reason is not None:
        return Entry(name, reason=reason)
    row = looked_up(CALLS, name)
    if row is not None:
        return checked(parsed(name, row))
    reasons = []
    for arguments in guesses(value):
        entry = checked(Entry(name, name, arguments))
        if not entry.reason:
            return entry
        reasons.append(entry.reason)
    # Accepted, but without a real output, says more than not accepted.
    reasons.sort(key=lambda text: text.startswith(REFUSED))
    return Entry(name, reason=(reasons or [REFUSED])[0])


def guesses(value: Any) -> Iterator[tuple[Argument, ...]]:
    """Arguments of several shapes for all parameters that have no default.

    Elementwise functions are tried with numbers, others with arrays, which have more structure.
    """
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return
    required = sum(p.default is p.empty and p.kind < p.VAR_POSITIONAL for p in parameters)
    # Universal functions name only `*args`, and then their number of operands.
    required = getattr(value, "nin", required)
    for shape, count in SHAPES:
        if isinstance(count, tuple):
            yield Argument("x", shape=shape), Argument("y", shape=count)
        elif count == required:
            arguments = tuple(Argument("xyz"[i], shape=shape) for i in range(count))
            vectors = [jax.ShapeDtypeStruct((3,), jnp.float32)] * count
            if shape or shape_of(value, vectors) == (3,):
                yield arguments


def shape_of(function: Callable[..., Any], structs: list[Any]) -> tuple[int, ...] | None:
    """The shape of the only output; `None` if there are others or the arguments are refused."""
    try:
        return jax.eval_shape(lambda *x: function(*x), *structs).shape
    except Exception:
        return None


def checked(entry: Entry) -> Entry:
    """The entry with one array as its output, or with the reason why there is no real output."""
    try:
        # Within a function of Python, since `jax.jit` crashes on some functions of NumPy.
        function = entry.function
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = jax.eval_shape(lambda *x: function(*x), *(a.struct for a in entry.arguments))
    # JAX and the functions themselves refuse arguments with errors of every type.
    except Exception as error:
        return replace(entry, reason=f"{REFUSED} ({type(error).__name__})")
    leaves = jax.tree.leaves(outputs)
    kinds = {leaf.dtype for leaf in leaves}
    if not any(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        names = ", ".join(sorted(map(str, kinds))) or "none"
        return replace(entry, reason=f"no real output, only {names}")
    if isinstance(outputs, jax.ShapeDtypeStruct):
        return entry
    # Several outputs become one, so that one weighted sum has the gradient of all.
    names = ", ".join(a.name for a in entry.arguments)
    call = entry.source.partition(": ")[2] if entry.source.startswith("lambda") else ""
    call = call or f"{entry.source}({names})"
    joined = f"jnp.concatenate([jnp.ravel(part) for part in jax.tree.leaves({call})])"
    return replace(entry, source=f"lambda {names}: {joined}")


def parsed(name: str, row: str) -> Entry:
    """The entry of a row such as `x:unit[3] y -> f(x, y, axis=0)`."""
    left, _, expression = row.partition("->")
    arguments = []
    for text in left.split():
        match = re.fullmatch(r"(\w+)(?::(\w+))?(?:\[([\d,]+)\])?", text)
        if match is None:
            raise ValueError(f"row of {name} must have arguments `name:domain[shape]`, got {text}")
        shape = tuple(map(int, (match[3] or "").split(","))) if match[3] else ()
        arguments.append(Argument(match[1], match[2] or "real", shape))
    if not expression:
        return Entry(name, name, tuple(arguments))
    names = ", ".join(a.name for a in arguments)
    body = re.sub(r"\bf\(", f"{name}(", expression.strip())
    return Entry(name, f"lambda {names}: {body}", tuple(arguments))
