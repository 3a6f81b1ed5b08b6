"""Changes to a line of code that may keep a value or a gradient finite.

A rewrite has the text to type in and the same change to the traced program, so that it is tried
before it is shown.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad.inspection._causes import Place
from jaxgrad.inspection._graph import Node

# The operation, its inputs, and the inputs of all operations before it in the same body.
Change = Callable[[Any, list[Any], dict[int, list[Any]]], Sequence[Any]]
LARGEST_EXPONENT = 88.0  # exp of more overflows in float32.
JITTERS = (1e-6, 1e-5, 1e-4)


class Rewrite(NamedTuple):
    """A change to some operations of a program.

    Attributes:
      text: the change to the code.
      changes: of operations by their numbers.
      bounded: whether the largest finite numbers replace infinite ones in code and arguments.
      wide: whether float16 and bfloat16 are computed in float32.
    """

    text: str
    changes: Mapping[int, Change]
    bounded: bool = False
    wide: bool = False

    def __or__(self, other: Any) -> "Rewrite":
        """Return both changes."""
        flags = self.bounded or other.bounded, self.wide or other.wide
        return Rewrite(other.text, {**self.changes, **other.changes}, *flags)

    def apply_with(self, memory: dict[int, list[Any]]) -> Callable[..., Sequence[Any]]:
        """Return a function that carries out operations, and puts their inputs into `memory`."""

        def apply(index, equation, inputs, indices):
            memory[index] = inputs
            if index in self.changes:
                return self.changes[index](equation, inputs, memory)
            return self._bind(equation, inputs)

        return apply

    def _bind(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        if not self.wide:
            return _jaxprs.bind(equation, inputs)
        name, params = equation.primitive.name, equation.params
        called = _jaxprs.called_program(equation)
        if called is not None:
            # The program of a function with a rule is in the narrow type, which its rule expects.
            return _jaxprs.evaluate(called, inputs, self._bind, self.cast, self.literal)
        if name == "convert_element_type" and _is_narrow(params["new_dtype"]):
            return [self.cast(inputs[0]).astype(jnp.float32)]
        types = {"preferred_element_type": None} if "preferred_element_type" in params else {}
        return _jaxprs.bind(equation, inputs, **types)

    def cast(self, x: Any) -> Any:
        """Return an array in float32 if it is to be computed so."""
        narrow = self.wide and _is_narrow(getattr(x, "dtype", None))
        return jnp.asarray(x, jnp.float32) if narrow else x

    def argument(self, x: Any) -> Any:
        """Return an argument of the loss."""
        x = self.cast(x)
        if not self.bounded or not jnp.issubdtype(getattr(x, "dtype", int), jnp.floating):
            return x
        limits = jnp.finfo(x.dtype)
        return jnp.clip(x, limits.min, limits.max)

    def literal(self, atom: Any) -> Any:
        """Return the value of a number in the code."""
        value = self.cast(atom.val)
        # The numbers in the functions of JAX, such as the start of a maximum, are bounded too.
        if self.bounded and np.ndim(value) == 0 and np.any(np.isinf(value)):
            bound = jnp.finfo(atom.aval.dtype).max
            return np.asarray(bound if value > 0 else -bound, atom.aval.dtype)
        return value


def no_change() -> Rewrite:
    """Return the rewrite that leaves a program as it is."""
    return Rewrite("", {})


def rewrites(place: Place, operations: Sequence[Node]) -> list[Rewrite]:
    """Return the rewrites to try for an operation, the best first."""
    operation = operations[place.number]
    numbers = alike(place.number, operations)
    patterns = _patterns(place.number, operations)
    inside = f" (inside of {operation.function.strip('_')})" if operation.function else ""
    local = [
        Rewrite(text + inside, dict.fromkeys(numbers, change))
        for text, change in _local(operation.name, place)
    ]
    general = []
    # The last resort, since these change the whole program.
    if place.dtype in ("float16", "bfloat16"):
        general.append(Rewrite("compute in float32", {}, wide=True))
    if operation.name in ("sub", "add", "mul", "exp"):
        text = "use a finite number in the mask, as jnp.finfo(x.dtype).min, instead of -jnp.inf"
        general.append(Rewrite(text, {}, bounded=True))
    return [*patterns, *local, *general]


def alike(number: int, operations: Sequence[Node]) -> list[int]:
    """Return the operations of one line, such as those of a Python loop over layers."""
    same = operations[number]
    return [i for i, o in enumerate(operations) if (o.name, o.line) == (same.name, same.line)]


def _local(name: str, place: Place) -> list[tuple[str, Change]]:
    """Return changes to one operation alone, with their texts."""
    masks = [(mask.text, _masked(mask)) for mask in MASKS.get(name, [])]
    results = [(text, _bounded(bound)) for text, bound in BOUNDS.get(name, [])]
    # A finite loss shows whether the value of a mask is right. Where there is none, a mask is only
    # proposed for the norm of a zero vector and where nothing else is.
    inputs = place.element.inputs if place.element else ()
    if place.backward:
        results = [*masks, *results]
    elif name not in ("log", "log1p", "pow") and (name != "div" or inputs[:1] == (0,)):
        results = [*results, *masks]
    if name == "cholesky":
        texts = [f"jnp.linalg.cholesky(x + {jitter} * jnp.eye(len(x)))" for jitter in JITTERS]
        results += [(t, _with_jitter(j)) for t, j in zip(texts, JITTERS, strict=True)]
    if name == "gather":
        results.append(('jnp.take(x, indices, axis, mode="clip"), or x.at[].get', _clipped))
    return results


class Mask(NamedTuple):
    """A mask of an input.

    Attributes:
      text: the change to the code.
      input: which input is masked.
      safe: where it is not, as a function of all inputs.
      inside: what replaces the input.
      outside: what replaces the result there.
    """

    text: str
    input: int
    safe: Callable[..., Any]
    inside: float
    outside: float


def _masked(mask: Mask) -> Change:
    def change(equation, inputs, memory):
        safe = mask.safe(*inputs)
        x = jnp.asarray(inputs[mask.input])
        args = list(inputs)
        args[mask.input] = jnp.where(safe, x, jnp.asarray(mask.inside, x.dtype))
        (result,) = _jaxprs.bind(equation, args)
        return [jnp.where(safe, result, jnp.asarray(mask.outside, result.dtype))]

    return change


def _bounded(bound: Callable[[Any], Any]) -> Change:
    def change(equation, inputs, memory):
        return _jaxprs.bind(equation, [bound(inputs[0]), *inputs[1:]])

    return change


def _with_jitter(jitter: float) -> Change:
    def change(equation, inputs, memory):
        (x,) = inputs
        identity = jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)
        return _jaxprs.bind(equation, [x + jitter * identity])

    return change


def _clipped(equation, inputs, memory):
    return _jaxprs.bind(equation, inputs, mode=jax.lax.GatherScatterMode.CLIP)


def _where(ok: str, call: str, value: str) -> str:
    return f"jnp.where({ok}, {call}, {value})"


def _positive(x, *_):
    return x > 0


def _inside(x):
    return jnp.abs(x) < 1


_SAFE = "jnp.where(x > 0, x, 1)"
_ROOT = _where("x > 0", f"jnp.sqrt({_SAFE})", "0")
_RECIPROCAL = _where("x > 0", f"jax.lax.rsqrt({_SAFE})", "0")
_QUOTIENT = "x / jnp.where(y != 0, y, 1)"
_SAFE_1P = "jnp.log1p(jnp.where(x > -1, x, 0))"
_INSIDE = "jnp.where(jnp.abs(x) < 1, x, 0)"
_ANGLE = "jnp.arctan2(y, jnp.where((x != 0) | (y != 0), x, 1))"
_FINITE = "x * jnp.where(jnp.isfinite(y), y, 0)"
LIMITS = (("-jnp.inf", -np.inf), ("0", 0.0))
# Several values outside are tried, of which that of the code is the one that changes nothing.
MASKS: dict[str, list[Mask]] = {
    "sqrt": [Mask(_ROOT, 0, _positive, 1, 0)],
    "rsqrt": [Mask(_RECIPROCAL, 0, _positive, 1, 0)],
    "log": [
        Mask(_where("x > 0", f"jnp.log({_SAFE})", text), 0, _positive, 1, value)
        for text, value in LIMITS
    ],
    "log1p": [
        Mask(_where("x > -1", _SAFE_1P, text), 0, lambda x: x > -1, 0, value)
        for text, value in LIMITS
    ],
    "div": [
        Mask(_where("y != 0", _QUOTIENT, text), 1, lambda x, y: y != 0, 1, value)
        for text, value in (("0", 0.0), ("jnp.inf", np.inf))
    ],
    "pow": [
        Mask(_where("x > 0", f"{_SAFE} ** y", text), 0, _positive, 1, value)
        for text, value in (("0", 0.0), ("1", 1.0))
    ],
    "acos": [
        Mask(_where("jnp.abs(x) < 1", f"jnp.arccos({_INSIDE})", text), 0, _inside, 0, value)
        for text, value in (("0", 0.0), ("jnp.pi", np.pi))
    ],
    "asin": [
        Mask(_where("jnp.abs(x) < 1", f"jnp.arcsin({_INSIDE})", text), 0, _inside, 0, value)
        for text, value in (("jnp.pi / 2", np.pi / 2), ("-jnp.pi / 2", -np.pi / 2))
    ],
    # The angle of the origin is that of a point on the axis, 0.
    "atan2": [Mask(_ANGLE, 1, lambda y, x: (x != 0) | (y != 0), 1, 0)],
    "mul": [
        Mask(_where("jnp.isfinite(y)", _FINITE, text), 1, lambda x, y: jnp.isfinite(y), 0, value)
        for text, value in LIMITS
    ],
}
BOUNDS: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {
    name: [(f"jnp.{name}(jnp.minimum(x, 88))", lambda x: jnp.minimum(x, LARGEST_EXPONENT))]
    for name in ("exp", "expm1")
} | {
    "log": [("jnp.log(jnp.maximum(x, 1e-30))", lambda x: jnp.maximum(x, 1e-30))],
    "sqrt": [("jnp.sqrt(jnp.maximum(x, 1e-6))", lambda x: jnp.maximum(x, 1e-6))],
    "rsqrt": [("jax.lax.rsqrt(jnp.maximum(x, 1e-6))", lambda x: jnp.maximum(x, 1e-6))],
    "atanh": [
        ("jnp.arctanh(jnp.clip(x, -1 + 1e-6, 1 - 1e-6))", lambda x: x.clip(-1 + 1e-6, 1 - 1e-6))
    ],
}


def _patterns(number: int, operations: Sequence[Node]) -> list[Rewrite]:
    """Return stable functions of `jax.nn` for what the code computes by exponentials."""
    operation = operations[number]
    if operation.name == "log":
        return _log_of_function(number, operations)
    if operation.name != "exp":
        return []
    # What is computed from the exponential says which function it is a part of.
    results = []
    for consumer in _consumers(number, operations):
        user = operations[consumer]
        if user.name == "reduce_sum":
            results += _softmax(number, consumer, operations)
        if user.name == "add" and user.equation.outvars[0].aval.shape:
            results += _of_sum_with_1(number, consumer, operations)
    return results


def _of_sum_with_1(number: int, consumer: int, operations: Sequence[Node]) -> list[Rewrite]:
    """Rewrite log(1 + exp(x)) and 1 / (1 + exp(-x))."""
    results = []
    for last in _consumers(consumer, operations):
        if operations[last].name == "log":

            def softplus(equation, inputs, memory):
                return [jax.nn.softplus(memory[number][0])]

            results.append(Rewrite("jax.nn.softplus(x)", {last: softplus}))
        if operations[last].name == "div":

            def sigmoid(equation, inputs, memory):
                return [inputs[0] * jax.nn.sigmoid(-memory[number][0])]

            results.append(Rewrite("jax.nn.sigmoid(x)", {last: sigmoid}))
    return results


def _softmax(number: int, total: int, operations: Sequence[Node]) -> list[Rewrite]:
    """Rewrite exp(x) / sum(exp(x)) and log(sum(exp(x)))."""
    axes = operations[total].equation.params["axes"]

    # A shift by the maximum changes neither, and keeps all exponents below 0.
    def highest(x):
        return jax.lax.stop_gradient(jnp.max(x, axes, keepdims=True))

    def shifted(equation, inputs, memory):
        return [jnp.exp(inputs[0] - highest(inputs[0]))]

    def restored(equation, inputs, memory):
        (x,) = memory[number]
        return [jnp.log(inputs[0]) + highest(x).reshape(jnp.shape(inputs[0]))]

    users = [i for i in _consumers(total, operations) if operations[i].name == "log"]
    if users:
        changes = {number: shifted, **dict.fromkeys(users, restored)}
        return [Rewrite("jax.nn.logsumexp(x)", changes)]
    return [Rewrite("jax.nn.softmax(x)", {number: shifted})]


def _log_of_function(number: int, operations: Sequence[Node]) -> list[Rewrite]:
    """Rewrite log(sigmoid(x)) and log(1 - sigmoid(x))."""
    operation = operations[number]
    # The argument of the sigmoid is read where the logarithm is computed.
    source = operation.inputs[0]
    sign, text = 1, "jax.nn.log_sigmoid(x)"
    if source is not None and operations[source].name == "sub":
        source, sign, text = operations[source].inputs[1], -1, "jax.nn.log_sigmoid(-x)"
    if source is None or operations[source].name != "logistic":
        return []
    if operations[source].region != operation.region:
        return []

    def log_sigmoid(equation, inputs, memory):
        return [jax.nn.log_sigmoid(sign * memory[source][0])]

    return [Rewrite(text, {number: log_sigmoid})]


def _consumers(number: int, operations: Sequence[Node]) -> list[int]:
    """Return the operations of the same body that take the result of another."""
    region = operations[number].region
    return [i for i, o in enumerate(operations) if number in o.inputs and o.region == region]


def _is_narrow(dtype: Any) -> bool:
    return dtype in (jnp.float16, jnp.bfloat16)
