"""A leaf's autodiff and numeric derivatives, held together: verdict, place and words."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxgrad.checking import evaluation, localize, probing, verdicts
from jaxgrad.checking.autodiff import Autodiff
from jaxgrad.checking.evaluation import LeafInfo
from jaxgrad.checking.identities import norm
from jaxgrad.checking.ladders import Derivative
from jaxgrad.checking.probing import Prober, Probes, rms
from jaxgrad.checking.report import Leaf
from jaxgrad.checking.verdicts import ORDER, Verdict

SOLVED = 1e-3
"""Relative error that is let pass where loops stop at a tolerance."""
TOO_WIDE = 0.05
"""An error bar of so large a share of the gradient tells nothing."""


class Judge:
    """Verdicts on the leaves of one check.

    Attributes:
      rtol: relative error of an element, or of a whole leaf, that is let pass.
      own: the gradient in the arguments' own types as leaves, `None` where that is the one checked.
      floor: error of an element that is let pass, relative to the leaf's root mean square: what
        rounding in the backward pass may leave.
    """

    def __init__(self, prober: Prober, autodiff: Autodiff, complete, rtol: float, own):
        self.prober, self.autodiff, self.complete = prober, autodiff, complete
        self.opened, self.own = prober.opened, own
        # A solver's tolerance is an error of the function and of its derivative, not a mistake.
        iterates = self.opened.facts is not None and self.opened.facts.iterates
        self.rtol = max(rtol, SOLVED) if iterates else rtol
        eps = autodiff.eps
        self.floor = max(self.rtol / 10, 1e-5, 300 * eps if eps < 1e-4 else 30 * eps)
        self.rounding = 30 * eps if eps > 1e-12 else 1e-11

    def slack(self, j: int, numeric: Derivative) -> np.ndarray:
        """What may separate autodiff from the numeric derivative besides its error bar."""
        size = rms(numeric.value)
        if self.complete[j]:
            return self.rtol * np.abs(numeric.value) + self.floor * size
        # Along a direction one element counts little, so nothing is let pass but rounding.
        return np.full(numeric.value.shape, self.rounding * size)

    def leaf(self, j: int, mode: str, probes: Probes) -> Leaf:
        """The verdict on leaf `j`."""
        autodiff = self.autodiff.along(probes.directions, mode)
        if self.complete[j]:
            return self._complete(j, mode, autodiff, probes)
        return self._large(j, mode, autodiff, probes)

    def _vanishes(self, j: int) -> bool:
        """Whether autodiff's gradient is zero, or so near that another rounding gives another."""
        if self.autodiff.leaves is None:
            return False
        gradient = self.autodiff.leaves[j]
        others = [] if self.own is None else [np.asarray(self.own[j])]
        others.append(self.autodiff.several[j][0])
        with np.errstate(invalid="ignore", over="ignore"):
            apart = max(norm(other - gradient) for other in others)
        return apart >= 0.1 * norm(gradient)

    def _verdicts(self, j, autodiff, numeric, slack):
        least = 1e-3 * self.prober.total / self.prober.scales[j] if self._vanishes(j) else 0.0
        size = np.maximum(np.abs(numeric.value), max(rms(numeric.value), least))
        return verdicts.judge(autodiff, numeric, slack, TOO_WIDE * size)

    def _complete(self, j, mode, autodiff, probes: Probes) -> Leaf:
        leaf, numeric = self.opened.leaves[j], probes.numeric
        slack = self.slack(j, numeric)
        found = self._verdicts(j, autodiff, numeric, slack)
        verdict = ORDER[int(found.min())]
        grave = found == found.min()
        apart = _apart(autodiff, numeric.value)
        worst = int(np.argmax(np.where(grave, apart, -1.0)))
        reason = ""
        if verdict is Verdict.WRONG:
            place = localize.among(grave.reshape(leaf.axes), apart.reshape(leaf.axes))
            if found.size == 1 and numeric.value[0] != 0:
                factor = autodiff[0] / numeric.value[0]
                reason = localize.AUTODIFF + localize.factor_words(factor)
            elif not place.alone:
                bars = numeric.error + 10 * slack
                reason = localize.pattern(
                    autodiff.reshape(leaf.axes), np.ravel, numeric.value, bars
                )
            count = int(grave.sum())
            reason = reason or "wrong at " + localize.where_words(place, leaf.axes, count)
        elif verdict is Verdict.KINK:
            left, right = numeric.left[worst], numeric.right[worst]
            slopes = f"one-sided slopes {left:.4g} and {right:.4g}"
            if not numeric.kink[worst]:
                slopes = "within the smallest step that this precision resolves"
            reason = f"kink at {int(grave.sum())} of {found.size} coordinates, {slopes}"
        elif verdict is not Verdict.AGREE:
            reason = self._why(verdict, numeric, worst, autodiff[worst])
        index, mine, theirs = _element(leaf, worst, autodiff, numeric.value)
        # An error shows through the numeric derivative's own.
        bars = (2 * numeric.error + slack)[np.isfinite(numeric.error)]
        return Leaf(
            path=leaf.path,
            verdict=verdict,
            shape=leaf.shape,
            relative_error=relative(autodiff, numeric.value),
            error_bar=float(numeric.error[worst]),
            minimum_detectable=float(np.max(bars)) if len(bars) else math.inf,
            worst_index=index,
            autodiff=mine,
            numeric=theirs,
            dtype=leaf.dtype,
            reason=reason,
            mode=mode,
        )

    def _large(self, j, mode, autodiff, probes: Probes) -> Leaf:
        leaf, numeric = self.opened.leaves[j], probes.numeric
        slack = self.slack(j, numeric)
        found = self._verdicts(j, autodiff, numeric, slack)
        apart = _apart(autodiff, numeric.value)
        bars = numeric.error + slack
        detectable = (bars + numeric.error)[np.isfinite(bars)]
        worst = int(np.argmax(np.where(np.isnan(apart - bars), -np.inf, apart - bars)))
        normal = len(autodiff) // 2
        out = Leaf(
            path=leaf.path,
            verdict=ORDER[int(found.min())],
            shape=leaf.shape,
            relative_error=relative(autodiff, numeric.value),
            error_bar=float(numeric.error[worst]),
            minimum_detectable=float(np.max(detectable, initial=0.0)) or math.inf,
            worst_index=None,
            autodiff=float(autodiff[worst]),
            numeric=float(numeric.value[worst]),
            dtype=leaf.dtype,
            coverage="directions",
            miss_probability=math.erf(0.1 / math.sqrt(2)) ** normal,
            mode=mode,
        )
        if out.verdict is Verdict.AGREE:
            return out
        if out.verdict is Verdict.KINK:
            reason = f"kink along {int(numeric.kink.sum())} of {len(autodiff)} directions"
            return dataclasses.replace(out, reason=reason)
        if out.verdict is Verdict.UNRESOLVED and np.all(np.isfinite(autodiff)):
            reason = self._why(out.verdict, numeric, worst, autodiff[worst])
            return dataclasses.replace(out, reason=reason)
        return self._found(j, mode, out, probes, apart, bars)

    def _found(self, j, mode, out: Leaf, probes: Probes, apart, bars) -> Leaf:
        """Look for the elements behind a large leaf's error, and judge them one by one."""
        leaf, numeric = self.opened.leaves[j], probes.numeric
        own = None
        if mode == "rev" and self.autodiff.gradient is not None:
            own = self.autodiff.gradient[leaf.start : leaf.stop]
        coordinates, place = self._candidates(j, leaf, own, mode)
        there = self.prober.at([leaf.start + i for i in coordinates], j)
        units = [(leaf.start + i, np.ones(1, np.float32)) for i in coordinates]
        mine = self.autodiff.along(units, mode)
        size = rms(numeric.value)
        typical = size / math.sqrt(leaf.stop - leaf.start)
        allowed = self.rtol * np.abs(there.value) + self.floor * typical
        known = TOO_WIDE * np.maximum(np.abs(there.value), typical)
        judged = verdicts.judge(mine, there, allowed, known)
        pick = int(np.lexsort((-_apart(mine, there.value), judged))[0])
        verdict = ORDER[int(judged[pick])]
        if verdict not in (Verdict.WRONG, Verdict.NONFINITE):
            # Many errors may each be too small to see, and matter together.
            if not np.any(apart > bars + self.rtol * size):
                kept = Verdict.KINK if numeric.kink.any() else Verdict.AGREE
                return dataclasses.replace(out, verdict=kept)
            verdict = Verdict.WRONG
        reason = ""
        if verdict is Verdict.NONFINITE:
            reason = self._why(verdict, there, pick, mine[pick])
        elif own is not None and not place.alone:
            rows = np.stack([values for _, values in probes.directions]).astype(np.float64)
            reason = localize.pattern(
                own.reshape(leaf.axes),
                lambda g: rows @ g.ravel(),
                numeric.value,
                bars + 1e-5 * size,
            )
        index = np.unravel_index(coordinates[pick], leaf.axes)[len(leaf.axes) - len(leaf.shape) :]
        return dataclasses.replace(
            out,
            verdict=verdict,
            reason=reason or "wrong at " + localize.where_words(place, leaf.axes, None),
            worst_index=tuple(int(i) for i in index),
            autodiff=float(mine[pick]),
            numeric=float(there.value[pick]),
            error_bar=float(there.error[pick]),
        )

    def _candidates(self, j, leaf: LeafInfo, own, mode):
        """Coordinates of a large leaf to look at, and where its errors seem to be."""
        if own is not None and not np.all(np.isfinite(own)):
            bad = ~np.isfinite(own)
            place = localize.among(bad.reshape(leaf.axes), bad.reshape(leaf.axes))
            return np.flatnonzero(bad)[:8].tolist(), place
        prober = self.prober

        def error(masked):
            directions = [(leaf.start, values) for values in masked]
            start = np.full(len(directions), prober.start[j])
            numeric = prober.ladder(directions, start, probing.SHORT, prober.noise[j])
            mine = self.autodiff.along(directions, mode)
            return mine - numeric.value, numeric.error + self.rounding * rms(numeric.value)

        place = localize.search(leaf.axes, error, prober.generator)
        found = [int(np.ravel_multi_index(place.at, leaf.axes))]
        if not place.alone:
            found.append(localize.descend(leaf.stop - leaf.start, error, prober.generator))
        return found, place

    def _why(self, verdict, numeric: Derivative, at: int, autodiff: float) -> str:
        """Why a number is not finite or could not be resolved, and what would help."""
        if verdict is Verdict.NONFINITE:
            return f"autodiff is {autodiff:.3g} where the function is finite around"
        if numeric.sides[at] == 0:
            return "the function is not finite close by; move the point inside the domain"
        if numeric.sides[at] == 1:
            return "the point is at an edge of the domain, where no slope settles; move it inside"
        if not self.opened.numeric.wide:
            return (
                "rounding of the arguments' type hides the derivative; let f take float64, or "
                "subtract constants from its value"
            )
        return (
            f"values of f err by {numeric.noise[at]:.1g}, or it jumps or oscillates here; a "
            "tighter solver, fewer data or another point would help"
        )

    def in_own_type(self, found: list[Leaf]) -> list[Leaf]:
        """Put the gradient in the arguments' own types beside the float64 one."""
        if self.own is None:
            return found
        position = {leaf.path: j for j, leaf in enumerate(self.opened.leaves)}
        out = []
        for leaf in found:
            info = self.opened.leaves[position[leaf.path]]
            mine = evaluation.coordinates_of_gradient(self.own[position[leaf.path]])
            wide = self.autodiff.gradient[info.start : info.stop]
            if leaf.mode == "rev":
                leaf = dataclasses.replace(leaf, working_error=relative(mine, wide))
                bad = ~np.isfinite(mine) & np.isfinite(wide)
                if bad.any() and leaf.verdict not in verdicts.FAILURES:
                    index, value, _ = _element(info, int(np.argmax(bad)), mine, mine)
                    leaf = dataclasses.replace(
                        leaf,
                        verdict=Verdict.NONFINITE,
                        worst_index=index,
                        autodiff=value,
                        reason=f"autodiff is not finite in {info.dtype}, though it is in float64",
                    )
            out.append(leaf)
        return out


def relative(autodiff: np.ndarray, numeric: np.ndarray) -> float:
    """`|autodiff - numeric| / |numeric|` where the numeric derivative is known."""
    known = np.isfinite(numeric)
    with np.errstate(invalid="ignore"):
        apart = norm((autodiff - numeric)[known])
    size = norm(numeric[known])
    if size == 0:
        return 0.0 if apart == 0 else math.inf
    return apart / size


def _apart(autodiff, numeric):
    with np.errstate(invalid="ignore"):
        apart = np.abs(autodiff - numeric)
    return np.where(np.isfinite(apart), apart, np.inf)


def _element(leaf: LeafInfo, at: int, autodiff, numeric):
    """Index and both numbers of an element; complex where the leaf is, as `jax.grad` has it."""
    index = tuple(int(i) for i in np.unravel_index(at, leaf.axes))
    if not leaf.complex:
        return index, float(autodiff[at]), float(numeric[at])
    half = (leaf.stop - leaf.start) // 2
    at %= half
    return index[1:], *(complex(a[at], -a[at + half]) for a in (autodiff, numeric))
