"""Hold a gradient against numeric derivatives, leaf by leaf."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _arguments
from jaxgrad.checking import evaluation, identities, ladders, localize, report, tracing, verdicts
from jaxgrad.checking.evaluation import Directions, LeafInfo, Opened
from jaxgrad.checking.identities import Identity
from jaxgrad.checking.ladders import RATIO, Derivative
from jaxgrad.checking.report import Leaf, Report
from jaxgrad.checking.verdicts import ORDER, Verdict

LARGEST_STEP = 0.125
NARROW = 4
FEW = 16
"""A leaf of at most so many coordinates is always checked at each of them."""
REFINED = 256
"""So many coordinates of a leaf are looked at again with a wide ladder."""


def check_grads(
    f: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    modes: Sequence[str] = ("rev",),
    order: int = 1,
    exhaustive: int = 1024,
    directions: int = 6,
    rtol: float = 1e-4,
    strict: bool = False,
    key: jax.Array | None = None,
) -> Report:
    """Check the gradient of `f` at `args` against numeric derivatives, leaf by leaf.

    The numeric derivative is taken in float64 if `f` allows it, whatever the type of the arguments,
    with steps and error bars found from the values of `f` alone. A gradient is wrong if it lies
    outside of the error bar by more than `rtol` of the element itself and a hundred-thousandth of
    the leaf's root mean square (more if `f` computes in float32 or less).

    Args:
      f: returns a real number, or an array or pytree of them, which is then weighted by a random
        cotangent. Called with tracers, as `jax.jit` does; a function that cannot be traced is
        called point by point.
      *args: as for `jax.grad`. Leaves that are not floating point are held fixed.
      argnums: which of `args` are differentiated.
      has_aux: whether `f` returns a pair whose second part is not differentiated.
      holomorphic: whether `f` is a holomorphic function of complex arguments.
      modes: "rev" checks reverse mode, "fwd" forward mode.
      order: 2 checks the derivative of the gradient too, along a random direction, and so on.
      exhaustive: up to so many coordinates in all, each is checked. Beyond, leaves of more than
        16 are checked along random directions, and a wrong one is searched.
      directions: how many random directions for each such leaf, half of them of random signs and
        half normal.
      rtol: the relative error of an element, or of a whole leaf, that is let pass.
      strict: whether `report.ok` is false for `UNRESOLVED`.
      key: PRNG key of directions and cotangents; `None` takes the same ones each time.

    Returns:
      `Report`; `print` it.

    Raises:
      TypeError, ValueError: if an argument is not as described, if nothing can be differentiated,
        if an argument is not finite, or if `f` raises.

    >>> import jax, jax.numpy as jnp
    >>> @jax.custom_vjp
    ... def scaled(x, w):
    ...     return x * w
    >>> scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda saved, ct: (ct * saved[1], ct))
    >>> found = check_grads(lambda p: scaled(p["x"], p["w"]).sum(),
    ...                     {"x": jnp.arange(3.0), "w": jnp.ones(3)})
    >>> [(leaf.path, str(leaf.verdict)) for leaf in found.leaves]
    [("['w']", 'WRONG'), ("['x']", 'AGREE')]
    """
    if not callable(f):
        raise TypeError(f"f must be a function, got {type(f).__name__}; pass it before its arguments")
    order = _arguments.integer("order", order, 1)
    exhaustive = _arguments.integer("exhaustive", exhaustive, 0)
    directions = _arguments.integer("directions", directions, 2)
    _arguments.scalar("rtol", rtol, minimum=0.0)
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        _arguments.choice("modes", mode, ("rev", "fwd"))
    _arguments.distinct("modes", modes)
    seed = 0 if key is None else _seed(key)
    settings = _Settings(modes, exhaustive, directions, float(rtol), strict, holomorphic, seed)

    opened = Opened(f, args, argnums, has_aux, holomorphic, seed)
    check = _Check(opened, settings)
    found = check.run()
    names = [leaf.path for leaf in opened.leaves]
    if order > 1 and found.ok:
        found = _with_neighbour(found, f, args, argnums, has_aux, settings, opened)
    for level in range(2, order + 1):
        if not found.ok:
            break
        slope = _Slope(opened.call)
        weights = _weights(opened, seed + level)
        given = (opened.given, opened.given_fixed, weights, opened.cotangents)
        opened = Opened(slope, given, 0, False, False, seed)
        check = _Check(opened, settings._replace(holomorphic=False))
        found = _joined(found, check.run(), names, level)
        if "rev" in modes and found.ok:
            first = len(opened.fixed) - len(weights) - len(given[3])
            symmetry = _symmetry(check, first, _weights(opened, seed + level + 100))
            found = dataclasses.replace(found, identities=(*found.identities, symmetry))
    return found


class _Settings(NamedTuple):
    modes: tuple[str, ...]
    exhaustive: int
    directions: int
    rtol: float
    strict: bool
    holomorphic: bool
    seed: int


class _Probes(NamedTuple):
    """The directions along which a leaf was checked, and what was found."""

    directions: list[tuple[int, np.ndarray]]
    numeric: Derivative


class _Check:
    """One order of one check."""

    def __init__(self, opened: Opened, settings: _Settings):
        self.opened, self.settings = opened, settings
        self.generator = np.random.default_rng([settings.seed, 1])
        every = opened.size <= settings.exhaustive
        self.complete = [every or leaf.stop - leaf.start <= FEW for leaf in opened.leaves]
        # Where values pass through a narrower type, tiny steps move nothing or only a part of f.
        self.wide = 14 if opened.wide and opened.eps < 1e-12 else 7
        total = opened.total
        self.rounding = total * np.finfo(np.float64 if opened.wide else np.float32).eps
        self.total = total
        self.scales = [opened.scale(leaf) for leaf in opened.leaves]

    def run(self) -> Report:
        opened, settings = self.opened, self.settings
        notes = []
        if not opened.wide:
            notes.append(f"float64 was not possible, so error bars are wide: {opened.why_narrow}")
        if opened.facts is None:
            notes.append("f cannot be traced: it was called point by point")
        found = self._unusable()
        checks: list[Identity] = []
        if not found:
            measured = self._measure()
            eps = self._autodiff_eps()
            # What autodiff's own rounding may leave, beside the largest elements of a leaf.
            self.floor = max(1e-5, 300 * eps if eps < 1e-4 else 30 * eps)
            self.autodiff_eps = eps
            checks = self._identities(measured)
            gradient = None
            if "rev" in settings.modes:
                gradient = np.concatenate(
                    [evaluation.coordinates_of_gradient(leaf) for leaf in measured.gradient]
                )
            self.gradient = gradient
            numeric = self._numeric(gradient)
            for mode in settings.modes:
                for j in range(len(opened.leaves)):
                    found.append(self._leaf(j, mode, gradient, numeric[j]))
            if gradient is not None and opened.wide:
                found = self._working(found, gradient)
            found = [self._with_identities(leaf, checks) for leaf in found]
            notes += self._meant_to_differ(found)
        return Report(
            report.sort(found),
            tuple(checks),
            opened.left_out,
            "float64" if opened.wide else "the type of the arguments",
            tuple(notes),
            settings.strict,
        )

    def _unusable(self) -> list[Leaf]:
        """Leaves with a verdict that needs no derivative, if any."""
        opened = self.opened
        same = opened.deterministic
        if same:
            with opened.context():
                again = opened.programs.values(opened.moved, opened.fixed)[0]
            same = all(
                _apart(a, np.asarray(b)) <= 1e3 * opened.eps * np.max(np.abs(a), initial=0.0)
                for a, b in zip(opened.outputs, again, strict=True)
            )
        if not same:
            verdict = Verdict.NONDETERMINISTIC
            reason = (
                "f returned two values for the same arguments; hold its random key fixed and "
                "keep no state between calls"
            )
        elif not any(np.any(c != 0) for c in opened.cotangents) or any(
            not np.any(np.isfinite(v)) for v in opened.outputs if v.size
        ):
            verdict = Verdict.NONFINITE
            reason = "f itself is not finite at these arguments"
        else:
            return []
        nan, inf = math.nan, math.inf
        return [
            Leaf(leaf.path, verdict, leaf.shape, nan, inf, inf, None, nan, nan, leaf.dtype,
                 reason=reason)
            for leaf in opened.leaves
        ]

    # What autodiff says.

    def _measure(self) -> identities.Measured:
        opened, settings = self.opened, self.settings
        stacked = identities.stack(opened.cotangents, settings.holomorphic, settings.seed)
        signs = self.generator.choice(np.float32([-1, 1]), opened.size)
        self.signs = signs
        reverse = "rev" in settings.modes
        self.forward = reverse and opened.facts is not None and opened.facts.forward

        def function(moved, fixed, cotangents, stacked, signs):
            tangent = evaluation.shifts(moved, 1.0, signs)
            return identities.measure(
                opened.call, moved, fixed, cotangents, tangent, stacked,
                forward=self.forward, reverse=reverse, batched=opened.batched,
            )  # fmt: skip

        try:
            return opened.derived(
                ("measure", reverse, self.forward), function,
                opened.moved, opened.fixed, opened.cotangents, stacked, signs,
            )  # fmt: skip
        except Exception as error:  # whatever a user's rule raises
            mode = "reverse" if reverse else "forward"
            raise ValueError(
                f"f cannot be differentiated in {mode} mode: {evaluation.line(error)}; check "
                'another mode with modes=("fwd",) or ("rev",)'
            ) from error

    def _autodiff_eps(self) -> float:
        """Rounding of the narrowest type in the backward pass, or the forward one."""
        opened = self.opened
        if opened.facts is None or "rev" not in self.settings.modes:
            return opened.eps
        given = (opened.moved, opened.fixed, opened.cotangents)
        with opened.context():
            return max(opened.eps, tracing.facts(opened.backward, *given).eps)

    def _identities(self, measured: identities.Measured) -> list[Identity]:
        """Everything that is judged without finite differences, in float64 if `f` allows it."""
        opened = self.opened
        if not measured.gradient:
            return []
        gradient = [np.asarray(g) for g in measured.gradient]
        several = [np.asarray(g) for g in measured.several or []]
        size = [_norm(g) for g in gradient]
        tolerance = self._identity_tolerance(size)
        a, b = identities.weights(self.settings.holomorphic)
        found = [
            identities.outcome(
                "linear", [_norm(a * g[0] + b * g[1] - g[2]) for g in several], size, tolerance
            ),
            identities.outcome("zero", [_norm(g[3]) for g in several], size, tolerance),
        ]
        if opened.batched:
            apart = [_norm(g[0] - one) for g, one in zip(several, gradient, strict=True)]
            found.append(identities.outcome("vmap", apart, size, tolerance))
        else:
            found.append(identities.not_applied("vmap", "f cannot be mapped"))
        if self.forward:
            flat = np.concatenate([evaluation.coordinates_of_gradient(g) for g in gradient])
            pulled = [
                float(np.sum((flat * self.signs)[leaf.start : leaf.stop])) for leaf in opened.leaves
            ]
            apart = np.abs(np.asarray(measured.pushed, float) - pulled)
            found.append(identities.outcome("transpose", apart, size, tolerance))
        else:
            found.append(identities.not_applied("transpose", "no forward mode"))
        facts = opened.facts
        if facts is None or facts.loops or facts.equations > 150:
            found.append(identities.not_applied("jit", "f is large, has loops or is not traced"))
        else:
            with opened.context():
                plain = opened.backward(opened.moved, opened.fixed, opened.cotangents)
            apart = [_norm(np.asarray(a) - b) for a, b in zip(plain, gradient, strict=True)]
            found.append(identities.outcome("jit", apart, size, tolerance))
        if self.settings.holomorphic:
            for i, identity in enumerate(found):
                if identity.name == "linear":
                    found[i] = identity._replace(name="holomorphic")
        return found

    def _identity_tolerance(self, sizes) -> np.ndarray:
        """What rounding and inexact solvers may leave of an identity, for each leaf."""
        scales = [
            scale * math.sqrt(leaf.stop - leaf.start)
            for scale, leaf in zip(self.scales, self.opened.leaves, strict=True)
        ]
        moved = sum(s * g for s, g in zip(scales, sizes, strict=True) if math.isfinite(g))
        rounding = 100 * self.autodiff_eps * (moved + self.total)
        return np.array(
            [self.settings.rtol * g + rounding / s for g, s in zip(sizes, scales, strict=True)]
        )

    # What the function's values say.

    def _numeric(self, gradient) -> list[_Probes]:
        """Probe every leaf: a wide ladder once, a narrow one elsewhere, a wide one in doubt."""
        opened = self.opened
        pilots: Directions = []
        for leaf in opened.leaves:
            pilots.append((leaf.start, self._signs(leaf)))
        scales = np.array(self.scales)
        pilot = self._ladder(pilots, scales * LARGEST_STEP, self.wide)
        stuck = [j for j in range(len(scales)) if pilot.sides[j] < 2]
        for j in stuck:
            # Elements of unlike size beside an edge of the domain: each moves by its own share.
            leaf = opened.leaves[j]
            part = np.abs(opened.point[leaf.start : leaf.stop])
            share = np.where(part > 0, part / scales[j], 1.0)
            pilots[j] = (leaf.start, pilots[j][1] * share.astype(np.float32))
        if stuck:
            again = self._ladder(
                [pilots[j] for j in stuck], scales[stuck] * LARGEST_STEP, self.wide
            )
            pilot = _put(pilot, stuck, again)

        first, owner, directions = {}, [], []
        for j, leaf in enumerate(opened.leaves):
            first[j] = len(directions)
            directions += self._directions(j, leaf, pilots[j])
            owner += [j] * (len(directions) - first[j])
        owner = np.array(owner)
        # Two steps larger than the believed one witness for it, and one smaller.
        known = np.isfinite(pilot.error)
        start = np.where(known, pilot.step * RATIO, scales * LARGEST_STEP)
        start = np.minimum(start, scales * LARGEST_STEP)
        floor = np.where(known, pilot.noise, 0.0)
        self.narrow_start, self.narrow_floor = start, floor
        numeric = self._ladder(directions, start[owner], NARROW, floor[owner])
        numeric = self._refined(numeric, directions, owner, gradient)
        out = []
        for j in range(len(opened.leaves)):
            chosen = np.flatnonzero(owner == j)
            part = Derivative(*(a[chosen] for a in numeric))
            kept = [directions[i] for i in chosen]
            if not self.complete[j]:
                kept = [pilots[j], *kept]
                part = Derivative(
                    *(np.append(a[j], b) for a, b in zip(pilot, part, strict=True))
                )
            out.append(_Probes(kept, part))
        return out

    def _signs(self, leaf: LeafInfo) -> np.ndarray:
        return self.generator.choice(np.float32([-1, 1]), leaf.stop - leaf.start)

    def _directions(self, j, leaf, pilot) -> list[tuple[int, np.ndarray]]:
        if self.complete[j]:
            one = np.ones(1, np.float32)
            return [(i, one) for i in range(leaf.start, leaf.stop)]
        out = []
        share = np.abs(pilot[1])
        for i in range(1, self.settings.directions):
            draw = self._signs(leaf)
            if i % 2:
                draw = self.generator.standard_normal(draw.shape, np.float32)
            out.append((leaf.start, draw * share))
        return out

    def _ladder(self, directions, largest, count, floor: Any = 0.0) -> Derivative:
        steps = np.asarray(largest)[:, None] * RATIO ** -np.arange(count)[None]
        change = self.opened.changes(directions, np.concatenate([steps, -steps], axis=1))
        plus, minus = change[:, :count], change[:, count:]
        steps = self._realized(directions, steps)
        plus = np.where(steps > 0, plus, np.nan)
        group = np.searchsorted([leaf.start for leaf in self.opened.leaves],
                                [first for first, _ in directions], side="right")
        floor = np.maximum(np.asarray(floor), self.rounding)
        return ladders.resolve_together(steps, plus, minus, floor, group)

    def _realized(self, directions, steps):
        """The steps as they come out in the leaf's own type, for a single coordinate."""
        steps = steps.copy()
        for leaf in self.opened.leaves:
            rows = [
                r
                for r, (i, values) in enumerate(directions)
                if len(values) == 1 and leaf.start <= i < leaf.stop
            ]
            if not rows:
                continue
            kind = np.float64 if self.opened.wide else np.dtype(jnp.finfo(leaf.dtype).dtype)
            x = self.opened.point[[directions[r][0] for r in rows]].astype(kind)[:, None]
            h = steps[rows].astype(kind)
            with np.errstate(over="ignore", invalid="ignore"):
                up, down = ((x + s * h).astype(np.float64) for s in (1, -1))
            steps[rows] = (up - down) / 2
        return steps

    def _refined(self, numeric, directions, owner, gradient) -> Derivative:
        """Look again, with wide ladders, where the narrow one leaves a doubt."""
        chosen = []
        for j in range(len(self.opened.leaves)):
            rows = np.flatnonzero(owner == j)
            part = Derivative(*(a[rows] for a in numeric))
            slack = self._tolerance(j, part)
            with np.errstate(invalid="ignore"):
                doubt = ~(part.error <= 0.1 * slack) | part.kink | (part.sides < 2)
                rank = np.where(np.isfinite(part.error), part.error, np.inf)
                if gradient is not None:
                    mine = np.array([_along(gradient, directions[r]) for r in rows])
                    apart = ~(np.abs(mine - part.value) <= part.error + slack)
                    doubt |= apart
                    rank = np.where(apart, np.inf, rank)
            doubtful = np.flatnonzero(doubt)
            worst = doubtful[np.argsort(-rank[doubtful], kind="stable")][:REFINED]
            chosen += rows[worst].tolist()
        if not chosen:
            return numeric
        picked = [directions[r] for r in chosen]
        # Few ladders may all look better than they are; the first of each leaf know its noise.
        noise = np.minimum(self.narrow_floor, np.median(self.narrow_floor))[owner[chosen]]
        again = self._ladder(
            picked, np.array(self.scales)[owner[chosen]] * LARGEST_STEP, self.wide, noise
        )
        own = np.array([abs(self.opened.point[i]) if len(v) == 1 else 0.0 for i, v in picked])
        small = [
            n for n, r in enumerate(chosen) if 0 < own[n] < LARGEST_STEP * self.scales[owner[r]]
        ]
        if small:
            nearer = self._ladder(
                [picked[n] for n in small], own[small] * LARGEST_STEP, self.wide, noise[small]
            )
            better = nearer.error < again.error[small]
            again = _put(
                again,
                [n for n, yes in zip(small, better, strict=True) if yes],
                Derivative(*(a[better] for a in nearer)),
            )
        old = Derivative(*(a[chosen] for a in numeric))
        take = (again.error <= old.error) | old.kink | again.kink | (old.sides < 2)
        taken = [r for r, yes in zip(chosen, take, strict=True) if yes]
        return _put(numeric, taken, Derivative(*(a[take] for a in again)))

    def _tolerance(self, j: int, numeric: Derivative) -> np.ndarray:
        """What may separate autodiff from the numeric derivative besides its error bar."""
        size = _rms(numeric.value)
        if self.complete[j]:
            return self.settings.rtol * np.abs(numeric.value) + self.floor * size
        # Along a direction one element counts little, so nothing is let pass but rounding.
        rounding = 30 * self.autodiff_eps if self.autodiff_eps > 1e-12 else 1e-11
        return np.full(numeric.value.shape, rounding * size)

    # Both held together.

    def _leaf(self, j: int, mode: str, gradient, probes: _Probes) -> Leaf:
        leaf = self.opened.leaves[j]
        if mode == "rev":
            autodiff = np.array([_along(gradient, d) for d in probes.directions])
            own = gradient[leaf.start : leaf.stop]
        else:
            autodiff = self.opened.pushforwards(probes.directions)
            own = autodiff if self.complete[j] else None
        if self.complete[j]:
            return self._complete_leaf(j, mode, own, probes.numeric)
        return self._large_leaf(j, mode, own, autodiff, probes)

    def _beyond(self, j: int, numeric: Derivative) -> np.ndarray:
        """The error bar that is too wide to tell anything."""
        size = _rms(numeric.value)
        least = 1e-3 * self.total / self.scales[j]
        return 0.05 * np.maximum(np.maximum(np.abs(numeric.value), size), least)

    def _complete_leaf(self, j, mode, autodiff, numeric: Derivative) -> Leaf:
        leaf = self.opened.leaves[j]
        tolerance = self._tolerance(j, numeric)
        found = verdicts.judge(autodiff, numeric, tolerance, self._beyond(j, numeric))
        verdict = ORDER[int(found.min())]
        with np.errstate(invalid="ignore"):
            error = np.abs(autodiff - numeric.value)
        error = np.where(np.isfinite(error), error, np.inf)
        grave = found == found.min()
        worst = int(np.argmax(np.where(grave, error, -1.0)))
        reason = ""
        if verdict is Verdict.WRONG:
            wrong = (found == ORDER.index(Verdict.WRONG)).reshape(leaf.axes)
            reason = self._words(leaf, autodiff, numeric, tolerance, wrong, error)
        elif verdict not in (Verdict.AGREE, Verdict.KINK):
            reason = self._why(verdict, numeric, worst, autodiff[worst])
        elif verdict is Verdict.KINK:
            many = int(grave.sum())
            left, right = numeric.left[worst], numeric.right[worst]
            reason = f"kink at {many} of {found.size}: one-sided slopes {left:.4g} and {right:.4g}"
        slack = (numeric.error + tolerance)[np.isfinite(numeric.error)]
        index, mine, theirs = _element(leaf, worst, autodiff, numeric.value)
        return Leaf(
            leaf.path, verdict, leaf.shape, _relative(autodiff, numeric.value),
            float(numeric.error[worst]), float(np.max(slack, initial=0.0)), index, mine, theirs,
            leaf.dtype, reason=reason, mode=mode,
        )  # fmt: skip

    def _words(self, leaf, autodiff, numeric, tolerance, wrong, error) -> str:
        """What is wrong with a leaf that is known element by element."""
        place = localize.among(wrong, error.reshape(leaf.axes))
        if not place.alone:
            slack = numeric.error + 10 * tolerance
            words = localize.pattern(
                autodiff.reshape(leaf.axes), np.ravel, numeric.value, slack
            )
            if words:
                return f"autodiff is {words}"
        return "wrong at " + localize.where_words(place, leaf.axes, int(wrong.sum()))

    def _large_leaf(self, j, mode, own, autodiff, probes: _Probes) -> Leaf:
        leaf, numeric = self.opened.leaves[j], probes.numeric
        size = leaf.stop - leaf.start
        tolerance = self._tolerance(j, numeric)
        found = verdicts.judge(autodiff, numeric, tolerance, self._beyond(j, numeric))
        slack = numeric.error + tolerance
        normal = np.count_nonzero(np.arange(len(autodiff)) % 2)
        detectable = float(np.max(slack[np.isfinite(slack)], initial=0.0))
        with np.errstate(invalid="ignore"):
            apart = np.abs(autodiff - numeric.value)
        worst = int(np.argmax(np.where(np.isfinite(apart), apart - slack, np.inf)))
        out = Leaf(
            leaf.path, ORDER[int(found.min())], leaf.shape, _relative(autodiff, numeric.value),
            float(numeric.error[worst]), detectable, None, float(autodiff[worst]),
            float(numeric.value[worst]), leaf.dtype, "directions",
            math.erf(0.1 / math.sqrt(2)) ** normal, mode=mode,
        )  # fmt: skip
        if out.verdict in (Verdict.AGREE, Verdict.KINK):
            return out
        if out.verdict is Verdict.UNRESOLVED and np.all(np.isfinite(autodiff)):
            reason = self._why(out.verdict, numeric, worst, autodiff[worst])
            return dataclasses.replace(out, reason=reason)

        candidates, place = self._candidates(j, leaf, own, mode)
        ones = [(leaf.start + i, np.ones(1, np.float32)) for i in candidates]
        scale = np.full(len(ones), self.scales[j] * LARGEST_STEP)
        there = self._ladder(ones, scale, self.wide)
        near = np.abs(self.opened.point[leaf.start + np.array(candidates)])
        near = np.where(near > 0, np.minimum(near, self.scales[j]), self.scales[j])
        closer = self._ladder(ones, near * LARGEST_STEP, self.wide)
        better = np.flatnonzero(closer.error < there.error)
        there = _put(there, better, Derivative(*(a[better] for a in closer)))
        mine = own[candidates] if own is not None else self.opened.pushforwards(ones)
        typical = _rms(numeric.value) / math.sqrt(size)
        allowed = self.settings.rtol * np.abs(there.value) + self.floor * typical
        beyond = 0.05 * np.maximum(np.abs(there.value), typical)
        judged = verdicts.judge(mine, there, allowed, beyond)
        pick = int(np.lexsort((-_finite(np.abs(mine - there.value)), judged))[0])
        verdict = ORDER[int(judged[pick])]
        sure = np.any(apart > slack + self.settings.rtol * _rms(numeric.value))
        if verdict not in (Verdict.WRONG, Verdict.NONFINITE):
            if not sure:
                kept = Verdict.KINK if numeric.kink.any() else Verdict.AGREE
                return dataclasses.replace(out, verdict=kept)
            verdict = Verdict.WRONG
        index = np.unravel_index(candidates[pick], leaf.axes)[len(leaf.axes) - len(leaf.shape) :]
        reason = self._large_words(leaf, own, probes, slack, place, verdict, there, pick)
        return dataclasses.replace(
            out, verdict=verdict, reason=reason, worst_index=tuple(int(i) for i in index),
            autodiff=float(mine[pick]), numeric=float(there.value[pick]),
            error_bar=float(there.error[pick]),
        )  # fmt: skip

    def _candidates(self, j, leaf, own, mode):
        """Elements of a large leaf to look at, and where the errors seem to be."""
        if own is not None and not np.all(np.isfinite(own)):
            bad = np.flatnonzero(~np.isfinite(own))
            return bad[:8].tolist(), localize.among(
                ~np.isfinite(own.reshape(leaf.axes)), np.ones(leaf.axes)
            )

        def error(masked):
            directions = [(leaf.start, values) for values in masked]
            numeric = self._ladder(
                directions,
                np.full(len(directions), self.narrow_start[j]),
                NARROW,
                self.narrow_floor[j],
            )
            if own is None:
                mine = self.opened.pushforwards(directions)
            else:
                mine = np.array([float(own @ values) for values in masked])
            return mine - numeric.value, numeric.error + 1e-11 * _rms(numeric.value)

        place = localize.search(leaf.axes, error, self.generator)
        index = [place.index]
        # Errors that are everywhere are seen at any element of the slice.
        for _ in range(0 if place.alone else 8):
            index.append(
                tuple(
                    fixed if fixed is not None else int(self.generator.integers(n))
                    for fixed, n in zip(place.axes, leaf.axes, strict=True)
                )
            )
        flat = [int(np.ravel_multi_index(i, leaf.axes)) for i in index]
        return list(dict.fromkeys(flat)), place

    def _large_words(self, leaf, own, probes, slack, place, verdict, there, pick) -> str:
        if verdict is Verdict.NONFINITE:
            return self._why(verdict, there, pick, math.nan)
        if own is not None and not place.alone:
            stacked = np.stack([values for _, values in probes.directions]).astype(np.float64)
            words = localize.pattern(
                own.reshape(leaf.axes),
                lambda g: stacked @ g.ravel(),
                probes.numeric.value,
                slack + 1e-5 * _rms(probes.numeric.value),
            )
            if words:
                return f"autodiff is {words}"
        return "wrong at " + localize.where_words(place, leaf.axes, None)

    def _why(self, verdict, numeric: Derivative, at: int, autodiff: float) -> str:
        """Why a number is not finite or could not be resolved, and what would help."""
        if verdict is Verdict.NONFINITE:
            return f"autodiff is {autodiff:.3g} where the function is finite around"
        if numeric.sides[at] == 0:
            return "the function is not finite close by; move the point inside the domain"
        if numeric.sides[at] == 1:
            return (
                "the point is at an edge of the domain, where no slope settles; move it inside"
            )
        if not self.opened.wide:
            return (
                "rounding of the arguments' type hides the derivative; let f take float64, "
                "or subtract constants from its value"
            )
        return (
            f"values of f err by {numeric.noise[at]:.1g}, or it jumps or oscillates here; a "
            "tighter solver, fewer data or a smoother point would help"
        )

    def _working(self, found: list[Leaf], gradient) -> list[Leaf]:
        """Put the gradient in the arguments' own types beside the float64 one."""
        opened = self.opened
        if all(g.dtype == m.dtype for g, m in zip(opened.given, opened.moved, strict=True)):
            return found
        try:
            given = (opened.given, opened.given_fixed, opened.cotangents)
            own = opened.programs.derived("own type", opened.backward)(*given)
        except Exception:  # whatever a user's rule raises in its own type
            return found
        out = []
        by_path = dict(zip((leaf.path for leaf in opened.leaves), range(len(own)), strict=True))
        for leaf in found:
            j = by_path[leaf.path]
            info, mine = opened.leaves[j], evaluation.coordinates_of_gradient(own[j])
            wide = gradient[info.start : info.stop]
            if leaf.mode == "rev":
                leaf = dataclasses.replace(leaf, working_error=_relative(mine, wide))
                bad = ~np.isfinite(mine) & np.isfinite(wide)
                if bad.any() and leaf.verdict not in verdicts.FAILURES:
                    at = int(np.argmax(bad))
                    index = np.unravel_index(at, info.axes)[len(info.axes) - len(info.shape) :]
                    leaf = dataclasses.replace(
                        leaf, verdict=Verdict.NONFINITE, autodiff=float(mine[at]),
                        worst_index=tuple(int(i) for i in index),
                        reason=f"autodiff is not finite in {info.dtype}, but is in float64",
                    )  # fmt: skip
            out.append(leaf)
        return out

    def _with_identities(self, leaf: Leaf, checks: list[Identity]) -> Leaf:
        for identity in checks:
            if identity.holds is False and self.opened.leaves[identity.leaf].path == leaf.path:
                words = f"does not hold: {identities.NAMES[identity.name]}"
                leaf = dataclasses.replace(
                    leaf,
                    verdict=verdicts.worst([leaf.verdict, Verdict.WRONG]),
                    reason=f"{leaf.reason}; {words}" if leaf.reason else words,
                )
        return leaf

    def _meant_to_differ(self, found: list[Leaf]) -> list[str]:
        facts = self.opened.facts
        if facts is None or not any(leaf.verdict is Verdict.WRONG for leaf in found):
            return []
        out = []
        if facts.stops:
            out.append(
                "f calls stop_gradient: its derivative may be meant to differ from its body"
            )
        if facts.rules:
            out.append("derivatives of their own have: " + ", ".join(facts.rules))
        return out


@dataclasses.dataclass(frozen=True)
class _Slope:
    """The derivative of a function along given weights, itself a function to be checked."""

    call: Callable[..., list[jax.Array]]

    def __call__(self, moved, fixed, weights, cotangents):
        out, pull = jax.vjp(lambda m: self.call(m, fixed), list(moved))
        cotangents = [jnp.asarray(c, v.dtype) for c, v in zip(cotangents, out, strict=True)]
        total = 0.0
        for w, g in zip(weights, pull(cotangents)[0], strict=True):
            total = total + jnp.sum(jnp.real(jnp.asarray(w, g.dtype) * g))
        return total


def _with_neighbour(found, f, args, argnums, has_aux, settings, opened) -> Report:
    """Add what is wrong with the gradient at a point close by.

    A backward pass that holds numbers instead of its arguments is right at one point alone, and
    both autodiff and differences of that gradient then say that its derivative is zero.
    """
    generator = np.random.default_rng([settings.seed, 3])
    moved = iter([
        v * jnp.asarray(1 + 0.03 * generator.standard_normal(v.shape), jnp.finfo(v.dtype).dtype)
        for v in opened.given
    ])
    kinds = opened.call.kinds
    leaves = [next(moved) if kind == "moved" else leaf
              for kind, leaf in zip(kinds, jax.tree.leaves(args), strict=True)]
    nearby = jax.tree.unflatten(opened.call.tree, leaves)
    other = Opened(f, nearby, argnums, has_aux, settings.holomorphic, settings.seed)
    report_there = _Check(other, settings).run()
    wrong = [
        dataclasses.replace(
            leaf, order=2, reason=f"at a point close by, the first derivative: {leaf.reason}"
        )
        for leaf in report_there.leaves
        if leaf.verdict is Verdict.WRONG
    ]
    return dataclasses.replace(found, leaves=report.sort([*found.leaves, *wrong]))


def _weights(opened: Opened, seed: int) -> list[np.ndarray]:
    """Normal weights of the size of each leaf, so that no leaf's curvature hides another's."""
    generator = np.random.default_rng([seed, 2])
    out = []
    for leaf, value in zip(opened.leaves, opened.given, strict=True):
        draw = generator.standard_normal(leaf.shape)
        if leaf.complex:
            draw = draw + 1j * generator.standard_normal(leaf.shape)
        out.append((opened.scale(leaf) * draw).astype(value.dtype))
    return out


def _joined(lower: Report, higher: Report, names: list[str], order: int) -> Report:
    """Two orders as one report, leaves of the higher order under their own names."""
    leaves = list(lower.leaves)
    for leaf in higher.leaves:
        position = int(leaf.path.strip("[]"))
        leaves.append(dataclasses.replace(leaf, path=names[position], order=order))
    notes = [*lower.notes, *(note for note in higher.notes if note not in lower.notes)]
    return dataclasses.replace(
        lower,
        leaves=report.sort(leaves),
        identities=(*lower.identities, *(i for i in higher.identities if i.holds is False)),
        notes=tuple(notes),
    )


def _symmetry(check: _Check, first: int, others: list[np.ndarray]) -> Identity:
    """Whether <u, H v> = <v, H u>; `check` was of the slope along v, fixed at `first`."""
    opened = check.opened
    count = len(others)
    with opened.context():
        u = [jnp.asarray(w).astype(m.dtype) for w, m in zip(others, opened.moved, strict=True)]
        swapped = [*opened.fixed[:first], *u, *opened.fixed[first + count :]]
        back = opened.programs.derived("backward", opened.backward)
        cotangents = [jnp.asarray(c) for c in opened.cotangents]
        other = back(opened.moved, swapped, cotangents)
    def flat(leaves):
        return np.concatenate([evaluation.coordinates_of_gradient(g) for g in leaves])

    def weights(leaves):
        return np.concatenate([evaluation.coordinates(np.asarray(w)) for w in leaves])

    v, hv, u, hu = weights(opened.fixed[first : first + count]), check.gradient, weights(u), flat(other)
    size = float(np.linalg.norm(u * hv) + np.linalg.norm(v * hu))
    tolerance = check.settings.rtol * size + 100 * opened.eps * check.total
    return identities.outcome("symmetry", [abs(float(u @ hv - v @ hu))], [size], [tolerance])


def _element(leaf: LeafInfo, at: int, autodiff, numeric):
    """Index and both numbers of an element; complex where the leaf is, as `jax.grad` has it."""
    index = np.unravel_index(at, leaf.axes)
    if not leaf.complex:
        return tuple(int(i) for i in index), float(autodiff[at]), float(numeric[at])
    half = (leaf.stop - leaf.start) // 2
    at %= half
    numbers = (complex(a[at], -a[at + half]) for a in (autodiff, numeric))
    return (tuple(int(i) for i in index[1:]), *numbers)


def _along(gradient: np.ndarray, direction: tuple[int, np.ndarray]) -> float:
    first, values = direction
    with np.errstate(invalid="ignore"):
        return float(gradient[first : first + len(values)] @ values.astype(np.float64))


def _put(derivative: Derivative, rows, part: Derivative) -> Derivative:
    """`derivative` with `part` at `rows`."""
    out = []
    for a, b in zip(derivative, part, strict=True):
        a = a.copy()
        a[rows] = b
        out.append(a)
    return Derivative(*out)


def _rms(values: np.ndarray) -> float:
    values = np.abs(values[np.isfinite(values)])
    size = np.max(values, initial=0.0)
    return float(size * np.sqrt(np.mean(np.square(values / size)))) if size > 0 else 0.0


def _norm(values: np.ndarray) -> float:
    size = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(size):
        return math.nan
    values = values.astype(complex if np.iscomplexobj(values) else float)
    return size * float(np.linalg.norm((values / size).ravel())) if size > 0 else 0.0


def _relative(autodiff: np.ndarray, numeric: np.ndarray) -> float:
    fine = np.isfinite(numeric)
    apart, size = _norm((autodiff - numeric)[fine]), _norm(numeric[fine])
    if size == 0:
        return 0.0 if apart == 0 else math.inf
    return apart / size


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two arrays, with NaN equal to NaN and infinity to itself."""
    with np.errstate(invalid="ignore"):
        same = (a == b) | ((a != a) & (b != b))
        apart = np.where(same, 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf)


def _seed(key: Any) -> int:
    try:
        data = jax.random.key_data(key)
    except TypeError:
        raise TypeError(
            f"key must be a PRNG key, got {type(key).__name__}; use jax.random.key(0)"
        ) from None
    return int.from_bytes(np.asarray(data).tobytes()[-8:], "little")
