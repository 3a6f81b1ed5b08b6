"""The step of the difference quotient of each leaf, chosen by keys that do not decide."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxgrad.checking import _expectation_samples as sampling
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._expectation_prepare import Experiment
from jaxgrad.checking._expectation_samples import Moments

SMALLEST_STEP = 2.0**-10
RATIO = 4.0  # of one step to the next smaller one
# Where one key has a share of the variance above the first number, standard errors are too small.
# With this slope the rate of false alarms stays below alpha for samples with tails like those of
# log-normal numbers with sigma = 3, or of a Pareto law with exponent 1.5.
LARGEST_SHARE, HEAVY_SLOPE = 0.05, 20.0
FEW_JUMPS = 30  # So many must be met, or else the standard error may lack them.


@dataclass(frozen=True)
class Plan:
    """How each leaf is measured, chosen by keys that do not decide."""

    steps: np.ndarray  # [L]
    versions: np.ndarray  # of `DIFFERENCE` and `NUMERIC`, [L]
    vectors: np.ndarray  # for each leaf a unit vector along which a bias was largest, [size]
    rare: np.ndarray  # standard error by jumps that few keys meet, 0 if many keys do, [L]


class Trials(NamedTuple):
    """Differences with steps of several sizes."""

    steps: list[np.ndarray]  # each [L]
    moments: list[Moments]
    largest: np.ndarray  # the largest steps that do not leave the domain of the function, [L]


@np.errstate(all="ignore")
def try_steps(experiment: Experiment, keys, chunk: int) -> Trials:
    """Measure differences with steps from a thousandth to the size of the argument."""
    scales, none = experiment.arguments.scales, np.zeros(len(experiment.arguments.point))
    # Powers of two, so that moved arguments are not rounded. The largest is taken four times.
    low = 2.0 ** np.floor(np.log2(np.minimum(scales, 1.0))) * SMALLEST_STEP
    high = 2.0 ** np.floor(np.log2(np.maximum(scales, 1.0))) / sampling.FACTORS[-1]
    count = 1 + math.ceil(np.max(np.log2(high / low)) / math.log2(RATIO))
    steps = [np.minimum(low * RATIO**i, high) for i in range(count)]
    moments = [experiment.measure("differences", keys, chunk, s, none) for s in steps]
    largest = low.copy()
    for step, trial in zip(steps, moments, strict=True):
        for j, info in enumerate(experiment.leaves):
            if np.isfinite(trial.mean[sampling.RAW, info.part]).all():
                largest[j] = step[j]
    return Trials(steps, moments, largest)


@np.errstate(all="ignore")
def plan_steps(experiment: Experiment, trials: Trials, keys, chunk: int, ratio: float) -> Plan:
    """Choose for each leaf the step and the version with the smallest error.

    `keys` are those with which jumps of `f` are searched. `ratio` is the number of keys that will
    be measured over that of the trials.
    """
    samples = ratio * trials.moments[0].samples
    rates, variances = _search_jumps(experiment, trials, keys, chunk)
    jumps = variances / samples
    steps, versions = trials.largest.copy(), np.zeros(len(trials.largest), int)
    vectors = np.zeros(len(experiment.arguments.point))
    for j, info in enumerate(experiment.leaves):
        errors = [
            [_error(trial, info, v, ratio, jumps[j] / step[j]) for v in (0, 1)]
            for trial, step in zip(trials.moments, trials.steps, strict=True)
        ]
        i, v = divmod(int(np.argmin(np.nan_to_num(errors, nan=np.inf))), 2)
        steps[j], versions[j] = trials.steps[i][j], v
        index, trial = sampling.DIFFERENCE[v], trials.moments[i]
        mean, noise = (a[index, info.part] for a in (trial.mean, trial.error))
        # The linear discriminant of independent elements, with a bound on the weight of each.
        vector = np.nan_to_num(mean / np.maximum(noise**2 + np.mean(noise**2), 1e-300))
        vectors[info.part] = vector / max(float(np.linalg.norm(vector)), 1e-300)
    rare = np.where(rates * steps * samples < FEW_JUMPS, np.sqrt(jumps / steps), 0.0)
    return Plan(steps, versions, vectors, rare)


def _search_jumps(experiment: Experiment, trials: Trials, keys, chunk: int):
    """Return for each leaf the share of keys with a jump of `f`, divided by the step.

    With a small step jumps are so rare that few keys or none show them, and the quotient seems to
    have no noise. With the largest step they are most frequent. Returns the variance of a quotient
    by jumps, times the step, too.
    """
    none = np.zeros(len(experiment.arguments.point))
    search = experiment.measure("jumps", keys, chunk, trials.largest, none)
    i = sampling.CONTRIBUTION
    square = search.mean[i] ** 2 + search.square[i] / search.samples
    means = np.array([np.mean(square[info.part]) for info in experiment.leaves])
    shares = search.mean[sampling.JUMPS, [info.start for info in experiment.leaves]]
    # Twice the standard error of a count, which is small, is added to it.
    count = np.maximum(shares * search.samples, 1.0)
    means *= 1 + 2 / np.sqrt(count) + 2 / count
    # A jump has a probability in proportion to the step h and adds J / (2 h). In the extrapolated
    # quotient this has a factor of 7/6, and a jump between h and 2 h a factor of -1/6.
    return shares / trials.largest, np.nan_to_num(50 / 36 * trials.largest * means)


def _error(trial: Moments, info: LeafInfo, version: int, ratio: float, jumps: float) -> float:
    """Return the root mean square over a leaf of noise and step bias, for `ratio` as many keys."""
    index = sampling.DIFFERENCE[version]
    bias = trial.step_bias[info.part]
    noise = reliable_errors(trial, index)[info.part] / math.sqrt(ratio)
    return float(np.sqrt(np.mean(bias**2 + np.maximum(noise**2, jumps))))


def reliable_errors(moments: Moments, index: int) -> np.ndarray:
    """Return standard errors, made larger where a few keys have most of the variance."""
    excess = np.maximum(moments.share[index] - LARGEST_SHARE, 0.0)
    return moments.error[index] * (1 + HEAVY_SLOPE * excess)
