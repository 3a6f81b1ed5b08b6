"""The leaves of a function's arguments, sorted into moved, fixed and static ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad._numerics import rms
from jaxgrad.checking._programs import coordinates

NUMBERS = (np.number, np.bool_, jax.dtypes.prng_key)


@dataclass(frozen=True)
class FlatFunction:
    """A user's function as a function of (moved leaves, fixed arrays)."""

    f: Callable[..., Any]
    structure: Any  # of its positional arguments
    kinds: tuple[tuple[str, Any], ...]  # of each leaf "moved", "fixed" or "static", and a value
    has_aux: bool  # whether `f` returns a pair whose second part is not differentiated

    def arguments(self, moved: Sequence[Any], fixed: Sequence[Any]) -> tuple[Any, ...]:
        """Return the arguments of `f`."""
        arrays = {"moved": iter(moved), "fixed": iter(fixed)}
        leaves = [value if kind == "static" else next(arrays[kind]) for kind, value in self.kinds]
        return jax.tree.unflatten(self.structure, leaves)

    def __call__(self, moved: Sequence[Any], fixed: Sequence[Any]) -> list[jax.Array]:
        """Return the floating-point outputs as a list."""
        out = self.f(*self.arguments(moved, fixed))
        if self.has_aux:
            if not (isinstance(out, (tuple, list)) and len(out) == 2):
                raise TypeError(f"f must return a pair with has_aux=True, got {type(out).__name__}")
            out = out[0]
        outputs = [jnp.asarray(leaf) for leaf in jax.tree.leaves(out) if _is_inexact(leaf)]
        if not outputs:
            kinds = jax.tree.map(_type_and_shape, out)
            raise TypeError(f"f must return a floating-point number or array, got {kinds}")
        return outputs


class LeafInfo(NamedTuple):
    """A moved leaf; its coordinates are `start ... stop - 1`, two for a complex element."""

    path: str  # `jax.tree_util.keystr` within the gradient that `jax.grad` would return
    shape: tuple[int, ...]
    dtype: Any
    start: int
    stop: int

    @property
    def part(self) -> slice:
        """Its coordinates among those of all leaves."""
        return slice(self.start, self.stop)

    @property
    def complex(self) -> bool:
        """Whether the elements are complex; all real parts come first."""
        return bool(jnp.issubdtype(self.dtype, jnp.complexfloating))

    @property
    def axes(self) -> tuple[int, ...]:
        """The shape of its coordinates: a complex leaf has a first axis of size 2."""
        return (2, *self.shape) if self.complex else self.shape

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start


@dataclass(frozen=True)
class Arguments:
    """A function and its arguments as leaves, in the types that the user gave them."""

    function: FlatFunction
    moved: list[jax.Array]
    fixed: list[Any]
    leaves: tuple[LeafInfo, ...]  # about the moved leaves
    left_out: tuple[tuple[str, str], ...]  # (path, type) of leaves that cannot be moved
    point: np.ndarray  # the moved leaves as coordinates, [size]
    scales: np.ndarray  # root mean square of each leaf, or 1 if it is zero, [L]


@dataclass(frozen=True)
class _WithKeywords:
    """A function whose last positional argument holds its keyword arguments."""

    f: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.f(*args[:-1], **args[-1])


def sort_arguments(
    f: Callable[..., Any], args: tuple[Any, ...], argnums: Any, has_aux, holomorphic, kwargs=None
) -> Arguments:
    """Sort the leaves of `args`; see `check_grads` for the arguments."""
    indices = _indices(argnums, len(args))
    _validate.flag("has_aux", has_aux)
    _validate.flag("holomorphic", holomorphic)
    if kwargs is not None:
        f, args = _WithKeywords(f), (*args, _validate.mapping("kwargs", kwargs))
    kinds, moved, fixed, leaves, left_out = [], [], [], [], []
    start = 0
    for position, arg in enumerate(args):
        selected = position in indices
        prefix = "" if selected else f"args[{position}]"
        if selected and not isinstance(argnums, int):
            # For several arguments `jax.grad` returns a tuple, which the path begins with.
            prefix = f"[{indices.index(position)}]"
        flat, _ = jax.tree_util.tree_flatten_with_path(arg, is_leaf=lambda leaf: leaf is None)
        for path, leaf in flat:
            name = prefix + jax.tree_util.keystr(path)
            if leaf is None:
                # Not a leaf of the pytree, but a reader may expect a gradient for it.
                left_out += [(name, "None")] if selected else []
                continue
            if _validate.is_traced(leaf):
                raise TypeError(
                    f"args must be arrays with known values, got a tracer at {name or 'args'}; "
                    "call check_grads outside of jit, vmap and grad"
                )
            dtype = leaf.dtype if isinstance(leaf, (jax.Array, np.ndarray, np.generic)) else None
            numeric = dtype is not None or isinstance(leaf, (float, complex))
            empty = numeric and not np.size(leaf)
            if selected and numeric and _is_inexact(leaf) and not empty:
                moved.append(_check_leaf(name, jnp.asarray(leaf), holomorphic))
                stop = start + np.size(leaf) * (2 if jnp.iscomplexobj(leaf) else 1)
                leaves.append(LeafInfo(name, np.shape(leaf), moved[-1].dtype, start, stop))
                kinds.append(("moved", None))
                start = stop
                continue
            if selected:
                left_out.append((name, "empty" if empty else _type_and_shape(leaf)))
            number = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in NUMBERS)
            fixed += [leaf] if number else []
            kinds.append(("fixed", None) if number else ("static", leaf))
    if not leaves:
        raise TypeError(
            f"argnums={argnums} must choose an argument with floating-point leaves, got only "
            + (", ".join(kind for _, kind in left_out[:4]) or "no leaves")
            + "; convert them to a floating-point type or choose another argument"
        )
    function = FlatFunction(f, jax.tree.structure(args), tuple(kinds), has_aux)
    point = np.concatenate([coordinates(value) for value in moved])
    scales = np.array([rms(point[info.part]) or 1.0 for info in leaves])
    return Arguments(function, moved, fixed, tuple(leaves), tuple(left_out), point, scales)


def _indices(argnums: Any, count: int) -> list[int]:
    try:
        sequence = argnums if isinstance(argnums, (tuple, list)) else (argnums,)
        indices = [_validate.integer("argnums", i, -count) for i in sequence]
    except TypeError:
        raise TypeError(
            f"argnums must be a whole number or a sequence of them, got {_validate.show(argnums)}"
        ) from None
    if not indices or any(i >= count for i in indices):
        raise ValueError(
            f"argnums must choose among the {count} arguments given, got {argnums}; pass the "
            "arguments of f after f"
        )
    indices = [i % count for i in indices]
    _validate.distinct("argnums", indices)
    return indices


def _check_leaf(name: str, value: jax.Array, holomorphic: bool) -> jax.Array:
    if holomorphic and not jnp.iscomplexobj(value):
        raise TypeError(
            f"args must be complex with holomorphic=True, got {value.dtype} at "
            f"{name or 'the argument'}; convert it to a complex type"
        )
    bad = int(np.sum(~np.isfinite(np.asarray(value))))
    if bad:
        raise ValueError(
            f"args must be finite, got {bad} NaN or infinite of {value.size} values at "
            f"{name or 'the argument'}; check at a point where the function is defined"
        )
    return value


def _is_inexact(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, (float, complex))
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _type_and_shape(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return type(leaf).__name__ if dtype is None else f"{dtype}{list(np.shape(leaf))}"
