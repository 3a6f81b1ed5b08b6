"""Is the start of training the right moment to check a gradient?"""

import functools
from collections import namedtuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments._kit import Claim, Estimate, Report, table
from experiments.gradient_check import network
from jaxgrad import checking, initializers
from jaxgrad.checking import Verdict

RIGHT, NEAR_ZERO = "right rule, 1 − tanh²(z)", "wrong rule, 1 − z²"
Training = namedtuple("Training", "steps error verdicts")
"""Numbers of optimizer steps, and the worst leaf's error and verdicts after them, by rule."""


@network.precise()
def measure(options: network.Options) -> Training:
    """Check a right and a wrong gradient during a training that starts from small weights."""
    # With standardized images the pre-activations are then about 0.01.
    params, x, y = network.problem(options, network.ROWS, initializers.normal(1e-6))

    def batches():
        # Started again for each rule, so that both trainings see the same batches.
        generator = np.random.default_rng(options.seed)
        while True:
            rows = generator.choice(len(x), options.batch_size, replace=False)
            yield x[rows], y[rows]

    def near_zero(z):
        # tanh'(z) = 1 - tanh(z)^2 = 1 - z^2 + O(z^4): the rule is right for small z only.
        return network.tanh_with_slope(z, lambda z: jnp.maximum(1 - z * z, 0))

    errors, verdicts = {}, {}
    for name, phi in {RIGHT: jnp.tanh, NEAR_ZERO: near_zero}.items():
        loss = functools.partial(network.cross_entropy, phi=phi)
        optimizer = optax.sgd(options.learning_rate, momentum=0.9)
        reports = checking.check_along_training(
            loss, params, batches(), optimizer, steps=options.training_steps
        ).values()
        # The worst leaf decides, as it does for the verdict.
        errors[name] = np.array([max(f.relative_error for f in r.leaves) for r in reports])
        verdicts[name] = tuple(report.verdict for report in reports)
    return Training(np.array(options.training_steps), errors, verdicts)


def report(result: Training) -> Report:
    """Tabulate errors and verdicts after each number of steps."""
    headings, columns, claims = {"optimizer steps": "d"}, [result.steps], []
    for name, verdicts in result.verdicts.items():
        headings |= {name: ".0e", f"verdict on the {name.split(', ')[0]}": ""}
        columns += [result.error[name], verdicts]
        share = Estimate.exact(np.mean(np.array(verdicts) == Verdict.WRONG))
        text = f"the {name} is called wrong at this share of the checks"
        # The wrong rule has to be named at least once, the right one never.
        relation, tolerance = ("greater", 0.0) if name == NEAR_ZERO else ("equal", 1e-9)
        claims.append(Claim(text, share, relation, tolerance=tolerance, form=".0%"))
    title = "Is the start of training the moment to check? Relative errors of the worst leaf:"
    section = table(headings, zip(*columns, strict=True), title)
    return Report([section], claims, {"steps": result.steps} | result.error)


def figure(result: Training):
    """Plot the errors of a right and of a wrong derivative rule during training."""
    parts = []
    for name, verdicts in result.verdicts.items():
        wrong = [step for step, v in zip(result.steps, verdicts, strict=True) if v == "WRONG"]
        when = f"called WRONG after {wrong[0]} steps" if wrong else "never called wrong"
        parts.append(f"the {name.split(', ')[0]} is {when}")
    title = "Along the training " + "; ".join(parts)
    errors = {f"tanh with the {name}": error for name, error in result.error.items()}
    xlabel = "optimizer steps before the check (weights start small and grow)"
    return network.error_figure(result.steps, errors, title, xlabel)
