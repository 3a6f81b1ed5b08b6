"""Initializers on the critical line of an activation, computed by `jaxgrad.theory`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxgrad import _validate, activations, theory
from jaxgrad.activations import Activation
from jaxgrad.initializers._random import (
    Distribution,
    Initializer,
    check_names,
    normal,
    variance_scaling,
)
from jaxgrad.theory import finite_width

_SMALL_SIGNAL = 1e-12  # Variance that stands for the limit of small signals.


class Critical(NamedTuple):
    """Initializers of kernels and biases at a point of the critical line, and its variances.

    `w_variance` is times fan-in; `q` is the variance of the pre-activations, 0 in the limit of
    small signals, as for tanh's (1, 0).
    """

    kernel: Initializer
    bias: Initializer
    w_variance: Any
    b_variance: Any
    q: Any


def critical(
    activation: str | Activation | Callable[..., Any],
    b_variance: Any = None,
    *,
    q: Any = None,
    width: Any = None,
    distribution: Distribution = "normal",
    **convolution: Any,
) -> Critical:
    """Initializers with which a gradient neither vanishes nor explodes, for any activation.

    Args:
      activation: see `jaxgrad.activations.get`.
      b_variance: bias variance, at least 0, may be traced. `None` selects the smallest one for
        which there is a critical point with a stable length.
      q: variance of the pre-activations, above 0, may be traced; an alternative to `b_variance`.
        The length may be unstable there; see `jaxgrad.theory.Critical`.
      width: number of units of the layers, at least 1, may be traced. With a width, the weights are
        larger, such that the mean of the *log* of a squared gradient is kept, which describes a
        typical network; `None` keeps the mean over networks. This is exact for (leaky) ReLU. For
        other activations part of the drift remains, see `finite_width.gradient_law`.
      distribution, convolution: options of the kernels, see `variance_scaling`.

    The variances are the same at every depth, so there is no argument for it. Raises a `ValueError`
    if both variances are passed or if there is no critical point; if they are traced, the result is
    NaN instead. Source: Poole et al. (2016); Schoenholz et al. (2017).

    >>> point = critical("tanh", 0.05)
    >>> round(float(point.w_variance), 6), round(float(point.q), 6)
    (1.760955, 0.570048)
    """
    phi = activations.get(activation)
    # Wrong options are refused before anything is computed.
    any_depth = {"depth": "leave it out, since a critical variance is the same at every depth"}
    check_names("critical", convolution, any_depth)
    variance_scaling(1.0, "fan_in", distribution, **convolution)
    if width is not None:
        _validate.scalar("width", width, minimum=1.0)
    if b_variance is not None and q is not None:
        raise ValueError(
            "b_variance and q must not both be given, since one follows from the other; got "
            f"{b_variance!r} and {q!r}; leave one out"
        )
    if q is not None:
        _validate.scalar("q", q, minimum=0.0, above=True)
    point = theory.critical(phi, b_variance) if q is None else theory.critical_line(phi, q)
    w_variance = point.w_variance
    # Inside a traced program nothing can be raised, and NaN is returned.
    if not _validate.is_traced(w_variance) and not np.isfinite(w_variance):
        if q is not None:
            # b = q - M / D.
            rest = f"q {float(q):g}, which would need a negative bias variance; pass another q"
        elif b_variance is not None:
            rest = f"b_variance {float(b_variance):g}; leave it out for the smallest that has one"
        else:
            rest = "any b_variance; choose another activation or normalize the layers"
        raise ValueError(f"activation {phi.name!r} has no stable critical point for {rest}")
    if width is not None:
        # A point in the limit of small signals has q = 0, where averages are not defined.
        near = point.q + _SMALL_SIGNAL * (point.q == 0)
        w_variance = finite_width.critical_w_variance(phi, near, width)
    kernel = variance_scaling(w_variance, "fan_in", distribution, **convolution)
    return Critical(kernel, normal(point.b_variance), w_variance, point.b_variance, point.q)
