"""Assertions for a test suite: a test fails only if a gradient is wrong."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, checking
from jaxgrad.checking import arguments

__all__ = ["arguments", "assert_expectation", "assert_grads", "check_grads"]

MODES = ("fwd", "rev", "lin")


def assert_grads(
    f: Callable[..., Any], *args: Any, label: str = "", **options: Any
) -> checking.Report:
    """Raise unless the gradient of `f` at `args` is right.

    All other arguments are those of `jaxgrad.check_grads`, and so is the report that is returned.
    The message of the `AssertionError` is the label and the printed report.

    >>> import jax.numpy as jnp
    >>> assert_grads(jnp.sin, 1.0).verdict
    <Verdict.AGREE: 'AGREE'>
    """
    __tracebackhide__ = True  # pytest then shows the line of the test
    _validate.text("label", label)
    report = checking.check_grads(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"{label}\n{report}")
    return report


def assert_expectation(
    f: Callable[..., Any], *args: Any, key: jax.Array, label: str = "", **options: Any
) -> checking.ExpectationReport:
    """Raise unless the mean over keys of the gradient of `f` is the gradient of the mean.

    All other arguments are those of `jaxgrad.checking.check_expectation`, and so is the report that
    is returned. The message of the `AssertionError` is the label and the printed report.

    >>> import jax
    >>> assert_expectation(lambda key, m: (m + jax.random.normal(key)) ** 2, 1.0,
    ...                    key=jax.random.key(0)).verdict
    <ExpectationVerdict.UNBIASED: 'UNBIASED'>
    """
    __tracebackhide__ = True
    _validate.text("label", label)
    report = checking.check_expectation(f, *args, key=key, **options)
    if not report.ok:
        raise AssertionError(f"{label}\n{report}")
    return report


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: Any = None,
    eps: float | None = None,
    *,
    use_rtol: bool = False,
) -> None:
    """Raise unless derivatives are right: a drop-in for `jax.test_util.check_grads`.

    Args:
      f: a function of `args` that returns an array or a pytree of arrays.
      args: all of them are differentiated where they are floating point. Elements that are not
        finite cannot be moved: where `f` is finite all the same, its derivative there must be zero.
      order: derivatives up to this order are checked.
      modes: "fwd" or "lin" for forward mode, "rev" for reverse mode.
      atol, eps: accepted but not used; error bars and steps depend on values of `f` alone.
      rtol: a relative error, or a mapping from dtypes to them. It is not used, since tolerances for
        differences in float32 would hide errors, unless `use_rtol` and it is larger than 1e-5.

    Raises:
      AssertionError: if a derivative is wrong, with the report.
      Exception: what `f` or its rules raise, as they raise it.

    >>> import jax.numpy as jnp
    >>> check_grads(jnp.tanh, (jnp.arange(3.0),), order=2)
    """
    __tracebackhide__ = True
    del atol, eps
    _validate.function("f", f)
    _validate.flag("use_rtol", use_rtol)
    order = _validate.integer("order", order, 1)
    if isinstance(args, str) or not isinstance(args, Iterable):
        got = f"got {_validate.show(args)}; write (x,) for a single one"
        raise TypeError(f"args must be a tuple of arguments, {got}")
    if isinstance(modes, Mapping) or not isinstance(modes, Iterable):
        got = f"got {_validate.show(modes)}; pass for example ('fwd', 'rev')"
        raise TypeError(f"modes must be a sequence of names, {got}")
    if isinstance(rtol, Mapping):
        kinds = {jnp.result_type(leaf) for leaf in jax.tree.leaves(args)}
        values = {jnp.dtype(dtype): value for dtype, value in rtol.items()}
        rtol = max((values.get(kind, 0.0) for kind in kinds), default=0.0)
    if rtol is not None:
        _validate.scalar("rtol", rtol, minimum=0.0)
    least = max(1e-5, (rtol or 0.0) if use_rtol else 0.0)
    # A linearization is what forward mode gives.
    names = ["fwd" if mode == "lin" else mode for mode in ([modes] if modes in MODES else modes)]
    modes = tuple(dict.fromkeys(names))
    leaves, structure = jax.tree.flatten(tuple(args))
    finite = [_is_finite(leaf) for leaf in leaves]
    if not all(map(np.all, finite)):
        _check_limits(f, args, modes, structure.unflatten(~where for where in finite))
        if not any(np.any(_is_finite(leaf)) for leaf in jax.tree.leaves(f(*args))):
            return  # NaN for NaN: nothing can be measured.
        # What is left to check is a function of the finite elements.
        arrays, places = list(map(jnp.asarray, leaves)), list(map(np.flatnonzero, finite))

        def fill(*parts, f=f):
            triples = zip(arrays, places, parts, strict=True)
            filled = (a.ravel().at[p].set(part).reshape(a.shape) for a, p, part in triples)
            return f(*structure.unflatten(filled))

        f, args = fill, [a.ravel()[p] for a, p in zip(arrays, places, strict=True)]
    inexact = [leaf for leaf in jax.tree.leaves(args) if jnp.issubdtype(_dtype(leaf), jnp.inexact)]
    if inexact and not any(map(np.size, inexact)):
        return  # There is nothing to differentiate by, and so nothing wrong.
    try:
        assert_grads(
            _Outputs(f),
            *args,
            argnums=tuple(range(len(args))),
            order=order,
            modes=modes,
            rtol=least,
        )
    except ValueError as error:
        # A test may expect the error that `f` or its rule raises.
        raise (error.__cause__ or error) from None


@dataclass(frozen=True)
class _Outputs:
    """A function whose complex numbers are arrays, so that they have weights; equal if `f` is."""

    f: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return jax.tree.map(
            lambda v: jnp.reshape(v, 1) if jnp.ndim(v) == 0 and jnp.iscomplexobj(v) else v,
            self.f(*args),
        )


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", None) or jnp.result_type(leaf)


def _is_finite(leaf: Any) -> np.ndarray:
    """Return where an array is finite; numbers of other types than floating point are."""
    inexact = jnp.issubdtype(_dtype(leaf), jnp.inexact)
    return np.isfinite(leaf) if inexact else np.ones(np.shape(leaf), bool)


def _check_limits(f: Callable[..., Any], args: Sequence[Any], modes, infinite: Any) -> None:
    """Raise if a finite output has a slope in elements that are `infinite` or NaN."""
    # Another infinite number is the same one, so that `f` does not change.
    args = jax.tree.map(jnp.asarray, tuple(args))

    def slope(mode):
        if mode == "fwd":
            tangent = jax.tree.map(lambda a, where: jnp.asarray(where, a.dtype), args, infinite)
            out, slopes = jax.jvp(f, args, tangent)
            return jax.tree.map(lambda v, t: jnp.where(jnp.isfinite(v), t, 0), out, slopes)
        out, pullback = jax.vjp(f, *args)
        if not all(np.all(_is_finite(leaf)) for leaf in jax.tree.leaves(out)):
            return []  # Whatever the cotangent is, products with infinite numbers may be NaN.
        gradient = pullback(jax.tree.map(jnp.ones_like, out))
        return jax.tree.map(lambda g, where: jnp.where(where, g, 0), gradient, infinite)

    for mode in modes:
        for leaf in jax.tree.leaves(slope(mode)):
            wrong = np.asarray(leaf)[np.asarray(leaf) != 0]
            if wrong.size:
                raise AssertionError(
                    f"the derivative is {wrong[0]} in {mode} mode at an argument that is not "
                    "finite, where f is finite and does not change"
                )
