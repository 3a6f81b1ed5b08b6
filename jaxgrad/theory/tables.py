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
from jaxgrad.theory import moments

LOW, HIGH, STEP = -28.0, 28.0, 0.0625
"""The table covers log variances, so variances from 7e-13 to 1e12."""

GRID = np.linspace(LOW, HIGH, int((HIGH - LOW) / STEP) + 1)


class Table(NamedTuple):
    """Logs of `M` and `D` with two derivatives by log variance, `[3, points]` each."""

    square: np.ndarray
    slope: np.ndarray


@functools.lru_cache(maxsize=64)
def table(activation: Activation) -> Table:
    """Tabulate an activation.

    Raises:
      ValueError: if the activation is not elementwise, is NaN somewhere, or zero everywhere.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):

        @jax.jit
        def rows(log_q):
            def both(value):
                found = moments.statistics(activation, value)
                first = jnp.stack([found.elasticity, found.slope_elasticity])
                return first, jnp.stack([found.log_square, found.log_slope])

            def one(value):
                (first, logs), (second, _) = jax.jvp(both, (value,), (jnp.ones_like(value),))
                return jnp.stack([logs, first, second], axis=1)

            return jax.lax.map(one, log_q, batch_size=16)

        found = np.asarray(rows(GRID))
    return Table(found[:, 0].T, found[:, 1].T)


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
