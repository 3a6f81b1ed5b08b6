"""`check_grads`: the gradient of any function against numeric derivatives, leaf by leaf."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxgrad import _validate
from jaxgrad.checking._report import Report, Verdict
from jaxgrad.checking._rule_check import wrong_rules
from jaxgrad.checking._stages import Settings, run_check, seed_of


def check_grads(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    modes: Sequence[str] = ("rev",),
    order: int = 1,
    exhaustive: int = 1024,
    directions: int = 6,
    rtol: float = 1e-5,
    strict: bool = False,
    key: jax.Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Report:
    """Check the gradient of `f` at `args` against numeric derivatives; `print` the report.

    Numeric derivatives are taken in float64 if `f` allows it, whatever the type of the arguments.
    Their steps and error bars depend only on values of `f`, never on the gradient. An element of
    the gradient is wrong if its distance from the numeric derivative exceeds the error bar, plus
    `rtol` of the element, plus 1e-5 of the root mean square of its leaf. The last two are larger if
    `f` computes in float32 or less; `rtol` is at least 1e-3 if `f` has loops that stop at a
    tolerance, as iterative solvers do.

    Args:
      f: returns a real number, or an array or pytree of them, which is then weighted by a random
        cotangent. It is called with tracers and compiled once for each function, as by `jax.jit`;
        a function that cannot be traced is called point by point.
      *args, argnums, has_aux, holomorphic: as for `jax.grad`. Leaves that are not floating point
        are held fixed.
      modes: "rev" checks reverse mode, "fwd" forward mode.
      order: 2 checks the derivative of the gradient along a random direction, too, and so on.
      exhaustive: if the leaves have at most this many coordinates in all, each is checked.
        Otherwise all leaves are first checked together, along random directions. A leaf that these
        do not show to be right is checked by itself: at each coordinate if it has at most 16, else
        along random directions, and the wrong elements of a wrong leaf are searched.
      directions: number of random directions through all leaves, or through one. Half of them are
        random signs, half normal.
      rtol: relative error of an element, or of a whole leaf, that may pass.
      strict: whether `report.ok` is false for `UNRESOLVED`.
      key: PRNG key of directions and cotangents; `None` takes the same ones each time.
      kwargs: arguments that `f` takes by name; they are not differentiated.

    Raises:
      TypeError, ValueError: if an argument is not as described, if nothing can be differentiated,
        if an argument is not finite, or if `f` raises.

    >>> import jax, jax.numpy as jnp
    >>> @jax.custom_vjp
    ... def scaled(x, w):
    ...     return x * w
    >>> scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda saved, ct: (ct * saved[1], ct))
    >>> report = check_grads(lambda p: scaled(p["x"], p["w"]).sum(),
    ...                      {"x": jnp.arange(3.0), "w": jnp.ones(3)})
    >>> [(leaf.path, str(leaf.verdict)) for leaf in report.leaves]
    [("['w']", 'WRONG'), ("['x']", 'AGREE')]
    """
    if not callable(f):
        raise TypeError(
            f"f must be a function, got {type(f).__name__}; pass it before its arguments"
        )
    order = _validate.integer("order", order, 1)
    exhaustive = _validate.integer("exhaustive", exhaustive, 0)
    count = _validate.integer("directions", directions, 2)
    _validate.scalar("rtol", rtol, minimum=0.0)
    _validate.flag("strict", strict)
    if not isinstance(modes, (str, tuple, list)):
        got = f"got {_validate.show(modes)}; pass for example ('rev',)"
        raise TypeError(f"modes must be a sequence of names, {got}")
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        _validate.choice("modes", mode, ("rev", "fwd"))
    _validate.distinct("modes", modes)
    options = {"argnums": argnums, "has_aux": has_aux, "holomorphic": holomorphic}
    options |= {"kwargs": kwargs}
    settings = Settings(modes, order, exhaustive, count, rtol, strict)
    report = run_check(f, args, settings, seed_of(key), **options)
    if report.verdict not in (Verdict.WRONG, Verdict.NONFINITE):
        return report
    try:
        wrong = wrong_rules(f, args, kwargs, key)
    except Exception:  # A function that cannot be traced is checked all the same.
        return report
    words = "none of the rules is wrong by itself" if wrong == [] else "wrong by itself: "
    notes = () if wrong is None else (words + ", ".join(wrong),)
    return dataclasses.replace(report, notes=(*report.notes, *notes))
