"""The step of the difference quotient of each leaf, chosen by keys that do not decide."""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Plan:
    """How each leaf is measured, chosen by keys that do not decide."""

    steps: np.ndarray  # [L]
    versions: np.ndarray  # of `DIFFERENCE` and `NUMERIC`, [L]
    vectors: np.ndarray  # for each leaf a unit vector along which a bias was largest, [size]


@np.errstate(all="ignore")
def plan_steps(experiment: Experiment, keys, chunk: int, ratio: float) -> Plan:
    """Choose for each leaf the step and the version with the smallest error.

    `ratio` is the number of keys that decide over that of `keys`.
    """
    scales, none = experiment.arguments.scales, np.zeros(len(experiment.arguments.point))
    # Powers of two, so that moved arguments are not rounded. The largest is taken four times.
    low = 2.0 ** np.floor(np.log2(np.minimum(scales, 1.0))) * SMALLEST_STEP
    high = 2.0 ** np.floor(np.log2(np.maximum(scales, 1.0))) / sampling.FACTORS[-1]
    count = 1 + math.ceil(np.max(np.log2(high / low)) / math.log2(RATIO))
    candidates = [np.minimum(low * RATIO**i, high) for i in range(count)]
    trials = [experiment.measure("differences", keys, chunk, s, none) for s in candidates]
    jumps = _jump_variances(experiment, keys, chunk, candidates, trials) / (
        ratio * trials[0].samples
    )
    steps, versions, vectors = np.zeros_like(low), np.zeros(len(low), int), none
    for j, info in enumerate(experiment.leaves):
        errors = [
            [_error(trial, info, v, ratio, jumps[j] / step[j]) for v in (0, 1)]
            for trial, step in zip(trials, candidates, strict=True)
        ]
        i, v = divmod(int(np.argmin(np.nan_to_num(errors, nan=np.inf))), 2)
        steps[j], versions[j] = candidates[i][j], v
        index = sampling.DIFFERENCE[v]
        mean, noise = (a[index, info.part] for a in (trials[i].mean, trials[i].error))
        # The linear discriminant of independent elements, with a bound on the weight of each.
        vector = np.nan_to_num(mean / np.maximum(noise**2 + np.mean(noise**2), 1e-300))
        vectors[info.part] = vector / max(float(np.linalg.norm(vector)), 1e-300)
    return Plan(steps, versions, vectors)


def _jump_variances(experiment: Experiment, keys, chunk: int, candidates, trials) -> np.ndarray:
    """Return for each leaf the variance of a quotient by jumps of `f`, times the step.

    With a small step jumps are so rare that few keys or none show them, and the quotient seems to
    have no noise. They are searched with the largest step that does not leave the domain of `f`.
    """
    largest = candidates[0].copy()
    for step, trial in zip(candidates, trials, strict=True):
        for j, info in enumerate(experiment.leaves):
            if np.isfinite(trial.mean[sampling.RAW, info.part]).all():
                largest[j] = step[j]
    none = np.zeros(len(experiment.arguments.point))
    search = experiment.measure("jumps", keys, chunk, largest, none)
    i = sampling.CONTRIBUTION
    square = search.mean[i] ** 2 + search.square[i] / search.samples
    # A jump has a probability in proportion to the step and adds 1 / step; extrapolation from two
    # steps doubles the variance, about.
    means = [np.mean(square[info.part]) for info in experiment.leaves]
    return np.nan_to_num(2 * largest * means)


def _error(trial: Moments, info: LeafInfo, version: int, ratio: float, jumps: float) -> float:
    """Return the root mean square over a leaf of noise and step bias, for `ratio` as many keys."""
    index = sampling.DIFFERENCE[version]
    bias = np.abs(trial.mean[sampling.CURVATURE, info.part]) / 5
    noise = reliable_errors(trial, index)[info.part] / math.sqrt(ratio)
    return float(np.sqrt(np.mean(bias**2 + np.maximum(noise**2, jumps))))


def reliable_errors(moments: Moments, index: int) -> np.ndarray:
    """Return standard errors, made larger where a few keys have most of the variance."""
    excess = np.maximum(moments.share[index] - LARGEST_SHARE, 0.0)
    return moments.error[index] * (1 + HEAVY_SLOPE * excess)
