"""Singular values of the Jacobian of a deep random network, at infinite width or if linear.

The mean squared gradient is the mean of the squared singular values. Their spread shows how
differently single directions grow, and the largest one how much one of them can.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, bisect, in_float64
from jaxgrad.theory import finite_width
from jaxgrad.theory._maps import ActivationLike, prediction
from jaxgrad.theory._moments import map_elements
from jaxgrad.theory._quadrature import FAR, sample
from jaxgrad.theory._spectrum import Spectrum, spectrum_of

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


def largest_eigenvalue(
    depth: ArrayLike,
    activation: ActivationLike = "linear",
    q: ArrayLike = 1.0,
    weights: Weights = "gaussian",
) -> FloatArray:
    """Compute the largest eigenvalue of `J J^T` for wide layers of critical variance.

    The mean is 1; multiply by `chi_perp ** depth` at another variance of the weights. For `L`
    layers it is about `L` times a constant: `(L + 1)^(L + 1) / L^L` for linear Gaussian ones, and
    `L^L / (L - 1)^(L - 1)` for two or more orthogonal ones with ReLU.

    The depth `L`, at least 1, and the variance `q` of the pre-activations, above 0, have any shape,
    broadcast, and may be traced. Sources: Pennington, Schoenholz, Ganguli (2017), Resurrecting the
    sigmoid in deep learning through dynamical isometry, sec. 2.5; and (2018), The emergence of
    spectral universality in deep networks.

    >>> [round(float(value), 3) for value in (largest_eigenvalue(4), largest_eigenvalue(4, "relu"))]
    [12.207, 21.858]
    """
    _validate.numbers("depth", depth, minimum=1.0)
    return _largest(activation, q, depth, weights)


@prediction(_validate.numbers)
def _largest(
    activation: ActivationLike, q: ArrayLike, depth: ArrayLike, weights: Weights
) -> FloatArray:
    phi, gaussian = activations.get(activation), weights == "gaussian"

    def one(depth, log_q):
        _, share, _, slope = sample(phi, jnp.clip(log_q, -FAR, FAR))
        share = share / jnp.sum(share)
        value = slope**2 / jnp.sum(share * slope**2)
        top = jnp.max(value)

        def averages(y):
            # Right of all values, at w = top (1 + exp(y)): m, 1 + m and dm / dlog w.
            w, difference = top * (1 + jnp.exp(y)), top - value + top * jnp.exp(y)
            inverse = share / difference
            m, n = jnp.sum(value * inverse), w * jnp.sum(inverse)
            excess = jnp.sum((value - 1) * value * inverse)
            slope = -w * jnp.sum(value * inverse / difference)
            return m, n, excess, slope

        def derivative(y):
            # Of log s, see `jaxgrad.theory._spectrum`; the largest s is where it is stationary.
            m, n, _, slope = averages(y)
            return (1 - depth) * slope * (1 / n - 1 / m) + depth * (1 + gaussian * slope / n)

        m, n, excess, _ = averages(bisect(derivative, -34.0, 100.0, steps=80, sign=-1.0))
        # log(w m / (1 + m)) without the cancellation between large and small factors.
        return jnp.exp(jnp.log1p(1 / m) + depth * (jnp.log1p(excess / n) + gaussian * jnp.log1p(m)))

    return map_elements(one, depth, jnp.log(q))


def singular_value_spectrum(
    activation: ActivationLike, q: float, depth: int, weights: Weights = "gaussian"
) -> Spectrum:
    """Compute the density of the singular values of the Jacobian of wide layers.

    The mean of their squares is 1; at another variance of the weights, add
    `depth * log(chi_perp) / 2` to their logs. Shares, moments and the largest value have errors of
    about 1e-9; a share of very small values, below 1e-8, is left out. It takes a few seconds.

    Args:
      activation: see `jaxgrad.activations.get`; it must not be randomized.
      q: variance of the pre-activations of every layer, above 0.
      depth: number of layers, each of a square matrix of weights and the activation. One layer of
        orthogonal weights has the slopes of the activation themselves, so they need at least 2.
      weights: `gaussian` or `orthogonal`.

    Returns:
      A `Spectrum` of NumPy arrays. A share of zeros, as of ReLU, and values that a slope common to
      more than `1 - 1 / depth` of the units gives orthogonal layers are among the `atom`s.

    A `ValueError` reports that the shares do not add up to 1. Source: Pennington, Schoenholz,
    Ganguli (2018), The emergence of spectral universality in deep networks.

    >>> spectrum = singular_value_spectrum("relu", 1.0, 10)
    >>> spectrum.atom.tolist(), spectrum.atom_share.round(12).tolist()
    ([-inf], [0.5])
    >>> squares = jnp.exp(2 * spectrum.log_singular_value)
    >>> round(float(spectrum.share @ squares), 4)
    1.0
    """
    phi = activations.get(activation)
    _validate.known("q", q, "singular_value_spectrum")
    _validate.scalar("q", q, minimum=0.0, above=True)
    _validate.choice("weights", weights, get_args(Weights))
    depth = _validate.integer("depth", depth, 2 if weights == "orthogonal" else 1)
    if phi.randomized:
        got = f"got {phi.name!r}; take its mean, an activation without a key"
        raise ValueError(f"activation must not be randomized, {got}")
    return spectrum_of(phi, math.log(q), depth, int(weights == "gaussian"))


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
