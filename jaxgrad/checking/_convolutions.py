"""Convolutions in float64 as matrix products.

On a CPU, XLA has a fast convolution for float32 alone. In float64 it computes one output after the
other, ten times as long as the product of a matrix of patches with the kernel, which is equal up to
rounding. Only programs that are traced already are changed, so every derivative rule stays JAX's.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxgrad._jaxprs import (
    bind,
    called_program,
    equations_of,
    evaluate,
    inner_programs,
)

MOST_SLICES = 128  # Patches are put together from at most so many slices.
MOST_ROWS = 1.5  # So many rows may be computed for one that is used.
LOOPS = {"scan", "while", "cond"}
WIDE = (np.dtype(np.float64), np.dtype(np.complex128))


def with_products(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Return the program with matrix products in place of slow convolutions, if it has any."""
    if jax.default_backend() != "cpu" or not _has_slow(closed):
        return closed
    return jax.make_jaxpr(functools.partial(_evaluate, closed))(
        *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars)
    )


def _has_slow(program: Any) -> bool:
    return any(map(_slow, equations_of(program)))


def _slow(equation: Any) -> bool:
    """Whether an operation is a convolution that XLA has no fast program for."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    params, (lhs, rhs) = equation.params, (v.aval for v in equation.invars)
    out, numbers = equation.outvars[0].aval, params["dimension_numbers"]
    slices = min(_size(rhs.shape, numbers.rhs_spec), _size(out.shape, numbers.out_spec))
    wide = lhs.dtype == rhs.dtype == out.dtype and out.dtype in WIDE
    return wide and min(lhs.size, rhs.size, out.size) > 0 and slices <= MOST_SLICES


def _size(shape: Sequence[int], spec: Sequence[int]) -> int:
    """Return the number of positions in space; `spec` orders the axes, two others first."""
    return math.prod(shape[axis] for axis in spec[2:])


def _evaluate(program: Any, *args: Any) -> list[Any]:
    return evaluate(program, args, _apply)


def _apply(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    if _slow(equation):
        return [convolve(*inputs, **equation.params)]
    if any(map(_has_slow, inner_programs(equation))):
        return _call(equation, inputs)
    return bind(equation, inputs)


def _call(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    """Carry out an operation with inner programs after a change of these, if it is known."""
    params, called = {}, called_program(equation)
    if called is not None:
        return _evaluate(called, *inputs)
    if equation.primitive.name in LOOPS:
        params = {
            name: jax.tree.map(
                lambda part: with_products(part) if _is_closed(part) else part,
                value,
                is_leaf=_is_closed,
            )
            for name, value in equation.params.items()
        }
    return bind(equation, inputs, **params)


def _is_closed(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr)


def convolve(
    lhs: Any,
    rhs: Any,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> jax.Array:
    """Return `lax.conv_general_dilated` of the same arguments, as a product of matrices."""
    (_, _, *x_space), (_, _, *w_space), _ = specs = tuple(dimension_numbers)
    x = jnp.transpose(lhs, (specs[0][0], *x_space, specs[0][1]))
    w = jnp.transpose(rhs, (*w_space, specs[1][1], specs[1][0]))
    *window, inputs, outputs = w.shape
    margins = [(*pair, d - 1) for pair, d in zip(padding, lhs_dilation, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    groups, batch, space = feature_group_count * batch_group_count, x.shape[0], x.shape[1:-1]
    # Groups of features, or of examples, become a first axis, [groups, batch, *space, inputs].
    if batch_group_count > 1:
        x = x.reshape(groups, -1, *x.shape[1:])
    else:
        x = jnp.moveaxis(x.reshape(batch, *space, groups, inputs), -2, 0)
    w = jnp.moveaxis(w.reshape(-1, groups, outputs // groups), 1, 0)
    reach = [(k - 1) * d for k, d in zip(window, rhs_dilation, strict=True)]
    steps = zip(space, reach, window_strides, strict=True)
    shape = [max((n - r - 1) // s + 1, 0) for n, r, s in steps]
    by_rows = _by_rows(x, w, window, shape, window_strides)
    product = _product_by_rows if by_rows else _product
    out = product(x, w, window, rhs_dilation, shape, window_strides)
    out = jnp.moveaxis(out, 0, -2)
    out = out.reshape(*out.shape[:-2], outputs)
    # Channels are the last axis here, [batch, *shape, outputs].
    order = [0, len(shape) + 1, *range(1, len(shape) + 1)]
    inverse = np.argsort(specs[2])
    return jnp.transpose(out, [order[i] for i in inverse])


def _by_rows(x: Any, w: Any, window, shape, strides) -> bool:
    """Whether `_product_by_rows` has about as many products as `_product`, and stores less."""
    *first, last = window
    inputs, outputs = x.shape[-1], w.shape[-1]
    used, computed = math.prod(shape[:-1]), math.prod(x.shape[2:-2])
    stored = last * inputs + math.prod(first) * outputs  # for each position
    # With a stride, all rows are computed and only some are used.
    few = all(stride == 1 for stride in strides[:-1]) and computed <= MOST_ROWS * used
    return few and computed * stored < used * w.shape[1]


def _product(x: Any, w: Any, window, dilation, shape, strides) -> Any:
    """Return one product of matrices, `[groups, batch, *shape, outputs]`.

    `x` is `[groups, batch, *space, inputs]` and `w` is `[groups, window * inputs, outputs]`.
    """
    patches = _patches(x, window, dilation, shape, strides)
    # [groups, batch * positions, window * inputs] times [groups, window * inputs, outputs]
    out = _matmul(patches.reshape(x.shape[0], -1, w.shape[1]), w)
    return out.reshape(*x.shape[:2], *shape, w.shape[2])


def _product_by_rows(x: Any, w: Any, window, dilation, shape, strides) -> Any:
    """Return the same, from patches along the last axis of space.

    The product has the results of each row of the kernel at each row of `x`. Shifted, they add up.
    """
    *first, last = window
    rows, groups, outputs = x.shape[2:-2], x.shape[0], w.shape[2]
    flat = x.reshape(groups, -1, *x.shape[-2:])
    patches = _patches(flat, [last], dilation[-1:], shape[-1:], strides[-1:])
    patches = patches.reshape(groups, -1, last * x.shape[-1])
    # [groups, last * inputs, first * outputs]
    kernel = w.reshape(groups, math.prod(first), -1, outputs)
    kernel = jnp.moveaxis(kernel, 1, 2).reshape(groups, -1, math.prod(first) * outputs)
    out = _matmul(patches, kernel)
    out = out.reshape(*x.shape[:2], *rows, shape[-1], math.prod(first), outputs)
    parts = []
    for i, index in enumerate(np.ndindex(*first)):
        triples = zip(index, dilation, shape, strict=False)
        cuts = [slice(k * d, k * d + n) for k, d, n in triples]
        parts.append(out[(slice(None), slice(None), *cuts, slice(None), i)])
    return sum(parts[1:], parts[0])


def _matmul(a: Any, b: Any) -> Any:
    return a @ b if len(a) > 1 else (a[0] @ b[0])[None]


def _patches(x: Any, window, dilation, shape, strides) -> Any:
    """Return the part of `x`, `[groups, batch, *space, inputs]`, that each output sees.

    The result is `[groups, batch, *shape, *window, inputs]`, from slices for each position in the
    window, or for each output if these are fewer.
    """
    by_window = math.prod(window) <= math.prod(shape)
    over, along = (window, shape) if by_window else (shape, window)
    first, second = (dilation, strides) if by_window else (strides, dilation)
    parts = []
    for index in np.ndindex(*over):
        start = [i * d for i, d in zip(index, first, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, along, second, strict=True)]
        cuts = [slice(a, b, s) for a, b, s in zip(start, stop, second, strict=True)]
        parts.append(x[(slice(None), slice(None), *cuts)])
    axis = 2 + (len(shape) if by_window else 0)
    patches = jnp.stack(parts, axis)
    return patches.reshape(*x.shape[:2], *shape, *window, x.shape[-1])
