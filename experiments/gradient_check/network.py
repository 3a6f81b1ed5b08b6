"""The options of the parts, and the network, data, relative error and figure that they share."""

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit
from experiments._kit import Estimate, figures, option
from jaxgrad import initializers
from jaxgrad.checking import finite_differences
from jaxgrad.plotting import style
from jaxgrad.training import normalization

Part = Literal["steps", "kinks", "regularizer", "dropout", "training"]
ROWS = 1797
"""Number of digits in the data set."""
TIERS = finite_differences.TIERS["course"]
LECUN = initializers.lecun()


@dataclass(frozen=True)
class Options(_kit.FigureOptions):
    """Options of the gradient check."""

    parts: tuple[Part, ...] = option(get_args(Part), "Which parts to run, in this order.")
    width: int = option(16, "Hidden units between 64 inputs and 10 classes.", minimum=1)
    examples: int = option(8, "Standardized digits in the loss.", minimum=1, maximum=ROWS)
    seed: int = option(0, "Seed of the weights and of the digits that are drawn.", minimum=0)
    smallest_step: float = option(1e-12, "steps: from 1 down to this.", minimum=1e-30, maximum=1e-6)
    steps_per_decade: int = option(
        3, "steps: how many from one power of ten to the next.", minimum=1
    )
    networks: int = option(20, "kinks: number of ReLU networks, all of them correct.", minimum=2)
    kink_examples: tuple[int, ...] = option(
        (2, 32), "kinks: numbers of digits in the loss.", minimum=1, maximum=ROWS, ascending=True
    )
    planted_error: float = option(0.01, "regularizer: share by which slopes are off.", minimum=0)
    largest_strength: float = option(1e6, "regularizer: largest L2 strength.", minimum=0.01)
    dropout_rate: float = option(0.2, "dropout: share of dropped hidden units.", minimum=0, below=1)
    training_steps: tuple[int, ...] = option(
        (0, 1, 3, 10, 30, 100, 300), "training: steps before checks.", minimum=0, ascending=True
    )
    batch_size: int = option(32, "training: digits in a batch.", minimum=1, maximum=ROWS)
    learning_rate: float = option(0.003, "training: learning rate; momentum is 0.9.", above=0)
    output: Path = option(Path("results/gradient_check"), "Where to write OUTPUT_PART.png.")


@contextlib.contextmanager
def precise():
    """Allow float64, and matrix products whose factors accelerators do not round; a decorator."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def problem(options: Options, examples=None, first=LECUN, repetition=None):
    """Float64 parameters whose biases are 0, images `[examples, 64]`, one-hot classes."""
    data, key = _kit.load("digits"), jax.random.key(options.seed)
    # Every repetition has other digits and weights, so that they are independent.
    key = key if repetition is None else jax.random.fold_in(key, repetition)
    # Standardized over the whole data set, so the scale does not depend on the draw.
    table = normalization.apply(normalization.fit(data.x), data.x)
    generator = np.random.default_rng(options.seed + (repetition or 0))
    rows = generator.choice(len(table), examples or options.examples, replace=False)

    def layer(key, init, *shape):
        # Weights and digits are rounded to float32, so that both precisions are at one point.
        return {"kernel": jnp.float64(init(key, shape, jnp.float32)), "bias": jnp.zeros(shape[1])}

    keys = jax.random.split(key)
    readout = layer(keys[1], LECUN, options.width, 10)
    params = {"first": layer(keys[0], first, 64, options.width), "readout": readout}
    return params, jnp.float64(jnp.float32(table[rows])), jnp.eye(10)[data.labels[rows]]


def cross_entropy(params, x, y, phi, mask=1.0) -> jax.Array:
    """Mean loss, written with analytic functions so that a complex step is possible."""
    first, readout = params["first"], params["readout"]
    hidden = phi(x @ first["kernel"] + first["bias"][None]) * mask
    logits = hidden @ readout["kernel"] + readout["bias"][None]
    # logsumexp would subtract a maximum, which is not analytic.
    normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=1))
    return jnp.mean(normalizer - jnp.sum(logits * y, axis=1))


def tanh_with_slope(z: jax.Array, slope) -> jax.Array:
    """`tanh(z)` whose derivative by autodiff is `slope(z)`, right or wrong."""
    fixed = jax.lax.stop_gradient(z)
    # The last factor is 0, and its derivative is 1.
    return jnp.tanh(fixed) + slope(fixed) * (z - fixed)


@functools.partial(jax.jit, static_argnums=0)
def course_error(loss, params, steps: jax.Array, *args) -> jax.Array:
    """The course's relative error of the gradient of `loss(params, *args)` at each of the steps."""
    autodiff = jax.grad(loss)(params, *args)

    def error(eps):
        numeric = finite_differences.central_difference(lambda p: loss(p, *args), params, eps)
        return finite_differences.relative_error(numeric, autodiff)

    # One step at a time bounds the memory: each step moves every parameter.
    return jax.lax.map(error, steps)


def error_figure(x, errors, title: str, xlabel: str):
    """Curves of relative errors by name on log axes, of which that of `x` has a place for 0."""
    figure, ((ax,),) = figures.panels(title, height=5.2)
    figures.curves(ax, x, {name: Estimate.exact(error) for name, error in errors.items()})
    ax.set_xscale("symlog", linthresh=np.min(x, where=x > 0, initial=1.0))
    ax.set(yscale="log", xlabel=xlabel, ylabel="relative error of the gradient")
    for limit, word in TIERS[:-1]:
        ax.axhline(limit, color=style.palette().muted, linewidth=0.8, zorder=0)
        where = {"xycoords": ("axes fraction", "data"), "va": "top", "fontsize": style.NOTE}
        ax.annotate(f"“{word}”\nbelow", (1.01, limit), **where)
    figures.legend_below(figure, ax, 2)
    return figure
