"""A map of the gradient over depth and any other number, for any model of any library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from jaxgrad import inspection, sweeps

VARIABLES = {
    "log_ratio": "natural log of the mean squared gradient at the first block over the last",
    "log_gradient": "natural log of the mean squared gradient at the first block",
    "log_activation": "natural log of the mean square of the last block's result",
    "log_profile": "natural log of the mean squared gradient at each block",
}


def measure_model(
    init: Callable[[Any, int, Any], Any],
    loss: Callable[[Any, Any], Any],
    batch: Any,
    *,
    depths: Sequence[int],
    values: Sequence[float] | np.ndarray,
    axis: str = "w_variance",
    seeds: int = 4,
    name: str = "model",
    store: Any = None,
    **options: Any,
) -> xarray.Dataset:
    """Measure the gradient at the blocks of a model, over depths, values of any number, and seeds.

    Each depth compiles one program, which serves all values and seeds.

    Args:
      init: `init(key, depth, value)` draws the parameters; the depth is an int, the value traced.
      loss: `loss(params, batch)` is a number; see `inspection.measure_blocks` for what is a block.
      batch: a pytree of arrays, the second argument of `loss`.
      depths: numbers of blocks, each at least 2, ascending.
      values: of the other axis, ascending: weight variances, learning rates, residual scales, ...
      axis: the name of that axis.
      seeds: number of draws, at least 2.
      name: of the model, the only value of the axis `activation`; `xarray.concat` joins several.
      store: as of `sweeps.run`, to resume what was interrupted.
      **options: of `sweeps.run`, such as `key` and `progress`.

    Returns:
      A data set as `plotting.depth_map` takes it, with the variables of `VARIABLES`. What is not
      finite is NaN.
    """
    options = {"key": jax.random.key(0)} | options
    depths = sorted(map(int, depths))
    grid, most = np.asarray(values, float), max(depths)

    def cell(key, point, batch, grid):
        depth = int(point["depth"])
        measured = inspection.measure_blocks(loss, depth)

        def one(value):
            sizes = measured(init(key, depth, value), batch)
            profile = jnp.pad(sizes.log_gradient, (0, most - depth), constant_values=jnp.nan)
            return {
                "log_ratio": sizes.log_gradient[0] - sizes.log_gradient[-1],
                "log_gradient": sizes.log_gradient[0],
                "log_activation": sizes.log_signal[-1],
                "log_profile": profile,
            }

        return jax.lax.map(one, grid)

    table = sweeps.run(
        cell,
        {"depth": depths, "seed": range(seeds)},
        {
            key: sweeps.Variable((axis, "layer") if key == "log_profile" else (axis,), "1", text)
            for key, text in VARIABLES.items()
        },
        args=(batch, jnp.asarray(grid, jnp.float32)),
        coords={axis: grid, "layer": np.arange(1, most + 1)},
        static="depth",
        # A model may be large; the next one would only compete for the cache.
        vectorized=False,
        store=store,
        **options,
    )
    # Only the deepest model has all layers of the profile.
    table = table.assign(log_profile=table["log_profile"].isel(depth=-1))
    return table.expand_dims(activation=[name])
