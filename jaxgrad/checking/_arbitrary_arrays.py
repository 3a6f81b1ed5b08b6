"""Operations on arrays of numbers in arbitrary precision: layout, sums, products, sorting.

An operation that only moves elements is carried out by JAX on an array of positions, which shows
where each element goes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad._numerics import float_eps
from jaxgrad.checking._arbitrary_scalars import UnknownError


class Equation(NamedTuple):
    """One operation of a traced function, with the arithmetic that carries it out."""

    primitive: Any
    params: dict[str, Any]
    out: Sequence[Any]  # shapes and types of the results
    context: Any  # of mpmath
    spend: Callable[[int], None]  # counts operations on numbers


def is_number(value: Any) -> bool:
    """Whether a value is an array of numbers in arbitrary precision."""
    return isinstance(value, np.ndarray) and value.dtype == object


def objects(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """Return an array of objects of a shape; NumPy itself would look into them."""
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(tuple(shape))


def exact_numbers(context: Any, value: Any) -> np.ndarray:
    """Return values of any type as exact numbers in arbitrary precision."""
    array = np.asarray(value)
    convert = context.mpf
    if np.issubdtype(array.dtype, np.complexfloating):
        return objects([context.mpc(z.real, z.imag) for z in array.ravel().tolist()], array.shape)
    if float_eps(array.dtype):
        array = array.astype(np.float64)
    return objects([convert(x) for x in array.ravel().tolist()], array.shape)


def zeros(context: Any, shape: Sequence[int]) -> np.ndarray:
    return np.full(tuple(shape), context.zero, object)


# Movements of elements


def _move(call: Equation, *args: Any) -> np.ndarray:
    """Carry out an operation that only moves elements."""
    return _moved(call, args, lambda positions: call.primitive.bind(*positions, **call.params))


def _moved(call: Equation, args: Sequence[Any], program: Callable[..., Any], fill=np.nan) -> Any:
    """Move elements as `program` moves their positions; negative positions become `fill`."""
    positions, pool, start = [], [], 0
    for arg in args:
        if not is_number(arg):
            positions.append(arg)
            continue
        positions.append(np.arange(start, start + arg.size, dtype=np.int32).reshape(arg.shape))
        pool += [arg.ravel()]
        start += arg.size
    elements = np.concatenate([*pool, objects([call.context.mpf(fill)], (1,))])
    out = program(positions)
    several = isinstance(out, (tuple, list))
    results = [
        elements[np.where(np.asarray(p) < 0, start, np.asarray(p))]
        if float_eps(aval.dtype)
        else np.asarray(p)
        for p, aval in zip(out if several else [out], call.out, strict=True)
    ]
    return results if several else results[0]


def _gather(call: Equation, operand: Any, indices: Any) -> Any:
    # Positions outside of the operand are filled with -1 first.
    fill, params = call.params["fill_value"], call.params | {"fill_value": -1}
    value = np.nan if fill is None else float(fill)
    return _moved(call, (operand, indices), lambda p: call.primitive.bind(*p, **params), value)


def _scatter_options(call: Equation) -> dict[str, Any]:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return {name: call.params[name] for name in names}


def _scatter(call: Equation, operand: Any, indices: Any, updates: Any) -> Any:
    options = _scatter_options(call)
    return _moved(call, (operand, indices, updates), lambda p: jax.lax.scatter(*p, **options))


def _scatter_with(combine: str) -> Callable[..., Any]:
    def scatter(call: Equation, operand: Any, indices: Any, updates: Any) -> np.ndarray:
        options, shape = _scatter_options(call), operand.shape

        # The transpose of an addition at places is a look at them: it shows where each update goes.
        def add(u):
            return jax.lax.scatter_add(np.zeros(shape, np.float32), indices, u, **options)

        if operand.size >= 2**24:
            raise UnknownError("the positions of such a large array are not exact in float32")
        like = jax.ShapeDtypeStruct(updates.shape, np.float32)
        places = np.arange(1, operand.size + 1, dtype=np.float32).reshape(shape)
        (targets,) = jax.linear_transpose(add, like)(places)
        result = operand.ravel().copy()
        for target, update in zip(np.asarray(targets, int).ravel(), updates.ravel(), strict=True):
            # A target of zero lies outside of the operand and is dropped.
            if target:
                result[target - 1] = COMBINE[combine](result[target - 1], update)
        return result.reshape(shape)

    return scatter


COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": lambda a, b: a if a != a or not b < a else b,
    "max": lambda a, b: a if a != a or not b > a else b,
}


def _broadcast_in_dim(call: Equation, operand: Any, *_: Any) -> np.ndarray:
    shape, dimensions = call.params["shape"], call.params["broadcast_dimensions"]
    expanded = [1] * len(shape)
    for size, axis in zip(operand.shape, dimensions, strict=True):
        expanded[int(axis)] = size
    return np.broadcast_to(operand.reshape(expanded), shape)


def _reshape(call: Equation, operand: Any, *_: Any) -> np.ndarray:
    dimensions = call.params["dimensions"]
    operand = operand if dimensions is None else operand.transpose(dimensions)
    return operand.reshape(call.out[0].shape)


def _select_n(call: Equation, which: Any, *cases: Any) -> np.ndarray:
    which = np.broadcast_to(np.asarray(which).astype(int), cases[0].shape)
    result = np.empty(cases[0].shape, object)
    for i, case in enumerate(cases):
        result[which == i] = case[which == i]
    return result


def _iota(call: Equation) -> np.ndarray:
    values = np.asarray(call.primitive.bind(**(call.params | {"dtype": np.dtype(np.int32)})))
    return exact_numbers(call.context, values)


def _empty(call: Equation, *_: Any) -> np.ndarray:
    return np.full(call.out[0].shape, call.context.nan, object)


# Sums, products, extremes


def nothing(context: Any) -> Any:
    return context.zero


def lowest(context: Any) -> Any:
    return -context.inf


def highest(context: Any) -> Any:
    return context.inf


def _reduce(combine: str, initial: Callable[[Any], Any]) -> Callable[..., np.ndarray]:
    operation = np.frompyfunc(COMBINE[combine], 2, 1)

    def reduce(call: Equation, operand: Any) -> np.ndarray:
        call.spend(operand.size)
        axes = tuple(int(axis) for axis in call.params["axes"])
        result = operand
        for axis in sorted(axes, reverse=True):
            start = initial(call.context)
            if result.shape[axis]:
                # frompyfunc has no identity, so the first element starts the reduction.
                result = np.asarray(operation.reduce(result, axis=axis), object)
            else:
                shape = [n for i, n in enumerate(result.shape) if i != axis]
                result = np.full(shape, start, object)
        return np.asarray(result, object)

    return reduce


def _cumulative(combine: str) -> Callable[..., np.ndarray]:
    operation = np.frompyfunc(COMBINE[combine], 2, 1)

    def accumulate(call: Equation, operand: Any) -> np.ndarray:
        axis = call.params["axis"]
        flipped = np.flip(operand, axis) if call.params["reverse"] else operand
        result = operation.accumulate(flipped, axis=axis, dtype=object)
        return np.flip(result, axis) if call.params["reverse"] else result

    return accumulate


def _cumlogsumexp(call: Equation, operand: Any) -> np.ndarray:
    c = call.context
    exponentials = np.frompyfunc(lambda x: c.exp(x), 1, 1)(operand)
    sums = _cumulative("add")(call, np.asarray(exponentials, object))
    return np.asarray(np.frompyfunc(lambda s: c.log(s) if s else -c.inf, 1, 1)(sums), object)


def _arg_extreme(sign: int) -> Callable[..., np.ndarray]:
    def argument(call: Equation, operand: Any) -> np.ndarray:
        (axis,) = call.params["axes"]
        lines = np.moveaxis(operand, axis, -1)
        flat = lines.reshape(-1, lines.shape[-1])
        # NaN counts as the extreme, and the first one wins.
        best = [
            next((i for i, x in enumerate(line) if x != x), None)
            if any(x != x for x in line)
            else max(range(len(line)), key=lambda i, line=line: (sign * line[i], -i))
            for line in flat
        ]
        return np.array(best, call.params["index_dtype"]).reshape(lines.shape[:-1])

    return argument


def _sort(call: Equation, *operands: Any) -> list[Any]:
    axis, keys = call.params["dimension"], call.params["num_keys"]
    lines = [np.moveaxis(np.asarray(o), axis, -1) for o in operands]
    flat = [line.reshape(-1, line.shape[-1]) for line in lines]
    order = np.empty(flat[0].shape, int)
    for row in range(len(flat[0])):

        def key(i, row=row):
            # NaN comes last, equal elements keep their order.
            return [(bool(f[row, i] != f[row, i]), f[row, i]) for f in flat[:keys]]

        order[row] = sorted(range(flat[0].shape[1]), key=key)
    sorted_lines = [np.take_along_axis(f, order, -1).reshape(lines[0].shape) for f in flat]
    return [np.moveaxis(line, -1, axis) for line in sorted_lines]


def _top_k(call: Equation, operand: Any) -> list[Any]:
    k, axis = call.params["k"], call.params.get("axis", operand.ndim - 1)
    lines = np.moveaxis(operand, axis, -1)
    flat = lines.reshape(-1, lines.shape[-1])
    order = [sorted(range(line.size), key=lambda i, line=line: -line[i])[:k] for line in flat]
    index = np.array(order, int).reshape(*lines.shape[:-1], k)
    values = np.take_along_axis(lines, index, -1)
    moved = [np.moveaxis(a, -1, axis) for a in (values, index)]
    return [moved[0], moved[1].astype(call.out[1].dtype)]


# Products


def _dot_general(call: Equation, left: Any, right: Any) -> np.ndarray:
    (left_sum, right_sum), (left_batch, right_batch) = call.params["dimension_numbers"]
    left, right = (a if is_number(a) else exact_numbers(call.context, a) for a in (left, right))

    def matrix(array, batch, summed, first):
        free = [i for i in range(array.ndim) if i not in (*batch, *summed)]
        sizes = [[array.shape[int(i)] for i in axes] for axes in (batch, free, summed)]
        order = [*batch, *free, *summed] if first else [*batch, *summed, *free]
        rows = [int(np.prod(s, dtype=int)) for s in sizes]
        shape = (rows[0], rows[1], rows[2]) if first else (rows[0], rows[2], rows[1])
        return array.transpose([int(i) for i in order]).reshape(shape), sizes

    a, (batch, free_left, _) = matrix(left, left_batch, left_sum, True)
    b, (_, free_right, _) = matrix(right, right_batch, right_sum, False)
    return product(call, a, b).reshape((*batch, *free_left, *free_right))


def product(call: Equation, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the matrix products of `[B, M, K]` and `[B, K, N]`."""
    call.spend(a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2])
    if not a.shape[2]:
        return zeros(call.context, (a.shape[0], a.shape[1], b.shape[2]))
    return np.matmul(a, b)


ARRAY_OPERATIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("pad", "dynamic_slice", "dynamic_update_slice"), _move),
    **dict.fromkeys(("split", "stack", "unstack", "tile", "expand_dims"), _move),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda call, *args: np.concatenate(args, call.params["dimension"]),
    "reshape": _reshape,
    "rev": lambda call, operand: np.flip(operand, call.params["dimensions"]),
    "slice": lambda call, operand: operand[
        tuple(
            map(
                slice,
                call.params["start_indices"],
                call.params["limit_indices"],
                call.params["strides"] or [1] * operand.ndim,
            )
        )
    ],
    "squeeze": lambda call, operand: operand.reshape(call.out[0].shape),
    "transpose": lambda call, operand: operand.transpose(call.params["permutation"]),
    # Of an array before it is filled nothing is known.
    **dict.fromkeys(("empty", "empty2"), _empty),
    "iota": _iota,
    "select_n": _select_n,
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter_with("add"),
    "scatter-sub": _scatter_with("sub"),
    "scatter-mul": _scatter_with("mul"),
    "scatter-min": _scatter_with("min"),
    "scatter-max": _scatter_with("max"),
    # Of two names, one is that of some versions of JAX.
    "scatter_add": _scatter_with("add"),
    "scatter_sub": _scatter_with("sub"),
    "scatter_mul": _scatter_with("mul"),
    "scatter_min": _scatter_with("min"),
    "scatter_max": _scatter_with("max"),
    "reduce_sum": _reduce("add", nothing),
    "reduce_prod": _reduce("mul", lambda context: context.one),
    "reduce_max": _reduce("max", lowest),
    "reduce_min": _reduce("min", highest),
    "cumsum": _cumulative("add"),
    "cumprod": _cumulative("mul"),
    "cummax": _cumulative("max"),
    "cummin": _cumulative("min"),
    "cumlogsumexp": _cumlogsumexp,
    "argmax": _arg_extreme(1),
    "argmin": _arg_extreme(-1),
    "sort": _sort,
    "top_k": _top_k,
    "dot_general": _dot_general,
}
