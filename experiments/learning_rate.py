"""How large may a learning rate be, and does the curvature at the start predict it?

Networks of several depths, widths and weight variances learn digits by gradient descent on all
examples, with the squared error. A rate is stable here if no step of a run raises the loss. The
prediction is the largest rate of which that holds for the quadratic model of the loss at the start.
It is at least 2 over the largest curvature, beyond which a quadratic loss rises in the end. The
largest stable rate is located by bisection, as is that up to which a run is saved: the loss rises
at first, but ends below its start.

Run `python -m experiments.learning_rate`, or `--help` for its options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures, option
from jaxgrad import activations, layers, training
from jaxgrad.plotting import style

CLASSES, LANCZOS, HALVINGS = 10, 24, 9
LOG_RATES = (-12.0, 6.0)
"""Natural logs of the rates between which both borders are located."""
FACTOR = 1.5
SHARE = 0.9
"""A prediction should be within this factor in this share of the cells."""
ROUNDING = 1e-5
"""A rise of the loss by less than this share of its start is rounding."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the largest stable learning rate."""

    activation: str = option("tanh", "Name of an activation.", choices=tuple(activations.TABLE))
    depths: tuple[int, ...] = option(
        (2, 4, 8, 16), "Hidden layers; each is compiled.", minimum=1, ascending=True
    )
    widths: tuple[int, ...] = option(
        (64, 128, 256), "Units of every layer.", minimum=1, ascending=True
    )
    w_variances: tuple[float, ...] = option(
        (0.5, 1.0, 1.5, 2.0), "Weight variances, times fan-in.", above=0, ascending=True
    )
    examples: int = option(64, "Digits, all of which are in every step.", minimum=1, maximum=1797)
    steps: int = option(10, "Steps of each run.", minimum=1)
    seeds: int = option(2, "Networks for each cell.", minimum=2)
    output: Path = option(Path("results/learning_rate.png"), "Where to write the figure.")


class Rates(NamedTuple):
    """Natural logs of rates, `[depths, widths, w_variances, seeds]`."""

    predicted: Any  # the largest stable one of the quadratic model at the start
    limit: Any  # 2 over the largest curvature at the start
    stable: Any  # the largest at which no step raises the loss
    saved: Any  # the largest at which the loss ends below its start
    residual: Any  # of the curvature, relative, not a log


def examples(options: Options) -> tuple[jax.Array, jax.Array]:
    """Standardized digits `[examples, 64]`, and their classes as unit vectors."""
    digits = kit.load("digits")
    rows = np.random.default_rng(options.first_seed).permutation(len(digits.x))[: options.examples]
    x = (digits.x - digits.x.mean()) / digits.x.std()
    return jnp.asarray(x[rows], jnp.float32), jax.nn.one_hot(digits.labels[rows], CLASSES)


def measure_one(options: Options, depth: int, width: int, w_variance: Any, seed: Any) -> Rates:
    """The predicted and measured rates of one network."""
    key_init, key_lanczos = jax.random.split(jax.random.key(seed))
    variances = {"w_variance": w_variance, "bias": True}
    net = layers.mlp(width, depth, options.activation, out_features=CLASSES, **variances)
    x, targets = examples(options)
    params, _ = layers.init(net, x.shape[1:], key=key_init)

    def loss(params):
        return jnp.mean(jnp.sum((layers.apply(net, params, None, x)[0] - targets) ** 2, axis=1)) / 2

    def losses(log_rate):
        def step(params, _):
            value, gradient = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - jnp.exp(log_rate) * g, params, gradient), value

        params_after, values = jax.lax.scan(step, params, length=options.steps)
        return jnp.append(values, loss(params_after))

    def falls(values):
        # A comparison with NaN is false, so that a run that overflows is not stable.
        return jnp.all(values[1:] <= values[:-1] + ROUNDING * values[0])

    def ends_below(values):
        # A high loss lowers the curvature, until the rate is stable (Lewkowycz et al., 2020).
        return values[-1] <= values[0] * (1 + ROUNDING)

    def largest(accept):
        # One traced rate at a time, so that all networks of a program are halved together.
        def halve(_, bounds):
            middle = (bounds[0] + bounds[1]) / 2
            passes = accept(losses(middle))
            return jnp.where(passes, middle, bounds[0]), jnp.where(passes, bounds[1], middle)

        return jnp.mean(jnp.stack(jax.lax.fori_loop(0, HALVINGS, halve, LOG_RATES)))

    curvature = training.largest_curvature(loss, params, key=key_lanczos, steps=LANCZOS)
    residual = curvature.residual / curvature.value
    steps = {"descent_steps": options.steps, "lanczos_steps": LANCZOS}
    predicted = jnp.log(training.largest_learning_rate(loss, params, **steps))
    limit = jnp.log(2 / curvature.value)
    return Rates(predicted, limit, largest(falls), largest(ends_below), residual)


def measure(options: Options, progress: kit.Progress = None) -> Rates:
    """The rates of all cells; one program for each depth and width."""
    variances, seeds = jnp.array(options.w_variances), jnp.array(options.seed_values)
    cells, rows = len(options.depths) * len(options.widths), []
    for depth in options.depths:
        for width in options.widths:

            def one(w_variance, seed, depth=depth, width=width):
                return measure_one(options, depth, width, w_variance, seed)

            rows.append(kit.mapped(one, variances, seeds))
            if progress is not None:
                progress(len(rows), cells)
    shape = (len(options.depths), len(options.widths), len(variances), len(seeds))
    return Rates(*(np.reshape(np.stack(part), shape) for part in zip(*rows, strict=True)))


def within(rates: Rates, predicted: Any) -> np.ndarray:
    """Cells whose mean log rates differ by at most the factor, `[depths, widths, w_variances]`."""
    return np.abs(np.mean(rates.stable - predicted, axis=-1)) <= np.log(FACTOR)


def report(rates: Rates, options: Options) -> kit.Report:
    """Rates by depth and width, and the claims."""
    ratio, saved = rates.stable - rates.predicted, rates.saved - rates.stable
    above = rates.stable - rates.limit
    right = [within(rates, predicted) for predicted in (rates.predicted, rates.limit)]
    rows = []
    for i, depth in enumerate(options.depths):
        for j, width in enumerate(options.widths):
            ranges = [np.exp(p[i, j].mean(axis=-1)) for p in (rates.predicted, rates.stable)]
            texts = [f"{values.min():.3g} to {values.max():.3g}" for values in ranges]
            factors = [np.exp(part[i, j].mean()) for part in (ratio, above, saved)]
            rows.append((depth, width, *texts, *factors, *(part[i, j].mean() for part in right)))
    title = (
        f"{options.activation}: largest learning rates over {len(options.w_variances)} weight "
        f"variances; stable: no step of {options.steps} raises the loss; predicted: that of the "
        "quadratic model at the start; limit: 2 / largest curvature there (residual at most "
        f"{rates.residual.max():.1e} of it)."
    )
    headings = {"depth": "d", "width": "d", "predicted": "", "stable": ""}
    ratios = ("stable / predicted", "stable / limit", "saved / stable")
    headings |= dict.fromkeys(ratios, ".2f")
    headings |= {f"within {FACTOR:g}": ".0%", f"limit within {FACTOR:g}": ".0%"}
    table = kit.table(headings, rows, title, left=0)
    text = f"the prediction is within a factor {FACTOR:g} in at least {SHARE:.0%} of the cells"
    share, other = (Estimate.exact(float(part.mean())) for part in right)
    claims = [Claim(text, share, "greater", SHARE - 1e-9, form=".1%")]
    text = f"it is so more often than 2 / largest curvature, {other.mean:.1%}"
    claims.append(Claim(text, share, "greater", float(other.mean), form=".1%"))
    # Networks of one seed share their weights' draws, so that seeds are the repetitions.
    by_seed = [np.mean(part, axis=(0, 1, 2)) for part in (above, saved)]
    text = "runs are stable at rates above 2 / largest curvature (log of the factor)"
    claims.append(Claim(text, Estimate.of(by_seed[0]), "greater", form="+.2f"))
    text = "runs are saved at twice the largest stable rate (log of the factor)"
    claims.append(Claim(text, Estimate.of(by_seed[1]), "greater", float(np.log(2)), form="+.2f"))
    return kit.Report([table], claims, {**rates._asdict(), "within": right[0]})


def draw(rates: Rates, options: Options) -> Any:
    """Measured against predicted rates, with the band within the factor."""
    share = f"{within(rates, rates.predicted).mean():.0%} within a factor {FACTOR:g}"
    title = f"Curvature at the start predicts the largest stable learning rate: {share}"
    figure, ((ax,),) = figures.panels(title, height=6)
    colors = style.palette()
    logs = (rates.predicted, rates.stable, rates.saved)
    predicted, stable, saved = (np.exp(part.mean(axis=-1)) for part in logs)
    ends = np.array([predicted.min() / 1.4, predicted.max() * 1.4])
    ax.fill_between(ends, ends / FACTOR, ends * FACTOR, color=colors.faint, zorder=0)
    ax.plot(ends, ends, color=colors.theory, lw=2, label=f"equal; grey: within a factor {FACTOR:g}")
    ax.plot(
        *(part.ravel() for part in (predicted, saved)),
        ls="none",
        marker="x",
        color=colors.muted,
        ms=5,
        label="saved: the loss rises, but ends below its start",
    )
    for i, (depth, look) in enumerate(zip(options.depths, figures.looks(), strict=False)):
        points = (part[i].ravel() for part in (predicted, stable))
        label = f"stable, depth {depth}"
        ax.plot(*points, **{**look, "linestyle": "none", "markersize": 7, "label": label})
    ax.set(xscale="log", yscale="log", xlim=ends)
    ax.set_xlabel("predicted largest learning rate, of the quadratic model at the start")
    ax.set_ylabel("measured largest learning rate")
    ax.legend()
    return figure


def run(options: Options) -> None:
    """Predict the largest stable learning rate from curvature, and measure it by training."""
    rates = measure(options, kit.progress("programs"))
    kit.publish(report(rates, options), options, lambda: draw(rates, options))


if __name__ == "__main__":
    kit.command(Options, run)
