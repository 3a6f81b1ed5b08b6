"""Numeric derivatives of an opened function, leaf by leaf.

Each leaf is first probed along one direction of random signs with a ladder from its own size down
to rounding. That tells which step to believe and how much the function errs. All other directions,
or each coordinate of a small leaf, take a short ladder around that step; where it leaves a doubt,
a long one follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import ladders
from jaxgrad.checking.evaluation import Directions, LeafInfo, Opened
from jaxgrad.checking.ladders import RATIO, Derivative
from jaxgrad.checking.localize import SIGNS

LARGEST_STEP = 0.125
SHORT = 4
REFINED = 256
"""So many coordinates of a leaf are looked at again with a long ladder."""


class Probes(NamedTuple):
    """The directions along which a leaf was probed, and the derivative along each."""

    directions: Directions
    numeric: Derivative


class Prober:
    """Numeric derivatives of `opened`.

    Attributes:
      long: how many steps a long ladder has.
      rounding: the error that a value of the function has at least.
      coarsest: the largest change that is taken for rounding.
      scales: of the leaves, which steps are measured in.
    """

    def __init__(self, opened: Opened, generator: np.random.Generator):
        self.opened, self.generator = opened, generator
        # Where values pass through a narrower type, tiny steps move nothing or only a part of f.
        numeric = opened.numeric
        self.long = 14 if numeric.wide and numeric.eps < 1e-12 else 7
        self.total = opened.total
        self.rounding = self.total * np.finfo(np.float64 if numeric.wide else np.float32).eps
        self.coarsest = 100 * numeric.eps * self.total
        self.scales = np.array([opened.scale(leaf) for leaf in opened.leaves])

    def probe(
        self,
        complete: Sequence[bool],
        count: int,
        slack: Callable[[int, Derivative], np.ndarray],
        expected: Callable[[Directions], np.ndarray] | None = None,
    ) -> list[Probes]:
        """Probe every leaf.

        Args:
          complete: for each leaf, whether at every coordinate or along `count` directions.
          count: directions of random signs and normal ones in turn, the first of signs.
          slack: the error bar that suffices, for a leaf and its derivatives.
          expected: what the derivative is said to be. Where it is far off, another look is taken,
            at steps that again do not depend on it.
        """
        opened, scales = self.opened, self.scales
        pilots, pilot = self._pilots()
        owners, directions = [], []
        for j, leaf in enumerate(opened.leaves):
            added = (
                [(i, np.ones(1, np.float32)) for i in range(leaf.start, leaf.stop)]
                if complete[j]
                else self._random(leaf, np.abs(pilots[j][1]), count - 1)
            )
            directions += added
            owners += [j] * len(added)
        owner = np.array(owners)
        known = np.isfinite(pilot.error)
        # The believed step stands second, with a larger one to correct it and two smaller ones.
        start = np.where(known, np.minimum(pilot.step * RATIO, scales * LARGEST_STEP), scales)
        self.start = np.where(known, start, scales * LARGEST_STEP)
        self.noise = np.where(known, pilot.noise, 0.0)
        numeric = self.ladder(directions, self.start[owner], SHORT, self.noise[owner])
        numeric = self._refined(numeric, directions, owner, slack, expected)
        out = []
        for j in range(len(opened.leaves)):
            chosen = np.flatnonzero(owner == j)
            part = Derivative(*(a[chosen] for a in numeric))
            kept = [directions[i] for i in chosen]
            if not complete[j]:
                kept = [pilots[j], *kept]
                part = Derivative(*(np.append(a[j], b) for a, b in zip(pilot, part, strict=True)))
            out.append(Probes(kept, part))
        return out

    def ladder(
        self,
        directions: Directions,
        largest: np.ndarray,
        count: int | None = None,
        noise: Any = 0.0,
    ) -> Derivative:
        """The derivative along each direction from a ladder of `count` steps, or a long one."""
        count = count or self.long
        steps = np.asarray(largest)[:, None] * RATIO ** -np.arange(count)[None]
        change = self.opened.changes(directions, np.concatenate([steps, -steps], axis=1))
        plus, minus = change[:, :count], change[:, count:]
        steps = self._realized(directions, steps)
        first = [start for start, _ in directions]
        group = np.searchsorted([leaf.start for leaf in self.opened.leaves], first, side="right")
        floor = np.maximum(noise, self.rounding)
        plus = np.where(steps > 0, plus, np.nan)
        return ladders.resolve_together(steps, plus, minus, floor, self.coarsest, group)

    def at(self, coordinates: Sequence[int], j: int) -> Derivative:
        """The derivative at some coordinates of leaf `j`, by long ladders of two sizes."""
        units = [(int(i), np.ones(1, np.float32)) for i in coordinates]
        return self._long(units, np.full(len(units), j))

    def _pilots(self) -> tuple[list[tuple[int, np.ndarray]], Derivative]:
        opened, scales = self.opened, self.scales
        pilots = [(leaf.start, self._signs(leaf)) for leaf in opened.leaves]
        pilot = self.ladder(pilots, scales * LARGEST_STEP)
        stuck = np.flatnonzero(pilot.sides < 2)
        for j in stuck:
            # Elements of unlike size beside an edge of the domain: each moves by its own share.
            leaf = opened.leaves[j]
            part = np.abs(opened.point[leaf.start : leaf.stop])
            share = np.where(part > 0, part / scales[j], 1.0)
            pilots[j] = (leaf.start, pilots[j][1] * share.astype(np.float32))
        if len(stuck):
            again = self.ladder([pilots[j] for j in stuck], scales[stuck] * LARGEST_STEP)
            pilot = put(pilot, stuck, again)
        return pilots, pilot

    def _signs(self, leaf: LeafInfo) -> np.ndarray:
        return self.generator.choice(SIGNS, leaf.stop - leaf.start)

    def _random(self, leaf, share, count) -> list[tuple[int, np.ndarray]]:
        out = []
        for i in range(count):
            draw = self._signs(leaf)
            if i % 2 == 0:
                draw = self.generator.standard_normal(draw.shape, np.float32)
            out.append((leaf.start, draw * share))
        return out

    def _realized(self, directions, steps):
        """The steps as they come out in the leaf's own type, for a single coordinate."""
        steps = steps.copy()
        alone = np.array([len(values) == 1 for _, values in directions])
        first = np.array([start for start, _ in directions])
        for leaf in self.opened.leaves:
            rows = np.flatnonzero(alone & (first >= leaf.start) & (first < leaf.stop))
            kind = np.float64 if self.opened.numeric.wide else np.dtype(jnp.finfo(leaf.dtype).dtype)
            x = self.opened.point[first[rows]].astype(kind)[:, None]
            h = steps[rows].astype(kind)
            with np.errstate(over="ignore", invalid="ignore"):
                up, down = ((x + s).astype(np.float64) for s in (h, -h))
            steps[rows] = (up - down) / 2
        return steps

    def _refined(self, numeric, directions, owner, slack, expected) -> Derivative:
        """Look again, with long ladders, where a short one leaves a doubt."""
        chosen = []
        for j in range(len(self.opened.leaves)):
            rows = np.flatnonzero(owner == j)
            part = Derivative(*(a[rows] for a in numeric))
            enough = slack(j, part)
            doubt = ~(part.error <= 0.1 * enough) | part.kink | (part.sides < 2)
            rank = np.where(np.isfinite(part.error), part.error, np.inf)
            if expected is not None:
                mine = expected([directions[r] for r in rows])
                with np.errstate(invalid="ignore"):
                    apart = ~(np.abs(mine - part.value) <= part.error + enough)
                doubt |= apart
                rank = np.where(apart, np.inf, rank)
            doubtful = np.flatnonzero(doubt)
            worst = doubtful[np.argsort(-rank[doubtful], kind="stable")][:REFINED]
            chosen += rows[worst].tolist()
        if not chosen:
            return numeric
        again = self._long([directions[r] for r in chosen], owner[chosen])
        old = Derivative(*(a[chosen] for a in numeric))
        take = ~_allows(again, old) | old.kink | again.kink | (old.sides < 2)
        return put(numeric, np.array(chosen)[take], Derivative(*(a[take] for a in again)))

    def _long(self, directions, owner) -> Derivative:
        """Long ladders from the leaf's size, and from the coordinate's own where it is smaller."""
        # Few ladders may all look better than they are; the leaf's first knows its noise.
        noise = np.minimum(self.noise, np.median(self.noise))[owner]
        found = self.ladder(directions, self.scales[owner] * LARGEST_STEP, noise=noise)
        point = np.abs(self.opened.point)
        own = np.array([point[i] if len(values) == 1 else 0.0 for i, values in directions])
        small = np.flatnonzero((own > 0) & (own < LARGEST_STEP * self.scales[owner]))
        if len(small):
            picked = [directions[n] for n in small]
            nearer = self.ladder(picked, own[small] * LARGEST_STEP, noise=noise[small])
            # Steps far larger than the coordinate may agree on what holds elsewhere.
            better = ~_allows(nearer, Derivative(*(a[small] for a in found)))
            found = put(found, small[better], Derivative(*(a[better] for a in nearer)))
        return found


def _allows(looked: Derivative, believed: Derivative) -> np.ndarray:
    """Whether what was `believed` is more precise than what was seen, and not against it."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(looked.value - believed.value)
        agree = (apart <= looked.error + believed.error) & (believed.error < looked.error)
    return agree | ~np.isfinite(looked.error)


def along(gradient: np.ndarray, directions: Directions) -> np.ndarray:
    """The products of a gradient with each direction."""
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                float(gradient[first : first + len(values)] @ values.astype(np.float64))
                for first, values in directions
            ]
        )


def put(derivative: Derivative, rows: np.ndarray, part: Derivative) -> Derivative:
    """`derivative` with `part` at `rows`."""
    out = []
    for a, b in zip(derivative, part, strict=True):
        a = a.copy()
        a[rows] = b
        out.append(a)
    return Derivative(*out)


def rms(values: np.ndarray) -> float:
    """Root mean square of the finite values; 0 of none."""
    values = np.abs(values[np.isfinite(values)])
    size = np.max(values, initial=0.0)
    return float(size * np.sqrt(np.mean(np.square(values / size)))) if size > 0 else 0.0
