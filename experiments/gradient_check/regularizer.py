"""Does a strong regularizer hide an error of the gradient?"""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._kit import Claim, Estimate, Report, table
from experiments.gradient_check import network
from jaxgrad import check_grads, checking
from jaxgrad.checking import Verdict, finite_differences
from jaxgrad.plotting.style import scientific

COURSE_STEP = 1e-4
"""The step of the course's numeric derivative."""
WEIGHTS, BIASES, TERM = "first layer's weights", "first layer's biases", "data term alone"
CHECKERS = {WEIGHTS: "check_grads", BIASES: "check_grads", TERM: "check_terms"}
"""Parts of the gradient that the planted error changes, and which function checks them."""
Regularizer = namedtuple("Regularizer", "planted_error strengths error verdicts leaf_error")
"""Error of the course's rule, and verdicts and errors of `CHECKERS`, at each strength."""


def terms(params, x, y, strength, planted_error) -> dict[str, jax.Array]:
    """The loss with a planted error and, beside it, the L2 term as in the course."""

    def phi(z):
        # tanh'(z) = 1 - tanh(z)^2
        return network.tanh_with_slope(z, lambda z: (1 + planted_error) * (1 - jnp.tanh(z) ** 2))

    squares = sum(jnp.sum(params[layer]["kernel"] ** 2) for layer in ("first", "readout"))
    penalty = strength / (2 * x.shape[0]) * squares
    return {"data": network.cross_entropy(params, x, y, phi), "regularizer": penalty}


def regularized_loss(*args):
    """The sum of the terms."""
    return sum(terms(*args).values())


@network.precise()
def measure(options: network.Options) -> Regularizer:
    """Plant an error in the data term's backward pass, and raise the regularizer beside it."""
    # 1e-9 keeps rounding from losing a power of ten.
    exponents = np.arange(-2, np.log10(options.largest_strength) + 1e-9)
    strengths = np.append(0.0, 10.0**exponents)
    params, x, y = network.problem(options)
    step, errors, leaves = jnp.asarray([COURSE_STEP]), [], []
    for strength in strengths:
        args = (x, y, jnp.asarray(strength), jnp.asarray(options.planted_error))
        errors.append(network.course_error(regularized_loss, params, step, *args)[0])
        whole = {leaf.path: leaf for leaf in check_grads(regularized_loss, params, *args).leaves}
        # Each term is checked by itself, so a large regularizer cannot hide the error.
        alone = checking.check_terms(terms, params, *args)["['data']"].leaves[0]
        leaves.append((whole["['first']['kernel']"], whole["['first']['bias']"], alone))
    parts = dict(zip(CHECKERS, zip(*leaves, strict=True), strict=True))
    verdicts = {name: tuple(leaf.verdict for leaf in row) for name, row in parts.items()}
    leaf_error = {n: np.array([leaf.relative_error for leaf in row]) for n, row in parts.items()}
    return Regularizer(options.planted_error, strengths, np.array(errors), verdicts, leaf_error)


def report(result: Regularizer) -> Report:
    """Tabulate what the course's rule and the checkers see at each strength."""
    headings = {"L2 strength": "g", "whole gradient": ".0e", "the course calls it": ""}
    headings |= {f"{checker}, {name}": "" for name, checker in CHECKERS.items()}
    checks = [
        map("{}, {:.0e}".format, result.verdicts[name], result.leaf_error[name])
        for name in CHECKERS
    ]
    tiers = map(finite_differences.tier, result.error)
    rows = zip(result.strengths, result.error, tiers, *checks, strict=True)
    title = (
        "Does a regularizer hide an error? The backward pass is off by "
        f"{result.planted_error:.0%}; relative errors that are seen:"
    )
    wrong = Estimate.exact(np.mean(np.array(result.verdicts[TERM]) == Verdict.WRONG))
    text = "check_terms names the error in the data term at this share of the strengths"
    # Without a planted error there is nothing to name.
    claims = [Claim(text, wrong, "equal", 1.0, 1e-9, ".0%")] if result.planted_error else []
    estimates = {"strengths": result.strengths, "course": result.error} | result.leaf_error
    return Report([table(headings, rows, title)], claims, estimates)


def figure(result: Regularizer):
    """Plot the relative errors that are seen against the strength."""
    limit, word = network.TIERS[0]
    # Hidden after the last error above the limit; NaN counts as above.
    above = np.flatnonzero(~(result.error < limit))
    hidden = result.strengths[above[-1] + 1 if len(above) else 0 :]
    words = f"“{word}” from strength {scientific(hidden[0])} on" if len(hidden) else "never hidden"
    title = (
        f"To the course's rule a backward pass off by {result.planted_error:.0%} is {words}; "
        f"check_terms names it at {result.verdicts[TERM].count(Verdict.WRONG)} of "
        f"{len(result.strengths)} strengths"
    )
    errors = {"the course's rule, whole gradient": result.error}
    errors |= {f"{CHECKERS[name]}, {name}": error for name, error in result.leaf_error.items()}
    return network.error_figure(result.strengths, errors, title, "strength of the L2 regularizer")
