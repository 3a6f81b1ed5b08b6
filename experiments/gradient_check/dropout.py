"""What happens to a gradient check if dropout is left on?"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.network import TIER_COLOURS, Options
from experiments.gradient_check.regularizer import COURSE_STEP
from jaxgrad import check_grads, initializers
from jaxgrad.checking import Verdict, finite_differences
from jaxgrad.plotting.style import scientific

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Dropout(NamedTuple):
    """The outcome for one way to draw the mask.

    Attributes:
      name: how the mask is drawn.
      numeric, autodiff: every element of both gradients, `[parameters]`.
      error: the course's relative error.
      verdict: the verdict of `check_grads`.
    """

    name: str
    numeric: np.ndarray
    autodiff: np.ndarray
    error: float
    verdict: Verdict


def measure(options: Options) -> tuple[Dropout, ...]:
    """Check a network with dropout: one mask for all calls, or a new one for each call."""
    keep = 1 - options.dropout_rate

    @jax.jit
    def drawn(params, x, y, key):
        # Inverted dropout: division by the keep probability preserves the mean of a unit.
        mask = jax.random.bernoulli(key, keep, (x.shape[0], options.width))
        return network.cross_entropy(params, x, y, jnp.tanh, mask / keep)

    @jax.jit
    def masked(params, x, y, mask):
        return network.cross_entropy(params, x, y, jnp.tanh, mask / keep)

    results = []
    with network.precise():
        x, y = network.digits(options.examples, options.seed)
        key = jax.random.key(options.seed)
        params = network.draw(key, options.width, initializers.lecun())
        # Advances at every call, so that no two calls of the loss draw the same mask.
        new_keys = (jax.random.fold_in(key, i) for i in itertools.count())
        # Hidden state: the mask changes although the arguments of the loss do not.
        generator = np.random.default_rng(options.seed)
        shape = (options.examples, options.width)
        cases = (
            ("one key for all calls", lambda p: drawn(p, x, y, key)),
            ("a new key for each call", lambda p: drawn(p, x, y, next(new_keys))),
            (
                "drawn by NumPy in each call",
                lambda p: masked(p, x, y, generator.random(shape) < keep),
            ),
        )
        for name, loss in network.progress(cases, "dropout"):
            autodiff, unravel = ravel_pytree(jax.grad(loss)(params))
            numeric = _course_loop(loss, params, unravel)
            error = float(finite_differences.relative_error(numeric, autodiff))
            verdict = check_grads(loss, params).verdict
            results.append(Dropout(name, numeric, np.asarray(autodiff), error, verdict))
    return tuple(results)


def _course_loop(loss, params, unravel) -> np.ndarray:
    """The loop of the course: two calls of the loss for each element."""
    theta = np.asarray(ravel_pytree(params)[0])
    numeric = np.zeros(len(theta))
    for i in range(len(theta)):
        # (J(theta + eps e_i) - J(theta - eps e_i)) / (2 eps)
        values = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[i] += sign * COURSE_STEP
            values.append(float(loss(unravel(moved))))
        numeric[i] = (values[0] - values[1]) / (2 * COURSE_STEP)
    return numeric


def report(result: tuple[Dropout, ...]) -> Report:
    """Compare the course's rule and `check_grads` for each way to draw the mask."""
    rows = [
        (
            case.name,
            f"{np.max(np.abs(case.autodiff)):.2g}",
            f"{np.max(np.abs(case.numeric)):.2g}",
            f"{case.error:.0e}",
            finite_differences.tier(case.error),
            str(case.verdict),
        )
        for case in result
    ]
    headings = ("dropout mask", "largest slope, autodiff", "largest slope, numeric")
    headings += ("relative error", "the course calls it", "check_grads")
    words = "the course's rule calls a correct gradient wrong, mask: {} (relative error)"
    claims = [
        Claim(words.format(case.name), Estimate.exact(case.error), "greater", 1e-3, form=".1e")
        # The first case has one mask for all calls, so its numeric gradient is right.
        for case in result[1:]
    ]
    estimates = {case.name: {"error": case.error, "verdict": case.verdict} for case in result}
    return Report([table(headings, rows, "What if dropout is left on?")], claims, estimates)


def figure(result: tuple[Dropout, ...]) -> Figure:
    """Plot numeric against autodiff slopes, one panel for each way to draw the mask."""
    figure, axes = figures.panels(1, len(result), (14, 5.4))
    for ax, case in zip(axes[0], result, strict=True):
        good = case.verdict == "AGREE"
        marker, colour = ("o", TIER_COLOURS[0]) if good else ("x", TIER_COLOURS[-1])
        look = {"linestyle": "none", "marker": marker, "markersize": 4, "color": colour}
        ax.plot(case.autodiff, case.numeric, **look)
        reach = np.max(np.abs(case.autodiff))
        ax.plot([-reach, reach], [-reach, reach], color="black", linewidth=1, label="equal")
        ax.legend(loc="lower right", frameon=True)
        # Room above the marks for the verdict.
        ax.set_ylim(top=1.3 * np.max(np.abs(case.numeric)))
        ax.set(
            xlabel="slope by autodiff (one mark for each weight)", ylabel="numeric slope, two-sided"
        )
        ax.set_title(f"mask: {case.name}\nrelative error {scientific(case.error)}")
        words, box = f"check_grads: {case.verdict}", {"facecolor": "white", "edgecolor": "black"}
        ax.text(0.04, 0.96, words, transform=ax.transAxes, va="top", weight="bold", bbox=box)
    first, *others = result
    worst = max(np.max(np.abs(case.numeric)) / np.max(np.abs(case.autodiff)) for case in others)
    figure.suptitle(
        "Dropout: with one mask for all calls the numeric gradient is off by "
        f"{scientific(first.error)};\nwith a new mask in each call its slopes are up to "
        f"{worst:,.0f} times as large as autodiff's",
        fontsize=14,
    )
    return figure
