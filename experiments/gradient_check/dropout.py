"""What happens to a gradient check if dropout is left on?"""

import itertools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.regularizer import COURSE_STEP
from jaxgrad import check_grads
from jaxgrad.checking import finite_differences

HELD = "one key for all calls"
Dropout = namedtuple("Dropout", "name numeric autodiff error verdict")
"""Both gradients, the course's error and the verdict of `check_grads` for one way to draw masks."""


@network.precise()
def measure(options: network.Options) -> tuple[Dropout, ...]:
    """Check a network with dropout: one mask for all calls, or a new one for each call."""
    params, x, y = network.problem(options)
    key, keep = jax.random.key(options.seed), 1 - options.dropout_rate

    @jax.jit
    def masked(params, mask):
        # Inverted dropout: division by the keep probability preserves the mean of a unit.
        return network.cross_entropy(params, x, y, jnp.tanh, mask / keep)

    def drawn(key):
        return jax.random.bernoulli(key, keep, (options.examples, options.width))

    # Advances at every call, so that no two calls of the loss draw the same mask.
    new_keys = (jax.random.fold_in(key, i) for i in itertools.count())
    # Hidden state: the mask changes although the arguments of the loss do not.
    generator, held = np.random.default_rng(options.seed), drawn(key)
    losses = {
        HELD: lambda p: masked(p, held),
        "a new key for each call": lambda p: masked(p, drawn(next(new_keys))),
        "drawn by NumPy in each call": lambda p: masked(p, generator.random(held.shape) < keep),
    }
    results = []
    for name, loss in losses.items():
        autodiff = np.asarray(ravel_pytree(jax.grad(loss)(params))[0])
        numeric = _course_loop(loss, params)
        error = float(finite_differences.relative_error(numeric, autodiff))
        results.append(Dropout(name, numeric, autodiff, error, check_grads(loss, params).verdict))
    return tuple(results)


def _course_loop(loss, params) -> np.ndarray:
    """The loop of the course: two calls of the loss for each element."""
    theta, unravel = ravel_pytree(params)
    theta, numeric = np.asarray(theta), []
    # (J(theta + eps e_i) - J(theta - eps e_i)) / (2 eps)
    for step in COURSE_STEP * np.eye(len(theta)):
        above, below = (float(loss(unravel(moved))) for moved in (theta + step, theta - step))
        numeric.append((above - below) / (2 * COURSE_STEP))
    return np.array(numeric)


def report(result: tuple[Dropout, ...]) -> Report:
    """Compare the course's rule and `check_grads` for each way to draw the mask."""
    headings = {"dropout mask": "", "largest slope, autodiff": ".2g"}
    headings |= {"largest slope, numeric": ".2g", "relative error": ".0e"}
    headings |= {"the course calls it": "", "check_grads": ""}
    rows, claims = [], []
    for name, numeric, autodiff, error, verdict in result:
        slopes = (abs(autodiff).max(), abs(numeric).max())
        rows.append((name, *slopes, error, finite_differences.tier(error), verdict))
        text = f"the course's rule calls a correct gradient wrong, mask: {name} (relative error)"
        # With one mask for all calls the numeric gradient is right.
        if name != HELD:
            claims.append(Claim(text, Estimate.exact(error), "greater", 1e-3, form=".1e"))
    estimates = {case.name: {"error": case.error, "verdict": case.verdict} for case in result}
    return Report([table(headings, rows, "What if dropout is left on?")], claims, estimates)


def figure(result: tuple[Dropout, ...]):
    """Plot the largest slopes by autodiff and by numeric derivatives."""
    rows = {
        f"{case.name}\n(check_grads: {case.verdict})": {
            name: Estimate.exact(abs(slopes).max())
            for name, slopes in (("numeric, two-sided", case.numeric), ("autodiff", case.autodiff))
        }
        for case in result
    }
    worst = max(abs(case.numeric).max() / abs(case.autodiff).max() for case in result)
    title = f"A new mask in each call makes numeric slopes up to {worst:,.0f} times too large"
    figure, ((ax,),) = figures.panels(title, height=3)
    figures.dots(ax, rows, capsize=0)
    ax.set(xscale="log", xlabel="largest slope over all weights", ylabel="dropout mask")
    figures.legend_below(figure, ax, 2)
    return figure
