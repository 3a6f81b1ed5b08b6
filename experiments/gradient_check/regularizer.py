"""Does a strong regularizer hide an error of the gradient?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.network import TIER_COLOURS, TIERS, Options
from jaxgrad import check_grads, checking, initializers
from jaxgrad.checking import Verdict, finite_differences
from jaxgrad.plotting.style import LINES, STYLES, scientific

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COURSE_STEP = 1e-4
"""The step of the course's numeric derivative."""
WEIGHTS, BIASES, TERM = "first layer's weights", "first layer's biases", "data term alone"
CHECKERS = {WEIGHTS: "check_grads", BIASES: "check_grads", TERM: "check_terms"}
"""Parts of the gradient that the planted error changes, and which function checks them."""


class Regularizer(NamedTuple):
    """Outcomes for each strength of the L2 term.

    Attributes:
      planted_error: the backward pass is too large by this share.
      strengths: `[strengths]`.
      error: the course's relative error of the whole gradient, `[strengths]`.
      verdicts: `[strengths]` for each of `CHECKERS`.
      leaf_error: the relative errors of the same parts, same shape.
    """

    planted_error: float
    strengths: np.ndarray
    error: np.ndarray
    verdicts: dict[str, tuple[Verdict, ...]]
    leaf_error: dict[str, np.ndarray]

    def named_until(self, name: str) -> float:
        """The largest strength up to which every verdict is WRONG; NaN if the first is not."""
        wrong = [verdict is Verdict.WRONG for verdict in self.verdicts[name]]
        # The range ends at the first strength without a WRONG, so it has no gaps.
        count = wrong.index(False) if False in wrong else len(wrong)
        return float(self.strengths[count - 1]) if count else np.nan

    def hidden_from(self, threshold: float) -> float:
        """The smallest strength from which the error stays below the threshold; NaN if none is."""
        # The strength after the last error above the threshold; NaN counts as above.
        above = ~(self.error < threshold)
        first = len(above) - int(np.argmax(above[::-1])) if above.any() else 0
        return float(self.strengths[first]) if first < len(above) else np.nan


@jax.custom_vjp
def tanh_off_by(z: jax.Array, share: jax.Array) -> jax.Array:
    """`tanh(z)` whose backward pass is too large by a share of itself."""
    return jnp.tanh(z)


tanh_off_by.defvjp(
    lambda z, share: (jnp.tanh(z), (jnp.tanh(z), share)),
    lambda saved, cotangent: (
        # tanh'(z) = 1 - tanh(z)^2, times 1 + share.
        (1 + saved[1]) * cotangent * (1 - saved[0] ** 2),
        jnp.zeros_like(saved[1]),
    ),
)


def terms(params, x, y, strength, planted_error) -> dict[str, jax.Array]:
    """The loss with a planted error and, beside it, the L2 term."""
    squares = sum(jnp.sum(params[layer]["kernel"] ** 2) for layer in ("first", "readout"))
    return {
        "data": network.cross_entropy(params, x, y, lambda z: tanh_off_by(z, planted_error)),
        # As in the course: divided by twice the number of examples, without biases.
        "regularizer": strength / (2 * x.shape[0]) * squares,
    }


def regularized_loss(params, x, y, strength, planted_error):
    """The sum of the terms."""
    both = terms(params, x, y, strength, planted_error)
    return both["data"] + both["regularizer"]


def measure(options: Options) -> Regularizer:
    """Plant an error in the data term's backward pass, and raise the regularizer beside it."""
    # 1e-9 keeps rounding from losing a power of ten.
    count = int(np.floor(np.log10(options.largest_strength) + 1e-9)) + 3
    strengths = np.concatenate([[0.0], 10.0 ** np.arange(-2, count - 2)])
    errors, leaves = [], {name: [] for name in CHECKERS}
    with network.precise():
        x, y = network.digits(options.examples, options.seed)
        key = jax.random.key(options.seed)
        params = network.draw(key, options.width, initializers.lecun())
        for strength in network.progress(strengths, "regularizer"):
            args = (x, y, jnp.asarray(strength), jnp.asarray(options.planted_error))
            steps = jnp.asarray([COURSE_STEP])
            errors.append(float(network.course_error(regularized_loss, params, steps, *args)[0]))
            whole = {
                leaf.path: leaf for leaf in check_grads(regularized_loss, params, *args).leaves
            }
            # Each term is checked by itself, so a large regularizer cannot hide the error.
            alone = checking.check_terms(terms, params, *args)["['data']"].leaves[0]
            leaves[WEIGHTS].append(whole["['first']['kernel']"])
            leaves[BIASES].append(whole["['first']['bias']"])
            leaves[TERM].append(alone)
    return Regularizer(
        options.planted_error,
        strengths,
        np.array(errors),
        {name: tuple(leaf.verdict for leaf in row) for name, row in leaves.items()},
        {name: np.array([leaf.relative_error for leaf in row]) for name, row in leaves.items()},
    )


def report(result: Regularizer) -> Report:
    """Tabulate both rules at each strength, and the strengths up to which the error is named."""
    rows = []
    for s, strength in enumerate(result.strengths):
        parts = (
            f"{row[s]}, {result.leaf_error[name][s]:.0e}" for name, row in result.verdicts.items()
        )
        error = result.error[s]
        rows.append((f"{strength:g}", f"{error:.0e}", finite_differences.tier(error), *parts))
    headings = ("L2 strength", "whole gradient", "the course calls it", *result.verdicts)
    title = (
        f"Does a regularizer hide an error? The backward pass is off by "
        f"{result.planted_error:.0%}; relative errors that are seen:"
    )
    lines = []
    for threshold, word in ((1e-3, "no longer wrong"), (1e-7, "right")):
        start = result.hidden_from(threshold)
        where = "at no strength" if np.isnan(start) else f"from strength {start:g} on"
        lines.append(f"The course's rule calls it {word} {where}.")
    for name, checker in CHECKERS.items():
        until = result.named_until(name)
        where = "at no strength" if np.isnan(until) else f"up to strength {until:g}"
        where += ", the largest" if until == result.strengths[-1] else ""
        lines.append(f"{checker} names it in the {name} {where}.")
    wrong = np.mean([verdict is Verdict.WRONG for verdict in result.verdicts[TERM]])
    claims = []
    # Without a planted error there is nothing to name.
    if result.planted_error:
        text = "check_terms names the error in the data term at this share of the strengths"
        claims = [Claim(text, Estimate.exact(wrong), "equal", 1.0, 1e-9, ".0%")]
    estimates = {"strengths": result.strengths, "course": result.error} | result.leaf_error
    return Report([table(headings, rows, title), "\n".join(lines)], claims, estimates)


def figure(result: Regularizer) -> Figure:
    """Plot the observed relative errors against the strength, with the verdicts below."""
    figure, axes = figures.panels(2, 1, (12, 7.2), sharex=True, height_ratios=(3, 1.25))
    upper, lower = axes[:, 0]
    positions = np.arange(len(result.strengths))
    low = min(1e-8, 0.3 * result.error.min())
    edges = (low, *(min(limit, 1.0) for limit, _ in TIERS))
    bands = zip(TIER_COLOURS, TIERS, edges[:-1], edges[1:], strict=True)
    for colour, (_, word), start, stop in bands:
        upper.axhspan(start, stop, color=colour, alpha=0.35, linewidth=0)
        # The middle of the band on a log axis.
        height = np.sqrt(start * stop)
        upper.text(-0.4, height, f"“{word}”", va="center", fontsize=12, fontstyle="italic")
    label = "the course's rule, whole gradient"
    upper.plot(positions, result.error, color="black", marker="o", label=label)
    styles = zip(CHECKERS, (LINES[0], LINES[3], LINES[4]), (7, 5, 10), STYLES[:3], strict=True)
    for name, (colour, marker), size, style in styles:
        look = {"color": colour, "marker": marker, "markersize": size, "linestyle": style}
        # Marks of two lines may coincide, so the largest one is hollow.
        fill, label = "none" if size == 10 else colour, f"{CHECKERS[name]}, {name}"
        upper.plot(positions, result.leaf_error[name], **look, markerfacecolor=fill, label=label)
    upper.set(yscale="log", ylim=(low, 1.0), ylabel="relative error that is seen")
    upper.legend(loc="lower center", frameon=True, framealpha=0.9)
    for row, name in enumerate(CHECKERS):
        for position, verdict in zip(positions, result.verdicts[name], strict=True):
            fill, ink = ("#0b1f4b", "white") if verdict == "WRONG" else ("#f7c27a", "black")
            lower.barh(row, 0.96, left=position - 0.48, height=0.9, color=fill)
            lower.text(position, row, verdict, ha="center", va="center", color=ink, fontsize=9)
    lower.set_yticks(range(len(CHECKERS)), [f"{c}:\n{name}" for name, c in CHECKERS.items()])
    lower.set_title("verdicts (dark: the error is named)", fontsize=11)
    lower.invert_yaxis()
    lower.set_xticks(positions, [f"{s:g}" if s < 1e4 else scientific(s) for s in result.strengths])
    lower.set(xlabel="strength of the L2 regularizer", xlim=(-0.5, len(positions) - 0.5))
    start = result.hidden_from(TIERS[0][0])
    error = f"A backward pass off by {result.planted_error:.0%}"
    hidden = (
        f"{error} is never hidden from the course's rule"
        if np.isnan(start)
        else f"{error} is “{TIERS[0][1]}” to the course's rule from strength {scientific(start)} on"
    )
    count = result.verdicts[TERM].count(Verdict.WRONG)
    title = f"{hidden};\ncheck_terms names it at {count} of {len(positions)} strengths"
    upper.set_title(title, fontsize=14)
    return figure
