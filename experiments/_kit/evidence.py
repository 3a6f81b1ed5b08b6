"""Estimates with standard errors, claims about them, and the one rule that decides claims.

Every experiment uses the same rule. A claim is tested in both directions by one two-sided p-value,
with Student's t or the normal distribution. The p-values of all claims of a report are corrected
together by Holm's method, so that the probability of even one wrong decision in a report is at most
`level`. A claim HOLDS or DOES NOT HOLD if its corrected p-value is at most `level`, depending on
the side on which the estimate lies; otherwise it is UNDECIDED.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

HOLDS, FAILS, UNDECIDED = "HOLDS", "DOES NOT HOLD", "UNDECIDED"


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error, or arrays of them.

    `f"{estimate:.1%}"` formats both numbers: `70.0% ± 0.6%`. Multiplication by a number scales
    both, subtraction is of independent estimates; see `paired` for estimates from the same seeds.
    The degrees of freedom of Student's t distribution are infinite for a normal one. An exact
    number has such degrees of freedom and no standard error.
    """

    mean: Any
    standard_error: Any
    degrees_of_freedom: Any = np.inf

    @classmethod
    def of(cls, values: Any, axis: int = 0) -> Estimate:
        """The mean over independent repetitions, such as seeds, along one axis."""
        # In float64: the spread of float32 values can be of the size of their rounding.
        values = np.asarray(values, np.float64)
        # An infinite or NaN value gives such a mean and a NaN standard error.
        with np.errstate(invalid="ignore"):
            error = values.std(axis=axis, ddof=1) / np.sqrt(values.shape[axis])
            return cls(values.mean(axis=axis), error, values.shape[axis] - 1)

    @classmethod
    def paired(cls, values: Any, others: Any, axis: int = 0) -> Estimate:
        """The mean of `values - others`, repetition by repetition."""
        with np.errstate(invalid="ignore"):
            return cls.of(np.asarray(values, np.float64) - np.asarray(others, np.float64), axis)

    @classmethod
    def ratio(cls, values: Any, others: Any, axis: int = 0) -> Estimate:
        """The ratio of two means over the same repetitions, by the delta method."""
        values, others = (np.asarray(v, np.float64) for v in (values, others))
        quotient = values.mean(axis=axis) / others.mean(axis=axis)
        # d(a / b) = (da - (a / b) db) / b
        rest = cls.of(values - np.expand_dims(quotient, axis) * others, axis)
        error = rest.standard_error / np.abs(others.mean(axis=axis))
        return cls(quotient, error, rest.degrees_of_freedom)

    @classmethod
    def share(cls, successes: Any, trials: int) -> Estimate:
        """The share of successes among independent trials, approximately normal.

        The standard error is that of a smoothed share, so that it is not 0 where all trials agree.
        """
        successes = np.asarray(successes, np.float64)
        smoothed = (successes + 1) / (trials + 2)
        return cls(successes / trials, np.sqrt(smoothed * (1 - smoothed) / trials))

    @classmethod
    def exact(cls, value: Any) -> Estimate:
        """A number that is known without sampling, such as a count of all cases."""
        return cls(value, np.zeros(np.shape(value)))

    @property
    def is_exact(self) -> bool:
        """Whether there is no sampling error."""
        return bool(np.all(self.standard_error == 0) and np.isinf(self.degrees_of_freedom))

    def z_score(self, expected: Any) -> Any:
        """The distance from an expected value in standard errors; NaN if these are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (self.mean - np.asarray(expected)) / self.standard_error
        return np.where(np.asarray(self.standard_error) > 0, z, np.nan)[()]

    def __getitem__(self, index: Any) -> Estimate:
        freedom = np.broadcast_to(self.degrees_of_freedom, np.shape(self.mean))
        return Estimate(self.mean[index], self.standard_error[index], freedom[index])

    def __iter__(self) -> Iterator[Estimate]:
        return (self[i] for i in range(len(self.mean)))

    def __mul__(self, factor: Any) -> Estimate:
        error = self.standard_error * np.abs(factor)
        return Estimate(self.mean * factor, error, self.degrees_of_freedom)

    def __neg__(self) -> Estimate:
        return self * -1

    def __sub__(self, other: Estimate | float) -> Estimate:
        """Difference from a constant, or from an independent estimate (Welch, 1947)."""
        if not isinstance(other, Estimate):
            return Estimate(self.mean - other, self.standard_error, self.degrees_of_freedom)
        # Degrees of freedom by Welch and Satterthwaite.
        first, second = (np.square(e.standard_error) for e in (self, other))
        rest = first**2 / self.degrees_of_freedom + second**2 / other.degrees_of_freedom
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = np.where(rest > 0, (first + second) ** 2 / rest, np.inf)
        return Estimate(self.mean - other.mean, np.sqrt(first + second), freedom[()])

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.standard_error:{spec.replace('+', '')}}"


def interval(successes: int, trials: int) -> tuple[float, float]:
    """Ends of the interval of 95 % around a share, within 0 and 1 (Wilson, 1927)."""
    low, high = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Claim:
    """A statement about the relation of the true value behind an estimate to an expected one.

    `equal` needs a tolerance, the difference that does not matter. `form` is the format
    specification of the estimate, such as `+.1%`.
    """

    text: str
    estimate: Estimate
    relation: Literal["greater", "less", "equal"]
    expected: float = 0.0
    tolerance: float = 0.0
    form: str = ".3g"

    def __post_init__(self) -> None:
        if (self.relation == "equal") != (self.tolerance > 0):
            rule = "tolerance must be above 0 for the relation equal and 0 for the others"
            raise ValueError(f"{rule}, got {self.tolerance:g} for {self.relation}")

    def test(self) -> tuple[bool, float]:
        """Whether the estimate speaks for the claim, and the two-sided p-value of that."""
        difference = self.estimate - self.expected
        mean, error = float(difference.mean), float(difference.standard_error)
        if self.relation == "equal":
            # Inside if below one border and above the other; outside by the nearer one.
            margin = self.tolerance - abs(mean)
        else:
            margin = mean if self.relation == "greater" else -mean
        if self.estimate.is_exact:
            return margin > 0 or (self.relation == "equal" and margin == 0), 0.0
        # A lost measurement, or one on the border, speaks for neither side.
        if not np.isfinite(margin) or margin == 0:
            return False, 1.0
        if error == 0:
            # All repetitions agree to the last digit: a sign test.
            return margin > 0, min(1.0, 2 * 0.5 ** (difference.degrees_of_freedom + 1))
        tail = stats.t.sf(abs(margin) / error, difference.degrees_of_freedom)
        return margin > 0, float(2 * tail)


@dataclass(frozen=True)
class Verdict:
    """The decision on a claim: `HOLDS`, `DOES NOT HOLD` or `UNDECIDED`.

    The p-value is corrected for all claims of the report; it is `None` for an exact estimate.
    """

    claim: Claim
    outcome: str
    p_value: float | None

    def row(self) -> tuple[str, str, str, str]:
        """Outcome, claim, estimate and p-value as text."""
        estimate, form = self.claim.estimate, self.claim.form
        if self.p_value is None:
            return self.outcome, self.claim.text, f"{estimate.mean:{form}}", "exact"
        p_value = f"{self.p_value:.2g}" if self.p_value >= 1e-4 else "<0.0001"
        return self.outcome, self.claim.text, f"{estimate:{form}}", p_value


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Corrected p-values (Holm, 1979): all tests with at most `level` can be rejected together."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    # The smallest is multiplied by the number of tests, the next by one less, and so on.
    factors = len(values) - np.arange(len(values))
    corrected = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return corrected[np.argsort(order)]


def verdicts(claims: Sequence[Claim], level: float = 0.05) -> list[Verdict]:
    """Decide all claims of a report together."""
    tests = [claim.test() for claim in claims]
    # Exact claims are compared without a test and do not count in the correction.
    sampled = [i for i, claim in enumerate(claims) if not claim.estimate.is_exact]
    p_values = dict(zip(sampled, holm([tests[i][1] for i in sampled]).tolist(), strict=True))
    results = []
    for i, claim in enumerate(claims):
        decided = HOLDS if tests[i][0] else FAILS
        outcome = UNDECIDED if p_values.get(i, 0.0) > level else decided
        results.append(Verdict(claim, outcome, p_values.get(i)))
    return results
