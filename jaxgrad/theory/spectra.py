"""Singular values of the Jacobian of a deep random network, at infinite width or if linear.

The mean squared gradient is the mean of the squared singular values. Their spread shows how
differently single directions grow.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, in_float64
from jaxgrad.theory import finite_width
from jaxgrad.theory._maps import ActivationLike, prediction

Weights = Literal["gaussian", "orthogonal"]


@in_float64
def lyapunov_exponents(width: int, w_variance: ArrayLike = 1.0) -> FloatArray:
    """Compute the growth per layer of the singular values of a product of Gaussian matrices.

    They are limits of `log(singular value) / depth` (not squared), in decreasing order, `[width]`.
    They differ, so a deep linear network keeps only one direction; their spread does not shrink
    with the width. The weight variance times `width` is a number above 0 and may be traced. Source:
    Newman (1986), The distribution of Lyapunov exponents: exact results for random matrices.

    >>> lyapunov_exponents(8)[[0, -1]].round(4).tolist()
    [-0.0651, -1.6749]
    """
    width = _validate.integer("width", width, 1)
    _validate.scalar("w_variance", w_variance, minimum=0.0, above=True)
    # The k-th squared growth is chi squared, with n - k + 1 degrees of freedom, times w / n; the
    # mean of its log is psi((n - k + 1) / 2) + log(2 w / n).
    freedom = jnp.arange(width, 0, -1, dtype=float)
    scale = jnp.log(2 * jnp.asarray(w_variance, float) / width)
    return (scale + jax.scipy.special.digamma(freedom / 2)) / 2


@in_float64
def largest_eigenvalue(depth: ArrayLike) -> FloatArray:
    """Compute the largest eigenvalue of `J J^T` for wide linear layers of critical variance.

    With `L` Gaussian matrices it is `(L + 1)^(L + 1) / L^L`, about `e L`, while the mean is 1. The
    depth `L` is at least 1, of any shape, and may be traced. Source: Pennington, Schoenholz,
    Ganguli (2017), Resurrecting the sigmoid in deep learning through dynamical isometry, sec. 2.5.
    """
    _validate.numbers("depth", depth, minimum=1.0)
    depth = jnp.asarray(depth, float)
    # (L + 1)^(L + 1) / L^L = (L + 1) (1 + 1 / L)^L, without overflow.
    return (depth + 1) * jnp.exp(depth * jnp.log1p(1 / depth))


@prediction(_validate.scalar)
def spectrum_variance(
    activation: ActivationLike, q: ArrayLike, depth: ArrayLike, weights: Weights = "gaussian"
) -> FloatArray:
    """Compute the variance of the eigenvalues of `J J^T` over their squared mean.

    With `mu_k = E phi'^(2 k)` it is `L (mu_2 / mu_1^2 - 1)` for `orthogonal` weights, and larger by
    `L` for `gaussian` ones. It grows with the depth `L` unless the slope is the same everywhere.
    The variance `q` of the pre-activations of every layer is above 0, the depth at least 0; both
    may be traced. Source: Pennington, Schoenholz, Ganguli (2017), eq. 22.
    """
    phi, gaussian = activations.get(activation), weights == "gaussian"
    return depth * (finite_width.fourth_moments(phi, jnp.log(q))[2] - 1 + gaussian)
