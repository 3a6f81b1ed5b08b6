"""What do checkers report for correct gradients of networks with kinks?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.network import TIER_COLOURS, TIERS, Options
from jaxgrad import check_grads, initializers
from jaxgrad.checking import Verdict, finite_differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALSE_ALARM = 1e-5
"""The course calls a gradient with a larger relative error suspicious or wrong."""
STEPS = 10.0 ** -np.arange(2, 9)
DTYPES = ("float32", "float64")


class Kinks(NamedTuple):
    """Outcomes for networks whose gradients are all correct.

    Attributes:
      examples: `[E]`, numbers of digits in the loss.
      error: the course's relative error with each of `STEPS`, `[E, steps, networks]`.
      crossed: whether moving one weight by the step takes a unit across its kink, same shape.
      verdicts: the verdicts of `check_grads`, `E` tuples with one for each network.
      jax_alarms: whether `jax.test_util.check_grads` rejects a network, `[E, networks]` for each of
        `DTYPES`.
    """

    examples: tuple[int, ...]
    error: np.ndarray
    crossed: np.ndarray
    verdicts: tuple[tuple[Verdict, ...], ...]
    jax_alarms: dict[str, np.ndarray]

    def tiers(self) -> dict[str, np.ndarray]:
        """The share of networks in each tier of the course, `[E, steps]` each."""
        words = np.vectorize(finite_differences.tier)(self.error)
        return {name: np.mean(words == name, axis=2) for _, name in TIERS}

    def alarms(self) -> np.ndarray:
        """Whether the course's rule rejects a network, `[E, steps, networks]`."""
        # Negated, so that an error that is NaN counts as an alarm.
        return ~(self.error <= FALSE_ALARM)

    def rejected(self) -> np.ndarray:
        """Whether `jaxgrad.check_grads` rejects a network, `[E, networks]`."""
        # KINK and UNRESOLVED withhold a judgement, so they reject nothing.
        bad = (Verdict.WRONG, Verdict.NONFINITE, Verdict.NONDETERMINISTIC)
        return np.array([[verdict in bad for verdict in row] for row in self.verdicts])


def relu_loss(params, x, y):
    """The loss of a ReLU network."""
    return network.cross_entropy(params, x, y, jax.nn.relu)


def measure(options: Options) -> Kinks:
    """Check the correct gradients of ReLU networks with three checkers."""
    errors, crossed, verdicts, rejections = [], [], [], []
    with network.precise():
        jitted, steps = jax.jit(relu_loss), jnp.asarray(STEPS)
        for examples in options.kink_examples:
            rows = []
            for seed in network.progress(range(options.networks), f"kinks, {examples} examples"):
                x, y = network.digits(examples, options.seed + seed)
                # Every network has other digits and weights, so the networks are independent.
                key = jax.random.fold_in(jax.random.key(options.seed), seed)
                params = network.draw(key, options.width, initializers.he())
                error = np.asarray(network.course_error(relu_loss, params, steps, x, y))
                verdict = check_grads(relu_loss, params, x, y).verdict
                rejection = [_jax_rejects(jitted, params, x, y, dtype) for dtype in DTYPES]
                rows.append((error, _distance_to_kink(params, x) <= STEPS, verdict, rejection))
            error, cross, verdict, rejection = zip(*rows, strict=True)
            errors.append(np.stack(error, axis=1))
            crossed.append(np.stack(cross, axis=1))
            verdicts.append(verdict)
            rejections.append(np.array(rejection))
    alarms = {dtype: np.stack(rejections)[..., i] for i, dtype in enumerate(DTYPES)}
    return Kinks(
        options.kink_examples, np.stack(errors), np.stack(crossed), tuple(verdicts), alarms
    )


def _distance_to_kink(params, x) -> float:
    """The smallest change of one weight or bias that takes a hidden unit across its kink."""
    z = np.asarray(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    # A weight moves a pre-activation by the step times its input, a bias by the step.
    reach = np.maximum(np.max(np.abs(x), axis=1, keepdims=True), 1.0)
    return float(np.min(np.abs(z) / reach))


def _jax_rejects(f, params, x, y, dtype: str) -> bool:
    # JAX chooses its tolerance by the dtype of the arguments.
    params, x, y = jax.tree.map(lambda a: a.astype(dtype), (params, x, y))
    try:
        jax.test_util.check_grads(lambda p: f(p, x, y), (params,), order=1, modes=("rev",))
    except AssertionError:
        return True
    return False


def report(result: Kinks) -> Report:
    """Tabulate the share of false alarms of each checker."""
    tiers, alarms, rejected = result.tiers(), result.alarms(), result.rejected()
    sections, claims = [], []
    for e, examples in enumerate(result.examples):
        rows: list[tuple[str, ...]] = [
            (
                f"two-sided, step {step:.0e}",
                *(f"{tiers[name][e, k]:.0%}" for name in tiers),
                f"{result.crossed[e, k].mean():.0%}",
                f"{alarms[e, k].mean():.0%}",
            )
            for k, step in enumerate(STEPS)
        ]
        blank = [""] * (len(tiers) + 1)
        for dtype, alarm in result.jax_alarms.items():
            name = f"jax.test_util.check_grads, {dtype}"
            rows.append((name, *blank, f"{alarm[e].mean():.0%}"))
        rows.append(("jaxgrad.check_grads", *blank, f"{rejected[e].mean():.0%}"))
        counts = ", ".join(
            f"{result.verdicts[e].count(verdict)} {verdict}"
            for verdict in Verdict
            if verdict in result.verdicts[e]
        )
        count = f"{rejected.shape[1]} ReLU networks with correct gradients, {examples} examples:"
        crossing = f"{np.sum(alarms[e] & result.crossed[e])} of {np.sum(alarms[e])}"
        sections += [
            table(("checker", *tiers, "step crosses a kink", "false alarms"), rows, count),
            f"A false alarm of the course's rule is a relative error above {FALSE_ALARM:.0e}.\n"
            f"In {crossing} false alarms the step crosses a kink.\n"
            f"Verdicts of jaxgrad.check_grads: {counts}.",
        ]
        # The claim is about the step at which the course's rule raises most alarms.
        worst = int(np.argmax(alarms[e].mean(axis=1)))
        text = (
            f"with {examples} examples jaxgrad.check_grads raises fewer false alarms than the "
            f"course's rule with a step of {STEPS[worst]:.0e}"
        )
        fewer = Estimate.paired(alarms[e, worst], rejected[e])
        claims.append(Claim(text, fewer, "greater", form=".0%"))
    shares = {f"jax, {dtype}": alarm.mean(axis=1) for dtype, alarm in result.jax_alarms.items()}
    shares |= {"course": alarms.mean(axis=2), "jaxgrad": rejected.mean(axis=1)}
    return Report(sections, claims, {"false alarms": shares, "examples": result.examples})


def figure(result: Kinks) -> Figure:
    """Plot the share of networks in each tier, by step and by checker."""
    figure, axes = figures.panels(1, len(result.examples), (13, 6.2), sharey=True)
    tiers, alarms, count = result.tiers(), result.alarms().mean(axis=2), len(result.error[0])
    checkers = [*(a.mean(axis=1) for a in result.jax_alarms.values())]
    checkers.append(result.rejected().mean(axis=1))
    # Checkers that have no step stand to the right of the steps, after a gap.
    positions = np.append(np.arange(count), count + 0.6 + 1.35 * np.arange(len(checkers)))
    names = [f"$10^{{{np.log10(step):.0f}}}$" for step in STEPS[:count]]
    names += [f"JAX,\n{dtype}" for dtype in result.jax_alarms] + ["jaxgrad"]
    for e, (ax, examples) in enumerate(zip(axes[0], result.examples, strict=True)):
        bottom = np.zeros(count)
        for (tier, share), colour in zip(tiers.items(), TIER_COLOURS, strict=True):
            ax.bar(positions[:count], share[e], 0.85, bottom, color=colour, label=f"“{tier}”")
            bottom = bottom + share[e]
        rejected = np.array([share[e] for share in checkers])
        ax.bar(positions[count:], 1 - rejected, 0.85, color=TIER_COLOURS[0])
        ax.bar(positions[count:], rejected, 0.85, 1 - rejected, color=TIER_COLOURS[-1])
        # Bars begin with the smallest errors, so kinks are counted from the top.
        uncrossed = 1 - result.crossed[e].mean(axis=1)
        label = "below this line no step crosses a kink"
        ax.plot(positions[:count], uncrossed, c="black", marker="D", lw=1.5, label=label)
        for position, share in zip(positions, [*alarms[e], *rejected], strict=True):
            ax.text(position, 1.015, f"{share:.0%}", ha="center", va="bottom", fontweight="bold")
        ax.axvline(count - 0.2, color="0.6", linewidth=0.8)
        groups, below = np.split(positions, [count]), ax.get_xaxis_transform()
        for group, words in zip(
            groups, ("step of the course's rule", "check_grads of"), strict=True
        ):
            ax.text(group.mean(), -0.13, words, transform=below, ha="center", va="top", fontsize=11)
        ax.set_xticks(positions, names)
        ax.set_ylim(0, 1.08)
        ax.set_title(f"loss of {examples} example{'s' * (examples > 1)} (bold: false alarms)")
    axes[0, 0].set_ylabel("share of the networks, all of them correct")
    figures.percent(axes[0, 0].yaxis)
    figures.legend_below(figure, axes[0, 0], len(tiers) + 1)
    largest = max(share.max() for share in checkers[:-1])
    figure.suptitle(
        f"{result.error.shape[2]} ReLU networks with correct gradients: false alarms for up to\n"
        f"{alarms.max():.0%} with a fixed step, {largest:.0%} with JAX's check_grads, "
        f"{checkers[-1].max():.0%} with jaxgrad's",
        fontsize=14,
    )
    return figure
