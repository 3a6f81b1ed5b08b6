"""Hold the gradient of any function against numeric derivatives, leaf by leaf."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking import identities, report, verdicts
from jaxgrad.checking.autodiff import Autodiff
from jaxgrad.checking.evaluation import Opened
from jaxgrad.checking.identities import Identity
from jaxgrad.checking.judging import Judge
from jaxgrad.checking.probing import Prober
from jaxgrad.checking.report import Leaf, Report
from jaxgrad.checking.verdicts import Verdict

FEW = 16
"""A leaf of at most so many coordinates is always checked at each of them."""


class Settings(NamedTuple):
    """The arguments of `check_grads` that hold for every order."""

    modes: tuple[str, ...]
    exhaustive: int
    directions: int
    rtol: float
    strict: bool
    holomorphic: bool
    seed: int


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
    rtol: float = 1e-5,
    strict: bool = False,
    key: jax.Array | None = None,
) -> Report:
    """Check the gradient of `f` at `args` against numeric derivatives, leaf by leaf.

    The numeric derivative is taken in float64 if `f` allows it, whatever the type of the arguments,
    with steps and error bars found from the values of `f` alone. A gradient is wrong if it lies
    outside of the error bar by more than `rtol` of the element itself and a hundred-thousandth of
    the leaf's root mean square (more if `f` computes in float32 or less, and 1e-3 if it has loops
    that stop at a tolerance, as solvers have).

    Args:
      f: returns a real number, or an array or pytree of them, which is then weighted by a random
        cotangent. Called with tracers and compiled once for each function, as by `jax.jit`; a
        function that cannot be traced is called point by point.
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
        raise TypeError(
            f"f must be a function, got {type(f).__name__}; pass it before its arguments"
        )
    order = _validate.integer("order", order, 1)
    exhaustive = _validate.integer("exhaustive", exhaustive, 0)
    directions = _validate.integer("directions", directions, 2)
    _validate.scalar("rtol", rtol, minimum=0.0)
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        _validate.choice("modes", mode, ("rev", "fwd"))
    _validate.distinct("modes", modes)
    seed = 0 if key is None else _seed(key)
    settings = Settings(modes, exhaustive, directions, float(rtol), strict, holomorphic, seed)

    opened = Opened(f, args, argnums, has_aux, holomorphic, seed)
    found, _ = _check(opened, settings)
    names = [leaf.path for leaf in opened.leaves]
    if order > 1 and found.ok:
        nearby = _moved_a_little(opened, args, seed)
        other, _ = _check(Opened(f, nearby, argnums, has_aux, holomorphic, seed), settings)
        found = _with_neighbour(found, other)
    settings = settings._replace(holomorphic=False)
    for level in range(2, order + 1):
        if not found.ok:
            break
        weights, others = (_weights(opened, (seed, level, i)) for i in range(2))
        given = (opened.given, opened.given_fixed, weights, opened.cotangents)
        opened = Opened(_Slope(opened.call), given, 0, False, False, seed)
        higher, autodiff = _check(opened, settings)
        found = _joined(found, higher, names, level)
        if autodiff is not None and autodiff.gradient is not None:
            position = len(given[1])
            with opened.context():
                others = [
                    jnp.asarray(w).astype(m.dtype)
                    for w, m in zip(others, opened.moved, strict=True)
                ]
            symmetry = identities.symmetry(autodiff, position, others, settings.rtol)
            found = dataclasses.replace(found, identities=(*found.identities, symmetry))
    return found


def _check(opened: Opened, settings: Settings) -> tuple[Report, Autodiff | None]:
    """Check one function at one point."""
    notes = []
    if opened.deterministic and not opened.numeric.wide:
        notes.append(f"float64 was not possible, so error bars are wide: {opened.why_narrow}")
    if opened.facts is None and opened.deterministic:
        notes.append("f cannot be traced: it was called point by point")
    found, checks, autodiff = _unusable(opened), [], None
    if not found:
        generator = np.random.default_rng([settings.seed, 1])
        every = opened.size <= settings.exhaustive
        complete = [every or leaf.stop - leaf.start <= FEW for leaf in opened.leaves]
        reverse = "rev" in settings.modes
        autodiff = Autodiff(opened, reverse, settings.holomorphic, generator)
        prober = Prober(opened, generator)
        if reverse:
            checks = identities.of_gradient(
                autodiff, prober.scales, settings.rtol, settings.holomorphic
            )
            # Values that change under vmap would be differentiated for others.
            opened.batched &= all(c.holds is not False for c in checks if c.name == "vmap")
        own = _in_own_type(opened) if reverse else None
        judge = Judge(prober, autodiff, complete, settings.rtol, own)
        probes = prober.probe(
            complete,
            settings.directions,
            judge.slack,
            lambda directions: autodiff.along(directions, settings.modes[0]),
        )
        found = [
            judge.leaf(j, mode, probes[j])
            for mode in settings.modes
            for j in range(len(opened.leaves))
        ]
        if reverse:
            found = judge.in_own_type(found)
            found = [_with_identities(opened, leaf, checks) for leaf in found]
        if judge.rtol > settings.rtol:
            notes.append(f"f has loops that stop at a tolerance: {judge.rtol:g} is let pass")
        notes += _meant_to_differ(opened, found)
    wide = opened.numeric.wide if opened.deterministic else opened.wide
    precision = "float64" if wide else "the type of the arguments"
    done = Report(
        report.sort(found),
        tuple(checks),
        opened.left_out,
        precision,
        tuple(notes),
        settings.strict,
    )
    return done, autodiff


def _unusable(opened: Opened) -> list[Leaf]:
    """The leaves with a verdict that needs no derivative, if there is one."""
    same = opened.deterministic
    if same:
        with opened.context():
            again = opened.programs.values(opened.moved, opened.fixed)[0]
        same = all(
            _largest_difference(a, np.asarray(b))
            <= 1e3 * opened.eps * np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
            for a, b in zip(opened.outputs, again, strict=True)
        )
    if not same:
        verdict = Verdict.NONDETERMINISTIC
        reason = (
            "f returned two values for the same arguments; hold its random key fixed and keep no "
            "state between calls"
        )
    elif any(v.size and not np.any(np.isfinite(v)) for v in opened.outputs):
        verdict = Verdict.NONFINITE
        reason = "f itself is not finite at these arguments"
    else:
        return []
    nan, inf = math.nan, math.inf
    return [
        Leaf(
            leaf.path, verdict, leaf.shape, nan, inf, inf, None, nan, nan, leaf.dtype, reason=reason
        )
        for leaf in opened.leaves
    ]


def _in_own_type(opened: Opened):
    """The gradient in the arguments' own types, or `None` where that is the one checked."""
    if all(g.dtype == m.dtype for g, m in zip(opened.given, opened.moved, strict=True)):
        return None
    try:
        given = (opened.given, opened.given_fixed, opened.cotangents)
        return opened.programs.derived("own type", opened.backward)(*given)
    except Exception:  # whatever a user's rule raises in its own type
        return None


def _with_identities(opened: Opened, leaf: Leaf, checks: list[Identity]) -> Leaf:
    for identity in checks:
        if identity.holds is False and opened.leaves[identity.leaf].path == leaf.path:
            words = f"does not hold: {identities.NAMES[identity.name]}"
            leaf = dataclasses.replace(
                leaf,
                verdict=verdicts.worst([leaf.verdict, Verdict.WRONG]),
                reason=f"{leaf.reason}; {words}" if leaf.reason else words,
            )
    return leaf


def _meant_to_differ(opened: Opened, found: list[Leaf]) -> list[str]:
    facts = opened.facts
    if facts is None or not any(leaf.verdict is Verdict.WRONG for leaf in found):
        return []
    out = []
    if facts.stops:
        out.append("f calls stop_gradient: its derivative may be meant to differ from its body")
    if facts.rules:
        out.append("derivative rules of their own have: " + ", ".join(facts.rules))
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


def _weights(opened: Opened, seed) -> list[np.ndarray]:
    """Normal weights of the size of each leaf, so that no leaf's curvature hides another's."""
    generator = np.random.default_rng([2, *seed])
    out = []
    for leaf, value in zip(opened.leaves, opened.given, strict=True):
        draw = generator.standard_normal(leaf.shape)
        if leaf.complex:
            draw = draw + 1j * generator.standard_normal(leaf.shape)
        out.append((opened.scale(leaf) * draw).astype(value.dtype))
    return out


def _moved_a_little(opened: Opened, args, seed: int):
    """The arguments with every differentiated element changed by a few per cent of itself."""
    generator = np.random.default_rng([seed, 3])
    moved = iter(
        v * jnp.asarray(1 + 0.03 * generator.standard_normal(v.shape), jnp.finfo(v.dtype).dtype)
        for v in opened.given
    )
    leaves = [
        next(moved) if kind == "moved" else leaf
        for kind, leaf in zip(opened.call.kinds, jax.tree.leaves(args), strict=True)
    ]
    return jax.tree.unflatten(opened.call.tree, leaves)


def _with_neighbour(found: Report, other: Report) -> Report:
    """Add what is wrong with the gradient at a point close by.

    A backward pass that holds numbers instead of its arguments is right at one point alone, and
    both autodiff and differences of that gradient then say that its derivative is zero.
    """
    wrong = [
        dataclasses.replace(
            leaf, order=2, reason=f"at a point close by, the first derivative: {leaf.reason}"
        )
        for leaf in other.leaves
        if leaf.verdict is Verdict.WRONG
    ]
    return dataclasses.replace(found, leaves=report.sort([*found.leaves, *wrong]))


def _joined(lower: Report, higher: Report, names: list[str], order: int) -> Report:
    """Two orders as one report, leaves of the higher order under their own names."""
    leaves = list(lower.leaves)
    for leaf in higher.leaves:
        position = int(leaf.path.strip("[]"))
        leaves.append(dataclasses.replace(leaf, path=names[position], order=order))
    return dataclasses.replace(
        lower,
        leaves=report.sort(leaves),
        identities=(*lower.identities, *(i for i in higher.identities if i.holds is False)),
        notes=tuple(dict.fromkeys((*lower.notes, *higher.notes))),
    )


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """With NaN equal to NaN and infinity to itself."""
    with np.errstate(invalid="ignore"):
        same = (a == b) | ((a != a) & (b != b))
        apart = np.where(same, 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))


def _seed(key: Any) -> int:
    try:
        data = jax.random.key_data(key)
    except TypeError:
        raise TypeError(
            f"key must be a PRNG key, got {type(key).__name__}; use jax.random.key(0)"
        ) from None
    return int.from_bytes(np.asarray(data).tobytes()[-8:], "little")
