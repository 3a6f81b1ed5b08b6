"""Everything that JAX computes of the checked function: values, changes, tangents and gradients.

The function maps (moved leaves, fixed arrays) to a list of outputs. Elements of the moved leaves,
real parts before imaginary ones, are the coordinates of a real vector. Outputs are weighted by
cotangents, so that each of these programs differentiates one real number.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxgrad._jaxprs import equations_of, inner_programs
from jaxgrad._numerics import float_eps
from jaxgrad.checking._convolutions import with_products

T = TypeVar("T")
Function = Callable[[Sequence[Any], Sequence[Any]], list[jax.Array]]

LEAST_ROWS = 1024
FUNCTIONS = 128  # So many results for functions, the most recently used ones, are stored.


class Programs(NamedTuple):
    """Functions of (moved, fixed, ...), each compiled when it is first called."""

    outputs: Callable[..., Any]
    changes: Callable[..., np.ndarray]  # of the weighted outputs, see `_rows_compiled`
    tangents: Callable[..., np.ndarray]  # likewise
    backward: Callable[..., Any]  # see `gradient_of`; in the precision at the call
    mapped_gradients: Callable[..., Any]  # see `_mapped_gradients`
    mapped: bool  # whether the function can be mapped by `jax.vmap`
    memory: int  # bytes of all intermediate results of one evaluation; 0 if it cannot be mapped


def build_programs(function: Function, moved, fixed, *, wide: bool, compiled=True) -> Programs:
    """Build the programs of `function`; `moved` and `fixed` are arguments of the right shapes.

    `wide` enables float64; programs of a function that cannot be traced are not `compiled`.
    """
    inside = precision(wide)
    memory = inside(_memory_if_mapped)(function, moved, fixed) if compiled else None
    fragile = compiled and inside(_uses_fft)(function, moved, fixed)

    def compile(program):
        if not compiled:
            return program
        fast = jax.jit(with_copies(program))
        return _or_without_jit(fast, program) if fragile else fast

    def along(program):
        # XLA compiles a small loop on a CPU so that a Fourier transform in it ends the process
        # (jax-ml/jax#31374), so there is none.
        if not compiled or fragile:
            return _rows_one_by_one(compile(functools.partial(program, function)))
        return _rows_compiled(program, function, compile)

    return Programs(
        # JAX remembers what it traced by function, so each program is a new one.
        outputs=inside(compile(lambda moved, fixed: function(moved, fixed))),
        changes=inside(along(_change)),
        tangents=inside(along(_tangent)),
        backward=compile(functools.partial(gradient_of, function)),
        mapped_gradients=inside(compile(functools.partial(_mapped_gradients, function))),
        mapped=memory is not None,
        memory=memory or 0,
    )


def reuse(key: Hashable, build: Callable[[], T]) -> T:
    """Return `build()`, or what an earlier call with an equal key has built.

    The result must depend on nothing but `key`. It is not stored if the key cannot be hashed.
    """
    try:
        stored = _stored(key)
    except TypeError:
        return build()
    if not stored:
        stored.append(build())
    return stored[0]


@functools.lru_cache(maxsize=FUNCTIONS)
def _stored(key: Hashable) -> list[Any]:
    """Return the list that holds the result for `key`, empty at the first call."""
    # The only state in this package: `lru_cache` remembers the lists, `reuse` fills them.
    return []


@contextlib.contextmanager
def precision(wide: bool) -> Iterator[None]:
    """Enable float64 if `wide`, and exact matrix products; JAX's settings are restored."""
    with contextlib.ExitStack() as settings:
        # TensorFloat-32 or bfloat16 products would drown a small step.
        settings.enter_context(jax.default_matmul_precision("highest"))
        if wide:
            settings.enter_context(jax.enable_x64(True))
            # Arguments in float64 meet arrays of float32 that `f` holds, which may be forbidden.
            settings.enter_context(jax.numpy_dtype_promotion("standard"))
        # JAX's checks of its own programs refuse some that it makes, as by `remat` of a loop.
        settings.enter_context(jax.enable_checks(False))
        yield


def to_float64(value: Any) -> Any:
    """Return a floating or complex value in float64 or complex128, any other value as it is."""
    if not float_eps(getattr(value, "dtype", None)):
        return value
    return jnp.asarray(value).astype(np.promote_types(value.dtype, np.float64))


def equal_within(share: float, a: Any, b: np.ndarray) -> bool:
    """Whether two arrays differ by at most that share of the largest number; NaN equals NaN."""
    size = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
    return np.allclose(a, b, rtol=0, atol=share * size, equal_nan=True)


def traced(program: Callable[..., Any], *args: Any) -> tuple[ClosedJaxpr, Any]:
    """Trace `program` anew, with copies of the NumPy arrays that it holds.

    A trace that is stored then keeps nothing alive of what JAX remembers about the originals.
    Returns the structure of the outputs, too.
    """
    # JAX remembers the trace of a function, so a new function is traced each time.
    closed, shapes = jax.make_jaxpr(lambda *args: program(*args), return_shape=True)(*args)
    consts = [np.array(c) if isinstance(c, np.ndarray) else c for c in closed.consts]
    return ClosedJaxpr(closed.jaxpr, consts), jax.tree.structure(shapes)


def with_copies(program: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function to be compiled that holds copies of the arrays that `program` holds."""

    @functools.wraps(program)
    def call(*args, **options):
        closed, structure = traced(functools.partial(program, **options), *args)
        results = jaxpr_as_fun(with_products(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(structure, results)

    return call


def gradient_of(function: Function, moved: Any, fixed: Any, cotangents: Any) -> list[jax.Array]:
    """Return the gradient of the weighted outputs by reverse mode, as leaves."""
    out, pullback = jax.vjp(lambda m: function(m, fixed), list(moved))
    return pullback([jnp.asarray(c, v.dtype) for c, v in zip(cotangents, out, strict=True)])[0]


def _mapped_gradients(function, moved, fixed, cotangents):
    """Return the gradient for each row of cotangents, `[rows, ...]`, under `vmap`, as leaves."""
    # The arguments are mapped as well, since a rule may treat a constant argument differently.
    rows = len(cotangents[0])
    copies = [jnp.broadcast_to(v[None], (rows, *v.shape)) for v in moved]
    return jax.vmap(lambda m, c: gradient_of(function, m, fixed, c))(copies, cotangents)


def _change(function, moved, fixed, cotangents, base, direction, step):
    shifts = shifts_of(moved, step, direction)
    out = function([leaf + shift for leaf, shift in zip(moved, shifts, strict=True)], fixed)
    # Differences of outputs are weighted, since a sum of weighted outputs would cancel digits.
    return weighted(cotangents, [v - b for v, b in zip(out, base, strict=True)])


def _tangent(function, moved, fixed, cotangents, _, direction, step):
    return forward_derivative(function, moved, fixed, cotangents, shifts_of(moved, step, direction))


def forward_derivative(function, moved, fixed, cotangents, tangent):
    """Return the weighted tangent of the outputs by forward mode."""
    tangent = [jnp.asarray(t, leaf.dtype) for t, leaf in zip(tangent, moved, strict=True)]
    out = jax.jvp(lambda m: function(m, fixed), (list(moved),), (tangent,))[1]
    return weighted(cotangents, out)


def _or_without_jit(compiled, program):
    """Return a function that runs operation by operation what XLA compiles so that it fails.

    On a CPU some Fourier transforms beside matrix operations do, for want of the layout they need.
    """

    def call(*args):
        try:
            return jax.block_until_ready(compiled(*args))
        except jax.errors.JaxRuntimeError:
            return program(*args)

    return call


def _rows_one_by_one(row):
    def evaluate(moved, fixed, cotangents, base, directions, indices, steps, _):
        inputs, pairs = (moved, fixed, cotangents, base), zip(indices, steps, strict=True)
        return np.array([float(row(*inputs, directions[i], step)) for i, step in pairs])

    return evaluate


def _rows_compiled(program, function, compile):
    """Return a function that evaluates `program` at many (direction, step), `rows` at a time."""

    # `program` and `function` are fixed here, so that each pair is compiled on its own.
    @compile
    def loop(moved, fixed, cotangents, base, directions, indices, steps, count):
        def one(index, step):
            return program(function, moved, fixed, cotangents, base, directions[index], step)

        def body(i, out):
            index, step = indices[i], steps[i]
            # A single row is not mapped: the function may not allow it.
            result = jax.vmap(one)(index, step) if len(step) > 1 else one(index[0], step[0])[None]
            return jax.lax.dynamic_update_index_in_dim(out, result.astype(out.dtype), i, 0)

        return jax.lax.fori_loop(0, count, body, jnp.zeros_like(steps))

    def evaluate(moved, fixed, cotangents, base, directions, indices, steps, rows):
        total, count = len(steps), -(-len(steps) // rows)
        # Few sizes need few programs.
        size = max(-(-LEAST_ROWS // rows), 1 << (count - 1).bit_length())
        padding = (0, size * rows - total)
        indices, steps = (np.pad(a, padding).reshape(size, rows) for a in (indices, steps))
        steps = jnp.asarray(steps, jnp.finfo(jnp.result_type(*moved)).dtype)
        weights = [jnp.asarray(c) for c in cotangents]
        inputs = (moved, fixed, weights, base, directions, indices.astype(np.int32), steps)
        return np.asarray(loop(*inputs, np.int32(count)), np.float64).ravel()[:total]

    return evaluate


def _memory_if_mapped(function, moved, fixed) -> int | None:
    """Return the bytes of all results of one evaluation, or None if `jax.vmap` does not map it."""
    try:
        several = [jnp.stack([leaf, leaf]) for leaf in moved]
        closed = jax.make_jaxpr(jax.vmap(lambda m: function(m, fixed)))(several)
    except Exception:
        return None
    return _memory(closed.jaxpr) // 2


def _uses_fft(function, moved, fixed) -> bool:
    """Whether the function has a Fourier transform and runs on a CPU."""
    try:
        closed = jax.make_jaxpr(lambda m: function(m, fixed))(moved)
    except Exception:
        return False
    return jax.default_backend() == "cpu" and any(
        e.primitive.name == "fft" for e in equations_of(closed)
    )


def _memory(program: Any) -> int:
    """Return the bytes of the results of all operations; those in a loop count once."""
    total = 0
    for equation in getattr(program, "jaxpr", program).eqns:
        inner = sum(map(_memory, inner_programs(equation)))
        shapes = [v.aval for v in equation.outvars if hasattr(v.aval, "dtype")]
        total += inner or sum(a.size * a.dtype.itemsize for a in shapes)
    return total


def shifts_of(leaves: Sequence[Any], step: Any, direction: Any) -> list[jax.Array]:
    """Return `step` times the direction, as leaves."""
    shifts, start = [], 0
    for leaf in leaves:
        real, parts = jnp.finfo(leaf.dtype).dtype, []
        for _ in range(2 if jnp.iscomplexobj(leaf) else 1):
            part = direction[start : start + leaf.size].reshape(leaf.shape)
            parts.append(jnp.asarray(step, real) * jnp.asarray(part, real))
            start += leaf.size
        shifts.append(parts[0] if len(parts) == 1 else jax.lax.complex(*parts))
    return shifts


def weighted(cotangents: Sequence[Any], values: Sequence[Any]) -> Any:
    """Return the real part of `<cotangents, values>`, without a conjugate, as JAX defines it."""
    total = 0.0
    for cotangent, value in zip(cotangents, values, strict=True):
        cotangent = jnp.asarray(cotangent, value.dtype)
        # An output without a weight may be infinite.
        product = jnp.where(cotangent == 0, 0, value * cotangent)
        total = total + jnp.sum(jnp.real(product))
    return total


def coordinates(value: Any) -> np.ndarray:
    """Return the elements of a leaf as real coordinates, real parts before imaginary ones."""
    flat = np.asarray(value).ravel()
    parts = [np.real(flat), np.imag(flat)] if np.iscomplexobj(flat) else [flat]
    return np.concatenate(parts).astype(np.float64)


def gradient_coordinates(leaves: Sequence[Any]) -> np.ndarray:
    """Return a gradient as real coordinates `g`, so that `g @ shift` is the change of the function.

    JAX's gradient with respect to `x + iy` is `df/dx - i df/dy`, hence the conjugate.
    """
    arrays = map(np.asarray, leaves)
    return np.concatenate([coordinates(np.conj(a) if np.iscomplexobj(a) else a) for a in arrays])
