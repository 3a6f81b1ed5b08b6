"""Random programs for a gradient checker: operations on arrays, drawn from a seed.

A program is a list of 5 to 15 steps, each of which makes an array from arrays made before. Nothing
keeps it well conditioned: values may cancel, overflow, or turn many times within a step.

An error is planted behind one step, or in the middle of a block (a scan, a branch, a map, an inner
`jit`, a checkpoint), as a function with a wrong rule for reverse mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SHAPES = ((), (1,), (3,), (6,), (4, 3), (3, 3), (2, 4, 3), (5, 8))
LARGE = ((40, 30), (1500,), (8, 12, 16))
KINDS = ("factor", "sign", "dropped", "element", "term")

Unary = Callable[[jax.Array], jax.Array]


class Step(NamedTuple):
    """One step: `function(*operands, plant)` makes the next array."""

    name: str
    operands: tuple[int, ...]
    function: Callable[..., jax.Array]


class Plant(NamedTuple):
    """An error: the step that it follows, its kind, and how large it is."""

    step: int
    kind: str
    factor: float
    position: float  # of the wrong element or of the first dropped one, as a share of the size


class Program(NamedTuple):
    """A random function, called with a dictionary of arrays."""

    seed: int
    params: dict[str, np.ndarray]
    steps: tuple[Step, ...]
    ending: str
    wide: bool  # whether the arguments are of float64

    @property
    def names(self) -> list[str]:
        """The names of the steps and of the ending."""
        return [*(step.name for step in self.steps), self.ending]

    def function(self, plant: Plant | None = None, right: bool = False) -> Callable[..., Any]:
        """Return the function, with an error if `plant`, or with its right rule if `right`."""

        def f(params):
            values = [params[name] for name in sorted(params)]
            for i, step in enumerate(self.steps):
                inner = planted(plant, right) if plant and plant.step == i else _same
                values.append(step.function(*(values[j] for j in step.operands), inner))
            # All arrays that no step takes are outputs, so that every leaf may count.
            used = {j for step in self.steps for j in step.operands}
            last = [v for i, v in enumerate(values) if i not in used]
            return ENDINGS[self.ending](last)

        return f


def planted(plant: Plant, right: bool) -> Unary:
    """Return the function that carries the error of a plant, or its right counterpart."""

    def value(x):
        return x + 0.3 * jnp.sin(x) if plant.kind == "term" else x * 1

    def backward(x, ct):
        index = int(plant.position * max(ct.size - 1, 0))
        flat, size = jnp.ravel(ct), ct.size
        if plant.kind == "factor":
            return ct * plant.factor
        if plant.kind == "sign":
            return -ct
        if plant.kind == "term":
            return ct
        if plant.kind == "element":
            return flat.at[index].multiply(plant.factor).reshape(ct.shape)
        # The first element stays, or if nothing else does the second half.
        rest = jnp.arange(size) < index if index else jnp.arange(size) > size // 2
        return jnp.where(rest, flat, 0).reshape(ct.shape)

    if right:
        return value
    # The value is the right one; only reverse mode is not.
    wrong = jax.custom_vjp(value)
    wrong.defvjp(lambda x: (value(x), x), lambda x, ct: (backward(x, ct),))
    return wrong


def _same(x: jax.Array) -> jax.Array:
    return x


# Elementwise operations; those of two arrays broadcast where shapes allow it.
UNARY: dict[str, Unary] = {
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "log of size": lambda x: jnp.log(jnp.abs(x) + 1e-3),
    "log1p of square": lambda x: jnp.log1p(x * x),
    "root": lambda x: jnp.sqrt(x * x + 0.1),
    "softplus": jax.nn.softplus,
    "logistic": jax.nn.sigmoid,
    "erf": jax.scipy.special.erf,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "reciprocal": lambda x: 1 / (0.5 + x * x),
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "abs": jnp.abs,
    "clip": lambda x: jnp.clip(x, -1.0, 1.0),
    "where": lambda x: jnp.where(x > 0.3, x * x, 0.09 * jnp.ones_like(x)),
    "stretch": lambda x: 1e3 * x,
    "shrink": lambda x: 1e-4 * x,
    "shifted back": lambda x: (x + 1e6) - 1e6,
}
BINARY: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": lambda x, y: x / (1 + jnp.abs(y)),
    "maximum": jnp.maximum,
    "logaddexp": jnp.logaddexp,
    "atan2": jnp.arctan2,
}
# Operations on the last axis of an array with at least one.
ALONG: dict[str, Unary] = {
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "layer norm": lambda x: (
        (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    ),
    "normalize": lambda x: x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8),
    "cumsum": lambda x: jnp.cumsum(x, -1),
    "cumprod": lambda x: jnp.cumprod(x, -1),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, axis=x.ndim - 1),
    "sort": lambda x: jnp.sort(x, -1),
    "reverse": lambda x: jnp.flip(x, -1),
    "roll": lambda x: jnp.roll(x, 1, -1) * x,
    "fft power": lambda x: jnp.abs(jnp.fft.fft(x, axis=-1)) ** 2,
    "fft filter": lambda x: jnp.fft.irfft(
        jnp.fft.rfft(x, axis=-1) * (1 + 0.5j), n=x.shape[-1], axis=-1
    ),
    "centered": lambda x: x - x.mean(-1, keepdims=True),
    "mean": lambda x: x.mean(-1),
    "maximum along": lambda x: x.max(-1),
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
    "gather": lambda x: x[..., np.arange(x.shape[-1] + 2) % x.shape[-1]],
    "scatter add": lambda x: x.at[..., 0].add(jnp.sin(x[..., -1])),
    "convolve": lambda x: jnp.apply_along_axis(
        lambda row: jnp.convolve(row, np.array([0.5, -1.0, 0.25]).astype(row.dtype), "same"), -1, x
    ),
}
MATRIX: dict[str, Unary] = {
    "transpose": lambda x: jnp.swapaxes(x, -1, -2),
    "gram": lambda x: x @ jnp.swapaxes(x, -1, -2),
    "solve": lambda x: jnp.linalg.solve(
        x @ jnp.swapaxes(x, -1, -2) + jnp.eye(x.shape[-2], dtype=x.dtype), x
    ),
    "log determinant": lambda x: jnp.linalg.slogdet(
        x @ jnp.swapaxes(x, -1, -2) + jnp.eye(x.shape[-2], dtype=x.dtype)
    )[1],
}


# Blocks with an inner program, in the middle of which an error may be planted.


def _chain(first: Unary, second: Unary) -> Callable[[jax.Array, Unary], jax.Array]:
    return lambda x, plant: second(plant(first(x)))


def _scan(chain: Any) -> Callable[[jax.Array, Unary], jax.Array]:
    def function(x, plant):
        def body(carry, row):
            carry = jnp.tanh(0.7 * carry + chain(row, plant))
            return carry, carry * row

        last, rows = lax.scan(body, jnp.zeros(x.shape[1:], x.dtype), x)
        return rows + last

    return function


def _cond(chain: Any) -> Callable[[jax.Array, Unary], jax.Array]:
    def function(x, plant):
        return lax.cond(jnp.sum(x) > 0.1, lambda v: chain(v, plant), lambda v: 0.5 * v, x)

    return function


BLOCKS: dict[str, Callable[[Any], Callable[[jax.Array, Unary], jax.Array]]] = {
    "scan": _scan,
    "cond": _cond,
    "checkpoint": lambda chain: lambda x, p: jax.checkpoint(lambda v: chain(v, p))(x),
    "inner jit": lambda chain: lambda x, p: jax.jit(lambda v: chain(v, p))(x),
    "vmap": lambda chain: lambda x, p: jax.vmap(lambda v: chain(v, p))(x),
}
ENDINGS: dict[str, Callable[[list[jax.Array]], Any]] = {
    "sum": lambda values: sum(jnp.sum(v) for v in values),
    "mean of squares": lambda values: sum(jnp.mean(v * v) for v in values),
    "outputs": lambda values: values,
    "logsumexp of all": lambda values: jax.nn.logsumexp(
        jnp.concatenate([v.ravel() for v in values])
    ),
}


def random_program(seed: int) -> Program:
    """Draw a program; equal seeds give equal programs."""
    rng = np.random.default_rng([seed, 17])
    wide = bool(rng.random() < 0.3)
    params = {}
    for name in "abcd"[: rng.integers(1, 5)]:
        shapes = LARGE if rng.random() < 0.08 else SHAPES
        draw = rng.standard_normal(shapes[rng.integers(len(shapes))])
        # Leaves of other sizes than one lead to small, large or rounded values.
        scale = 10.0 ** rng.integers(-2, 2) if rng.random() < 0.3 else 1.0
        params[name] = np.asarray(scale * draw, np.float64 if wide else np.float32)
    # The shapes of all arrays so far, of which the next step chooses its operands.
    shapes = [params[name].shape for name in sorted(params)]
    steps: list[Step] = []
    for _ in range(rng.integers(5, 16)):
        # Most steps go on from the last array, so that programs are deep.
        first = len(shapes) - 1 if rng.random() < 0.6 else int(rng.integers(len(shapes)))
        step = _random_step(rng, shapes, first)
        arrays = [jax.ShapeDtypeStruct(shapes[j], jnp.float32) for j in step.operands]
        shapes.append(jax.eval_shape(lambda *a, s=step: s.function(*a, _same), *arrays).shape)
        steps.append(step)
    ending = str(rng.choice(list(ENDINGS)))
    return Program(seed, params, tuple(steps), ending, wide)


def _random_step(rng: np.random.Generator, shapes: Sequence[tuple], first: int) -> Step:
    """Draw a step whose first operand is the array `first`."""
    shape = shapes[first]
    groups: list[dict[str, Any]] = [UNARY, BINARY]
    if shape:
        groups += [ALONG, BLOCKS]
    if len(shape) >= 2 and max(shape) <= 40:
        groups.append(MATRIX)
    # Each group is as likely as any other, whatever its size.
    group = groups[rng.integers(len(groups))]
    name = str(rng.choice(list(group)))
    if group is BLOCKS:
        block = BLOCKS[name](_chain(*(UNARY[str(n)] for n in rng.choice(list(UNARY), 2))))
        return Step(name, (first,), block)
    if group is not BINARY:
        return Step(name, (first,), lambda x, p, f=group[name]: p(f(x)))
    fitting = [j for j, other in enumerate(shapes) if _broadcast(shape, other)]
    products = [j for j, other in enumerate(shapes) if _product(shape, other)]
    if products and rng.random() < 0.4:
        second = int(rng.choice(products))
        return Step("matrix product", (first, second), lambda x, y, p: p(x @ y))
    second = int(rng.choice(fitting))
    return Step(name, (first, second), lambda x, y, p, f=BINARY[name]: p(f(x, y)))


def _broadcast(a: tuple, b: tuple) -> bool:
    return a == b or not b or (len(b) <= len(a) and a[len(a) - len(b) :] == b)


def _product(a: tuple, b: tuple) -> bool:
    return len(a) == 2 and len(b) in (1, 2) and a[1] == b[0]


def random_plant(program: Program, rng: np.random.Generator) -> Plant:
    """Draw an error for a program."""
    factor = float(rng.choice([0.5, 0.99, 0.999, 1.01, 1.1, 2.0]))
    step, kind = int(rng.integers(len(program.steps))), str(rng.choice(KINDS))
    return Plant(step, kind, factor, float(rng.random()))
