"""What mean-field theory says of deep random networks: fixed points, slopes, critical points.

At infinite width the pre-activations of a layer are Gaussian, so that everything follows from
averages `E f(sqrt(q) z)` of the activation. Results are float64 whatever JAX's setting: called with
numbers, functions return NumPy arrays; traced, in a program without float64, they round on the way
out to float32. All are jittable, vmappable and differentiable in what is not an activation or a
depth.

Notation: weights of variance `w_variance / fan_in`, biases of `b_variance`, pre-activations of `q`;
`M(q) = E phi^2`, `D(q) = E phi'^2`; `chi_perp = w_variance D`, the growth per layer of a squared
gradient; `chi_par = w_variance M'`, the stability of the length; `gap = 1 - c`, with `c` the
correlation of two examples.

Sources: Poole et al. (2016), Schoenholz et al. (2017), Roberts, Yaida, Hanin (2022).
"""

from jaxgrad.theory import finite_width, spectra
from jaxgrad.theory.critical import Critical, critical, critical_line
from jaxgrad.theory.fixed_points import (
    Correlation,
    FixedPoints,
    Limit,
    Stability,
    correlation,
    fixed_points,
    limit,
)
from jaxgrad.theory.maps import c_map, chi_par, chi_perp, q_map, second_moment, slope_moment
from jaxgrad.theory.moments import Moments, activate
from jaxgrad.theory.prediction import Prediction, moments_of, predict, predict_blocks
from jaxgrad.theory.tailored import tailored_relu

__all__ = [
    "Correlation",
    "Critical",
    "FixedPoints",
    "Limit",
    "Moments",
    "Prediction",
    "Stability",
    "activate",
    "c_map",
    "chi_par",
    "chi_perp",
    "correlation",
    "critical",
    "critical_line",
    "finite_width",
    "fixed_points",
    "limit",
    "moments_of",
    "predict",
    "predict_blocks",
    "q_map",
    "second_moment",
    "slope_moment",
    "spectra",
    "tailored_relu",
]
