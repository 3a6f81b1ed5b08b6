"""The result of a search over a domain, its printed form, and lines that reproduce its findings."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxgrad.checking._domain_values import Space


@dataclass(frozen=True)
class Finding:
    """A failure of the gradient, at the simplest arguments that show it.

    Attributes:
      kind: "WRONG" (the rule is wrong, also without rounding), "NONFINITE" (NaN or infinity where
        the derivative is finite) or "LOST" (no digit is right).
      arguments: those of the function.
      region: where else it fails, as a range of the argument if it is one number.
      element: the argument and the index in it whose derivative is shown.
      autodiff: the gradient that JAX computes there.
      derivative: the true one; two numbers at a kink.
      points: number of points that were judged and failed in the same way.
      dtype: of the arguments.
      code: a line that reproduces it.
    """

    kind: str
    arguments: tuple[Any, ...]
    region: str
    element: str
    autodiff: float
    derivative: str
    points: int
    dtype: str
    code: str

    def __str__(self) -> str:
        """One line: where, how to see it, and the truth beside it."""
        element = f"[{self.element}]" if self.element else ""
        head = f"{self.kind}  {self.region}: " if self.region else f"{self.kind}  "
        return (
            f"{head}{self.code}{element} is {self.autodiff:.6g}, the derivative is "
            f"{self.derivative}"
        )


@dataclass(frozen=True)
class DomainReport:
    """The outcome of `check_domain`; `print` it.

    Attributes:
      findings: failures of the gradient, worst kind first.
      tried: number of points at which the function and its gradient were evaluated.
      judged: number of points that were judged in arbitrary precision.
      states: how many of these are "right", "kink", "discontinuous", "undefined", "outside" of the
        domain of the function, or "unknown".
      notes: points that could not be judged, and why.
    """

    findings: tuple[Finding, ...]
    tried: int
    judged: int
    states: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return not self.findings

    def __bool__(self) -> bool:
        """Whether the report is `ok`, so that it can be asserted."""
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, text and numbers."""
        findings = []
        for finding in self.findings:
            # Not `asdict`, which copies arrays and cannot copy all that a user's pytree holds.
            row = {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding)}
            leaves = jax.tree.leaves(finding.arguments)
            findings.append(row | {"arguments": [np.asarray(leaf).tolist() for leaf in leaves]})
        return {
            "ok": self.ok,
            "findings": findings,
            "tried": self.tried,
            "judged": self.judged,
            "states": dict(self.states),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON, in which numbers that are not finite are text."""
        return json.dumps(_finite(self.to_dict()), allow_nan=False)

    def __str__(self) -> str:
        """The conclusion, a line for each finding, counts and notes."""
        count = len(self.findings)
        names = "no finding" if not count else f"{count} finding{'s' * (count > 1)}"
        lines = [f"{names} in {self.tried:,} points, {self.judged} of them judged"]
        lines += map(str, self.findings)
        counts = ", ".join(f"{number} {state}" for state, number in self.states if number)
        lines += [f"judged otherwise: {counts}"] if counts else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class _Text:
    """Text that `repr` shows as it is, so that containers of it show as code."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def code(
    f: Callable[..., Any],
    space: Space,
    point: Sequence[Any],
    outputs: Sequence[Any],
    *,
    has_aux: bool,
    compiled: bool,
) -> str:
    """Return the call of `jax.grad` at a point; `compiled` is whether only `jax.jit` shows it.

    Several `outputs`, whose shapes and types they are, are summed with weights 1, 2, 3, ...
    """
    # A lambda has no name that could be typed.
    name = getattr(f, "__name__", "f")
    name = name if name.isidentifier() else "f"
    arguments = jax.tree.map(lambda leaf: _Text(array_text(leaf)), space.arguments(point))
    shown = ", ".join(repr(argument) for argument in arguments)
    chosen = argument_numbers(space)
    option = "" if chosen == (0,) else f", argnums={chosen if len(chosen) > 1 else sum(chosen)}"
    letters = "xyzuvw" if len(arguments) <= 6 else [f"x{i}" for i in range(len(arguments))]
    parameters = ", ".join(letters[i] for i in range(len(arguments)))
    call = f"{name}({parameters})" + "[0]" * has_aux
    parts = [2 if np.issubdtype(output.dtype, np.complexfloating) else 1 for output in outputs]
    if len(outputs) > 1:
        call = f"jax.flatten_util.ravel_pytree({call})[0]"
    elif parts == [2]:
        # The real parts come first.
        call = f"jnp.stack([jnp.real({call}), jnp.imag({call})])"
    sizes = [part * output.size for part, output in zip(parts, outputs, strict=True)]
    if len(outputs) > 1 or parts == [2] or outputs[0].shape:
        name = f"lambda {parameters}: jnp.vdot(jnp.arange(1.0, {sum(sizes) + 1}.0), {call})"
    elif has_aux:
        name = f"lambda {parameters}: {call}"
    gradient = f"jax.grad({name}{option})"
    return f"jax.jit({gradient})({shown})" if compiled else f"{gradient}({shown})"


def argument_numbers(space: Space) -> tuple[int, ...]:
    """Return the numbers of the arguments that are differentiated."""
    chosen: list[Any] = [None] * len(space.leaves)
    for i, selected in zip(space.positions, space.selected, strict=True):
        chosen[i] = selected
    # Leaves that are held fixed have no mark of their own.
    marks = [False if mark is None else mark for mark in chosen]
    arguments = jax.tree.unflatten(space.structure, marks)
    return tuple(i for i, argument in enumerate(arguments) if any(jax.tree.leaves(argument)))


def array_text(leaf: Any) -> str:
    """Return an expression for a number or an array."""
    array = np.asarray(leaf) if hasattr(leaf, "dtype") else None
    if array is None:
        return repr(leaf)
    if array.shape == ():
        return f"jnp.{array.dtype}({array[()]!s})" if array.dtype != bool else str(array)
    # Float32 is what JAX makes of Python numbers.
    kind = "" if array.dtype == np.float32 else f", jnp.{array.dtype}"
    # The sign of a zero would be lost in a fill value.
    if np.all(array == array.flat[0]) and not np.any(np.signbit(array) & (array == 0)):
        number = array.flat[0]
        if number in (0, 1):
            return f"jnp.{'ones' if number else 'zeros'}({array.shape}{kind})"
        return f"jnp.full({array.shape}, {number!s}{kind})"
    square = array.ndim == 2 and array.shape[0] == array.shape[1]
    if square and np.array_equal(array, np.eye(len(array))):
        return f"jnp.eye({len(array)}{kind and ', dtype=' + kind[2:]})"
    return f"jnp.array({_nested(array)}{kind})"


def _nested(array: np.ndarray) -> str:
    if array.ndim == 0:
        return str(array[()])
    return "[" + ", ".join(_nested(row) for row in array) + "]"
