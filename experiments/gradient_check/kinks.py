"""What do checkers report for correct gradients of networks with kinks?"""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

from experiments._kit import Claim, Estimate, Report, figures, table
from experiments.gradient_check import network
from jaxgrad import check_grads, initializers
from jaxgrad.checking import Verdict

FALSE_ALARM = 1e-5
"""The course calls a gradient with a larger relative error suspicious or wrong."""
STEPS = 10.0 ** -np.arange(2, 9)
DTYPES = ("float32", "float64")
CHECKERS = [f"the course's rule, step {step:.0e}" for step in STEPS]
CHECKERS += [f"jax.test_util.check_grads, {dtype}" for dtype in DTYPES] + ["jaxgrad.check_grads"]
relu_loss = functools.partial(network.cross_entropy, phi=jax.nn.relu)
Kinks = namedtuple("Kinks", "examples error crossed verdicts jax_alarms")
"""Outcomes for correct gradients, `[examples, networks]`, with `STEPS` as middle axis of the
course's error and of whether moving one weight by the step takes a unit across its kink."""


@network.precise()
def measure(options: network.Options) -> Kinks:
    """Check the correct gradients of ReLU networks with three checkers."""
    jitted, rows = jax.jit(relu_loss), []
    for examples in options.kink_examples:
        for repetition in range(options.networks):
            params, x, y = network.problem(options, examples, initializers.he(), repetition)
            z = x @ params["first"]["kernel"] + params["first"]["bias"][None]
            # A weight moves a pre-activation by the step times its input, a bias by the step.
            reach = np.maximum(np.max(np.abs(x), axis=1, keepdims=True), 1.0)
            crossed = np.min(np.abs(z) / reach) <= STEPS
            error = network.course_error(relu_loss, params, jnp.asarray(STEPS), x, y)
            verdict = check_grads(relu_loss, params, x, y).verdict
            rejected = [_jax_rejects(jitted, params, x, y, dtype) for dtype in DTYPES]
            rows.append((error, crossed, verdict, rejected))
    shape = (len(options.kink_examples), options.networks)
    columns = (np.array(c).reshape(*shape, *np.shape(c)[1:]) for c in zip(*rows, strict=True))
    error, crossed, verdicts, rejected = (np.moveaxis(column, 1, -1) for column in columns)
    jax_alarms = dict(zip(DTYPES, rejected.swapaxes(0, 1), strict=True))
    return Kinks(options.kink_examples, error, crossed, verdicts, jax_alarms)


def _jax_rejects(f, params, x, y, dtype: str) -> bool:
    # JAX chooses its tolerance by the dtype of the arguments.
    params, x, y = jax.tree.map(lambda a: a.astype(dtype), (params, x, y))
    try:
        jax.test_util.check_grads(lambda p: f(p, x, y), (params,), order=1, modes=("rev",))
    except AssertionError:
        return True
    return False


def false_alarms(result: Kinks) -> np.ndarray:
    """Whether each of `CHECKERS` rejects a network, `[checkers, examples, networks]`."""
    # Negated, so that an error that is NaN counts as an alarm.
    course = ~(result.error <= FALSE_ALARM).swapaxes(0, 1)
    # KINK and UNRESOLVED withhold a judgement, so they reject nothing.
    bad = (Verdict.WRONG, Verdict.NONFINITE, Verdict.NONDETERMINISTIC)
    return np.stack([*course, *result.jax_alarms.values(), np.isin(result.verdicts, bad)])


def report(result: Kinks) -> Report:
    """Tabulate the share of false alarms of each checker."""
    alarms, rows, lines, claims = false_alarms(result), [], [], []
    shares, count = alarms.mean(axis=2), len(STEPS)
    for e, examples in enumerate(result.examples):
        course, crossed, verdicts = alarms[:count, e], result.crossed[e], result.verdicts[e]
        crosses = [*crossed.mean(axis=1), "", "", ""]
        rows += zip([examples] * len(CHECKERS), CHECKERS, crosses, shares[:, e], strict=True)
        counts = ", ".join(f"{np.sum(verdicts == v)} {v}" for v in Verdict if v in verdicts)
        lines.append(
            f"With {examples} examples the step crosses a kink in {np.sum(course & crossed)} of "
            f"{np.sum(course)} false alarms of the course;\njaxgrad's verdicts are {counts}."
        )
        # The claim is about the step at which the course's rule raises most alarms.
        worst = np.argmax(shares[:count, e])
        text = (
            f"with {examples} examples jaxgrad.check_grads raises fewer false alarms than the "
            f"course's rule with a step of {STEPS[worst]:.0e}"
        )
        fewer = Estimate.paired(course[worst], alarms[-1, e])
        claims.append(Claim(text, fewer, "greater", form=".0%"))
    headings = {"examples": "d", "checker": "", "step crosses a kink": ".0%", "false alarms": ".0%"}
    title = (
        f"{alarms.shape[2]} ReLU networks with correct gradients; a false alarm of the course's "
        f"rule is a relative error above {FALSE_ALARM:.0e}:"
    )
    sections = [table(headings, rows, title, left=2), "\n".join(lines)]
    by_name = {f"jax, {dtype}": shares[count + i] for i, dtype in enumerate(DTYPES)}
    by_name |= {"course": shares[:count].T, "jaxgrad": shares[-1]}
    return Report(sections, claims, {"false alarms": by_name, "examples": result.examples})


def figure(result: Kinks):
    """Plot the share of false alarms of each checker."""
    alarms = false_alarms(result)
    *checkers, jaxgrad = alarms.mean(axis=2).max(axis=1)
    title = (
        f"A fixed step rejects up to {max(checkers[: len(STEPS)]):.0%} of correct ReLU gradients, "
        f"JAX's check_grads {max(checkers[len(STEPS) :]):.0%}, jaxgrad's {jaxgrad:.0%}"
    )
    figure, ((ax,),) = figures.panels(title, height=4.8)
    rows = {
        checker: {
            f"{examples} examples": (int(counts[e].sum()), counts.shape[1])
            for e, examples in enumerate(result.examples)
        }
        for checker, counts in zip(CHECKERS, alarms, strict=True)
    }
    # The bars are the intervals that the shares have at so few networks.
    figures.shares(ax, rows)
    ax.set(xlim=(-0.03, 1.03), xlabel=f"share of {alarms.shape[2]} networks that are rejected")
    ax.legend()
    return figure
