"""Checks of arguments, whose messages name the argument, the value that was passed and a remedy.

Checks of values accept whatever JAX is tracing, whose numbers are not known yet. Checks of shapes
and dtypes apply to traced values as well.
"""

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Whether `value` is a tracer, whose numbers are not known yet."""
    return isinstance(value, Tracer)


def key(name: str, value: Any) -> None:
    """Raise unless `value` is a single PRNG key, typed or as an array of uint32."""
    dtype, ndim = getattr(value, "dtype", None), np.ndim(value)
    # jax.random.key returns a scalar of its own dtype, jax.random.PRNGKey a vector of uint32.
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (ndim == 0 if typed else dtype == np.uint32 and ndim == 1):
        remedy = "pass jax.random.key(0), and use jax.vmap for several"
        raise TypeError(f"{name} must be one PRNG key, got {value!r}; {remedy}")


def integer(name: str, value: Any, minimum: int) -> int:
    """Return `value` as an `int` of at least `minimum`, or raise."""
    try:
        # True would pass as 1.
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        message = f"{name} must be a whole number, got {value!r}; pass a Python int"
        raise TypeError(message) from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}; pass a larger number")
    return number


def known(name: str, value: Any, caller: str) -> None:
    """Raise if a leaf of `value` is being traced; `caller` is the function that needs numbers."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(value)):
        remedy = f"call {caller} outside of jax.jit and jax.vmap"
        raise TypeError(f"{name} must be known, got a traced array; {remedy}")


def scalar(
    name: str, value: Any, *, minimum: float = -inf, above: bool = False, maximum: float = inf
) -> None:
    """Raise unless `value` is a finite number from `minimum`, excluded if `above`, to `maximum`."""
    if np.shape(value) != ():
        got = f"got shape {np.shape(value)}"
        raise ValueError(f"{name} must be one number, {got}; use jax.vmap for several")
    if is_traced(value):
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}; pass a float") from None
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}; pass an ordinary number")
    if number < minimum or (above and number == minimum):
        bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
        raise ValueError(f"{name} must be {bound}, got {number:g}; pass a larger number")
    if number > maximum:
        bound = f"at most {maximum:g}"
        raise ValueError(f"{name} must be {bound}, got {number:g}; pass a smaller number")


def vector(name: str, value: Any, *, length: int, axes: str) -> np.ndarray:
    """Return `value` as a vector of at least `length` float64 numbers, or raise."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        message = f"{name} must be numbers {axes}, got {value!r}; pass a sequence of floats"
        raise TypeError(message) from None
    if array.ndim != 1 or len(array) < length:
        rule = f"have shape {axes} with {length} or more numbers"
        raise ValueError(f"{name} must {rule}, got shape {array.shape}; pass a sequence of floats")
    return array


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return `value` as a dictionary whose keys are strings, or raise."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must map names to values, got {value!r}; pass a dict")
    return dict(value)


def choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}")


def shape(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return `value` as a tuple of at least `ndim` positive sizes, or raise."""
    # operator.index accepts NumPy's integers, but no floats.
    try:
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of whole numbers, got {value!r}") from None
    if len(sizes) < ndim or min(sizes, default=1) < 1:
        rule = f"have at least {ndim} dimensions, all of size 1 or more"
        raise ValueError(f"{name} must {rule}, got {sizes}")
    return sizes


def floating(name: str, value: Any, ndim: int, axes: str) -> jax.Array:
    """Return `value` as a finite floating-point array of `ndim` dimensions, or raise."""
    # JAX's own error does not name the argument.
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}") from None
    if not jnp.issubdtype(array.dtype, jnp.floating):
        remedy = f"convert it, for example with {name}.astype('float32'), and standardize it"
        raise TypeError(f"{name} must be floating point, got {array.dtype}; {remedy}")
    if array.ndim != ndim or 0 in array.shape:
        rule = f"have shape {axes} with no empty dimension"
        raise ValueError(f"{name} must {rule}, got {array.shape}; reshape it")
    if not is_traced(array):
        # NumPy, because inside a jitted function jax.numpy would trace a known array as well.
        bad = int(np.sum(~np.isfinite(np.asarray(array))))
        if bad:
            got = f"got {bad} NaN or infinite of {array.size} values"
            raise ValueError(f"{name} must be finite, {got}; remove or impute them")
    return array


def progress(value: Any) -> Callable[[int, int], Any]:
    """Return a function to be called as `progress(done, total)`, one without effect for `None`."""
    if value is not None and not callable(value):
        raise TypeError(f"progress must be callable, got {value!r}; pass a function")
    return (lambda done, total: None) if value is None else value


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raise unless `values` is not empty and has no repeated value."""
    if len(values) == 0:
        raise ValueError(f"{name} must not be empty, got no values; give at least one")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must not repeat a value, got {list(values)}; drop the repeats")


def numbers(name: str, value: Any, *, minimum: float = -inf, above: bool = False) -> None:
    """Raise unless all of `value` are finite numbers from `minimum`, excluded if `above`."""
    if is_traced(value):
        return
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, got {value!r}; pass floats") from None
    # Comparisons with NaN are false, so NaN is looked for separately.
    bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
    wrong = ~np.isfinite(array) | (array <= minimum if above else array < minimum)
    if wrong.any():
        got = f"got {array[wrong].ravel()[0]:g}"
        raise ValueError(f"{name} must be finite and {bound}, {got}; pass an ordinary number")
