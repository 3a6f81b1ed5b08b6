"""Predictions of mean-field theory for deep random networks: fixed points, slopes, critical points.

At infinite width the pre-activations of a layer are Gaussian, so everything follows from averages
`E f(sqrt(q) z)` of the activation. Called with numbers, functions return NumPy arrays of float64;
inside a traced program without float64 they round to float32. All can be jitted and mapped, and
differentiated by all arguments except activations and depths. Weights have variance
`w_variance / fan_in`, biases `b_variance`, pre-activations `q`; `M(q) = E phi^2`,
`D(q) = E phi'^2`; `chi_perp = w_variance D` is the growth per layer of a squared gradient,
`chi_par = w_variance M'` the stability of the length; `gap = 1 - c`, with `c` the correlation of
two examples. Sources: Poole et al. (2016), Schoenholz et al. (2017), Roberts, Yaida, Hanin (2022).
"""

from jaxgrad.theory import finite_width, spectra
from jaxgrad.theory._attention import attend
from jaxgrad.theory._collapse import rank_collapse
from jaxgrad.theory._cotangents import Cotangent, pull_back
from jaxgrad.theory._critical import Critical, critical, critical_line
from jaxgrad.theory._fixed_points import FixedPoints, Stability, fixed_points
from jaxgrad.theory._limits import Correlation, Limit, correlation, limit
from jaxgrad.theory._maps import c_map, chi_par, chi_perp, q_map, second_moment, slope_moment
from jaxgrad.theory._moments import Moments, Tokens, activate, moments_of
from jaxgrad.theory._shaping import UnitScales, shaped, tailored_relu, unit_scales
from jaxgrad.theory._softmax import SoftmaxMoments, softmax_moments

__all__ = ["Correlation", "Critical", "FixedPoints", "Limit", "Moments", "Stability", "UnitScales"]
__all__ += ["c_map", "chi_par", "chi_perp", "q_map", "second_moment", "slope_moment"]
__all__ += ["correlation", "critical", "critical_line", "fixed_points", "limit"]
__all__ += ["shaped", "tailored_relu", "unit_scales"]
__all__ += ["Cotangent", "SoftmaxMoments", "Tokens", "attend", "pull_back", "softmax_moments"]
__all__ += ["activate", "finite_width", "moments_of", "rank_collapse", "spectra"]
