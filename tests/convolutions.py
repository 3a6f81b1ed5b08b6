"""A convolution to test kernels with."""

import jax
import jax.numpy as jnp


def convolve(x, kernel):
    """Circular convolution, `[batch, *spatial, channels]`."""
    half = [size // 2 for size in kernel.shape[:-2]]
    padded = jnp.pad(x, [(0, 0), *((size, size) for size in half), (0, 0)], mode="wrap")
    spatial = "HWD"[: len(half)]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(
        padded, kernel, (1,) * len(half), "VALID", dimension_numbers=layout
    )
