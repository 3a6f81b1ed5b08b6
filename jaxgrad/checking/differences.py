"""The numeric derivative of a function, in several ways.

`derivative` and `gradient` find their steps themselves and give an error bar. `central_difference`,
`one_sided_difference` and `complex_step` take one fixed step for every coordinate, as textbooks
have it, and are pure functions for your own jitted code. `taylor_remainder` holds a gradient
against the function along one direction. `relative_error` and `tier` are the course's verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxgrad import _validate
from jaxgrad.checking.evaluation import Opened
from jaxgrad.checking.ladders import Derivative
from jaxgrad.checking.probing import LARGEST_STEP, Prober

TIERS = {
    "course": ((1e-7, "right"), (1e-5, "look again"), (1e-3, "suspicious"), (jnp.inf, "wrong")),
    "second text": ((1e-7, "right"), (1e-4, "acceptable"), (1e-2, "look"), (jnp.inf, "wrong")),
}
"""What each seed text says of a relative error below the number."""

BATCH_BYTES = 2**22
"""Copies of a perturbed leaf that are held at a time: what stays in a core's cache."""


def central_difference(f: Callable[[Any], jax.Array], x: Any, eps: float = 1e-4) -> Any:
    """The plain two-sided difference `(f(x + eps e_i) - f(x - eps e_i)) / (2 eps)`.

    One fixed step for every coordinate, as the course has it: the error is of order `eps^2` plus
    rounding of order `|f| 2^-24 / eps` in float32, so use it under `jax.enable_x64(True)`.

    Args:
      f: maps a pytree to a scalar.
      x: a pytree of floating-point arrays.
      eps: the step, positive.

    Returns:
      A pytree like `x` with the numeric gradient.

    Raises:
      ValueError, TypeError: if the step is not positive, a leaf is not floating point, or `f` does
        not return a scalar.

    Source: CS230/Deep Learning Specialization, "Gradient checking".

    >>> with jax.enable_x64(True):
    ...     slope = central_difference(lambda theta: theta**2, jnp.asarray(3.0))
    >>> round(float(slope), 6)
    6.0
    """
    return _by_coordinate(f, x, eps, (1.0, -1.0), lambda v: (v[0] - v[1]) / (2 * eps))


def one_sided_difference(f: Callable[[Any], jax.Array], x: Any, eps: float = 1e-7) -> Any:
    """The one-sided difference `(f(x + eps e_i) - f(x)) / eps`, with an error of order `eps`.

    A negative `eps` looks to the other side: at a kink the two differ.

    Args, returns and raises as `central_difference`, but `eps` may be negative.

    >>> slopes = [one_sided_difference(jnp.abs, jnp.float32(0.0), eps) for eps in (0.5, -0.5)]
    >>> [float(slope) for slope in slopes]
    [1.0, -1.0]
    """
    return _by_coordinate(f, x, eps, (1.0, 0.0), lambda v: (v[0] - v[1]) / eps, signed=True)


def complex_step(f: Callable[[Any], jax.Array], x: Any, eps: float = 1e-20) -> Any:
    """The complex-step derivative `Im f(x + i eps e_i) / eps`, without cancellation.

    Right to rounding for functions that are analytic and made of operations that JAX defines for
    complex numbers; wrong without notice for `abs`, `max`, comparisons and conjugates, and
    impossible for most functions with a derivative rule of their own.

    Args:
      f: maps a pytree to a scalar.
      x: a pytree of real floating-point arrays.
      eps: the step, positive; its square must vanish beside 1.

    Returns:
      A pytree like `x` with the numeric gradient.

    Raises:
      ValueError, TypeError: as of `central_difference`.

    Source: Squire, Trapp (1998), "Using complex variables to estimate derivatives of real
    functions".

    >>> round(float(complex_step(jnp.exp, jnp.float32(0.0))), 6)
    1.0
    """
    _validate.scalar("eps", eps, minimum=0.0, above=True)
    _check(f, x)
    complex_x = jax.tree.map(lambda a: jax.lax.complex(jnp.asarray(a), jnp.zeros_like(a)), x)
    out = _by_coordinate(f, complex_x, eps, (1j,), lambda v: jnp.imag(v[0]) / eps, checked=True)
    return jax.tree.map(jnp.real, out)


def taylor_remainder(
    f: Callable[[Any], jax.Array],
    x: Any,
    gradient: Any,
    direction: Any,
    steps: Any = tuple(2.0**-k for k in range(2, 12)),
) -> TaylorRemainder:
    """How `|f(x + h d) - f(x) - h <gradient, d>|` shrinks with the step `h`.

    With the right gradient the remainder falls as `h^2`, with a wrong one as `h`: the slope of its
    logarithm is 2 or 1. For few steps much larger than rounding, so use float64.

    Args:
      f: maps a pytree to a scalar.
      x: a pytree of floating-point arrays.
      gradient, direction: pytrees like `x`.
      steps: `[K]`, positive.

    Returns:
      `TaylorRemainder`; the slope is NaN if fewer than two remainders are larger than rounding, as
      for a linear function with its right gradient.

    Raises:
      ValueError, TypeError: as of `central_difference`.

    Source: the remainder test of dolfin-adjoint and Manopt; Farrell et al. (2013).

    >>> with jax.enable_x64(True):
    ...     out = taylor_remainder(jnp.exp, jnp.float64(0.0), jnp.float64(1.0), jnp.float64(1.0))
    >>> round(float(out.slope), 1)
    2.0
    """
    _check(f, x)
    for name, tree in (("gradient", gradient), ("direction", direction)):
        _check_like(name, tree, x)
    theta, unravel = ravel_pytree(x)
    slope_along = jnp.vdot(ravel_pytree(gradient)[0], ravel_pytree(direction)[0])
    steps = jnp.asarray(steps, theta.dtype)
    ahead = ravel_pytree(direction)[0]
    values = jax.lax.map(lambda h: f(unravel(theta + h * ahead)), steps)
    before = f(x)
    remainder = jnp.abs(values - before - steps * slope_along)
    above = remainder > 100 * jnp.finfo(theta.dtype).eps * (jnp.abs(before) + jnp.abs(values))
    logs = jnp.log(jnp.stack([jnp.where(above, remainder, 1.0), steps]))
    count = jnp.sum(above)
    logs = (logs - jnp.sum(logs * above[None], axis=1, keepdims=True) / count) * above[None]
    slope = jnp.sum(logs[0] * logs[1]) / jnp.sum(logs[1] ** 2)
    return TaylorRemainder(steps, remainder, jnp.where(count > 1, slope, jnp.nan))


class TaylorRemainder(NamedTuple):
    """What is left of a function after its first-order Taylor polynomial.

    Attributes:
      steps: `[K]`.
      remainder: its size at each step, `[K]`.
      slope: of the log of the remainder against the log of the step, where above rounding.
    """

    steps: jax.Array
    remainder: jax.Array
    slope: jax.Array


class Gradient(NamedTuple):
    """A numeric gradient; both are pytrees like the argument, NumPy, float64.

    Attributes:
      value: the numeric gradient; NaN where there is none.
      error: its error bar; infinite where nothing can be said.
    """

    value: Any
    error: Any


def derivative(f: Callable[[Any], Any], x: Any, direction: Any = None) -> Derivative:
    """The derivative of `f` at `x` along a direction, with an error bar.

    Steps shrink from an eighth of the size of `x` to rounding; which to believe is read off the
    function's values, by Richardson's extrapolation and the noise that smaller steps show.
    Evaluated in float64 if `f` allows it.

    Args:
      f: maps a pytree of real floating-point arrays to a real scalar.
      x: where.
      direction: a pytree like `x`; `None` for all ones, which is the derivative if `x` is a scalar.

    Returns:
      `Derivative` with scalars: value, error bar, one-sided derivatives, whether they differ, the
      function's noise and the step that was believed.

    Raises:
      ValueError, TypeError: if an argument is not as described or `f` raises.

    >>> found = derivative(jnp.sin, 0.5)
    >>> bool(abs(found.value - np.cos(0.5)) < found.error < 1e-9)
    True
    """
    _check(f, x)
    opened = Opened(f, (x,), 0, False, False, 0)
    if direction is None:
        ahead = np.ones(opened.size)
    else:
        _check_like("direction", direction, x)
        ahead = np.concatenate(
            [np.ravel(np.asarray(d, np.float64)) for d in jax.tree.leaves(direction)]
        )
    size = np.max(np.abs(ahead))
    if not size > 0 or not np.isfinite(size):
        raise ValueError(f"direction must be finite and not zero, got a largest entry of {size}")
    scale = np.linalg.norm(opened.point) / np.linalg.norm(ahead) or 1 / size
    prober = Prober(opened, np.random.default_rng(0))
    found = prober.ladder([(0, ahead)], np.array([scale * LARGEST_STEP]))
    return Derivative(*(a[0] for a in found))


def gradient(f: Callable[[Any], Any], x: Any) -> Gradient:
    """The gradient of `f` at `x`, coordinate by coordinate, each with an error bar.

    Args:
      f: maps a pytree of real floating-point arrays to a real scalar.
      x: where.

    Returns:
      `Gradient`.

    Raises:
      ValueError, TypeError: if an argument is not as described or `f` raises.

    >>> found = gradient(lambda p: p["a"] ** 2 + jnp.sum(p["b"]), {"a": 3.0, "b": jnp.ones(2)})
    >>> print(found.value["a"].round(6), found.value["b"].round(6))
    6.0 [1. 1.]
    """
    _check(f, x)
    opened = Opened(f, (x,), 0, False, False, 0)
    prober = Prober(opened, np.random.default_rng(0))
    everywhere = [True] * len(opened.leaves)
    probes = prober.probe(everywhere, 2, lambda _, found: 1e-7 * np.abs(found.value))

    def like_x(parts):
        left = iter(parts)
        return jax.tree.map(
            lambda a: next(left).reshape(np.shape(a)) if np.size(a) else np.zeros(np.shape(a)), x
        )

    return Gradient(
        like_x([p.numeric.value for p in probes]), like_x([p.numeric.error for p in probes])
    )


def _by_coordinate(f, x, eps, moves, combine, *, signed=False, checked=False):
    """`combine` of `f` at `x + move eps e_i`, leaf by leaf, few coordinates at once.

    The other leaves stay as they are, so that what is computed from them alone is computed once.
    """
    if not checked:
        if signed:
            _validate.scalar("eps", eps)
            if not _validate.is_traced(eps) and eps == 0:
                raise ValueError("eps must not be 0, got 0; pass a small number")
        else:
            _validate.scalar("eps", eps, minimum=0.0, above=True)
        _check(f, x)
    leaves, tree = jax.tree.flatten(x)
    out = []
    for j, leaf in enumerate(map(jnp.asarray, leaves)):
        if leaf.size == 0:
            out.append(leaf)
            continue

        def value(moved, j=j, leaf=leaf):
            return f(tree.unflatten([*leaves[:j], moved.reshape(leaf.shape), *leaves[j + 1 :]]))

        columns = leaf.shape[-1] if leaf.ndim else 1
        rows = leaf.reshape(-1, columns)
        size = leaf.size * leaf.dtype.itemsize * len(moves)
        batch = int(np.clip(BATCH_BYTES // size, 1, min(leaf.size, 64)))
        steps = jnp.tile(jnp.asarray([m * eps for m in moves], leaf.dtype), batch)
        copies = batch * len(moves)

        def along(start, rows=rows, columns=columns, steps=steps, copies=copies, value=value):
            at = jnp.minimum(start + jnp.arange(copies) // len(moves), rows.size - 1)
            # Copies lie beside each other before the last axis, as products of matrices want them.
            moved = jnp.broadcast_to(rows[:, None], (len(rows), copies, columns))
            moved = moved.at[at // columns, jnp.arange(copies), at % columns].add(steps)
            found = jax.vmap(value, in_axes=1)(moved)
            return combine(found.reshape(-1, len(moves)).T)

        found = jax.lax.map(along, jnp.arange(0, leaf.size, batch))
        out.append(found.ravel()[: leaf.size].reshape(leaf.shape))
    return tree.unflatten(out)


def _check(f, x):
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"x must have floating-point leaves, got {jnp.result_type(leaf)}; close over the "
                "others"
            )
    out = jax.eval_shape(f, x)
    if getattr(out, "shape", None) != ():
        raise ValueError(f"f must return a scalar, got {out}; sum or weigh its outputs")


def _check_like(name, tree, x):
    if jax.tree.structure(tree) != jax.tree.structure(x) or list(
        map(jnp.shape, jax.tree.leaves(tree))
    ) != list(map(jnp.shape, jax.tree.leaves(x))):
        raise ValueError(
            f"{name} must have the structure and shapes of x, got {jax.tree.structure(tree)}"
        )


def relative_error(numeric: Any, autodiff: Any) -> jax.Array:
    """`|numeric - autodiff| / (|numeric| + |autodiff|)` of the ravelled pytrees, Euclidean norms.

    Args:
      numeric, autodiff: pytrees of the same structure and shapes.

    Returns:
      A scalar between 0 and 1; 0 where both are zero, NaN where an entry is NaN or infinite.

    Raises:
      ValueError: if the structures or shapes differ.

    Source: CS230/Deep Learning Specialization, "Gradient checking".
    """
    if jax.tree.structure(numeric) != jax.tree.structure(autodiff):
        raise ValueError(
            f"autodiff must have the structure of numeric, {jax.tree.structure(numeric)}, got "
            f"{jax.tree.structure(autodiff)}"
        )
    shapes = tuple(list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (numeric, autodiff))
    if shapes[0] != shapes[1]:
        raise ValueError(f"autodiff must have the shapes of numeric, {shapes[0]}, got {shapes[1]}")
    a, b = ravel_pytree(numeric)[0], ravel_pytree(autodiff)[0]
    # Over the largest entry, so that no square underflows; comparisons that let a NaN through.
    size = jnp.max(jnp.abs(jnp.concatenate([a, b])), initial=0.0)
    a, b = (part / jnp.where(size == 0, 1.0, size) for part in (a, b))
    total = jnp.linalg.norm(a) + jnp.linalg.norm(b)
    return jnp.linalg.norm(a - b) / jnp.where(size == 0, 1.0, total)


def tier(error: float, text: str = "course") -> str:
    """What a seed text says of a relative error.

    Args:
      error: a relative error.
      text: a key of `TIERS`.

    Raises:
      ValueError: if the text is unknown.

    >>> tier(1e-8), tier(1e-6), tier(1e-2)
    ('right', 'look again', 'wrong')
    """
    _validate.choice("text", text, TIERS)
    # A NaN is below nothing, so it comes out as the last tier, wrong.
    return next((name for limit, name in TIERS[text] if error < limit), TIERS[text][-1][1])
