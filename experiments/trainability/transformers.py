"""Which transformers learn, over depth and the scale of their branches, and did curvature say so?

Transformers with norms before or after each branch learn digits, each image a sequence of eight
rows of pixels, by plain gradient descent. What stops them is a learning rate that is too large for
the curvature that depth and scale give a network. Curvature is computed at initialization. The
number of which a rate times the curvature must not be more is fitted to every second scale, and the
border is tested on the others.

Run `python -m experiments.trainability.transformers`, or `--help` for its options. The command
continues a run that was stopped.

Source: Lewkowycz et al. (2020), The large learning rate phase of deep learning. On a quadratic loss
that number is 2; networks lower their curvature when the loss rises, and recover beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from experiments import _kit as kit
from experiments._kit import classifier, figures, option
from experiments.trainability.__main__ import cell_edges
from jaxgrad import layers, sweeps, training
from jaxgrad.plotting import style

Placement = Literal["pre", "post"]
CLASSES, ROWS, HEADS, LANCZOS = 10, 8, 2, 16
NEAR = 2.0
"""A cell whose rate is within this factor of the border is near it."""
SHARE = 0.9
"""Share of the cells of which the border should be right."""
RISE = 1.1
"""Loss over that at the start from which on it has risen."""
FITTED = slice(0, None, 2)
"""Scales to which the border is fitted; it is tested on the others."""
TESTED = slice(1, None, 2)
HALVES = (FITTED, TESTED)


@dataclass(frozen=True)
class Options(kit.SeededOptions, kit.ClusterOptions):
    """Options of the map of trained transformers."""

    placements: tuple[Placement, ...] = option(
        ("pre", "post"), "Where norms are; a column of maps for each.", choices=get_args(Placement)
    )
    depths: tuple[int, ...] = option(
        (1, 2, 4, 8, 16, 32), "Blocks; each depth is compiled.", minimum=1, ascending=True
    )
    scale_min: float = option(0.1, "Smallest scale of the residual branches.", above=0)
    scale_max: float = option(10.0, "Largest scale of the residual branches.", above=0)
    scales: int = option(9, "Number of scales, in even ratios.", minimum=2)
    rates: tuple[float, ...] = option(
        (0.1, 0.4), "Learning rates; a row of maps for each.", above=0, ascending=True
    )
    width: int = option(32, "Features of a token, an even number.", minimum=HEADS)
    steps: int = option(200, "Training steps.", minimum=1)
    batch: int = option(32, "Examples in a step.", minimum=1)
    seeds: int = option(2, "Networks for each cell.", minimum=2)
    output: Path = option(Path("results/transformers"), "Where to write: OUTPUT.zarr, OUTPUT.png.")

    def check(self) -> None:
        """Raise ValueError if the range is empty or heads do not divide the width."""
        kit.check_range(self, "scale")
        if self.width % HEADS:
            raise ValueError(f"width must be a multiple of {HEADS}, got {self.width}")
        super().check()

    @property
    def scale_values(self) -> np.ndarray:
        """The scales of the map."""
        return np.geomspace(self.scale_min, self.scale_max, self.scales)

    def store(self) -> Path:
        """The path of the store of measurements."""
        return self.stem.with_name(f"{self.stem.name}.zarr")


@layers.layer
class MeanToken(layers.Layer):
    """The mean over the tokens of an example."""

    def draw(self, shape, *, key, dtype):
        """Draw nothing: there are no parameters."""
        return {}, shape[1:]

    def apply(self, params, state, h, *, key=None):
        """Return the means, `[batch, features]`."""
        return jnp.mean(h, axis=1), state


def network(options: Options, placement: Placement, depth: int, scale: Any) -> layers.Layer:
    """A classifier of sequences `[tokens, features]`."""
    # Units of half of the usual number, since the task is small.
    norm, form = layers.layer_norm(1e-6), {"activation": "relu", "hidden": 2 * options.width}
    blocks = layers.transformer(
        depth, options.width, HEADS, placement=placement, norm=norm, scale=scale, **form
    )
    # Attention does not see the order of its tokens, so positions are added.
    first = (layers.dense(options.width), layers.positions())
    return layers.sequential(*first, blocks, norm, MeanToken(), layers.dense(CLASSES, bias=True))


def digits(options: Options) -> list[kit.Examples]:
    """A training and a test set, 80/20, whose examples are sequences of rows of pixels."""
    # All pixels alike, so that rows of an image stay comparable.
    data, key = kit.load("digits"), jax.random.key(options.first_seed)
    x = (data.x - data.x.mean()) / data.x.std()
    return kit.split(x.reshape(len(x), ROWS, -1), data.labels, (0.8, 0.2), key=key)


VARIABLES = {
    "accuracy": sweeps.Variable((), "1", "share of the test set that is right"),
    "curvature": sweeps.Variable((), "nat", "largest one of the loss at initialization"),
    "rise": sweeps.Variable((), "1", "largest loss of a step over that of the first"),
}


def train(layer: layers.Layer, rate: Any, options: Options, data: Any, *, key: Any) -> Any:
    """The variables of one network."""
    train, test = data
    key_init, key_fit, key_curvature = jax.random.split(key, 3)
    params, _ = layers.init(layer, train.x.shape[1:], key=key_init)

    def loss(params, x, labels):
        return classifier.cross_entropy(classifier.logits(layer, params, None, x), labels)

    # Two batches, since the curvature of one depends on which examples it has.
    first = train.x[: 2 * options.batch], train.labels[: 2 * options.batch]
    curvature = training.largest_curvature(
        loss, params, *first, key=key_curvature, steps=LANCZOS
    ).value
    sizes: dict[str, Any] = {"steps": options.steps, "batch_size": options.batch}
    fit = classifier.train(layer, params, optax.sgd(rate), train, key=key_fit, **sizes)
    logits = classifier.logits(layer, fit.params, fit.state, test.x)
    # The argmax of NaN is an index too, and must not count as right.
    right = (jnp.argmax(logits, axis=1) == test.labels) & jnp.all(jnp.isfinite(logits), axis=1)
    rise = jnp.max(fit.loss) / fit.loss[0]
    return {"accuracy": jnp.mean(right), "curvature": curvature, "rise": rise}


def measure(options: Options, progress: Any = None, store: Path | None = None) -> xarray.Dataset:
    """Train every network; one program for each placement and depth."""

    def cell(key, point, data):
        layer = network(options, point["placement"], point["depth"], point["scale"])
        return train(layer, point["rate"], options, data, key=key)

    # Both change the structure of a network, so that each pair is compiled.
    axes = {"placement": options.placements, "depth": options.depths}
    axes |= {"scale": options.scale_values.tolist(), "rate": options.rates}
    axes |= {"seed": options.seed_values}
    how = {"args": (digits(options),), "key": jax.random.key(0), "static": ["placement", "depth"]}
    others = {"output", "theme", "verbose"} | kit.CLUSTER_FIELDS
    config = {k: v for k, v in kit.as_plain(options).items() if k not in others}
    # One network after the other, which is faster on CPUs than a batch of networks.
    how |= {"config": config, "store": store, "vectorized": False} | kit.sweep_progress(progress)
    with kit.cluster(options) as workers:
        return sweeps.run(cell, axes, VARIABLES, **how, **workers)


class Maps(NamedTuple):
    """All networks, trained and predicted; arrays `[placement, rate, scale, depth]`.

    A cell `learns` if its accuracy is above the threshold, half of the way from chance to the best
    of its placement. `product` is the log of its rate times its curvature.
    """

    accuracy: np.ndarray
    learns: np.ndarray
    product: np.ndarray
    rise: np.ndarray
    border: float  # the log of the product up to which networks learn, fitted

    def right(self, border: float | None = None) -> np.ndarray:
        """Whether cells are as a border predicts, by default the fitted one."""
        return self.learns == (self.product <= (self.border if border is None else border))


def compare(dataset: xarray.Dataset) -> Maps:
    """Compare the trained networks with their curvature, and fit the border to half of them."""
    order = ("placement", "rate", "scale", "depth")
    accuracy, rise = (dataset[name].mean("seed").transpose(*order) for name in ("accuracy", "rise"))
    threshold = (1 / CLASSES + accuracy.max(order[1:])) / 2
    # Curvature does not depend on the rate, and draws of it differ by factors.
    draws = dataset["curvature"].transpose("seed", *order).values
    curvature = np.log(draws).mean(axis=(0, 2), keepdims=True)[0]
    product = curvature + np.log(dataset["rate"].values)[:, None, None]
    learns = (accuracy > threshold).transpose(*order).values
    border = fit_border(product[:, :, FITTED], learns[:, :, FITTED])
    return Maps(accuracy.values, learns, product, rise.values, border)


def fit_border(product: np.ndarray, learns: np.ndarray) -> float:
    """The number up to which most cells learn and beyond which most do not."""
    values = np.sort(product, axis=None)
    borders = (values[1:] + values[:-1]) / 2
    right = np.array([np.mean(learns == (product <= border)) for border in borders])
    # Of several that are equally good, the middle one.
    return float(np.mean(borders[right == right.max()]))


def report(maps: Maps, options: Options) -> kit.Report:
    """Cells by placement and rate, what the exceptions are, and the claims."""
    inside, right = maps.product <= maps.border, maps.right()
    near = ~right & (np.abs(maps.product - maps.border) <= np.log(NEAR))
    rows = []
    for i, placement in enumerate(options.placements):
        for j, rate in enumerate(options.rates):
            shares = [part[i, j].mean() for part in (inside, maps.learns, right)]
            wrong = ~right[i, j]
            counts = [np.sum(wrong & side) for side in (~inside[i, j], inside[i, j])]
            risen = np.sum(maps.learns[i, j] & (maps.rise[i, j] > RISE))
            row = (*shares, maps.accuracy[i, j].max(), *counts, np.sum(near[i, j]), risen)
            rows.append((f"{placement}-norm", f"{rate:g}", *row))
    title = (
        f"{options.scales * len(options.depths)} cells each, width {options.width}, after "
        f"{options.steps} steps. Border, from initialization: rate x largest curvature = "
        f"{np.exp(maps.border):.0f}, a number that is fitted to every second scale. A cell learns "
        "if its test accuracy is half of the way from chance to the best; some of them first raise "
        f"their loss to {RISE:g} of the start, which lowers their curvature."
    )
    headings = {"norms": "", "rate": ""}
    headings |= dict.fromkeys(("predicted to learn", "learn", "as predicted", "best"), ".0%")
    near_heading = f"of both within a factor {NEAR:g}"
    counts = ("learn beyond the border", "fail within", near_heading, "learn after a rise")
    headings |= dict.fromkeys(counts, "d")
    table = kit.table(headings, rows, title)
    everything = slice(None)
    borders = [("2, of a quadratic loss", np.log(2.0), everything)]
    borders.append(("fitted", maps.border, everything))
    for i, placement in enumerate(options.placements):
        part = maps.learns[i][:, FITTED]
        # Where all learn or none does, there is no border.
        if len(options.placements) > 1 and 0 < part.mean() < 1:
            fitted = fit_border(maps.product[i][:, FITTED], part)
            borders.append((f"fitted to {placement}-norm alone", fitted, slice(i, i + 1)))
    shares = [
        (name, np.exp(border), *(maps.right(border)[rows, :, half].mean() for half in HALVES))
        for name, border, rows in borders
    ]
    names = {"border": "", "rate x curvature": ".1f", "as predicted, fitted scales": ".1%"}
    second = kit.table(names | {"as predicted, other scales": ".1%"}, shares)
    tested = maps.right()[:, :, TESTED]
    share, learns = kit.Estimate.exact(float(tested.mean())), maps.learns[:, :, TESTED].mean()
    text = "of the cells to which the border is not fitted are as it predicts"
    more = float(max(learns, 1 - learns))
    other = "these cells are as predicted more often than by the more frequent outcome"
    claims = [
        kit.Claim(f"at least {SHARE:.0%} {text}", share, "greater", SHARE - 1e-9, form=".1%"),
        kit.Claim(other, share, "greater", more, form=".1%"),
    ]
    return kit.Report([table, second], claims, maps._asdict())


def draw(maps: Maps, options: Options) -> Any:
    """Draw accuracy over depth and scale, and the border that was computed before training."""
    share = maps.right()[:, :, TESTED].mean()
    title = (
        "Curvature at initialization tells which transformers will learn: right for "
        f"{share:.0%} of the cells that were held out"
    )
    rows, columns = len(options.rates), len(options.placements)
    height = 2.7 * rows + 1.2
    figure, axes = figures.panels(title, rows, columns, height, sharex=True, sharey=True)
    x, y = cell_edges(options.depths), cell_edges(options.scale_values)
    colors = style.palette()
    for j, i in np.ndindex(rows, columns):
        ax, margin = axes[j, i], maps.product[i, j] - maps.border
        look = {"cmap": "cividis", "vmin": 0, "vmax": 100, "rasterized": True}
        ax.pcolormesh(x, y, 100 * maps.accuracy[i, j], **look)
        if min(margin.shape) > 1 and margin.min() < 0 < margin.max():
            grid = (options.depths, options.scale_values, margin)
            line = ax.contour(*grid, [0.0], colors=colors.theory, linewidths=2.5)
            line.set_path_effects(style.halo(5))
        right = maps.right()[i, j].mean()
        name = f"{options.placements[i]}-norm, learning rate {options.rates[j]:g}"
        ax.set_title(f"{name}: {right:.0%} right")
        ax.set(xscale="log", yscale="log", xlim=x[[0, -1]], ylim=y[[0, -1]])
    # Panels share their axes.
    figures.ticks(axes[0, 0].xaxis, options.depths)
    powers = np.arange(*np.round(np.log10(options.scale_values[[0, -1]])) + [0, 1])
    figures.ticks(axes[0, 0].yaxis, 10.0**powers)
    for ax in axes[-1]:
        ax.set_xlabel("depth, blocks")
    for ax in axes[:, 0]:
        ax.set_ylabel("scale of residual branches")
    image = axes[0, 0].collections[0]  # all panels have its colours
    figure.colorbar(image, ax=axes, label=f"test accuracy after {options.steps} steps, %")
    label = f"computed before training: learning rate = {np.exp(maps.border):.0f} / curvature"
    axes[0, 0].plot([], [], color=colors.theory, lw=2.5, label=label)
    figures.legend_below(figure, axes[0, 0], 1)
    return figure


def run(options: Options) -> None:
    """Train transformers over depth and scale, and compare with the curvature before training."""
    maps = compare(measure(options, kit.progress("networks"), options.store()))
    kit.publish(report(maps, options), options, lambda: draw(maps, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run, resumable=True)
