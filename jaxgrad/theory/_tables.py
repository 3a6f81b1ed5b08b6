"""The averages of an activation over all variances, as a table that interpolates to rounding.

A table depends on the activation alone and is computed once. Fixed points and critical points for
many variances of weights and biases then need no further integrals.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad.activations import Activation
from jaxgrad.theory import _quadrature
from jaxgrad.theory._mesh import evaluator, mesh, versions

# The table covers log variances from -28 to 28, so variances from 7e-13 to 1e12.
LOW, HIGH, STEP = -28.0, 28.0, 0.0625
GRID = np.linspace(LOW, HIGH, int((HIGH - LOW) / STEP) + 1)


class Table(NamedTuple):
    """Logs of `M` and `D` and their first two derivatives with respect to the log variance."""

    square: Float[np.ndarray, "3 points"]
    slope: Float[np.ndarray, "3 points"]


@functools.lru_cache(maxsize=64)
def table(activation: Activation) -> Table:
    """Tabulate an activation, with NaN where its averages are not known (see `statistics`)."""
    panels = mesh(activation)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        evaluators = [(share, evaluator(function)) for share, function in versions(activation)]
        parts = [_rows(panels, evaluators, part) for part in np.array_split(GRID, 64)]
    return Table(*(np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1)))


@functools.lru_cache(maxsize=64)
def known_range(activation: Activation) -> tuple[int, int]:
    """First and last index where the averages are known; ValueError if there are none."""
    rows = table(activation)
    finite = np.all(np.isfinite(np.concatenate([rows.square, rows.slope])), axis=0).tolist()
    if not any(finite):
        raise ValueError(
            f"activation {activation.name!r} must have a finite second moment that is not 0, but "
            "it has none at any variance; rescale or bound it"
        )
    first = finite.index(True)
    return first, [*finite, False].index(False, first) - 1


def _rows(panels, evaluators, log_q):
    scale = np.exp(0.5 * log_q)[:, None]
    z, weights = _quadrature.standard_nodes(np.asarray(panels.edges), 0.0, scale)
    square = slope = 0.0
    with np.errstate(over="ignore"):
        for share, evaluate in evaluators:
            value, derivative = evaluate(scale * z)
            square, slope = square + share * value**2, slope + share * derivative**2
    # With N the density of N(0, q), dN/dlog q = a N, where a = (z^2 - 1) / 2, and
    # d^2N/dlog q^2 = (a^2 - z^2 / 2) N. So derivatives of averages are averages, too.
    a = (z * z - 1) / 2
    factors = (1.0, a, a * a - z * z / 2)
    rows = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total = np.sum(square * weights, axis=1)
        beyond = _quadrature.extends_beyond(z, square * weights, total)
        known = ~beyond & ~np.isnan(total) & (log_q <= panels.log_q)
        for part in (square, slope):
            moments = [np.sum(part * weights * factor, axis=1) for factor in factors]
            first, second = (moment / moments[0] for moment in moments[1:])
            row = np.stack([np.log(moments[0]), first, second - first**2])
            rows.append(np.where(known, row, np.nan))
    return rows


def interpolate(rows: np.ndarray, log_q: Array) -> tuple[Array, Array]:
    """Value and slope at `log_q` of a row of the table, `[3, points]`, by quintic polynomials."""
    index = jnp.clip(jnp.floor((log_q - LOW) / STEP), 0, len(GRID) - 2).astype(jnp.int32)
    u = (log_q - LOW) / STEP - index
    left, right = (jnp.asarray(rows)[:, index + i] for i in (0, 1))
    # In units of the step: f, f' and f'' / 2 at both ends.
    units = np.asarray([1.0, STEP, STEP**2 / 2]).reshape((3,) + (1,) * (left.ndim - 1))
    a, b = left * units, right * units

    def polynomial(u):
        # The Taylor polynomial at the left, plus u^3 (c3 + c4 u + c5 u^2) to fit the right.
        r0, r1, r2 = b[0] - (a[0] + a[1] + a[2]), b[1] - (a[1] + 2 * a[2]), 2 * b[2] - 2 * a[2]
        c3, c4 = 10 * r0 - 4 * r1 + r2 / 2, -15 * r0 + 7 * r1 - r2
        c5 = 6 * r0 - 3 * r1 + r2 / 2
        return a[0] + u * (a[1] + u * (a[2] + u * (c3 + u * (c4 + u * c5))))

    value, slope = jax.jvp(polynomial, (u,), (jnp.ones_like(u),))
    return value, slope / STEP
