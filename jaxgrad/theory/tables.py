"""The averages of an activation over all variances, as a table that interpolates to rounding.

What depends on the activation alone is computed once; fixed points and critical points for many
variances of weights and biases are then found without another integral.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.activations import Activation
from jaxgrad.theory import quadrature

LOW, HIGH, STEP = -28.0, 28.0, 0.0625
"""The table covers log variances, so variances from 7e-13 to 1e12."""

GRID = np.linspace(LOW, HIGH, int((HIGH - LOW) / STEP) + 1)


class Table(NamedTuple):
    """Logs of `M` and `D` with two derivatives by log variance, `[3, points]` each."""

    square: np.ndarray
    slope: np.ndarray


@functools.lru_cache(maxsize=64)
def table(activation: Activation) -> Table:
    """Tabulate an activation; NaN where its averages are not known, as in `moments.statistics`.

    Raises:
      ValueError: if the activation is not elementwise or is NaN somewhere.
    """
    mesh = quadrature.mesh(activation)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        evaluators = [
            (share, quadrature.evaluator(function))
            for share, function in quadrature.versions(activation)
        ]
        parts = [_rows(mesh, evaluators, part) for part in np.array_split(GRID, 64)]
    return Table(*(np.concatenate([part[i] for part in parts], axis=1) for i in (0, 1)))


def _rows(mesh, evaluators, log_q):
    """Logs of averages and two derivatives, from those of the Gaussian's density."""
    scale = np.exp(0.5 * log_q)[:, None]
    own = np.linspace(-quadrature.REACH, quadrature.REACH, int(quadrature.REACH) + 1)
    inner = np.clip(np.asarray(mesh.edges)[None] / scale, -quadrature.REACH, quadrature.REACH)
    bounds = np.sort(np.concatenate([np.broadcast_to(own, (len(scale), len(own))), inner], axis=1))
    half = np.diff(bounds)[..., None] / 2
    z = ((bounds[:, 1:] + bounds[:, :-1])[..., None] / 2 + half * quadrature.NODES).reshape(
        len(scale), -1
    )
    weights = (half * quadrature.WEIGHTS).reshape(z.shape) * np.exp(-z * z / 2)
    weights = weights / np.sqrt(2 * np.pi)
    square = slope = 0.0
    for share, evaluate in evaluators:
        value, derivative = evaluate(scale * z)
        with np.errstate(over="ignore"):
            square = square + share * value**2
            slope = slope + share * derivative**2
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        total = np.sum(square * weights, axis=1)
        end = np.sum(np.where(np.abs(z) > quadrature.REACH - 1, square * weights, 0.0), axis=1)
        known = (end <= 1e-12 * total) & (log_q <= mesh.log_q)
        first = (z * z - 1) / 2
        found = []
        for part in (square, slope):
            moments = [
                np.sum(part * weights * factor, axis=1)
                for factor in (1.0, first, first * first - z * z / 2)
            ]
            relative = [moment / moments[0] for moment in moments[1:]]
            rows = np.stack([np.log(moments[0]), relative[0], relative[1] - relative[0] ** 2])
            found.append(np.where(known, rows, np.nan))
    return found


def interpolate(rows: np.ndarray, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value and derivative at a log variance within the table, by quintic Hermite interpolation."""
    index = jnp.clip(jnp.floor((at - LOW) / STEP), 0, len(GRID) - 2).astype(jnp.int32)
    u = (at - LOW) / STEP - index
    left, right = (jnp.asarray(rows)[:, index + i] for i in (0, 1))
    scale = np.asarray([1.0, STEP, STEP**2 / 2])

    def polynomial(u):
        # Taylor polynomial at the left, and what is missing at the right in powers from the third.
        a = left * scale.reshape((3,) + (1,) * (left.ndim - 1))
        b = right * scale.reshape((3,) + (1,) * (left.ndim - 1))
        r0 = b[0] - (a[0] + a[1] + a[2])
        r1 = b[1] - (a[1] + 2 * a[2])
        r2 = 2 * b[2] - 2 * a[2]
        c3 = 10 * r0 - 4 * r1 + r2 / 2
        c4 = -15 * r0 + 7 * r1 - r2
        c5 = 6 * r0 - 3 * r1 + r2 / 2
        return a[0] + u * (a[1] + u * (a[2] + u * (c3 + u * (c4 + u * c5))))

    value, slope = jax.jvp(polynomial, (u,), (jnp.ones_like(u),))
    return value, slope / STEP
