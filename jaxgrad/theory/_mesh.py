"""A mesh of the real line on whose panels an activation is a polynomial to rounding.

It is found by bisection, once for each activation. It splits at the kinks, whether these are
declared or not, and is as fine as the function requires.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.activations import Activation

# Gaussians are cut at this many standard deviations; beyond lies 1e-44 of their mass.
REACH = 14.0
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Panels cover the line from -_BOUND to _BOUND; the outermost ones stand for all that lies beyond.
_BOUND, _TOLERANCE, _BATCH, _MOST_PANELS = 1500.0, 1e-13, 4096, 20_000


class Mesh(NamedTuple):
    """Panels on which an activation is smooth, between increasing `edges` of the real line.

    The function or its slope jumps at those edges that are `kinks`. `log_q` is the largest log
    variance for which the mesh is valid; it is finite if the function is still rough at its ends.
    """

    edges: tuple[float, ...]
    kinks: tuple[float, ...]
    log_q: float


def versions(activation: Activation) -> list[tuple[float, Callable[[Any], jax.Array]]]:
    """The deterministic functions, with weights, whose average an activation is over its draws."""
    if not activation.mixture:
        return [(1.0, activation)]
    function, mixture = activation.function, activation.mixture
    return [(weight, functools.partial(function, **dict(options))) for weight, options in mixture]


@functools.lru_cache(maxsize=256)
def mesh(activation: Activation) -> Mesh:
    """Find the panels of an activation; ValueError if its averages cannot be computed."""
    kinks, edges = set(activation.kinks), set()
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        # The kinks of all versions come first, because each splits the panels of every version.
        for _, function in versions(activation):
            _check_elementwise(activation.name, function)
            kinks |= _Search.of(activation.name, function, kinks).split()[1]
        for _, function in versions(activation):
            search = _Search.of(activation.name, function, kinks)
            edges |= set(search.merge(search.split()[0]).tolist())
    points = tuple(sorted(edges | kinks))
    # Far from zero a panel doubles its width again and again, unless the function oscillates.
    rough = min(points[1] - points[0], points[-1] - points[-2]) < _BOUND / 10
    log_q = 2 * math.log(_BOUND / REACH) if rough else math.inf
    return Mesh(points, tuple(sorted(kinks)), log_q)


def _check_elementwise(name: str, function: Callable) -> None:
    """Raise unless elements have the same values alone as among others, in another order."""
    x = np.linspace(-3.0, 3.0, 7).reshape(7, 1)
    try:
        compiled = jax.jit(function)
        together = np.asarray(compiled(np.roll(x.T, 3)))
        alone = np.concatenate([np.asarray(compiled(row[None])) for row in x], axis=1)
    except Exception as error:
        raised = f"it raised {type(error).__name__}: {error}"
        raise ValueError(
            f"activation {name!r} must accept any array of numbers, but {raised}"
        ) from error
    if together.shape != (1, 7) or not np.allclose(
        np.roll(together, -3), alone, rtol=1e-9, atol=1e-12, equal_nan=True
    ):
        raise ValueError(
            f"activation must act element by element, but {name!r} gives an element another value "
            "among others than alone; pass the elementwise part alone"
        )


def evaluator(function: Callable[[Any], jax.Array]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function that returns values and slopes at an array of points, compiled only once."""

    @jax.jit
    def value_and_slope(x):
        return jax.jvp(function, (x,), (jnp.ones_like(x),))

    def evaluate(x):
        # Batches of one size, so that arrays of all sizes share one program.
        flat = np.pad(x.ravel(), (0, -x.size % _BATCH), mode="edge").reshape(-1, _BATCH)
        pairs = zip(*map(value_and_slope, flat), strict=True)
        return [np.concatenate([*map(np.asarray, p)])[: x.size].reshape(x.shape) for p in pairs]

    return evaluate


@dataclass(frozen=True)
class _Search:
    """Search for the panels of one function; `sizes` holds its size and its slope's near zero."""

    name: str
    evaluate: Callable[[np.ndarray], list[np.ndarray]]
    kinks: np.ndarray
    sizes: list[float]

    @classmethod
    def of(cls, name: str, function: Callable, kinks: set[float]) -> "_Search":
        evaluate = evaluator(function)
        sizes = [np.abs(part).max() for part in evaluate(np.linspace(-1.0, 1.0, 9))]
        if min(sizes) == 0:
            sizes = [np.abs(part).max() for part in evaluate(np.linspace(-32.0, 32.0, 999))]
        return cls(name, evaluate, np.array(sorted(kinks)), sizes)

    def smooth(self, panels: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether function and slope are polynomials on each panel, and all their values finite.

        `panels` holds lower and upper ends, `[panels, 2]`, and `within` further points from -1 to 1
        at which a polynomial of degree below 13 must agree with the function, `[panels, points]`.
        """
        half, middle = np.diff(panels) / 2, panels.mean(axis=1, keepdims=True)
        x = middle + half * NODES
        ends = np.broadcast_to([1e-9 - 1, 1 - 1e-9], (len(panels), 2))
        within = np.concatenate([within, ends], axis=1)
        parts = [*self.evaluate(x), *self.evaluate(middle + half * within)]
        undefined = x[np.isnan(parts[0])]
        if len(undefined):
            raise ValueError(
                f"activation must be defined on the whole real line, but {self.name!r} is NaN at "
                f"{undefined[0]:g}; mask its argument"
            )
        finite = np.all([np.isfinite(part).all(axis=1) for part in parts], axis=0)
        parts = [np.where(finite[:, None], part, 0.0) for part in parts]
        far = np.abs(x).max(axis=1)
        # Rounding of the argument changes the function by |x phi'(x)| times the machine epsilon.
        noise = 2e-15 * far * np.abs(parts[1]).max(axis=1)
        good = finite.copy()
        for values, others, size in zip(parts[:2], parts[2:], self.sizes, strict=True):
            allowed = _TOLERANCE * np.abs(values).max(axis=1) + noise
            allowed += 1e-15 * (1 + np.minimum(far, 32.0)) ** 2 * size
            series = values @ _TO_SERIES
            good &= np.abs(series[:, -3:]).max(axis=1) <= allowed
            error = np.einsum("pnk,pk->pn", _vandermonde(within, 15), series) - others
            good &= np.abs(error).max(axis=1) <= 10 * allowed
        return good, finite

    def split(self) -> tuple[np.ndarray, set[float]]:
        """Bisect panels until they are smooth; what shrinks to a point is a kink."""
        far, near = 32 * 1.5 ** np.arange(10), np.arange(-32.0, 33.0, 4.0)
        starts = np.unique(np.r_[-_BOUND, -far, near, self.kinks, far, _BOUND])
        panels = np.stack([starts[:-1], starts[1:]], axis=1)
        done, points = [], []
        while len(panels):
            good, finite = self.smooth(panels, np.zeros((len(panels), 0)))
            good |= ~finite  # Where the function overflows, no fine panels are needed.
            width, size = np.diff(panels)[:, 0], np.abs(panels).max(axis=1)
            tiny = width <= 1e-13 * np.maximum(size, 1e-3)
            points.append(panels[tiny & ~good].mean(axis=1))
            done.append(panels[good | tiny])
            rest = panels[~(good | tiny)]
            if len(rest) > _MOST_PANELS:
                raise ValueError(
                    "activation must be smooth between a few kinks, with finite slopes, but "
                    f"{self.name!r} is too rough for its averages to be computed; smooth it"
                )
            low, middle, high = rest[:, 0], rest.mean(axis=1), rest[:, 1]
            panels = np.concatenate([np.stack(p, axis=1) for p in ((low, middle), (middle, high))])
        # The two panels beside a kink both shrink to it.
        kinks = np.sort(np.concatenate(points))
        new = np.diff(kinks, prepend=-np.inf) > 1e-9 * np.maximum(np.abs(kinks), 1e-3)
        return np.unique(np.concatenate(done)), set(kinks[new].tolist())

    def merge(self, edges: np.ndarray) -> np.ndarray:
        """Remove edges between panels that are smooth together, until none can be removed."""
        count = len(edges) + 1
        while len(edges) < count:
            count = len(edges)
            # Neighbouring edges must not be removed in one pass, so take every second one.
            for first in (1, 2):
                index = np.arange(first, len(edges) - 1, 2)
                index = index[~np.isin(edges[index], self.kinks)]
                if len(index):
                    low, middle, high = (edges[index + i][:, None] for i in (-1, 0, 1))
                    # The nodes of the wide panel may miss a feature that those of its parts see.
                    cut = (2 * middle - low - high) / (high - low)
                    within = [(cut + end) / 2 + abs(cut - end) / 2 * NODES for end in (-1, 1)]
                    index = index[self.smooth(np.hstack([low, high]), np.hstack(within))[0]]
                edges = np.delete(edges, index)
        return edges


_vandermonde = np.polynomial.legendre.legvander
# Coefficients of the Legendre series: c_k = (2 k + 1) / 2 sum_i w_i f(x_i) P_k(x_i).
_TO_SERIES = _vandermonde(NODES, 15) * WEIGHTS[:, None] * (2 * np.arange(16) + 1) / 2
