"""The options of the parts, and the network, data and relative error that they share.

Weights and digits are drawn in float32 and widened, so that both precisions are at the same point.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tqdm import tqdm

from experiments import _kit
from experiments._kit import option
from jaxgrad import initializers
from jaxgrad.checking import finite_differences
from jaxgrad.training import normalization

Part = Literal["steps", "kinks", "regularizer", "dropout", "training"]

ROWS = 1797
"""Number of digits in the data set."""
CLASSES = 10
TIERS = tuple((float(limit), word) for limit, word in finite_differences.TIERS["course"])
"""The word of the course for a relative error below each limit."""
TIER_COLOURS = ("#2f5fa8", "#9dbfe0", "#f7c27a", "#b35a12")


@dataclass(frozen=True)
class Options(_kit.Options):
    """Options of the gradient check."""

    parts: tuple[Part, ...] = option(
        ("steps", "kinks", "regularizer", "dropout", "training"),
        "Which parts to run, in this order.",
    )
    width: int = option(
        16, "Hidden units of the network, 64 inputs to WIDTH to 10 classes of digits.", minimum=1
    )
    examples: int = option(
        8,
        "Number of digits in the loss, drawn at random and standardized.",
        minimum=1,
        maximum=ROWS,
    )
    seed: int = option(0, "Seed of the weights and of the digits that are drawn.", minimum=0)
    smallest_step: float = option(
        1e-12, "steps: the smallest step; the largest is 1.", minimum=1e-30, maximum=1e-6
    )
    steps_per_decade: int = option(
        3, "steps: number of steps from one power of ten to the next.", minimum=1
    )
    networks: int = option(
        20, "kinks: number of ReLU networks, each with a correct gradient.", minimum=2
    )
    kink_examples: tuple[int, ...] = option(
        (2, 32),
        "kinks: numbers of digits in the loss, a panel each; more of them have more kinks.",
        minimum=1,
        maximum=ROWS,
        ascending=True,
    )
    planted_error: float = option(
        0.01, "regularizer: the backward pass is too large by this share.", minimum=0
    )
    largest_strength: float = option(
        1e6, "regularizer: the L2 strengths are 0, 0.01, 0.1, ... up to this.", minimum=0.01
    )
    dropout_rate: float = option(
        0.2, "dropout: the share of hidden units that is dropped.", minimum=0, below=1
    )
    training_steps: tuple[int, ...] = option(
        (0, 1, 3, 10, 30, 100, 300),
        "training: numbers of optimizer steps after which to check.",
        minimum=0,
        ascending=True,
    )
    batch_size: int = option(32, "training: digits in a batch.", minimum=1, maximum=ROWS)
    learning_rate: float = option(
        0.003, "training: learning rate of gradient descent with momentum 0.9.", above=0
    )
    output: Path = option(
        Path("results/gradient_check"), "Where to write: a figure for each part, OUTPUT_PART.png."
    )


@contextlib.contextmanager
def precise() -> Iterator[None]:
    """Allow float64, and compute matrix products without shortcuts."""
    # Accelerators may round the factors of a product to fewer bits by default.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def digits(examples: int, seed: int) -> tuple[jax.Array, jax.Array]:
    """Standardized images `[examples, 64]` and one-hot classes `[examples, 10]`, float64."""
    data = _kit.load("digits")
    with precise():
        # Standardized over the whole data set, so the scale does not depend on the draw.
        table = normalization.apply(normalization.fit(data.x), data.x)
        rows = np.random.default_rng(seed).choice(len(table), examples, replace=False)
        return _float64(table[rows]), _float64(np.eye(CLASSES)[data.labels[rows]])


def draw(key: jax.Array, width: int, first: initializers.Initializer) -> dict[str, Any]:
    """Draw the float64 parameters of a 64-`width`-10 network; biases start at 0."""
    keys = jax.random.split(key)
    return {
        "first": {
            "kernel": _float64(first(keys[0], (64, width), jnp.float32)),
            "bias": _float64(np.zeros(width)),
        },
        "readout": {
            "kernel": _float64(initializers.lecun()(keys[1], (width, CLASSES), jnp.float32)),
            "bias": _float64(np.zeros(CLASSES)),
        },
    }


def _float64(value: Any) -> jax.Array:
    # float32 values are exact in float64, so both precisions use the same point.
    return jnp.asarray(jnp.asarray(value, jnp.float32), jnp.float64)


def cross_entropy(params, x, y, phi: Callable[[jax.Array], jax.Array], mask=None) -> jax.Array:
    """Mean loss, written with analytic functions so that a complex step is possible."""
    z = x @ params["first"]["kernel"]
    hidden = phi(z + params["first"]["bias"][None])
    hidden = hidden if mask is None else hidden * mask
    logits = hidden @ params["readout"]["kernel"] + params["readout"]["bias"][None]
    # logsumexp would subtract a maximum, which is not analytic.
    normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=1))
    return jnp.mean(normalizer - jnp.sum(logits * y, axis=1))


def unravel(theta: jax.Array, like: Any) -> Any:
    """Turn the course's single vector into a pytree shaped like `like`, in the vector's dtype."""
    # The inverse that ravel_pytree returns would cast to the leaves' dtypes.
    leaves, tree = jax.tree.flatten(like)
    parts = jnp.split(theta, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return tree.unflatten(shaped)


@functools.partial(jax.jit, static_argnums=0)
def course_error(loss: Callable[..., jax.Array], params: Any, steps: jax.Array, *args: Any):
    """The course's relative error of `jax.grad(loss)(params, *args)` at each of the steps."""

    def of_vector(theta):
        return loss(unravel(theta, params), *args)

    theta = ravel_pytree(params)[0]
    autodiff = jax.grad(of_vector)(theta)

    def error(eps):
        numeric = finite_differences.central_difference(of_vector, theta, eps)
        return finite_differences.relative_error(numeric, autodiff)

    # One step at a time bounds the memory: each step moves every parameter.
    return jax.lax.map(error, steps)


def progress(values: Iterable[Any], description: str) -> Iterable[Any]:
    """The values, with a progress bar."""
    return tqdm(list(values), desc=description, unit="check", disable=None, leave=False)
