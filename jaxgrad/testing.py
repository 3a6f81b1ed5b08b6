"""What a test suite imports: one line that goes red only when a gradient is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxgrad.checking import Report
from jaxgrad.checking import check_grads as _check_grads

__all__ = ["assert_grads", "check_grads"]


def assert_grads(f: Callable[..., Any], *args: Any, **options: Any) -> Report:
    """Raise unless the gradient of `f` at `args` is right.

    Args:
      f, *args, **options: of `jaxgrad.check_grads`.

    Returns:
      The report.

    Raises:
      AssertionError: with the report's table, if it is not `ok`.
      ValueError, TypeError: as of `jaxgrad.check_grads`.

    >>> import jax.numpy as jnp
    >>> assert_grads(jnp.sin, 1.0).verdict
    <Verdict.AGREE: 'AGREE'>
    """
    report = _check_grads(f, *args, **options)
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
    """A drop-in for `jax.test_util.check_grads`: raises unless derivatives are right.

    Args:
      f: a function of `args` that returns an array or pytree of them.
      args: all of them are differentiated where they are floating point.
      order: derivatives up to this one are checked.
      modes: "fwd" for forward mode, "rev" for reverse mode.
      atol, eps: accepted and not used; error bars and steps are found from the function's values.
      rtol: if larger than 1e-5, the relative error that is let pass.

    Raises:
      AssertionError: with a table of the leaves.
      ValueError, TypeError: as of `jaxgrad.check_grads`.

    >>> import jax.numpy as jnp
    >>> check_grads(jnp.tanh, (jnp.arange(3.0),), order=2)
    """
    del atol, eps
    args = tuple(args)
    assert_grads(
        f,
        *args,
        argnums=tuple(range(len(args))),
        order=order,
        modes=modes,
        rtol=max(1e-5, rtol or 0.0),
    )
