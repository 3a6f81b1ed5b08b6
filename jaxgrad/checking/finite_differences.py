"""Numeric derivatives of a function, by several methods.

`derivative` and `gradient` choose their steps and give an error bar. `central_difference`,
`one_sided_difference` and `complex_step` are the textbook methods: they use one fixed step for
every coordinate and are pure functions that you can jit. `taylor_remainder` tests a gradient along
one direction. `relative_error` and `tier` give the verdict of the course notes.

In all of them `f` maps `x`, a pytree of real floating-point arrays, to a real scalar. All raise
`ValueError` or `TypeError` if an argument is not as described or the function raises.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxgrad import _jaxprs, _validate
from jaxgrad._numerics import norm
from jaxgrad.checking import _moved
from jaxgrad.checking._directions import Direction, unit_directions
from jaxgrad.checking._moved import Moved
from jaxgrad.checking._numeric import Tolerance, measure, numeric_derivatives, plan_steps
from jaxgrad.checking._prepare import Problem, prepare
from jaxgrad.checking._programs import coordinates
from jaxgrad.checking._report import Verdict
from jaxgrad.checking._step_sizes import LARGEST_STEP, Derivative

TIERS = {
    "course": ((1e-7, "right"), (1e-5, "look again"), (1e-3, "suspicious"), (jnp.inf, "wrong")),
    "second text": ((1e-7, "right"), (1e-4, "acceptable"), (1e-2, "look"), (jnp.inf, "wrong")),
}
"""The verdict of each text on a relative error below the number."""

BATCH_BYTES = 2**23  # of values that are computed at once; they fit a core's cache


class Gradient(NamedTuple):
    """A numeric gradient; both fields are pytrees like the argument, NumPy arrays of float64."""

    value: Any  # NaN where there is no derivative
    error: Any  # the error bar; infinite where nothing is known


class TaylorRemainder(NamedTuple):
    """The rest of a function after its first-order Taylor polynomial, for each step."""

    steps: Float[Array, " steps"]
    remainder: Float[Array, " steps"]  # its size
    slope: Float[Array, ""]  # of the log of the remainder against that of the step


def derivative(f: Callable[[Any], Any], x: Any, direction: Any = None) -> Derivative:
    """Return the derivative of `f` at `x` along a direction, with an error bar.

    Steps shrink from an eighth of the size of `x` to rounding. The step is chosen from values of
    the function: Richardson's extrapolation shows the error of large steps, and the differences
    between small steps show the noise. `f` is evaluated in float64 if it allows that. The direction
    is a pytree like `x`, by default all ones.

    >>> result = derivative(jnp.sin, 0.5)
    >>> bool(abs(result.value - np.cos(0.5)) < result.error < 1e-9)
    True
    """
    problem = _prepare(f, x)
    vector = np.ones(len(problem.point))
    if direction is not None:
        _check_like("direction", direction, x)
        vector = np.concatenate(list(map(coordinates, jax.tree.leaves(direction))))
    size = np.max(np.abs(vector))
    if not size > 0 or not np.isfinite(size):
        raise ValueError(f"direction must be finite and not zero, got a largest entry of {size}")
    # The first step moves x by an eighth of its norm, or at the origin an entry by an eighth.
    scale = norm(problem.point) / norm(vector) or 1 / size
    result = measure(problem, [Direction(0, 0, vector)], np.array([scale * LARGEST_STEP]))
    return Derivative(*(values[0] for values in result))


def gradient(f: Callable[[Any], Any], x: Any) -> Gradient:
    """Return the gradient of `f` at `x`, coordinate by coordinate, each with an error bar.

    >>> result = gradient(lambda p: p["a"] ** 2 + jnp.sum(p["b"]), {"a": 3.0, "b": jnp.ones(2)})
    >>> print(result.value["a"].round(6), result.value["b"].round(6))
    6.0 [1. 1.]
    """
    problem = _prepare(f, x)
    plan = plan_steps(problem, np.random.default_rng(0))
    directions = []
    for j, info in enumerate(problem.leaves):
        directions += unit_directions(j, range(info.start, info.stop))
    tolerance = Tolerance(1e-7, 0.0, 0.0, np.ones(len(problem.leaves), bool))
    numeric = numeric_derivatives(problem, plan, directions, tolerance)
    return Gradient(*(_like(x, values) for values in (numeric.value, numeric.error)))


def _like(x: Any, values: np.ndarray) -> Any:
    """Return the values of all coordinates as a pytree like `x`."""
    leaves, tree = jax.tree.flatten(x)
    parts = np.split(values, np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    return tree.unflatten(
        [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _prepare(f: Callable[[Any], Any], x: Any) -> Problem:
    _check(f, x)
    problem = prepare(f, (x,))
    if problem.rejection is not None and problem.rejection[0] is Verdict.NONDETERMINISTIC:
        raise ValueError(problem.rejection[1])
    return problem


def central_difference(f: Callable[[Any], Any], x: Any, eps: ArrayLike | Array = 1e-4) -> Any:
    """Return the two-sided difference `(f(x + eps e_i) - f(x - eps e_i)) / (2 eps)`, like `x`.

    One fixed step serves every coordinate, as in the course. The error is of order `eps^2`, plus
    rounding of order `|f| 2^-24 / eps` in float32, so use it under `jax.enable_x64(True)`.

    Source: CS230/Deep Learning Specialization, "Gradient checking".

    >>> with jax.enable_x64(True):
    ...     slope = central_difference(lambda theta: theta**2, jnp.asarray(3.0))
    >>> round(float(slope), 6)
    6.0
    """
    _validate.scalar("eps", eps, minimum=0.0, above=True)
    _check(f, x)
    return _by_coordinate(f, x, eps, (1.0, -1.0), lambda v, h: (v[0] - v[1]) / (2 * h))


def one_sided_difference(f: Callable[[Any], Any], x: Any, eps: ArrayLike | Array = 1e-7) -> Any:
    """Return the one-sided difference `(f(x + eps e_i) - f(x)) / eps`; its error is of order `eps`.

    A negative `eps` takes the other side; at a kink the two differ.

    >>> slopes = [one_sided_difference(jnp.abs, jnp.float32(0.0), eps) for eps in (0.5, -0.5)]
    >>> [float(slope) for slope in slopes]
    [1.0, -1.0]
    """
    _validate.scalar("eps", eps)
    if not _validate.is_traced(eps) and eps == 0:
        raise ValueError("eps must not be 0, got 0; pass a small number")
    _check(f, x)
    return _by_coordinate(f, x, eps, (1.0, 0.0), lambda v, h: (v[0] - v[1]) / h)


def complex_step(f: Callable[[Any], Any], x: Any, eps: ArrayLike | Array = 1e-20) -> Any:
    """Return the complex-step derivative `Im f(x + i eps e_i) / eps`, without cancellation.

    It is exact up to rounding for analytic functions made of operations that JAX defines for
    complex numbers. It is wrong without notice for `abs`, `max`, comparisons and conjugates, and
    impossible for most functions with a custom derivative rule. The square of the step must be
    negligible beside 1.

    Source: Squire, Trapp (1998), "Using complex variables to estimate derivatives of real
    functions".

    >>> round(float(complex_step(jnp.exp, jnp.float32(0.0))), 6)
    1.0
    """
    _validate.scalar("eps", eps, minimum=0.0, above=True)
    _check(f, x)
    complex_x = jax.tree.map(lambda a: jax.lax.complex(jnp.asarray(a), jnp.zeros_like(a)), x)
    out = _by_coordinate(f, complex_x, eps, (1j,), lambda v, h: jnp.imag(v[0]) / h)
    return jax.tree.map(jnp.real, out)


def taylor_remainder(
    f: Callable[[Any], Any],
    x: Any,
    gradient: Any,
    direction: Any,
    steps: Sequence[float] | Float[ArrayLike, " steps"] = tuple(2.0**-k for k in range(2, 12)),
) -> TaylorRemainder:
    """Measure how `|f(x + h d) - f(x) - h <gradient, d>|` shrinks with the step `h`.

    With the right gradient the remainder falls as `h^2`, with a wrong one as `h`: the slope of its
    logarithm is 2 or 1. The steps must be much larger than rounding, so use float64. The slope is
    NaN if fewer than two remainders are larger than rounding, as for a linear function. The
    gradient and the direction are pytrees like `x`.

    Source: the remainder test of dolfin-adjoint and Manopt; Farrell et al. (2013).

    >>> with jax.enable_x64(True):
    ...     out = taylor_remainder(jnp.exp, jnp.float64(0.0), jnp.float64(1.0), jnp.float64(1.0))
    >>> round(float(out.slope), 1)
    2.0
    """
    _check(f, x)
    for name, tree in (("gradient", gradient), ("direction", direction)):
        _check_like(name, tree, x)
    _validate.numbers("steps", steps, minimum=0.0, above=True)
    if np.ndim(steps) != 1 or np.size(steps) == 0:
        got = f"got shape {np.shape(steps)}; pass a tuple of floats"
        raise ValueError(f"steps must have shape [steps], none empty, {got}")
    (theta, unravel), (vector, _) = ravel_pytree(x), ravel_pytree(direction)
    predicted = jnp.vdot(ravel_pytree(gradient)[0], vector)
    steps = jnp.asarray(steps, theta.dtype)
    values = jax.lax.map(lambda h: f(unravel(theta + h * vector)), steps)
    start = f(x)
    remainder = jnp.abs(values - start - steps * predicted)
    above = remainder > 100 * jnp.finfo(theta.dtype).eps * (jnp.abs(start) + jnp.abs(values))
    # A least-squares line through the logs of the remainders that are above rounding.
    logs = jnp.log(steps), jnp.log(jnp.where(above, remainder, 1.0))
    slope = jnp.polyfit(*logs, 1, w=above.astype(theta.dtype))[0]
    return TaylorRemainder(steps, remainder, jnp.where(jnp.sum(above) > 1, slope, jnp.nan))


def _by_coordinate(f, x, eps, moves, combine):
    """Return `combine` of `f` at `x + move eps e_i` and of `eps`, leaf by leaf."""
    leaves, tree = jax.tree.flatten(x)
    leaves = list(map(jnp.asarray, leaves))
    program = jax.make_jaxpr(lambda leaves: f(tree.unflatten(leaves)))(leaves)
    out = []
    for j, leaf in enumerate(leaves):
        # The other leaves are not moved, so what is computed from them alone is computed once.
        def value(position, step, j=j, leaf=leaf):
            moved = Moved(leaf, jnp.unravel_index(position, leaf.shape), step)
            return _moved.evaluate(program, [*leaves[:j], moved, *leaves[j + 1 :]])[0]

        out.append(_along_leaf(value, leaf, eps, moves, combine) if leaf.size else leaf)
    return tree.unflatten(out)


def _along_leaf(value, leaf, eps, moves, combine):
    steps = jnp.asarray([move * eps for move in moves], leaf.dtype)
    batch = int(np.clip(BATCH_BYTES // (len(moves) * _bytes(value, leaf)), 1, leaf.size))

    def along(start):
        # The last batch repeats the last coordinate.
        positions = jnp.minimum(start + jnp.arange(batch), leaf.size - 1)
        positions, all_steps = jnp.repeat(positions, len(moves)), jnp.tile(steps, batch)
        values = jax.vmap(value)(positions, all_steps)
        return combine(values.reshape(-1, len(moves)).T, eps)

    slopes = jax.lax.map(along, jnp.arange(0, leaf.size, batch))
    return slopes.ravel()[: leaf.size].reshape(leaf.shape)


def _bytes(value, leaf):
    """Bytes that the evaluation of one more coordinate computes."""
    sizes = []
    for copies in (2, 3):
        numbers = [jax.ShapeDtypeStruct((copies,), dtype) for dtype in (np.int32, leaf.dtype)]
        equations = _jaxprs.equations_of(jax.make_jaxpr(jax.vmap(value))(*numbers))
        values = [out.aval for equation in equations for out in equation.outvars]
        sizes.append(sum(aval.size * aval.dtype.itemsize for aval in values))
    return max(sizes[1] - sizes[0], 1)


def _check(f, x):
    _validate.function("f", f)
    _validate.tree("x", x)
    for dtype in map(jnp.result_type, jax.tree.leaves(x)):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"x must have floating-point leaves, got {dtype}; close over the others"
            )
    out = jax.eval_shape(f, x)
    if getattr(out, "shape", None) != ():
        raise ValueError(f"f must return a scalar, got {out}; sum or weigh its outputs")


def _check_like(name, tree, x):
    _validate.tree(name, tree)
    if _form(tree) != _form(x):
        structure = jax.tree.structure(tree)
        raise ValueError(f"{name} must have the structure and shapes of x, got {structure}")


def _form(tree):
    return jax.tree.structure(tree), list(map(jnp.shape, jax.tree.leaves(tree)))


def relative_error(numeric: Any, autodiff: Any) -> Float[Array, ""]:
    """Return `|numeric - autodiff| / (|numeric| + |autodiff|)`, Euclidean norms over all leaves.

    The pytrees have one structure. The result is between 0 and 1: 0 if both are zero, NaN if an
    entry is NaN or infinite.

    Source: CS230/Deep Learning Specialization, "Gradient checking".
    """
    for name, tree in (("numeric", numeric), ("autodiff", autodiff)):
        _validate.tree(name, tree, empty=True)
    forms = zip(("structure", "shapes"), _form(numeric), _form(autodiff), strict=True)
    for name, expected, other in forms:
        if expected != other:
            raise ValueError(f"autodiff must have the {name} of numeric, {expected}, got {other}")
    a, b = ravel_pytree(numeric)[0], ravel_pytree(autodiff)[0]
    # Divided by the largest entry, so that no square underflows.
    size = jnp.max(jnp.abs(jnp.concatenate([a, b])), initial=0.0)
    a, b = (part / jnp.where(size == 0, 1.0, size) for part in (a, b))
    total = jnp.linalg.norm(a) + jnp.linalg.norm(b)
    return jnp.linalg.norm(a - b) / jnp.where(size == 0, 1.0, total)


def tier(error: float | np.floating | Array, text: str = "course") -> str:
    """Return the verdict of a course text, a key of `TIERS`, on a relative error.

    >>> tier(1e-8), tier(1e-6), tier(1e-2)
    ('right', 'look again', 'wrong')
    """
    _validate.choice("text", text, TIERS)
    _validate.real("error", error, 0)
    # A NaN is below no limit, so it comes out as the last tier, wrong.
    return next((name for limit, name in TIERS[text] if error < limit), TIERS[text][-1][1])
