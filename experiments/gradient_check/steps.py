"""Which step is best for a numeric gradient?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.network import TIERS, Options
from jaxgrad import initializers
from jaxgrad.checking import finite_differences
from jaxgrad.plotting.style import LINES, STYLES, halo, scientific

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE = "#2f5fa8"


class Method(NamedTuple):
    """One way to take a numeric gradient, with every step.

    Attributes:
      name: a description.
      error: relative error of the whole gradient for each step, `[steps]`.
      order: the power of the step with which the error should fall.
      slope: the measured power where the truncation error dominates; NaN if it never does.
      small_slope: the same where rounding dominates.
      rounding: machine epsilon of the dtype.
    """

    name: str
    error: np.ndarray
    order: int
    slope: float
    small_slope: float
    rounding: float

    @property
    def best(self) -> int:
        """The index of the step with the smallest error."""
        return int(np.argmin(self.error))


class Steps(NamedTuple):
    """Errors of numeric gradients against the step.

    Attributes:
      steps: `[steps]`, falling.
      methods: see `Method`.
      gradient_error: relative error of `finite_differences.gradient`, which finds its own steps.
      gradient_bar: the error bar that it reports, as a relative error.
    """

    steps: np.ndarray
    methods: tuple[Method, ...]
    gradient_error: float
    gradient_bar: float

    @property
    def is_inside(self) -> bool:
        """Whether the error of `finite_differences.gradient` is within its error bar."""
        return self.gradient_error <= self.gradient_bar


def measure(options: Options) -> Steps:
    """Measure the error of numeric gradients of a tanh network at each step."""
    with network.precise():
        x, y = network.digits(options.examples, options.seed)
        key = jax.random.key(options.seed)
        params = network.draw(key, options.width, initializers.lecun())
        theta = ravel_pytree(params)[0]

        def loss(theta):
            # Data in the dtype of theta: float32, float64, or complex in a complex step.
            inputs, labels = (a.astype(theta.dtype) for a in (x, y))
            unraveled = network.unravel(theta, params)
            return network.cross_entropy(unraveled, inputs, labels, jnp.tanh)

        trusted = jax.grad(loss)(theta)
        decades = -np.log10(options.smallest_step)
        # 1e-9 keeps rounding from adding a step.
        count = int(np.ceil(decades * options.steps_per_decade - 1e-9))
        steps = 10.0 ** (-np.arange(count + 1) / options.steps_per_decade)
        methods = [
            method(
                name, _errors(loss, theta, trusted, difference, dtype, steps), order, steps, dtype
            )
            for name, difference, dtype, order in network.progress(_methods(), "steps")
        ]
        numeric = finite_differences.gradient(loss, theta)
        # relative_error divides by |a| + |b|, so the error bar is divided by it too.
        size = np.linalg.norm(numeric.value) + np.linalg.norm(trusted)
        error = float(finite_differences.relative_error(numeric.value, trusted))
        return Steps(steps, tuple(methods), error, float(np.linalg.norm(numeric.error) / size))


def _methods():
    central = finite_differences.central_difference

    def extrapolated(f, x, eps):
        # Two steps cancel the term of second order (Richardson, 1911).
        half, full = (central(f, x, step) for step in (eps / 2, eps))
        return (4 * half - full) / 3

    return (
        ("one-sided, float64", finite_differences.one_sided_difference, jnp.float64, 1),
        ("two-sided, float32", central, jnp.float32, 2),
        ("two-sided, float64", central, jnp.float64, 2),
        ("extrapolated (Richardson), float64", extrapolated, jnp.float64, 4),
        ("complex step, float64", finite_differences.complex_step, jnp.float64, 2),
    )


def _errors(loss, theta, trusted, difference, dtype, steps) -> np.ndarray:
    @jax.jit
    def errors(theta, steps):
        def error(eps):
            return finite_differences.relative_error(difference(loss, theta, eps), trusted)

        # One step at a time bounds the memory.
        return jax.lax.map(error, steps)

    return np.asarray(errors(theta.astype(dtype), jnp.asarray(steps, dtype)), np.float64)


def method(name, error, order, steps, dtype) -> Method:
    """Fit the slopes at large and at small steps, away from the smallest error."""
    best, index = int(np.argmin(error)), np.arange(len(steps))
    # Near the best step both errors matter; very large steps leave the power law.
    clear = error > 3 * error[best]
    large = clear & (index < best) & (steps < 0.2)
    small = clear & (index > best) & (error < 0.1)
    slope, small_slope = (_slope(steps, error, region) for region in (large, small))
    return Method(name, error, order, slope, small_slope, float(jnp.finfo(dtype).eps))


def _slope(steps, error, region) -> float:
    if region.sum() < 2:
        return np.nan
    return float(np.polyfit(np.log(steps[region]), np.log(error[region]), 1)[0])


def report(result: Steps) -> Report:
    """Tabulate the slopes, the best step and the smallest error of each method."""
    rows = []
    for item in result.methods:
        # Rounding / step and step^order are alike at rounding^(1 / (order + 1)), up to scales.
        theory = item.rounding ** (1 / (item.order + 1))
        # A complex step subtracts nothing, so rounding does not grow at small steps.
        rounds = np.isfinite(item.small_slope)
        small, best = f"{item.small_slope:.2f} (-1)", f"{result.steps[item.best]:.0e}"
        measured = (small, f"{best} (~{theory:.0e})") if rounds else ("does not rise", "none")
        slope, error = f"{item.slope:.2f} ({item.order})", f"{item.error[item.best]:.0e}"
        rows.append((item.name, slope, *measured, error))
    rows.append(("finite_differences.gradient", "", "", "its own", f"{result.gradient_error:.0e}"))
    headings = ("numeric gradient (in brackets: theory)", "slope at large steps")
    headings += ("slope at small steps", "best step", "least error")
    section = table(headings, rows, "Which step? Relative errors of the whole gradient:")
    words = "the error of the {} gradient falls with power {} of the step"
    claims = [
        # The tolerance is wide since high powers show in a short range of small steps only.
        Claim(words.format(m.name, m.order), Estimate.exact(m.slope), "equal", m.order, 0.2, ".2f")
        for m in result.methods
    ]
    words = "the error of finite_differences.gradient is within its error bar (error over bar)"
    ratio = Estimate.exact(result.gradient_error / result.gradient_bar)
    claims.append(Claim(words, ratio, "less", 1.0, form=".2f"))
    estimates = {item.name: item._asdict() for item in result.methods}
    return Report([section], claims, estimates | {"steps": result.steps})


def figure(result: Steps) -> Figure:
    """Plot the error of numeric gradients against the step, with the best steps marked."""
    figure, ((ax,),) = figures.panels(1, 1, (12.5, 6.8))
    # A log axis has no 0: an error of exactly 0 is drawn at the smallest other one.
    least = min(item.error[item.error > 0].min() for item in result.methods)
    for item, (colour, marker), style in zip(result.methods, LINES, STYLES, strict=True):
        power = f"\n(falls as step$^{{{item.slope:.2f}}}$)" if np.isfinite(item.slope) else ""
        error, label = np.maximum(item.error, least), f"{item.name}{power}"
        ax.plot(result.steps, error, c=colour, marker=marker, ms=4, linestyle=style, label=label)
        if np.isfinite(item.small_slope):
            _mark_best(ax, (result.steps[item.best], error[item.best]), item.order, colour)
    limit, word = TIERS[0]
    ax.axhline(limit, color="0.5", linewidth=1, zorder=0)
    words = f"the course: “{word}” below this line"
    ax.text(result.steps.min(), limit / 1.3, words, va="top", color="0.3")
    ax.axhspan(result.gradient_error, result.gradient_bar, color=BLUE, alpha=0.25, linewidth=0)
    name = "finite_differences.gradient"
    label, dots = f"{name}: error bar\n(finds its own steps)", (0, (1, 1))
    ax.axhline(result.gradient_bar, c=BLUE, lw=1.2, label=label)
    ax.axhline(result.gradient_error, c=BLUE, lw=2.5, linestyle=dots, label=f"{name}: error")
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(result.steps.min() / 2, result.steps.max() * 2),
        ylim=(least / 8, 3.0),
        xlabel="step: how far each weight is moved\n"
        "(left: rounding of the loss dominates; right: its curvature)",
        ylabel="relative error of the whole gradient",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelspacing=0.9)
    two_sided = [item for item in result.methods if item.name.startswith("two-sided, float")]
    best = " and ".join(
        f"{scientific(result.steps[item.best])} in {item.name.split(', ')[1]}" for item in two_sided
    )
    ax.set_title(
        f"Two-sided differences are best at a step of {best}\n"
        f"({name} finds its own steps; its error, {scientific(result.gradient_error)}, is "
        f"{'inside' if result.is_inside else 'OUTSIDE'} of its bar, "
        f"{scientific(result.gradient_bar)})",
        fontsize=13,
    )
    return figure


def _mark_best(ax, point, order, colour) -> None:
    """Draw a star at the best step, with the step beside it."""
    ax.plot(*point, marker="*", markersize=19, color=colour, markeredgecolor="white", zorder=5)
    # Above the flat branch of a one-sided difference, beside the steep ones of the others.
    above = {"xytext": (0, 19), "ha": "center", "va": "bottom"}
    beside = {"xytext": (-4, -8), "ha": "right", "va": "top"}
    look = {"textcoords": "offset points", "fontsize": 11, "fontweight": "bold", "color": colour}
    look |= {"path_effects": halo(3), "zorder": 6} | (above if order == 1 else beside)
    ax.annotate(f"best at {scientific(point[0])}", point, **look)
