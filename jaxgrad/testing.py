"""Assertions for a test suite: a test fails only if a gradient is wrong."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import checking
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
      args: all of them are differentiated where they are floating point.
      order: derivatives up to this order are checked.
      modes: "fwd" or "lin" for forward mode, "rev" for reverse mode.
      atol, eps: accepted but not used; error bars and steps depend on values of `f` alone.
      rtol: a relative error, or a mapping from dtypes to them. It is not used, since tolerances for
        differences in float32 would hide errors, unless `use_rtol` and it is larger than 1e-5.

    >>> import jax.numpy as jnp
    >>> check_grads(jnp.tanh, (jnp.arange(3.0),), order=2)
    """
    __tracebackhide__ = True
    del atol, eps
    if isinstance(rtol, Mapping):
        kinds = {jnp.result_type(leaf) for leaf in jax.tree.leaves(args)}
        values = {jnp.dtype(dtype): value for dtype, value in rtol.items()}
        rtol = max((values.get(kind, 0.0) for kind in kinds), default=0.0)
    least = max(1e-5, (rtol or 0.0) if use_rtol else 0.0)
    # A linearization is what forward mode gives.
    names = ["fwd" if mode == "lin" else mode for mode in ([modes] if modes in MODES else modes)]
    argnums, modes = tuple(range(len(args))), tuple(dict.fromkeys(names))
    assert_grads(f, *args, argnums=argnums, order=order, modes=modes, rtol=least)
