"""`check_expectation`: is the mean over keys of a gradient the gradient of the mean?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking._expectation_prepare import prepare
from jaxgrad.checking._expectation_report import (
    ExpectationReport,
    ExpectationVerdict,
    sort_expectation_leaves,
)
from jaxgrad.checking._expectation_steps import RATIO, plan_steps, try_steps
from jaxgrad.checking._expectation_verdicts import confirm, explain, judge


def check_expectation(
    f: Callable[..., Any],
    *args: Any,
    key: jax.Array,
    argnums: int | Sequence[int] = 0,
    samples: int = 8192,
    grad: Callable[..., Any] | None = None,
    alpha: float = 0.01,
    resolution: float = 0.1,
    has_aux: bool = False,
    strict: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> ExpectationReport:
    """Check whether the mean over keys of a gradient is the gradient of the mean.

    A gradient can be right for each key and still have the wrong mean: where a sample jumps as a
    parameter moves, such as that of `jax.random.categorical`, the derivative for a fixed key
    misses the jumps. Straight-through and score function estimators, in turn, are not the
    derivative for any key; all that counts is their mean.

    The gradient of the mean is estimated by central differences with the same keys on both sides,
    freed of their error of second order by extrapolation. An eighth of the keys, drawn in addition,
    chooses the step of each leaf, which balances noise, large for jumps and small steps, against
    the error that is left. All other keys decide. A bias must show with smaller steps as well,
    since a step may leave the range in which the mean is smooth. As in `check_grads`, everything is
    computed in float64 if `f` allows it; a draw whose dtype is not named then has other values.

    Args:
      f: `f(key, *args)` returns a real number, or an array or pytree of them, which is then
        weighted by a random cotangent. It must allow `jax.jit` and `jax.vmap`.
      *args, argnums, has_aux, kwargs: as for `check_grads`; `argnums` counts without the key.
      key: PRNG key that is split into the keys of all samples and of directions.
      samples: number of keys, at least 512; it is rounded up to whole chunks of bounded memory.
      grad: `grad(key, *args)` returns the estimate to be checked, as `jax.grad` would, such as one
        by score functions. By default it is the gradient of `f` for the same key. `f` must return
        a real number if it is passed.
      alpha: probability that some leaf is called biased by chance, if none is.
      resolution: size of a bias worth mentioning, relative to the largest element of the leaf's
        mean gradient. A leaf for which the keys do not show so much is `UNRESOLVED`.
      strict: whether `report.ok` is false for `UNRESOLVED`.

    Raises:
      TypeError, ValueError: if an argument is not as described, or if `f` or `grad` raises.

    Source: Mohamed et al. (2020), "Monte Carlo gradient estimation in machine learning"; Glasserman
    and Yao (1992) for common random numbers; Spall (1992) for random signs.

    >>> import jax, jax.numpy as jnp
    >>> def cost(key, logit):
    ...     return jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(logit)), 2.0, 5.0)
    >>> check_expectation(cost, 0.5, key=jax.random.key(0)).verdict
    <ExpectationVerdict.DISCONTINUOUS: 'DISCONTINUOUS'>
    """
    for name, function in (("f", f), ("grad", grad)):
        if not callable(function) and not (name == "grad" and function is None):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    _validate.key("key", key)
    _validate.known("args", args, "check_expectation")
    _validate.flag("strict", strict)
    samples = _validate.integer("samples", samples, 512)
    _validate.scalar("alpha", alpha, minimum=0.0, above=True, maximum=0.5)
    _validate.scalar("resolution", resolution, minimum=0.0, above=True)
    # From here on each stage hands a frozen value to the next.
    experiment = prepare(f, grad, args, key, argnums, has_aux, kwargs)
    chunk = int(np.clip(experiment.chunk, 1, samples // 8))
    counts = [-(-count // chunk) * chunk for count in (samples // 8, samples)]
    # Keys of `f` and keys of the signs, for the choice of steps and for the decision.
    pilot_key, main_key = jax.random.split(key)
    pilot, main = (
        jax.random.split(k, (count, 2))
        for k, count in zip((pilot_key, main_key), counts, strict=True)
    )
    trials, ratio = try_steps(experiment, pilot, chunk), counts[1] / counts[0]
    plan = plan_steps(experiment, trials, pilot, chunk, ratio)
    moments = experiment.measure("differences", main, chunk, plan.steps, plan.vectors)
    rows = judge(experiment, plan, moments, alpha, resolution)
    if any(row.leaf.verdict is ExpectationVerdict.BIASED for row in rows):
        # Jumps that are too rare for the few keys of the trials can make up for a small difference.
        plan = plan_steps(experiment, trials, main, chunk, ratio)
        moments = experiment.measure("differences", main, chunk, plan.steps, plan.vectors)
        rows = judge(experiment, plan, moments, alpha, resolution)
    if any(row.leaf.verdict is ExpectationVerdict.BIASED for row in rows):
        smaller = [plan.steps / factor for factor in (RATIO, RATIO**2)]
        trials = [
            experiment.measure("differences", main, chunk, step, plan.vectors) for step in smaller
        ]
        rows = confirm(plan, rows, trials)
    if all(row.leaf.verdict is ExpectationVerdict.UNBIASED for row in rows):
        leaves = [row.leaf for row in rows]
    else:
        leaves = explain(experiment, plan, rows, (pilot, main), chunk)
    return ExpectationReport(
        leaves=sort_expectation_leaves(leaves),
        samples=counts[1],
        alpha=float(alpha),
        resolution=float(resolution),
        left_out=experiment.arguments.left_out,
        precision="float64" if experiment.wide else "the type of the arguments",
        notes=experiment.notes,
        strict=strict,
    )
