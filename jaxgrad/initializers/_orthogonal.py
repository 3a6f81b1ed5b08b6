"""Random orthogonal matrices, for dense layers and as the centre of convolution kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.initializers._random import Initializer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Orthogonal:
    gain: Any
    delta: bool = field(metadata={"static": True})

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        *window, n_in, n_out = sizes = _validate.shape("shape", shape, 2)
        if self.delta and any(size % 2 == 0 for size in window):
            rule = "have odd window sizes, whose kernel has a centre"
            remedy = "use orthogonal for an even window"
            raise ValueError(f"shape must {rule}, got {tuple(shape)}; {remedy}")
        drawn = (n_in, n_out) if self.delta else sizes
        # More columns than rows: the norm is spread over more units, so each has less variance.
        correction = max(math.sqrt(n_out / math.prod(drawn[:-1])), 1.0)
        # In float32, so that a key gives the same matrix in every precision.
        matrix = jax.nn.initializers.orthogonal(1.0)(key, drawn, jnp.float32)
        matrix = (matrix * (self.gain * correction)).astype(dtype)
        centre = tuple(size // 2 for size in window)
        return jnp.zeros(sizes, dtype).at[centre].set(matrix) if self.delta else matrix


def orthogonal(gain: Any = 1.0) -> Initializer:
    """Draw a uniformly random orthogonal matrix, times `gain`, a finite number that may be traced.

    The kernel is read as a matrix of `window * in` rows and `out` columns. With more columns than
    rows, an orthogonal matrix keeps the norm of a signal but lowers its mean square. The factor
    `max(sqrt(out / rows), 1)` corrects this, so the mean square is multiplied by `gain^2` for every
    shape. Source: Saxe, McClelland, Ganguli (2014); the correction by counting rows and columns.

    >>> kernel = orthogonal()(jax.random.key(0), (8, 8))
    >>> bool(jnp.allclose(kernel.T @ kernel, jnp.eye(8), atol=1e-5))
    True
    """
    _validate.scalar("gain", gain)
    return _Orthogonal(gain, delta=False)


def delta_orthogonal(gain: Any = 1.0) -> Initializer:
    """Draw a convolution kernel that is zero except for a matrix at its centre, as of `orthogonal`.

    A linear circular convolution with this kernel keeps the norm of every image, whatever its
    wavelengths, if it has at least as many output as input channels. Drawing a window of even size,
    which has no centre, raises a `ValueError`. Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz,
    Pennington (2018), sec. 3.
    """
    _validate.scalar("gain", gain)
    return _Orthogonal(gain, delta=True)
