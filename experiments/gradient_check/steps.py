"""Which step is best for a numeric gradient?"""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments._kit import Claim, Estimate, Report, table
from experiments.gradient_check import network
from jaxgrad.checking import finite_differences
from jaxgrad.plotting.style import scientific

central = finite_differences.central_difference
METHODS = {
    "one-sided, float64": (finite_differences.one_sided_difference, "float64", 1),
    "two-sided, float32": (central, "float32", 2),
    "two-sided, float64": (central, "float64", 2),
    # Two steps cancel the term of second order (Richardson, 1911).
    "extrapolated (Richardson), float64": (
        lambda f, x, eps: (4 * central(f, x, eps / 2) - central(f, x, eps)) / 3,
        "float64",
        4,
    ),
    "complex step, float64": (finite_differences.complex_step, "float64", 2),
}
"""How to take a numeric gradient, in which precision, and with which power of the step it errs."""
Method = namedtuple("Method", "name error order slope small_slope rounding")
"""Relative errors, `[steps]`; the power of the step that they fall with in theory, and where
truncation and where rounding dominates; and machine epsilon of the dtype."""
Steps = namedtuple("Steps", "steps methods gradient_error gradient_bar")
"""Methods at each step, and the error of `finite_differences.gradient` with its error bar."""


@network.precise()
def measure(options: network.Options) -> Steps:
    """Measure the error of numeric gradients of a tanh network at each step."""
    params, x, y = network.problem(options)
    theta, unravel = ravel_pytree(params)

    def loss(theta):
        # Data in the dtype of theta: float32, float64, or complex in a complex step.
        data = (a.astype(theta.dtype) for a in (x, y))
        return network.cross_entropy(unravel(theta), *data, phi=jnp.tanh)

    trusted = jax.grad(loss)(theta)
    decades = np.round(-np.log10(options.smallest_step), 9)
    index = np.arange(np.ceil(decades * options.steps_per_decade) + 1)
    steps = 10.0 ** (-index / options.steps_per_decade)

    @functools.partial(jax.jit, static_argnums=0)
    def errors(difference, theta, steps):
        def error(eps):
            return finite_differences.relative_error(difference(loss, theta, eps), trusted)

        return jax.lax.map(error, steps)

    methods = []
    for name, (difference, dtype, order) in METHODS.items():
        error = errors(difference, theta.astype(dtype), jnp.asarray(steps, dtype))
        methods.append(method(name, np.asarray(error, np.float64), order, steps, dtype))
    numeric = finite_differences.gradient(loss, theta)
    size = np.linalg.norm(numeric.value) + np.linalg.norm(trusted)
    error = float(finite_differences.relative_error(numeric.value, trusted))
    return Steps(steps, tuple(methods), error, float(np.linalg.norm(numeric.error) / size))


def method(name, error, order, steps, dtype) -> Method:
    """Fit the slopes at large and at small steps, away from the smallest error."""
    best, index = np.argmin(error), np.arange(len(steps))
    # Near the best step both errors matter; very large steps leave the power law.
    clear = error > 3 * error[best]
    regions = (clear & (index < best) & (steps < 0.2), clear & (index > best) & (error < 0.1))
    slopes = (
        float(np.polyfit(np.log(steps[r]), np.log(error[r]), 1)[0]) if r.sum() > 1 else np.nan
        for r in regions
    )
    return Method(name, error, order, *slopes, rounding=float(jnp.finfo(dtype).eps))


def report(result: Steps) -> Report:
    """Tabulate the slopes, the best step and the smallest error of each method."""
    headings = {"numeric gradient (in brackets: theory)": "", "slope at large steps": ""}
    headings |= {"slope at small steps": "", "best step": "", "least error": ".0e"}
    rows, claims = [], []
    for name, error, order, slope, small_slope, rounding in result.methods:
        # Rounding / step and step^order are alike at rounding^(1 / (order + 1)), up to scales.
        best = f"{result.steps[error.argmin()]:.0e} (~{rounding ** (1 / (order + 1)):.0e})"
        # A complex step subtracts nothing, so rounding does not grow at small steps.
        rounds = (f"{small_slope:.2f} (-1)", best) if small_slope < 0 else ("does not rise", "none")
        rows.append((name, f"{slope:.2f} ({order})", *rounds, error.min()))
        text = f"the error of the {name} gradient falls with power {order} of the step"
        # The tolerance is wide since high powers show in a short range of small steps only.
        claims.append(Claim(text, Estimate.exact(slope), "equal", order, 0.2, ".2f"))
    rows.append(("finite_differences.gradient", "", "", "its own", result.gradient_error))
    text = "the error of finite_differences.gradient is within its error bar (error over bar)"
    ratio = Estimate.exact(result.gradient_error / result.gradient_bar)
    claims.append(Claim(text, ratio, "less", 1.0, form=".2f"))
    section = table(headings, rows, "Which step? Relative errors of the whole gradient:")
    estimates = {m.name: m._asdict() for m in result.methods}
    return Report([section], claims, estimates | {"steps": result.steps})


def figure(result: Steps):
    """Plot the error of numeric gradients against the step."""
    best = {m.name: scientific(result.steps[m.error.argmin()]) for m in result.methods}
    title = (
        f"Two-sided differences are best at a step of {best['two-sided, float32']} in float32 and "
        f"{best['two-sided, float64']} in float64"
    )
    errors = {m.name: m.error for m in result.methods}
    xlabel = "step: how far each weight is moved (left: rounding dominates, right: curvature)"
    return network.error_figure(result.steps, errors, title, xlabel)
