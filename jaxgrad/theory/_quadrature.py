"""Gaussian averages of an activation, to nearly all digits of float64, at any variance.

Gauss-Hermite nodes fail at kinks, and where the Gaussian is much wider than the scale on which the
activation changes. So a mesh of the real line is computed once for each activation, by bisection:
on its panels the activation is a polynomial to rounding, and it splits at kinks, declared or not.
Divided by `sqrt(q)`, it is merged with the panels that the Gaussian needs, and each panel gets
Gauss-Legendre nodes. The number of panels does not depend on `q`, so `q` may be traced.
The `table` of an activation has the averages at all variances, to be interpolated.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxgrad.activations import Activation

# Gaussians are cut at this many standard deviations; beyond lies 1e-44 of their mass.
REACH = 14.0
# Beyond this absolute log variance, averages are extrapolated as powers of the variance.
FAR = 60.0
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Panels cover the line from -_BOUND to _BOUND; the outermost ones stand for all that lies beyond.
_BOUND, _TOLERANCE, _BATCH, _MOST_PANELS = 1500.0, 1e-13, 4096, 20_000
# The table covers log variances from -28 to 28, so variances from 7e-13 to 1e12.
_STEP = 0.0625
_GRID = np.arange(-28.0, 28.0 + _STEP, _STEP)


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
        rest = f"must accept any array of numbers, but it raised {type(error).__name__}: {error}"
        raise ValueError(f"activation {name!r} {rest}") from error
    alone = np.roll(alone, 3)
    equal = together.shape == (1, 7) and np.allclose(together, alone, 1e-9, 1e-12, equal_nan=True)
    if not equal:
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


def standard_nodes(edges: Any, scale: Any, reach: float = REACH) -> tuple[Any, Any]:
    """Nodes `z` and weights for a standard normal up to `reach`, `[..., nodes]`.

    No panel contains one of the `edges` in terms of `x = scale z`, where `scale` is a NumPy array
    `[..., 1]` or a traced scalar.
    """
    xp = np if isinstance(scale, np.ndarray) else jnp
    # Panels of one standard deviation serve the Gaussian's density.
    regular = np.linspace(-reach, reach, math.ceil(reach) + 1)
    inner = xp.clip(xp.asarray(edges) / scale, -reach, reach)
    regular = xp.broadcast_to(regular, (*inner.shape[:-1], len(regular)))
    bounds = xp.sort(xp.concatenate([regular, inner], axis=-1), axis=-1)[..., None]
    half = (bounds[..., 1:, :] - bounds[..., :-1, :]) / 2
    z = (bounds[..., 1:, :] + bounds[..., :-1, :]) / 2 + half * NODES[None]
    weights = half * WEIGHTS[None] * (xp.exp(-z * z / 2) / math.sqrt(2 * math.pi))
    shape = (*inner.shape[:-1], -1)
    return z.reshape(shape), weights.reshape(shape)


def nodes(edges: ArrayLike, log_q: ArrayLike, reach: float = REACH) -> tuple[Array, Array]:
    """Nodes `x` and weights for `N(0, exp(log_q))` on panels that contain none of the `edges`.

    Only the weights carry derivatives of `sum(weights * f(x))`, so these are right where `f` jumps.
    """
    scale = jnp.exp(0.5 * jnp.asarray(log_q))
    fixed = jax.lax.stop_gradient(scale)
    z, weights = standard_nodes(edges, fixed, reach)
    x = fixed * z
    # The factor is 1, but its derivative is that of the density: N(x; 0, scale) / N(x; 0, fixed).
    return x, weights * (fixed / scale * jnp.exp((z * z - (x / scale) ** 2) / 2))


def extends_beyond(z: Any, terms: Any) -> Any:
    """Whether the last standard deviation contributes to the sum of `terms` at `z`."""
    xp = np if isinstance(terms, np.ndarray) else jnp
    end = xp.sum(xp.where(abs(z) > REACH - 1, terms, 0.0), axis=-1)
    return end > 1e-12 * xp.sum(terms, axis=-1)


def sample(activation: Activation, log_q: Float[Array, ""]) -> list[Float[Array, " nodes"]]:
    """Evaluate an activation at the nodes `x` of `N(0, exp(log_q))`, with `|log_q| <= FAR`.

    Returns `x`, weights, values and slopes; `sum(weights * f(value, slope))` is an average over the
    activation's draws, too. Weights are NaN if the mesh is not valid for the variance.
    """
    panels = mesh(activation)
    x, weights = nodes(np.asarray(panels.edges), log_q)
    weights = jnp.where(log_q <= panels.log_q, weights, jnp.nan)
    # An average over the draws of an activation is one over its versions, with their shares.
    parts = []
    for share, function in versions(activation):
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        parts.append((x, share * weights, value, slope))
    return [*map(jnp.concatenate, zip(*parts, strict=True))]


class Table(NamedTuple):
    """Logs of `M` and `D`, and their first two derivatives by the log variance, on a grid of it."""

    log_q: Float[np.ndarray, " points"]
    rows: Float[np.ndarray, "3 2 points"]


@functools.lru_cache(maxsize=64)
def table(activation: Activation) -> Table:
    """Tabulate an activation where its averages are known; ValueError if they are nowhere.

    Fixed points and critical points for many variances then need no further integrals.
    """
    panels = mesh(activation)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        parts = [(share, evaluator(function)) for share, function in versions(activation)]
        batches = [_rows(panels, parts, batch) for batch in np.array_split(_GRID, 64)]
    rows = np.concatenate(batches, axis=-1)
    finite = np.asarray(np.isfinite(rows).all(axis=(0, 1)))
    if not finite.any():
        raise ValueError(
            f"activation {activation.name!r} must have a finite second moment that is not 0, but "
            "it has none at any variance; rescale or bound it"
        )
    first = int(finite.argmax())
    known = slice(first, first + int(np.append(finite[first:], False).argmin()))
    return Table(_GRID[known], rows[..., known])


def _rows(panels, parts, log_q):
    scale = np.exp(0.5 * log_q)[:, None]
    z, weights = standard_nodes(np.asarray(panels.edges), scale)
    square = slope = 0.0
    # With N the density of N(0, q), dN/dlog q = a N, where a = (z^2 - 1) / 2, and
    # d^2N/dlog q^2 = (a^2 - z^2 / 2) N. So derivatives of averages are averages, too.
    a = (z * z - 1) / 2
    rows = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for share, evaluate in parts:
            value, derivative = evaluate(scale * z)
            square, slope = square + share * value**2, slope + share * derivative**2
        for part in (square, slope):
            total, *others = (
                np.sum(part * weights * f, axis=1) for f in (1.0, a, a * a - z * z / 2)
            )
            first, second = (other / total for other in others)
            rows.append([np.log(total), first, second - first**2])
        beyond = extends_beyond(z, square * weights)
    return np.where(beyond | (log_q > panels.log_q), np.nan, np.swapaxes(rows, 0, 1))


def interpolate(table: Table, log_q: Array) -> tuple[Array, Array, Array]:
    """Interpolate `log M`, `d log M / d log q` and `log D` to rounding, by quintic polynomials."""
    position = (log_q - table.log_q[0]) / _STEP
    index = jnp.clip(jnp.floor(position), 0, len(table.log_q) - 2).astype(jnp.int32)
    left, right = (jnp.asarray(table.rows)[..., index + i] for i in (0, 1))
    # In units of the step: f, f' and f'' / 2 at both ends.
    units = np.asarray([1.0, _STEP, _STEP**2 / 2]).reshape((3,) + (1,) * (left.ndim - 1))
    a, b = left * units, right * units

    def polynomial(u):
        # The Taylor polynomial at the left, plus u^3 (c3 + c4 u + c5 u^2) to fit the right.
        r0, r1, r2 = b[0] - (a[0] + a[1] + a[2]), b[1] - (a[1] + 2 * a[2]), 2 * b[2] - 2 * a[2]
        c3, c4 = 10 * r0 - 4 * r1 + r2 / 2, -15 * r0 + 7 * r1 - r2
        c5 = 6 * r0 - 3 * r1 + r2 / 2
        return a[0] + u * (a[1] + u * (a[2] + u * (c3 + u * (c4 + u * c5))))

    u = jnp.broadcast_to(position - index, left.shape[1:])
    (square, slope), (elasticity, _) = jax.jvp(polynomial, (u,), (jnp.ones_like(u),))
    return square, elasticity / _STEP, slope
