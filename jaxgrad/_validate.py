"""Checks of arguments, whose messages name the argument, the value that was passed and a remedy.

Checks of values accept whatever JAX is tracing, whose numbers are not known yet. Checks of shapes
and dtypes apply to traced values as well.
"""

import importlib.util
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T")
LARGEST = 2**31 - 1
"""JAX counts in 32 bits, unless it is told otherwise."""


def installed(user: str, extra: str, *packages: str) -> None:
    """Raise ImportError, which names the extra to install, unless optional packages are there."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        remedy = f'run python -m pip install "jaxgrad[{extra}]"'
        raise ImportError(f"{user} needs {' and '.join(missing)}; {remedy}")


def is_traced(value: Any) -> bool:
    """Whether `value` is a tracer, whose numbers are not known yet."""
    return isinstance(value, Tracer)


def show(value: Any) -> str:
    """Return a short text of one line for a message."""
    if isinstance(value, (np.ndarray, jax.Array)) and not is_traced(value) and value.size > 4:
        return f"an array of {value.dtype} and shape {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no whole number of more than 4,300 digits.
        text = f"{type(value).__name__} that is too large"
    return text if len(text) <= 100 else f"{text[:97]}..."


def key(name: str, value: Any) -> None:
    """Raise unless `value` is a single PRNG key, typed or as an array of uint32."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    # jax.random.key returns a scalar of its own dtype, jax.random.PRNGKey a vector of uint32.
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    kind = getattr(jax.config, "jax_default_prng_impl", "threefry2x32")
    words = 2 if kind.startswith("threefry") else 4
    if not (shape == () if typed else dtype == np.uint32 and shape == (words,)):
        remedy = "pass jax.random.key(0), and use jax.vmap for several"
        raise TypeError(f"{name} must be one PRNG key, got {show(value)}; {remedy}")


def integer(name: str, value: Any, minimum: int, maximum: int = 2**63 - 1) -> int:
    """Return `value` as an `int` from `minimum` to `maximum`, or raise."""
    number = _index(value)
    if number is None:
        raise TypeError(f"{name} must be a whole number, got {show(value)}; pass a Python int")
    if number < minimum:
        got = f"got {show(number)}; pass a larger number"
        raise ValueError(f"{name} must be at least {minimum}, {got}")
    if number > maximum:
        got = f"got {show(number)}; pass a smaller number"
        raise ValueError(f"{name} must be at most {maximum}, {got}")
    return number


def integers(name: str, value: Any, minimum: int) -> tuple[int, ...]:
    """Return `value` as a tuple of one or more whole numbers of at least `minimum`, or raise."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        got = f"got {show(value)}; pass a tuple of Python ints"
        raise TypeError(f"{name} must be a sequence of whole numbers, {got}")
    numbers = tuple(integer(name, number, minimum) for number in value)
    if not numbers:
        raise ValueError(f"{name} must not be empty, got no numbers; give at least one")
    return numbers


def _index(value: Any) -> int | None:
    # True would pass as 1.
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        # operator.index accepts NumPy's integers, but no floats.
        return operator.index(value)
    except TypeError:
        return None


def flag(name: str, value: Any) -> None:
    """Raise unless `value` is `True` or `False`."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {show(value)}; pass one of them")


def function(name: str, value: Any) -> None:
    """Raise unless `value` can be called."""
    if not callable(value):
        remedy = "pass the function itself, before its arguments"
        raise TypeError(f"{name} must be a function, got {show(value)}; {remedy}")


def text(name: str, value: Any) -> None:
    """Raise unless `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {show(value)}; pass a str")


def pattern(name: str, value: Any) -> None:
    """Raise unless `value` is a regular expression."""
    try:
        if not isinstance(value, str):
            raise TypeError
        re.compile(value)
    except (TypeError, re.error):
        got = f"got {show(value)}; pass a str such as '^hidden/'"
        raise TypeError(f"{name} must be a regular expression, {got}") from None


def attributes(name: str, value: Any, required: Sequence[str], source: str) -> None:
    """Raise unless `value` has all attributes of what `source` returns."""
    missing = [part for part in required if not hasattr(value, part)]
    if missing:
        got = f"got {show(value)} without {', '.join(missing)}"
        raise TypeError(f"{name} must be what {source} returns, {got}; pass that")


def instance(name: str, value: Any, kind: type[T], source: str) -> T:
    """Return `value` if it is a `kind`, which `source` makes, or raise."""
    if not isinstance(value, kind):
        remedy = f"pass what {source} returns"
        raise TypeError(f"{name} must be of type {kind.__name__}, got {show(value)}; {remedy}")
    return value


def dtype(name: str, value: Any) -> np.dtype:
    """Return `value` as a floating-point dtype, or raise."""
    # NumPy takes None for float64, and any type for object.
    try:
        kind = None if value is None else jnp.dtype(value)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        got = f"got {show(value) if kind is None else kind}"
        raise TypeError(f"{name} must be floating, {got}; pass jnp.float32")
    return kind


def known(name: str, value: Any, caller: str) -> None:
    """Raise if a leaf of `value` is being traced; `caller` is the function that needs numbers."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(value)):
        remedy = f"call {caller} outside of jax.jit and jax.vmap"
        raise TypeError(f"{name} must be known, got a traced array; {remedy}")


def tree(name: str, value: Any, *, empty: bool = False, floating: bool = False) -> None:
    """Raise unless all leaves of `value` are numbers or arrays, `floating` ones if required.

    A tree without any leaf passes only if `empty`.
    """
    try:
        jax.tree.leaves(value)
    except (TypeError, ValueError):
        got = f"got {show(value)}; make all keys of a dict texts"
        raise TypeError(f"{name} must have keys that can be sorted, {got}") from None
    kind = "floating-point " if floating else ""
    remedy = "pass nested dicts, lists or tuples of them"
    if not empty and not jax.tree.leaves(value):
        got = f"got {show(value)}, which has none"
        raise TypeError(f"{name} must be a pytree of {kind}arrays, {got}; {remedy}")

    def passes(leaf):
        leaf_dtype = _dtype(leaf)
        return leaf_dtype is not None and (not floating or jnp.issubdtype(leaf_dtype, jnp.floating))

    if all(map(passes, jax.tree.leaves(value))):
        return
    # Paths take long to make, so that only a wrong tree has them.
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not passes(leaf):
            got = f"got {show(leaf)} {jax.tree_util.keystr(path)}".rstrip()
            raise TypeError(f"{name} must be a pytree of {kind}arrays, {got}; {remedy}")


def _dtype(leaf: Any) -> Any:
    """The dtype of a number or array of numbers that JAX knows, `None` for anything else."""
    if isinstance(leaf, jax.Array):
        return leaf.dtype
    if not isinstance(leaf, (bool, int, float, complex, np.ndarray, np.generic)):
        # Shapes alone, as of jax.eval_shape.
        return leaf.dtype if isinstance(leaf, jax.ShapeDtypeStruct) else None
    if type(leaf) is int and abs(leaf) > np.iinfo(jax.dtypes.canonicalize_dtype(np.int64)).max:
        return None
    kind = np.result_type(leaf)
    # NumPy's longest numbers are none of JAX.
    if kind.kind in "fc" and kind.itemsize > (8 if kind.kind == "f" else 16):
        return None
    numeric = jnp.issubdtype(kind, np.number) or kind == np.bool_
    return kind if numeric else None


def _plain(value: Any) -> np.ndarray | None:
    """Return real numbers as an array of float64, and `None` for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # a tracer inside of a list, or lists of different lengths
        return None
    # NumPy would read numbers in texts, and has no dtype for whole numbers beyond 64 bits.
    if jnp.issubdtype(array.dtype, np.number) and not np.iscomplexobj(array):
        return array.astype(np.float64, copy=False)
    return array.astype(np.float64) if _is_large_int(value) else None


def _is_large_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST


def scalar(
    name: str, value: Any, *, minimum: float = -inf, above: bool = False, maximum: float = inf
) -> None:
    """Raise unless `value` is a finite number from `minimum`, excluded if `above`, to `maximum`."""
    if is_traced(value):
        if value.shape != ():
            got = f"got shape {value.shape}"
            raise ValueError(f"{name} must be one number, {got}; use jax.vmap for several")
        return
    # JAX refuses a larger Python int, where it would be used as an array of int32.
    if _is_large_int(value):
        got = f"got {show(value)}; pass a float"
        raise ValueError(f"{name} must be a number of at most 32 bits or a float, {got}")
    array = _plain(value)
    if array is None:
        raise TypeError(f"{name} must be a number, got {show(value)}; pass a float")
    if array.shape != ():
        got = f"got shape {array.shape}"
        raise ValueError(f"{name} must be one number, {got}; use jax.vmap for several")
    number = float(array)
    if not isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}; pass an ordinary number")
    if number < minimum or (above and number == minimum):
        bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
        raise ValueError(f"{name} must be {bound}, got {number:g}; pass a larger number")
    if number > maximum:
        bound = f"at most {maximum:g}"
        raise ValueError(f"{name} must be {bound}, got {number:g}; pass a smaller number")


def in_float64(name: str, value: Any) -> np.ndarray:
    """Return real numbers of any shape, whose values are known, as float64, or raise."""
    array = _plain(value)
    if array is None:
        raise TypeError(f"{name} must be real numbers, got {show(value)}; pass a NumPy array")
    return array


def vector(name: str, value: Any, *, length: int, axes: str) -> np.ndarray:
    """Return `value` as a vector of at least `length` float64 numbers, or raise."""
    array = _plain(value)
    if array is None:
        message = f"{name} must be numbers {axes}, got {show(value)}; pass a sequence of floats"
        raise TypeError(message)
    if array.ndim != 1 or len(array) < length:
        rule = f"have shape {axes} with {length} or more numbers"
        raise ValueError(f"{name} must {rule}, got shape {array.shape}; pass a sequence of floats")
    return array


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return `value` as a dictionary whose keys are strings, or raise."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must map names to values, got {show(value)}; pass a dict")
    return dict(value)


def choice(name: str, value: Any, options: Collection[str]) -> None:
    """Raise unless `value` is one of `options`."""
    if not isinstance(value, str) or value not in options:
        rule = f"be one of {', '.join(options)}"
        raise ValueError(f"{name} must {rule}; got {show(value)}")


def shape(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """Return `value` as a tuple of at least `ndim` positive sizes, or raise."""
    indices = [_index(size) for size in value] if isinstance(value, Iterable) else [None]
    sizes = tuple(size for size in indices if size is not None)
    if len(sizes) < len(indices):
        got = f"got {show(value)}; pass for example (8,)"
        raise TypeError(f"{name} must be a sequence of whole numbers, {got}")
    if len(sizes) < ndim or min(sizes, default=1) < 1:
        rule = f"have at least {ndim} dimensions, all of size 1 or more"
        raise ValueError(f"{name} must {rule}, got {show(sizes)}")
    if max(sizes, default=1) > LARGEST:
        got = f"got {show(sizes)}; pass smaller ones"
        raise ValueError(f"{name} must have sizes of at most {LARGEST}, {got}")
    return sizes


def floating(name: str, value: Any, ndim: int, axes: str, *, more: bool = False) -> jax.Array:
    """Return `value` as a finite floating-point array of `ndim` dimensions, or `more`, or raise."""
    array = _as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        remedy = f"convert it, for example with {name}.astype('float32'), and standardize it"
        raise TypeError(f"{name} must be floating point, got {array.dtype}; {remedy}")
    if array.ndim < ndim or (array.ndim > ndim and not more) or 0 in array.shape:
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


def real(name: str, value: Any, ndim: int | None = None) -> jax.Array:
    """Return `value` as an array of real numbers, NaN and infinity included, or raise.

    It may be empty, and has `ndim` dimensions if that is a number.
    """
    array = _as_array(name, value)
    if ndim not in (None, array.ndim):
        rule = "one number" if ndim == 0 else f"an array of {ndim} dimensions"
        remedy = "use jax.vmap for several" if ndim == 0 else "reshape it"
        raise ValueError(f"{name} must be {rule}, got shape {array.shape}; {remedy}")
    if not jnp.issubdtype(array.dtype, np.number) or jnp.iscomplexobj(array):
        got = f"got {array.dtype}; convert it, for example with {name}.astype('float32')"
        raise TypeError(f"{name} must be real numbers, {got}")
    return array


def _as_array(name: str, value: Any) -> jax.Array:
    # JAX's own errors do not name the argument, and it takes some texts for names of types.
    try:
        if any(isinstance(leaf, (str, bytes)) for leaf in jax.tree.leaves(value)):
            raise TypeError
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        got = f"got {show(value)}; pass a NumPy or JAX array"
        raise TypeError(f"{name} must be an array of numbers, {got}") from None


def distinct(name: str, values: Sequence[Any]) -> None:
    """Raise unless `values` is not empty and has no repeated value."""
    if len(values) == 0:
        raise ValueError(f"{name} must not be empty, got no values; give at least one")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} must not repeat a value, got {list(values)}; drop the repeats")


def numbers(
    name: str,
    value: Any,
    *,
    minimum: float = -inf,
    above: bool = False,
    maximum: float = inf,
) -> None:
    """Raise unless all of `value` are finite numbers from `minimum`, excluded if `above`."""
    if is_traced(value):
        return
    array = None if _is_large_int(value) else _plain(value)
    if array is None:
        raise TypeError(f"{name} must be numbers, got {show(value)}; pass floats")
    # Comparisons with NaN are false, so NaN is looked for separately.
    bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
    bound += f" and at most {maximum:g}" if maximum < inf else ""
    wrong = ~np.isfinite(array) | (array <= minimum if above else array < minimum)
    wrong |= array > maximum
    if wrong.any():
        got = f"got {array[wrong].ravel()[0]:g}"
        raise ValueError(f"{name} must be finite and {bound}, {got}; pass an ordinary number")
