"""Assertions for a test suite: a test fails only if a gradient is wrong."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxgrad import checking

__all__ = ["assert_grads", "check_grads"]


def assert_grads(f: Callable[..., Any], *args: Any, **options: Any) -> checking.Report:
    """Raise unless the gradient of `f` at `args` is right.

    All arguments are those of `jaxgrad.check_grads`, and so is the report that is returned. The
    message of the `AssertionError` is the printed report.

    >>> import jax.numpy as jnp
    >>> assert_grads(jnp.sin, 1.0).verdict
    <Verdict.AGREE: 'AGREE'>
    """
    report = checking.check_grads(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"\n{report}")
    return report


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Raise unless derivatives are right: a drop-in for `jax.test_util.check_grads`.

    Args:
      f: a function of `args` that returns an array or a pytree of arrays.
      args: all of them are differentiated where they are floating point.
      order: derivatives up to this order are checked.
      modes: "fwd" for forward mode, "rev" for reverse mode.
      atol, eps: accepted but not used; error bars and steps depend on values of `f` alone.
      rtol: the relative error that may pass, if it is larger than 1e-5.

    >>> import jax.numpy as jnp
    >>> check_grads(jnp.tanh, (jnp.arange(3.0),), order=2)
    """
    del atol, eps
    argnums, rtol = tuple(range(len(args))), max(1e-5, rtol or 0.0)
    assert_grads(f, *args, argnums=argnums, order=order, modes=modes, rtol=rtol)
