"""Assertions for a test suite: a test fails only if a gradient is wrong."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxgrad import checking

__all__ = ["assert_grads", "check_grads"]

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


def check_grads(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: Any = None,
    eps: float | None = None,
) -> None:
    """Raise unless derivatives are right: a drop-in for `jax.test_util.check_grads`.

    Args:
      f: a function of `args` that returns an array or a pytree of arrays.
      args: all of them are differentiated where they are floating point.
      order: derivatives up to this order are checked.
      modes: "fwd" or "lin" for forward mode, "rev" for reverse mode.
      atol, rtol, eps: accepted but not used. Tolerances of a test suite are made for differences in
        float32 and would hide errors; `assert_grads` takes an `rtol`.

    >>> import jax.numpy as jnp
    >>> check_grads(jnp.tanh, (jnp.arange(3.0),), order=2)
    """
    __tracebackhide__ = True
    del atol, rtol, eps
    # A linearization is what forward mode gives.
    names = ["fwd" if mode == "lin" else mode for mode in ([modes] if modes in MODES else modes)]
    argnums, modes = tuple(range(len(args))), tuple(dict.fromkeys(names))
    assert_grads(f, *args, argnums=argnums, order=order, modes=modes)
