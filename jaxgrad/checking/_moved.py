"""A function evaluated where one coordinate of its argument is moved, without a copy of the rest.

A copy of a weight matrix for each of its coordinates costs more than the function itself. But a
product is linear: `h (W + step e_i e_j') = h W + step h_i e_j'`. The product with the matrix is
thus computed once for all coordinates, and each adds one column to it. Operations that only
rearrange an array move the coordinate with it; all others get the copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgrad import _jaxprs


class Moved(NamedTuple):
    """An array of which one coordinate is moved: at `position`, one number per axis, by `step`."""

    base: Any
    position: tuple[Any, ...]
    step: Any

    def copy(self) -> Any:
        """The array itself."""
        return self.base.at[self.position].add(self.step)


class Scanned(NamedTuple):
    """A moved array over the steps of a scan; `steps` is zero in all but one."""

    base: Any
    steps: Any


def evaluate(program: Any, args: Sequence[Any]) -> list[Any]:
    """Return the results of a program whose inputs are arrays or `Moved`."""
    return _jaxprs.evaluate(program, args, _apply)


def _apply(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    name, moved = equation.primitive.name, [isinstance(value, Moved) for value in inputs]
    if not any(moved):
        return _jaxprs.bind(equation, inputs)
    if name in REARRANGE:
        return [REARRANGE[name](equation, *inputs)]
    if name == "dot_general" and sum(moved) == 1:
        return [_product(equation, inputs, moved.index(True))]
    if name == "scan":
        return _scan(equation, inputs)
    called = _jaxprs.called_program(equation)
    # Rules by hand, for derivatives or for batches, stay with their functions.
    if called is None or _jaxprs.is_rule(equation) or name == "custom_vmap_call":
        return _jaxprs.bind(equation, _plain(inputs))
    return _plain(evaluate(called, inputs))


def _plain(values: Sequence[Any]) -> list[Any]:
    return [value.copy() if isinstance(value, Moved) else value for value in values]


def _scan(equation: Any, inputs: list[Any]) -> Sequence[Any]:
    """Return the results of a scan, in which the coordinate belongs to one step or to all."""
    consts, carry, xs = _jaxprs.split_scan_inputs(equation.params, inputs)
    indices = [x.position[1:] if isinstance(x, Moved) else None for x in xs]
    first = len(consts) + len(carry)

    def scanned(x):
        numbers = jnp.arange(len(x.base))
        return Scanned(x.base, jnp.where(numbers == x.position[0], x.step, jnp.zeros_like(x.step)))

    def run(program, args):
        slices = [
            arg if index is None else Moved(arg.base, index, arg.steps)
            for arg, index in zip(args[first:], indices, strict=True)
        ]
        return _plain(evaluate(program, [*args[:first], *slices]))

    xs = [scanned(x) if isinstance(x, Moved) else x for x in xs]
    return _jaxprs.repeat(equation, [*consts, *_plain(carry), *xs], run)


def _product(equation: Any, inputs: list[Any], side: int) -> Any:
    """Return the product with a moved array, the left (0) or the right (1) operand."""
    moved, other = inputs[side], jnp.asarray(inputs[1 - side])
    contracted, batch = equation.params["dimension_numbers"]
    operands = [moved.base, other] if side == 0 else [other, moved.base]
    (out,) = _jaxprs.bind(equation, operands)
    # The slice of the other operand that the coordinate is multiplied by.
    where: list[Any] = [slice(None)] * other.ndim
    for axes in (contracted, batch):
        for axis, other_axis in zip(axes[side], axes[1 - side], strict=True):
            where[other_axis] = moved.position[axis]
    summed = (*contracted[side], *batch[side])
    free = [moved.position[axis] for axis in range(moved.base.ndim) if axis not in summed]
    # Axes of a product are those of the batch, then the free ones of the left, then of the right.
    others = [slice(None)] * (out.ndim - len(batch[side]) - len(free))
    rest = [*free, *others] if side == 0 else [*others, *free]
    column = (moved.step * other[tuple(where)]).astype(out.dtype)
    return out.at[(*(moved.position[axis] for axis in batch[side]), *rest)].add(column)


def _transpose(equation: Any, moved: Moved) -> Moved:
    order = equation.params["permutation"]
    (base,) = _jaxprs.bind(equation, [moved.base])
    return Moved(base, tuple(moved.position[axis] for axis in order), moved.step)


def _reshape(equation: Any, moved: Moved) -> Any:
    (base,) = _jaxprs.bind(equation, [moved.base])
    number = jnp.ravel_multi_index(moved.position, moved.base.shape, mode="clip")
    return Moved(base, jnp.unravel_index(number, base.shape), moved.step)


REARRANGE = {"transpose": _transpose, "reshape": _reshape}
