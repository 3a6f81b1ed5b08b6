"""Options, and what is measured of a model: growth, sizes over depth, losses after training."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgrad
from experiments import _kit as kit
from experiments.xray_gallery.models import MODELS, Model

LAST = 10
"""Steps whose mean is the loss after training, which is less noisy than one."""
PARTS = 5
"""Steps of `jaxgrad.prescribe`."""
DECADES = 38.0
"""Range of float32; a gradient that has underflowed to zero has lost at least this."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the gallery of x-rays, on scikit-learn's digits."""

    seeds: int = kit.option(12, "Initializations of each model and depth.", minimum=2)
    output: Path = kit.option(Path("results/xray_gallery.png"), "Where to write the figure.")
    models: tuple[str, ...] = kit.option(tuple(MODELS), "Models.", choices=tuple(MODELS))
    depths: tuple[int, ...] = kit.option((4, 16, 64), "Blocks.", minimum=4, ascending=True)
    width: int = kit.option(32, "Units of a layer; a multiple of 4.", minimum=4)
    batch_size: int = kit.option(32, "Images of a batch.", minimum=1, maximum=1797)
    steps: int = kit.option(100, "Steps of training.", minimum=LAST)
    learning_rate: float = kit.option(1e-3, "Learning rate of Adam.", above=0)

    def check(self) -> None:
        """The heads of attention share the units."""
        if self.width % 4:
            raise ValueError(f"width must be a multiple of 4, got {self.width}")


class Record(NamedTuple):
    """A model at one depth, before and after the prescription (axis `sides`)."""

    growth: np.ndarray  # of signal and gradient per block, [seeds, sides, 2]
    sizes: np.ndarray  # log10 of the root mean square of both, [seeds, sides, 2, blocks]
    losses: np.ndarray  # after training, [seeds, sides]
    changed: np.ndarray  # whether the prescription has factors, [seeds]
    summary: str  # what the x-ray says of the first seed
    prescription: str

    @property
    def relative(self) -> np.ndarray:
        """Sizes relative to where they come from: the first block, and the last for gradients."""
        signal, gradient = np.moveaxis(self.sizes, 2, 0)
        with np.errstate(invalid="ignore"):
            pair = [signal - signal[..., :1], gradient - gradient[..., -1:]]
        return np.stack(pair, axis=2)

    @property
    def change(self) -> np.ndarray:
        """Decades over the whole depth, of the one that changes more, `[seeds, sides]`."""
        ends = np.stack([self.relative[:, :, 0, -1], self.relative[:, :, 1, 0]])
        return np.minimum(np.abs(ends), DECADES).max(axis=0)


def stream(trace: Any, row: Any) -> np.ndarray:
    """Log10 of the size of signal and gradient at the operation that a row of growth is of."""
    place = (row.operation, row.parameter, row.line)
    (site,) = (
        site
        for site in trace.sites
        if (site.operation, re.sub(r"\d+", "#", site.parameter), site.line) == place
    )
    parts = (site.forward, site.backward)
    return np.array([np.asarray(p.log_mean_square, np.float64) / np.log(100) for p in parts])


def train(loss: Any, networks: Any, rows: Any, data: kit.Examples, rate: float) -> np.ndarray:
    """Losses after training of stacked networks, all on the same batches `rows`."""
    optimizer = optax.adam(rate)

    def one(params):
        def step(state, batch):
            params, moments = state
            examples = (data.x[batch], data.labels[batch])
            value, gradient = jax.value_and_grad(loss)(params, *examples)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), value

        _, values = jax.lax.scan(step, (params, optimizer.init(params)), rows)
        return values[-LAST:].mean()

    # One after the other: convolutions with a batch of kernels are slow on CPUs.
    return np.asarray(jax.jit(partial(jax.lax.map, one))(networks))


def measure(model: Model, data: kit.Examples, options: Options, step: Callable[..., Any]) -> Record:
    """X-ray, prescribe, x-ray again, and train with and without the factors.

    `step` is called at the start and after each step of a prescription, and after training.
    """

    def loss(params, x, labels):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    init, batch = jax.jit(model.init), (part[: options.batch_size] for part in data)
    x, labels = batch
    fixes, traces, networks, mended = [], [], [], []
    for seed in options.seed_values:
        params = init(jax.random.fold_in(jax.random.key(1), seed))
        # One program serves all seeds.
        trace = jaxgrad.xray(loss, params, x, labels)
        fix = jaxgrad.prescribe(trace, progress=step)
        networks.append(params)
        fixes.append(fix)
        # What is left as it is need not be measured, nor trained, again.
        mended += [fix.apply(params)] if fix.changes else []
        after = jaxgrad.xray(loss, mended[-1], x, labels) if fix.changes else trace
        traces.append((trace, after))
    order = np.random.default_rng(options.first_seed)
    rows = order.integers(len(data.x), size=(options.steps, options.batch_size))
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks, *mended)
    trained = train(loss, stack, rows, data, options.learning_rate)
    step(1, 1)
    changed = np.array([bool(fix.changes) for fix in fixes])
    # Both sides of a seed have the same batches, so that they can be compared in pairs.
    losses = np.stack(2 * [trained[: len(fixes)]], axis=1)
    losses[changed, 1] = trained[len(fixes) :]
    nothing = (np.nan, np.nan)
    growth = [
        [(r.forward, r.backward) if r else nothing for r in (f.before, f.after)] for f in fixes
    ]
    # What underflows has no growth; both sides are the same operation.
    sizes = [
        [stream(t, f.before or f.after) for t in pair]
        for f, pair in zip(fixes, traces, strict=True)
    ]
    return Record(
        np.array(growth),
        np.array(sizes),
        losses,
        changed,
        traces[0][0].summary.splitlines()[0],
        str(fixes[0]),
    )


def measure_all(options: Options, progress: kit.Progress = None) -> dict[tuple[str, int], Record]:
    """Records by model and depth."""
    digits = kit.load("digits")
    shuffled = np.random.default_rng(options.first_seed).permutation(len(digits.x))
    examples = kit.Examples(
        jnp.asarray(digits.x, jnp.float32)[shuffled], jnp.asarray(digits.labels)[shuffled]
    )
    # Pixels at the border hardly vary, so that all share one mean and deviation.
    (data,) = kit.standardized([examples], per_feature=False)
    step = _counted(progress, len(options.models) * len(options.depths), options.seeds)
    jobs = {
        (name, depth): partial(measure, MODELS[name](depth, options.width), data, options, step)
        for name, depth in itertools.product(options.models, options.depths)
    }
    return kit.in_threads(jobs)


def _counted(progress: kit.Progress, jobs: int, seeds: int) -> Callable[[int, int], None]:
    """A function that adds up the steps of all prescriptions and trainings, from all threads."""
    lock, done = threading.Lock(), itertools.count(1)

    def step(part: int, parts: int) -> None:
        # The first call of each prescription is before its first step.
        if progress is not None and part:
            with lock:
                progress(next(done), jobs * (PARTS * seeds + 1))

    return step
