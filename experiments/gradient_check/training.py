"""Is the start of training the right moment to check a gradient?"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from experiments.gradient_check.network import ROWS, Options
from jaxgrad import checking, initializers
from jaxgrad.checking import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, NEAR_ZERO = "right rule, 1 − tanh²(z)", "wrong rule, 1 − z²"


class Training(NamedTuple):
    """Checks during training, for a loss with the right rule and one with a wrong rule.

    Attributes:
      steps: `[S]`, numbers of optimizer steps.
      error: the largest relative error of a leaf, `[S]` for each rule.
      verdicts: the verdicts of `check_grads`, `[S]` for each rule.
    """

    steps: np.ndarray
    error: dict[str, np.ndarray]
    verdicts: dict[str, tuple[Verdict, ...]]

    def named_from(self, name: str) -> int | None:
        """The first number of steps after which the rule is called wrong."""
        pairs = zip(self.steps, self.verdicts[name], strict=True)
        return next((int(step) for step, verdict in pairs if verdict is Verdict.WRONG), None)


@jax.custom_vjp
def tanh_near_zero(z: jax.Array) -> jax.Array:
    """`tanh(z)` whose rule uses the first terms of the derivative's series, never below 0."""
    return jnp.tanh(z)


# tanh'(z) = 1 - tanh(z)^2 = 1 - z^2 + O(z^4): the rule is right for small z only.
tanh_near_zero.defvjp(
    lambda z: (jnp.tanh(z), z), lambda z, cotangent: (cotangent * jnp.maximum(1 - z * z, 0),)
)


def measure(options: Options) -> Training:
    """Check a right and a wrong gradient during a training that starts from small weights."""
    with network.precise():
        x, y = network.digits(ROWS, options.seed)
        # With standardized images the pre-activations are then about 0.01.
        small = initializers.normal(1e-6)
        params = network.draw(jax.random.key(options.seed), options.width, small)

        def batches():
            # Started again for each rule, so that both trainings see the same batches.
            generator = np.random.default_rng(options.seed)
            while True:
                rows = generator.choice(ROWS, options.batch_size, replace=False)
                yield x[rows], y[rows]

        reports = {}
        rules = ((RIGHT, jnp.tanh), (NEAR_ZERO, tanh_near_zero))
        for name, phi in network.progress(rules, "training"):
            loss = functools.partial(network.cross_entropy, phi=phi)
            optimizer = optax.sgd(options.learning_rate, momentum=0.9)
            checks = checking.check_along_training(
                loss, params, batches(), optimizer, steps=options.training_steps
            )
            reports[name] = list(checks.values())
    # The worst leaf decides, as it does for the verdict.
    errors = {
        name: np.array([max(leaf.relative_error for leaf in check.leaves) for check in checks])
        for name, checks in reports.items()
    }
    verdicts = {name: tuple(check.verdict for check in checks) for name, checks in reports.items()}
    return Training(np.array(options.training_steps), errors, verdicts)


def report(result: Training) -> Report:
    """Tabulate errors and verdicts after each number of steps."""
    rows = []
    for s, step in enumerate(result.steps):
        row = [str(step)]
        for name in result.error:
            row += [f"{result.error[name][s]:.0e}", str(result.verdicts[name][s])]
        rows.append(tuple(row))
    headings = ("optimizer steps", *(part for name in result.error for part in (name, "verdict")))
    lines = []
    for name in result.error:
        step = result.named_from(name)
        when = "is never called wrong" if step is None else f"is called wrong after {step} steps"
        lines.append(f"The {name}, {when}.")
    claims = [
        Claim(
            f"the {name} is called wrong at this share of the checks",
            Estimate.exact(np.mean([v is Verdict.WRONG for v in result.verdicts[name]])),
            # The wrong rule has to be named at least once, the right one never.
            "greater" if name == NEAR_ZERO else "equal",
            tolerance=0.0 if name == NEAR_ZERO else 1e-9,
            form=".0%",
        )
        for name in result.error
    ]
    title = "Is the start of training the moment to check? Relative errors of the worst leaf:"
    estimates = {"steps": result.steps} | result.error
    return Report([table(headings, rows, title), "\n".join(lines)], claims, estimates)


def figure(result: Training) -> Figure:
    """Plot the errors of a right and of a wrong derivative rule during training."""
    figure, ((ax,),) = figures.panels(1, 1, (11, 6))
    # Evenly spaced, since a log axis has no place for 0 steps.
    positions = np.arange(len(result.steps))
    lines = (("#0b1f4b", "solid"), ("#b35a12", "dashed"))
    for (name, error), (colour, style) in zip(result.error.items(), lines, strict=True):
        label = f"tanh with the {name}"
        ax.plot(positions, error, color=colour, linestyle=style, linewidth=2, label=label)
        for point in zip(positions, error, result.verdicts[name], strict=True):
            _mark(ax, *point, colour, left=style == "dashed")
    ax.set_xticks(positions, [f"{step:g}" for step in result.steps])
    ax.set(
        yscale="log",
        xlabel="optimizer steps before the check (weights start small and grow)",
        ylabel="relative error of the worst leaf",
    )
    # Room for the verdicts beside the marks.
    low, high = ax.get_ylim()
    ax.set_ylim(low / 3, high * 5)
    ax.legend(loc="center right", frameon=False)
    ax.set_xlim(-0.6, positions[-1] + 0.3)
    parts = []
    for name, verdicts in result.verdicts.items():
        step = result.named_from(name)
        if step is None:
            words = "is never called wrong"
        else:
            start = "passes at first and " if verdicts[0] != "WRONG" else ""
            words = f"{start}is called WRONG after {step} steps"
        parts.append(f"the {name.split(', ')[0]} {words}")
    ax.set_title(f"Checked along the training:\n{'; '.join(parts)}", fontsize=13)
    return figure


def _mark(ax, position, error, verdict, colour, *, left) -> None:
    """Mark one check, with its verdict to the left of the mark or below it."""
    wrong = verdict == "WRONG"
    marker, size = ("X", 13) if wrong else ("o", 8)
    ax.plot(position, error, marker=marker, ms=size, color=colour, markeredgecolor="white")
    offset, side = ((-4, 9), "right") if left else ((0, -20), "center")
    look = {"fontsize": 10, "fontweight": "bold" if wrong else "normal", "color": colour}
    place = {"xytext": offset, "textcoords": "offset points", "ha": side}
    ax.annotate(verdict, (position, error), **place, **look)
