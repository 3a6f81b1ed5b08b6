"""Why inputs are standardized: how round is the bowl, and how many steps does descent need in it?

Run `python -m experiments.input_normalization`, or `--help` for its options.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from jaxgrad.plotting import style
from jaxgrad.training import normalization

DATA = ("wine", "breast_cancer", "digits", "gaussian")
TREATMENTS = ("raw", "centred", "standardized", "divided by variance")
RAW, CENTRED, STANDARDIZED, BY_VARIANCE = range(4)
NEGLIGIBLE = 0.05
"""Change of a log10 that does not matter: 12 %."""
AROUND = np.array([0.99, 1.01])
"""Times the largest stable rate."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of inputs, raw and normalized."""

    seeds: int = kit.option(8, "Number of training sets, 70 % of the rows each.", minimum=2)
    output: Path = kit.option(Path("results/input_normalization.png"), "Where to write the figure.")
    data: tuple[str, ...] = kit.option(
        DATA, "Data sets; the features of gaussian are alike to begin with.", choices=DATA
    )
    shrink: float = kit.option(
        1e-3, "Descent ends when the excess of the loss has shrunk so much.", above=0, below=1
    )
    cap: int = kit.option(10_000, "Largest number of steps.", minimum=1)
    starts: int = kit.option(5, "Starts to try the largest stable rate from.", minimum=1)
    dev_sizes: tuple[int, ...] = kit.option(
        (2, 5, 10, 20, 50), "Sizes of dev sets with statistics of their own.", minimum=2
    )
    dev_draws: int = kit.option(50, "Dev sets of each size, for each seed.", minimum=1)
    pair: tuple[str, str] = kit.option(
        ("ash", "total_phenols"),
        "The two features of wine whose bowl the figure shows.",
        choices=kit.load("wine").features,
    )


class Measurement(NamedTuple):
    """What one data set shows; the axis `treatments` is that of `TREATMENTS`."""

    condition: Any  # largest over smallest curvature of the loss, [seeds, treatments]
    flat: Any  # directions without any curvature, which are left out, [seeds, treatments]
    bound: Any  # number of steps by the condition number alone, [seeds, treatments]
    exact: Any  # number of steps by all curvatures and the start, [seeds, treatments]
    steps: Any  # steps taken, at most the cap, [seeds, treatments]
    reached: Any  # whether the excess had shrunk by then, [seeds, treatments]
    rate: Any  # the largest stable rate, 2 over the largest curvature, [seeds, treatments]
    below: Any  # whether the excess falls at 0.99 times it, [seeds, treatments, starts]
    above: Any  # whether the excess grows at 1.01 times it, [seeds, treatments, starts]
    dev_error: Any  # by statistics of the training set, and by its own, [seeds, sizes, 2]

    def change(self, treatment: int, before: int) -> Estimate:
        """Of log10 of the condition number, by another treatment."""
        logs = np.log10(self.condition)
        return Estimate.paired(logs[:, treatment], logs[:, before])


class Bowl(NamedTuple):
    """The loss over two weights, at the best bias."""

    hessian: np.ndarray  # [2, 2]
    best: np.ndarray  # where the loss is smallest, [2]
    path: np.ndarray  # weights before each step of descent and after the last, [steps + 1, 2]
    condition: float  # the condition number of the Hessian


class Quadratic(NamedTuple):
    """The least-squares loss of a linear model around its minimum."""

    hessian: jax.Array  # of the weights of one output, the same for all, [inputs, inputs]
    moment: jax.Array  # of inputs with targets; the gradient is hessian @ weights - moment
    best: jax.Array  # the smallest weights where the gradient is zero, [inputs, outputs]
    curvatures: jax.Array  # eigenvalues of the Hessian, descending, 0 where it is flat
    directions: jax.Array  # their eigenvectors, one a row, [inputs, inputs]


def treated(x: jax.Array) -> jax.Array:
    """The inputs after each of `TREATMENTS`, `[treatments, examples, features]`."""
    standardizer = normalization.fit(x)
    standardized = normalization.apply(standardizer, x)
    centred = x - standardizer.mean[None]
    return jnp.stack([x, centred, standardized, standardized / standardizer.std[None]])


def with_bias(x: jax.Array) -> jax.Array:
    """The inputs and a one beside them, whose weight is the bias."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


def quadratic(x: jax.Array, y: jax.Array) -> Quadratic:
    """The loss `mean |x w - y|^2 / 2`; directions that only rounding bends count as flat."""
    scaled, targets = (a / jnp.sqrt(len(x)) for a in (x, y))
    left, singular, right = jnp.linalg.svd(scaled, full_matrices=False)
    noise = jnp.finfo(x.dtype).eps * max(x.shape) * singular[0]
    curved = singular > noise
    inverse = jnp.where(curved, 1 / jnp.where(curved, singular, 1.0), 0.0)
    best = right.T @ (inverse[:, None] * (left.T @ targets))
    curvatures = jnp.where(curved, jnp.square(singular), 0.0)
    return Quadratic(scaled.T @ scaled, scaled.T @ targets, best, curvatures, right)


def extremes(curvatures: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest curvature, flat directions left out."""
    return jnp.min(jnp.where(curvatures > 0, curvatures, jnp.inf)), jnp.max(curvatures)


def step_bound(curvatures: jax.Array, shrink: Any) -> jax.Array:
    """Steps that suffice at the best constant rate from any start, by the condition number.

    Each step multiplies the distance in every direction by at most `(k - 1) / (k + 1)`, and the
    excess by its square (Polyak, 1964; Nesterov, 2004, theorem 2.1.15).
    """
    low, high = extremes(curvatures)
    return jnp.ceil(jnp.log(shrink) / (2 * jnp.log1p(-2 * low / (low + high))))


def step_count(problem: Quadratic, start: jax.Array, shrink: Any) -> jax.Array:
    """Steps after which the excess has shrunk, from the curvatures, without taking any."""
    low, high = extremes(problem.curvatures)
    # |1 - rate * curvature| = 1 - 2 near / (low + high), whose log keeps its digits.
    near = jnp.minimum(problem.curvatures, (high - problem.curvatures) + low)
    log_factor = jnp.log1p(-2 * near / (low + high))
    offsets = problem.directions @ (start - problem.best)
    excess = problem.curvatures * jnp.sum(jnp.square(offsets), axis=1)

    def halve(_, bounds):  # bisection over whole numbers of steps
        below, enough = bounds
        middle = jnp.floor((below + enough) / 2)
        left = jnp.sum(jnp.where(excess > 0, excess * jnp.exp(2 * middle * log_factor), 0.0))
        done = (left <= shrink * jnp.sum(excess)) & (middle > below)
        return jnp.where(done, below, middle), jnp.where(done, middle, enough)

    bounds = (jnp.zeros(()), step_bound(problem.curvatures, shrink))
    return jax.lax.fori_loop(0, 64, halve, bounds)[1]


def descend(
    problem: Quadratic, start: jax.Array, rate: Any, stop: Callable[[Any], Any], cap: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient descent until `stop(excess)`, at most `cap` steps.

    Returns:
      Steps taken, the excess over the minimum before the first step, and after the last.
    """

    def slope(w):
        gradient = problem.hessian @ w - problem.moment
        # Of a quadratic the excess is half of distance times gradient.
        return gradient, jnp.sum((w - problem.best) * gradient) / 2

    def step(carry):
        taken, w, gradient, _ = carry
        w = w - rate * gradient
        return taken + 1, w, *slope(w)

    gradient, first = slope(start)
    carry = (jnp.zeros((), jnp.int32), start, gradient, first)
    taken, _, _, excess = jax.lax.while_loop(lambda c: (c[0] < cap) & ~stop(c[3]), step, carry)
    return taken, first, excess


def measure(name: str, options: Options) -> Measurement:
    """Every treatment of one data set, every seed with a training set and a start of its own."""
    data = kit.load(name)
    with jax.enable_x64(True):
        x, y = jnp.asarray(data.x), jnp.asarray(np.eye(len(data.classes))[data.labels])

        @jax.jit
        def every(seeds, x, y, shrink, cap):
            return jax.lax.map(lambda s: measure_seed(s, x, y, options, shrink, cap), seeds)

        seeds = jnp.array(options.seed_values)
        return jax.device_get(every(seeds, x, y, options.shrink, options.cap))


def measure_all(
    options: Options, progress: Callable[[int, int], None] | None = None
) -> dict[str, Measurement]:
    """Measure every data set; much of the time is spent compiling, one thread a program."""
    results = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = {name: pool.submit(measure, name, options) for name in options.data}
        for name, job in jobs.items():
            results[name] = job.result()
            if progress is not None:
                progress(len(results), len(jobs))
    return results


def measure_seed(
    seed: Any, x: jax.Array, y: jax.Array, options: Options, shrink: Any, cap: Any
) -> Measurement:
    """All treatments of one training set."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)
    rows, count = jax.random.permutation(keys[0], len(x)), round(0.7 * len(x))
    train, dev = rows[:count], rows[count:]
    shape = (1 + options.starts, x.shape[1] + 1, y.shape[1])
    starts = jax.random.normal(keys[1], shape, x.dtype)

    def treatment(inputs):
        problem = quadratic(inputs, y[train])
        low, high = extremes(problem.curvatures)
        best_rate, stable = 2 / (low + high), 2 / high
        _, first, _ = descend(problem, starts[0], best_rate, lambda excess: excess <= 0, 0)
        enough = shrink * first
        taken, _, last = descend(problem, starts[0], best_rate, lambda e: e <= enough, cap)

        def growth(start, factor):
            rate = factor * stable
            _, before, after = descend(problem, start, rate, lambda e: ~jnp.isfinite(e), 300)
            return after / before

        ratios = jax.vmap(jax.vmap(growth, (0, None)), (None, 0))(starts[1:], AROUND)
        return {
            "condition": high / low,
            "flat": jnp.sum(problem.curvatures == 0),
            "bound": step_bound(problem.curvatures, shrink),
            "exact": step_count(problem, starts[0], shrink),
            "steps": taken,
            "reached": last <= enough,
            "rate": stable,
            "below": ratios[0] < 1,
            "above": ratios[1] > 1,
        }

    inputs = with_bias(treated(x[train]))
    numbers = jax.lax.map(treatment, inputs)
    model, standardizer = (
        quadratic(inputs[STANDARDIZED], y[train]).best,
        normalization.fit(x[train]),
    )
    errors = [
        dev_errors(keys[2], model, standardizer, x[dev], y[dev], size, options.dev_draws)
        for size in options.dev_sizes
        if size <= len(dev)
    ]
    return Measurement(**numbers, dev_error=jnp.stack(errors) if errors else jnp.zeros((0, 2)))


def dev_errors(key, model, standardizer, x, y, size, draws) -> jax.Array:
    """Mean error on dev sets, standardized by the training set's statistics and by their own."""

    def one(key):
        rows = jax.random.permutation(key, len(x))[:size]

        def wrong(standardizer):
            outputs = with_bias(normalization.apply(standardizer, x[rows])) @ model
            return jnp.mean(jnp.argmax(outputs, axis=1) != jnp.argmax(y[rows], axis=1))

        return jnp.stack([wrong(standardizer), wrong(normalization.fit(x[rows]))])

    return jnp.mean(jax.lax.map(one, jax.random.split(key, draws), batch_size=draws), axis=0)


def bowls(options: Options) -> tuple[Bowl, Bowl]:
    """Two features of wine, raw and standardized: is it the first cultivar?

    Both descents start with the same excess, half of it in each direction of curvature, and take
    the best constant rate, which shrinks both halves alike.
    """
    wine = kit.load("wine")
    columns = [wine.features.index(name) for name in options.pair]
    y = (wine.labels == 0)[:, None].astype(np.float64)
    with jax.enable_x64(True):
        inputs = treated(jnp.asarray(wine.x[:, columns]))
        raw, standardized = (bowl(inputs[i], y, options) for i in (RAW, STANDARDIZED))
    return raw, standardized


def bowl(x: jax.Array, y: np.ndarray, options: Options) -> Bowl:
    """The loss over the weights of two inputs, and the path of descent."""
    *_, bias = quadratic(with_bias(x), jnp.asarray(y)).best
    problem = quadratic(x, jnp.asarray(y) - bias[None])
    low, high = extremes(problem.curvatures)
    # An excess of 1/2 in each direction: curvature * offset^2 = 1.
    start = problem.best[:, 0] + problem.directions.T @ (1 / jnp.sqrt(problem.curvatures))
    rate, shrink = 2 / (low + high), options.shrink
    taken, _, _ = descend(problem, start[:, None], rate, lambda e: e <= shrink, options.cap)
    hessian, best = np.asarray(problem.hessian), np.asarray(problem.best[:, 0])
    path = [np.asarray(start)]
    for _ in range(int(taken)):
        path.append(path[-1] - float(rate) * hessian @ (path[-1] - best))
    return Bowl(hessian, best, np.array(path), float(high / low))


def claims(results: dict[str, Measurement], options: Options) -> list[Claim]:
    """Round bowls, larger rates, the wrong divisor, harmlessness, exactness, and dev sets."""
    log = {"form": "+.2f"}
    texts = {name: f"{name}: log10 of the {{}}, standardized less raw" for name in results}
    statements = []
    for name, one in results.items():
        text = texts[name].format("condition number")
        statements.append(
            Claim(f"{text}, is below 0", one.change(STANDARDIZED, RAW), "less", **log)
        )
        rates = np.log10(one.rate)
        change = Estimate.paired(rates[:, STANDARDIZED], rates[:, RAW])
        text = texts[name].format("largest stable rate")
        statements.append(Claim(f"{text}, is above 0", change, "greater", **log))
        text = f"{name}: dividing by the variance instead makes log10 of the condition number"
        change, alike = one.change(BY_VARIANCE, STANDARDIZED), name == "gaussian"
        if alike:
            bounds = {"expected": 0.0, "tolerance": NEGLIGIBLE}
            statements.append(
                Claim(f"{text} the same, within 0.05", change, "equal", **bounds, **log)
            )
        else:
            text = f"{text} larger by more than 0.05"
            statements.append(Claim(text, change, "greater", NEGLIGIBLE, **log))
        if name in ("gaussian", "digits"):
            text = (
                f"{name}: dividing centred inputs by the deviation is harmless, raises it by less"
            )
            change = one.change(STANDARDIZED, CENTRED)
            statements.append(Claim(f"{text} than 0.05", change, "less", NEGLIGIBLE, **log))
    for factor, name, words in ((0.99, "below", "falls"), (1.01, "above", "grows")):
        tries = np.concatenate([getattr(one, name).ravel() for one in results.values()])
        share = Estimate.share(tries.sum(), tries.size)
        text = (
            f"at {factor} of the largest stable rate the loss {words} in more than 95 % of descents"
        )
        statements.append(Claim(text, share, "greater", 0.95, form=".1%"))
    ends = [np.abs(one.steps - one.exact)[one.reached] for one in results.values()]
    if sum(map(len, ends)):
        largest = Estimate.exact(np.concatenate(ends).max())
        text = f"steps taken are the exact number in all {sum(map(len, ends))} descents that end"
        statements.append(Claim(text, largest, "less", 0.5, form=".0f"))
    for name, one in results.items():
        for i, size in enumerate(options.dev_sizes[: one.dev_error.shape[1]]):
            change = Estimate.paired(one.dev_error[:, i, 1], one.dev_error[:, i, 0])
            text = f"{name}: statistics of its own harm a dev set of {size}"
            statements.append(Claim(text, change, "greater", form="+.1%"))
    return statements


def report(results: dict[str, Measurement], options: Options) -> kit.Report:
    """Condition numbers and steps, errors on dev sets, and the claims."""
    rows = []
    for name, one in results.items():
        for i, treatment in enumerate(TREATMENTS):
            steps = f"{Estimate.of(one.steps[:, i]):,.1f}"
            numbers = (f"{values[:, i].mean():,.3g}" for values in (one.bound, one.exact))
            row = (
                name if i == 0 else "",
                treatment,
                f"{Estimate.of(np.log10(one.condition[:, i])):.2f}",
            )
            row += (str(int(one.flat[:, i].max())), *numbers)
            row += (steps if one.reached[:, i].all() else f"> {options.cap:,}",)
            rows.append((*row, f"{one.rate[:, i].mean():.2g}"))
    headings = ("data", "inputs", "log10 condition", "flat", "bound", "exact", "steps taken")
    title = (
        "Least squares of a linear model with bias: condition number of the Hessian, over its "
        "curved directions; directions without curvature, such as constant features, left out "
        "('flat', most of all seeds); steps of gradient descent at its best constant rate to "
        f"{options.shrink:g} of the loss's excess: bound by the condition number, exact from all "
        "curvatures, and taken; largest stable rate. Mean over "
        f"{options.seeds} training sets and random starts ± standard error."
    )
    first = kit.table((*headings, "largest rate"), rows, title, left=2)
    pairs = (
        (STANDARDIZED, RAW),
        (CENTRED, RAW),
        (BY_VARIANCE, STANDARDIZED),
        (BY_VARIANCE, CENTRED),
    )
    rows = [
        (name, *(f"{one.change(*pair):+.2f}" for pair in pairs)) for name, one in results.items()
    ]
    headings = [f"{TREATMENTS[after]} / {TREATMENTS[before]}" for after, before in pairs]
    second = kit.table(("data", *headings), rows, "Changes of log10 of the condition number.")
    rows = []
    for name, one in results.items():
        for i, size in enumerate(options.dev_sizes[: one.dev_error.shape[1]]):
            trained, other = one.dev_error[:, i].T
            row = (name if i == 0 else "", str(size), f"{Estimate.of(trained):.1%}")
            rows.append(
                (*row, f"{Estimate.of(other):.1%}", f"{Estimate.paired(other, trained):+.1%}")
            )
    title = (
        "Dev error of a model of standardized inputs, mean over "
        f"{options.seeds} training sets with {options.dev_draws} dev sets each ± standard error; "
        "dev inputs standardized by the statistics of the training set or by their own."
    )
    headings = ("data", "dev set", "training statistics", "its own", "difference")
    third = kit.table(headings, rows, title)
    unfinished = sum(int((~one.reached).sum()) for one in results.values())
    third += f"\n{unfinished} descents did not end before the cap."
    numbers = {name: one._asdict() for name, one in results.items()}
    return kit.Report([first, second, third], claims(results, options), numbers)


BARS = (("#0b1f4b", ""), ("#5f9ed1", ".."), ("#f7c27a", ""), ("#b35a12", "//"))
"""Colour and hatch of each treatment."""
HEIGHTS = ("#fbe6c8", "#dfe9f4", "#bdd3ea", "#94b7db", "#6f9bcb")


def figure(pair: tuple[Bowl, Bowl], results: dict[str, Measurement], options: Options) -> Any:
    """Two bowls with their descents, and how round the bowls of whole data sets are."""
    result, axes = figures.panels(1, 3, (16, 6.2), width_ratios=(1, 1, 1.5))
    names = [name.replace("_", " ") for name in options.pair]
    for ax, shape, words in zip(axes[0], pair, ("raw", "standardized"), strict=False):
        draw_bowl(ax, shape, names, words)
    draw_bars(axes[0, 2], results, options.cap)
    raw, standardized = (len(shape.path) - 1 for shape in pair)
    result.suptitle(
        f"Standardized inputs make the bowl round: {standardized} steps of gradient descent "
        f"instead of {raw} (wine, two features)",
        fontsize=15,
    )
    return result


def draw_bowl(ax: Any, shape: Bowl, names: list[str], words: str) -> None:
    """Level lines of the loss, and the path of descent."""

    def excess(weights):
        offset = weights - shape.best
        return np.einsum("...i,ij,...j->...", offset, shape.hessian, offset) / 2

    first = excess(shape.path[0])
    reach = 1.15 * np.sqrt(2 * first * np.linalg.inv(shape.hessian).diagonal().max())
    steps = np.linspace(-reach, reach, 301)
    grid = shape.best + np.stack(np.meshgrid(steps, steps), axis=-1)
    levels = first * np.array([0.0, 0.01, 0.05, 0.2, 0.5, 1.0])
    x, y = np.moveaxis(grid, -1, 0)
    ax.contourf(x, y, excess(grid), levels, colors=HEIGHTS)
    ax.contour(x, y, excess(grid), levels[1:], colors="#0b1f4b", linewidths=0.6)
    ax.plot(*shape.path.T, color=style.THEORY, marker="o", markersize=3.5, linewidth=1.2, zorder=3)
    for point, name, marker in ((shape.path[0], "start", "s"), (shape.best, "minimum", "*")):
        ax.plot(*point, marker=marker, markersize=11, color="black", markeredgecolor="white")
        place = {"xytext": (9, 7), "textcoords": "offset points", "fontsize": 11}
        ax.annotate(name, point, path_effects=style.halo(3), **place)
    unit = "one unit" if words == "raw" else "one standard deviation"
    ax.set(aspect="equal", xlabel=f"weight of {names[0]}, per {unit}")
    ax.set_ylabel(f"weight of {names[1]}, per {unit}")
    count = len(shape.path) - 1
    ax.set_title(f"{words}: {count} steps, condition number {shape.condition:.3g}")


def draw_bars(ax: Any, results: dict[str, Measurement], cap: int) -> None:
    """Condition numbers as bars, steps as markers, for every data set and treatment."""
    width, sets = 0.8 / len(TREATMENTS), np.arange(len(results))
    for i, (treatment, (color, hatch)) in enumerate(zip(TREATMENTS, BARS, strict=True)):
        places = sets + (i - (len(TREATMENTS) - 1) / 2) * width
        heights = [10 ** np.log10(one.condition[:, i]).mean() for one in results.values()]
        look = {"color": color, "hatch": hatch, "edgecolor": "white"}
        ax.bar(places, heights, width, label=f"condition number, {treatment}", **look)
        for place, one in zip(places, results.values(), strict=True):
            done = one.reached[:, i].all()
            look = {"color": style.THEORY, "markeredgecolor": "white", "markersize": 7}
            ax.plot(place, one.steps[:, i].mean() if done else cap, "o" if done else "^", **look)
    for marker, words in (("o", "steps taken, mean"), ("^", f"not done after {cap:,} steps")):
        ax.plot([], [], marker, color=style.THEORY, markersize=7, label=words)
    ax.set_xticks(sets, [name.replace("_", " ") for name in results])
    ax.set(yscale="log", ylabel="condition number (bars) and steps (markers)")
    ax.set_title("All features, several data sets")
    ax.set_ylim(0.8, ax.get_ylim()[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)


def run(options: Options) -> None:
    """Compare inputs, raw and normalized: the loss's condition number and the steps of descent."""
    results = measure_all(options, kit.progress("data sets"))
    kit.publish(report(results, options), options, figure(bowls(options), results, options))


if __name__ == "__main__":
    kit.command(Options, run)
