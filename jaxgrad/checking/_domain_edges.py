"""Arguments at which a function changes its branch, or one of its operations its kind of result.

The trace shows comparisons, and operations that have an edge: a denominator of zero, an exponential
that overflows. Each gives a quantity whose sign changes at the edge. Along lines through the domain
the change is enclosed and halved down to two neighboring numbers.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._jaxprs import bind, called_program, evaluate
from jaxgrad.checking._domain_values import (
    Interval,
    Space,
    decades,
    from_order,
    into,
    next_number,
    to_order,
)

QUANTITIES = 64  # At most so many numbers of a trace are followed.
BRACKETS = 64  # At most so many edges are halved on a line.
NEAR = (0, 1, -1, 2, -2, 16, -16)  # steps between an edge and the points that are tried


def _overflow(x: Any) -> Any:
    return x - math.log(float(jnp.finfo(x.dtype).max))


# For an operation, quantities of its operands that change their sign at an edge.
EDGES: dict[str, Callable[..., list[Any]]] = {
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), lambda x, y: [x - y]),
    **dict.fromkeys(("max", "min"), lambda x, y: [x - y]),
    "clamp": lambda low, x, high: [x - low, x - high],
    **dict.fromkeys(("abs", "sign", "sqrt", "rsqrt", "cbrt", "log", "lgamma"), lambda x: [x]),
    "div": lambda x, y: [y],
    "pow": lambda x, y: [x],
    "atan2": lambda x, y: [x, y],
    "log1p": lambda x: [x + 1],
    **dict.fromkeys(("acos", "asin", "atanh", "erf_inv"), lambda x: [x - 1, x + 1]),
    **dict.fromkeys(("exp", "expm1", "cosh", "sinh"), lambda x: [_overflow(x), _overflow(-x)]),
    "square": lambda x: [jnp.abs(x) - float(jnp.finfo(x.dtype).max) ** 0.5],
}


def quantities(closed: Any) -> Callable[..., Any]:
    """Return a function that evaluates a trace and returns its quantities, flattened."""

    def quantities_of(*args):
        out: list[Any] = []
        evaluate(closed, args, functools.partial(_apply, out))
        followed = [q.ravel() for q in out][:QUANTITIES]
        return jnp.concatenate(followed)[:QUANTITIES] if followed else jnp.zeros(0)

    return quantities_of


def _apply(out: list[Any], equation: Any, inputs: list[Any]) -> Sequence[Any]:
    """Return the results of an operation, and add its quantities to `out`."""
    called, name = called_program(equation), equation.primitive.name
    if called is not None:
        return evaluate(called, inputs, functools.partial(_apply, out))
    if name in EDGES and all(map(_is_real, inputs)):
        out += [q for q in EDGES[name](*map(jnp.asarray, inputs)) if jnp.size(q)]
    return bind(equation, inputs)


def _is_real(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def edge_points(
    function: Callable[..., Any], space: Space, generator: np.random.Generator
) -> list[list[np.ndarray]]:
    """Return points of a space at its edges and next to them.

    `function` maps the list of leaves that vary to outputs.
    """
    leaves = space.intervals
    zero = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
    closed = jax.make_jaxpr(lambda *point: function(list(point)))(*zero)
    follow = quantities(closed)
    points: list[list[np.ndarray]] = []
    for j, leaf in enumerate(leaves):
        for line in range(1 if space.scalar else 3):
            base = [into(generator.standard_normal(x.shape), x, generator) for x in leaves]
            # All elements together, or one of them.
            mask = np.ones(leaf.shape, bool)
            if line and mask.size > 1:
                mask = np.arange(mask.size).reshape(mask.shape) == generator.integers(mask.size)
            points += _along(follow, base, j, leaf, mask)
    return points


def _along(evaluate, base, j: int, leaf: Interval, mask: np.ndarray) -> list[list[np.ndarray]]:
    """Return the points of edges along a line on which the chosen elements are one number."""

    def move(number):
        moved = jnp.where(mask, number, base[j])
        return evaluate(*base[:j], moved, *base[j + 1 :])

    mapped = jax.jit(jax.vmap(move))
    grid = np.concatenate([decades(leaf.dtype), np.arange(-20, 21) / 2 + 0.013])
    grid = np.unique(np.clip(grid, leaf.low, leaf.high).astype(leaf.dtype))
    signs = np.sign(np.asarray(mapped(grid), np.float64))
    known = ~np.isnan(signs)
    row, column = np.nonzero((signs[:-1] != signs[1:]) & known[:-1] & known[1:])
    if not len(row):
        return []
    chosen = np.resize(np.arange(min(len(row), BRACKETS)), BRACKETS)
    row, column = row[chosen], column[chosen]
    low, high = to_order(grid[row]), to_order(grid[row + 1])
    for _ in range(8 * grid.dtype.itemsize):
        middle = low + (high - low) // 2
        values = np.asarray(mapped(from_order(middle, grid.dtype)), np.float64)
        same = np.sign(values[np.arange(BRACKETS), column]) == signs[row, column]
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    numbers = np.unique(
        np.concatenate(
            [next_number(from_order(order, grid.dtype), k) for order in (low, high) for k in NEAR]
        )
    )
    numbers = numbers[(numbers >= leaf.low) & (numbers <= leaf.high)]
    moved = [np.where(mask, number, base[j]).astype(leaf.dtype) for number in numbers]
    return [[*base[:j], value, *base[j + 1 :]] for value in moved]
