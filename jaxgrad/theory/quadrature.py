"""Gaussian averages of an activation, to nearly all digits of float64, at kinks and at any scale.

Gauss-Hermite nodes fail at kinks and where the Gaussian is much wider than the activation's own
scale. Here an activation gets once a mesh of the real line, found by bisection: on each of its
panels the function and its slope are polynomials to rounding. It splits at kinks, told or found,
and is as fine as the function is. For a variance `q` the mesh, divided by `sqrt(q)`, is merged with
the panels that the Gaussian needs, and each panel gets Gauss-Legendre nodes. The number of panels
does not depend on `q`, so that `q` may be traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.activations import Activation

REACH = 14.0
"""Gaussians are cut at this many standard deviations, beyond which lies 1e-44 of their mass."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
"""Of a panel from -1 to 1."""

_BOUND = 1500.0
_TOLERANCE = 1e-13
_BATCH = 4096


class Mesh(NamedTuple):
    """Panels on which an activation is smooth.

    Attributes:
      edges: increasing points of the real line.
      kinks: those where the function or its slope jumps.
      log_q: the largest log variance that the mesh serves: it is finite if the function is as rough
        at the mesh's end as elsewhere.
    """

    edges: tuple[float, ...]
    kinks: tuple[float, ...]
    log_q: float


def versions(activation: Activation) -> list[tuple[float, Callable[[Any], jax.Array]]]:
    """The functions, with weights, that an activation is on average over its random draws."""
    if not activation.mixture:
        return [(1.0, activation)]
    return [
        (weight, functools.partial(activation.function, **dict(constants)))
        for weight, constants in activation.mixture
    ]


@functools.lru_cache(maxsize=256)
def mesh(activation: Activation) -> Mesh:
    """Find the panels of an activation.

    Raises:
      ValueError: if the activation is not elementwise, or is NaN somewhere.
    """
    kinks: set[float] = set(activation.kinks)
    edges: set[float] = set()
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        for _, function in versions(activation):
            _check_elementwise(activation.name, function)
            _, found = _refine(activation.name, function, tuple(sorted(kinks)))
            kinks |= found
        for _, function in versions(activation):
            edges |= _refine(activation.name, function, tuple(sorted(kinks)))[0]
    points = tuple(sorted(edges | kinks))
    rough = min(points[1] - points[0], points[-1] - points[-2]) < _BOUND / 10
    served = 2 * math.log(_BOUND / REACH) if rough else math.inf
    return Mesh(points, tuple(sorted(kinks)), served)


def _check_elementwise(name, function):
    x = np.linspace(-3.0, 3.0, 7).reshape(7, 1)
    try:
        together = np.asarray(jax.jit(function)(np.roll(x.T, 3)))
        alone = jax.jit(function)
        apart = np.concatenate([np.asarray(alone(row[None])) for row in x], axis=1)
    except Exception as error:
        raise ValueError(
            f"activation {name!r} must accept any array of numbers, but it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if together.shape != (1, 7) or not np.allclose(
        np.roll(together, -3), apart, rtol=1e-9, atol=1e-12, equal_nan=True
    ):
        raise ValueError(
            f"activation must act element by element, but {name!r} gives an element another value "
            "among others than alone; pass the elementwise part alone"
        )


def evaluator(function: Callable[[Any], jax.Array]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function that gives values and slopes at an array of points, compiled once for all."""

    @jax.jit
    def value_and_slope(x):
        return jax.jvp(function, (x,), (jnp.ones_like(x),))

    def evaluate(x):
        flat = np.pad(x.ravel(), (0, -x.size % _BATCH), mode="edge").reshape(-1, _BATCH)
        pairs = [value_and_slope(part) for part in flat]
        return [
            np.concatenate([np.asarray(pair[i]) for pair in pairs])[: x.size].reshape(x.shape)
            for i in (0, 1)
        ]

    return evaluate


def _refine(name, function, kinks):
    """Panels on which function and slope are polynomials: their edges, and the kinks found."""
    evaluate = evaluator(function)
    vandermonde = np.polynomial.legendre.legvander
    to_series = vandermonde(NODES, 15) * WEIGHTS[:, None] * (2 * np.arange(16) + 1) / 2
    ordinary = [np.abs(part).max() for part in evaluate(np.linspace(-1.0, 1.0, 9))]
    if min(ordinary) == 0:
        ordinary = [np.abs(part).max() for part in evaluate(np.linspace(-32.0, 32.0, 999))]

    def smooth(panels, within):
        """Whether the series at a panel's nodes is short, and right at points `within` it."""
        half = np.diff(panels) / 2
        x = panels.mean(axis=1, keepdims=True) + half * NODES
        within = np.concatenate([within, np.broadcast_to(1e-9 - 1, half.shape)], axis=1)
        within = np.concatenate([within, -within[:, -1:]], axis=1)
        parts = evaluate(x)
        seen = evaluate(panels.mean(axis=1, keepdims=True) + half * within)
        if np.isnan(parts[0]).any():
            raise ValueError(
                f"activation must be defined on the whole real line, but {name!r} is NaN at "
                f"{x[np.isnan(parts[0])][0]:g}; mask its argument"
            )
        finite = np.all([np.isfinite(part).all(axis=1) for part in (*parts, *seen)], axis=0)
        parts, seen = (
            [np.where(finite[:, None], p, 0.0) for p in group] for group in (parts, seen)
        )
        # Rounding changes the function by this much.
        far = np.abs(x).max(axis=1)
        noise = 2e-15 * far * np.abs(parts[1]).max(axis=1)
        good = finite.copy()
        for part, there, size in zip(parts, seen, ordinary, strict=True):
            allowed = _TOLERANCE * np.abs(part).max(axis=1) + noise
            allowed += 1e-15 * (1 + np.minimum(far, 32.0)) ** 2 * size
            series = part @ to_series
            good &= np.abs(series[:, -3:]).max(axis=1) <= allowed
            error = np.einsum("pnk,pk->pn", vandermonde(within, 15), series) - there
            good &= np.abs(error).max(axis=1) <= 10 * allowed
        # What overflows is left to the averages, which see it in their integrands.
        return good, finite

    far = 32 * 1.5 ** np.arange(10)
    starts = np.unique(np.r_[-_BOUND, -far, np.arange(-32.0, 33.0, 4.0), kinks, far, _BOUND])
    panels = np.stack([starts[:-1], starts[1:]], axis=1)
    done, found = [], []
    while len(panels):
        good, finite = smooth(panels, np.zeros((len(panels), 0)))
        good |= ~finite
        tiny = np.diff(panels)[:, 0] <= 1e-13 * np.maximum(np.abs(panels).max(axis=1), 1e-3)
        found.append(panels[tiny & ~good].mean(axis=1))
        done.append(panels[good | tiny])
        rest = panels[~(good | tiny)]
        if len(rest) > 20_000:
            raise ValueError(
                "activation must be smooth between a few kinks, with finite slopes, but "
                f"{name!r} is too rough for its averages to be computed; smooth it"
            )
        middle = rest.mean(axis=1)
        panels = np.concatenate(
            [np.stack(pair, axis=1) for pair in ((rest[:, 0], middle), (middle, rest[:, 1]))]
        )
    points = np.sort(np.concatenate(found))
    apart = np.diff(points, prepend=-np.inf) > 1e-9 * np.maximum(np.abs(points), 1e-3)
    new = {float(point) for point in points[apart]} if len(points) else set()

    edges = np.unique(np.concatenate(done))
    count = len(edges) + 1
    while len(edges) < count:
        count = len(edges)
        # Every second edge goes if the two panels beside it are as smooth together.
        for first in (1, 2):
            at = np.arange(first, len(edges) - 1, 2)
            at = at[~np.isin(edges[at], np.asarray(kinks))]
            if len(at):
                low, middle, high = (edges[at + i][:, None] for i in (-1, 0, 1))
                # What the wide panel's nodes do not see, those of its parts do.
                cut = (2 * middle - low - high) / (high - low)
                within = [(cut + end) / 2 + abs(cut - end) / 2 * NODES for end in (-1, 1)]
                at = at[smooth(np.hstack([low, high]), np.hstack(within))[0]]
            edges = np.delete(edges, at)
    return set(edges.tolist()), new


class Average(NamedTuple):
    """Nodes and weights of Gaussian averages: `E f(sqrt(q) z)` is `sum(weights f(x))`.

    The nodes do not carry derivatives with respect to `q`, the weights do: so derivatives are right
    where `f` jumps, too.
    """

    x: jax.Array
    weights: jax.Array


def nodes(edges: Any, log_q: jax.Array, mean: Any = 0.0, reach: float = REACH) -> Average:
    """Nodes for a Gaussian of one variance `exp(log_q)` over panels that respect `edges`.

    Args:
      edges: of the activation, `[edges]`.
      log_q: log variance, a float64 scalar.
      mean: of the Gaussian.
      reach: how many standard deviations are covered.
    """
    scale = jnp.exp(0.5 * log_q)
    fixed, centre = jax.lax.stop_gradient((scale, jnp.asarray(mean)))
    own = np.linspace(-reach, reach, math.ceil(reach) + 1)
    inner = jnp.clip((jnp.asarray(edges) - centre) / fixed, -reach, reach)
    bounds = jnp.sort(jnp.concatenate([jnp.asarray(own), inner]))
    half = (bounds[1:] - bounds[:-1])[:, None] / 2
    z = ((bounds[1:] + bounds[:-1])[:, None] / 2 + half * NODES[None]).ravel()
    measure = (half * WEIGHTS[None]).ravel()
    x = centre + fixed * z
    ratio = fixed / scale
    at = (x - mean) / scale
    return Average(x, measure * ratio * jnp.exp(-at * at / 2) / math.sqrt(2 * math.pi))
