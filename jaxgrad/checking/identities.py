"""What must hold of derivatives whatever the function, at little cost and no finite difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.checking import evaluation
from jaxgrad.checking.autodiff import Autodiff

NAMES = {
    "linear": "the backward pass is linear in its cotangent",
    "zero": "a zero cotangent gives a zero gradient",
    "holomorphic": "the derivative is linear over the complex numbers",
    "transpose": "forward and reverse mode are transposes of each other",
    "vmap": "the gradient under vmap is the one without",
    "jit": "the gradient under jit is the one without",
    "symmetry": "second derivatives are symmetric",
}
LARGE = 150
"""A function of more operations is not run without `jit`, nor is one with loops."""


class Identity(NamedTuple):
    """The outcome of one identity.

    Attributes:
      name: a key of `NAMES`.
      holds: whether it does, `None` if it was not tried.
      error: its largest error, relative to the size of that leaf's gradient.
      leaf: position of the leaf with that error.
      reason: why it was not tried, or "".
    """

    name: str
    holds: bool | None
    error: float
    leaf: int
    reason: str


@np.errstate(invalid="ignore", over="ignore")
def of_gradient(
    autodiff: Autodiff, scales: np.ndarray, rtol: float, holomorphic: bool
) -> list[Identity]:
    """Every identity of a gradient that applies.

    Args:
      autodiff: with reverse mode.
      scales: sizes of the leaves' elements, `[L]`.
      rtol: error that is let pass, relative to the leaf's gradient, as of inexact solvers.
      holomorphic: whether cotangents may be multiplied by complex numbers.

    """
    opened, gradient, several = autodiff.opened, autodiff.leaves, autodiff.several
    size = np.array([norm(g) for g in gradient])
    # Rounding as large as if all leaves had moved by their own size.
    lengths = scales * np.sqrt([leaf.stop - leaf.start for leaf in opened.leaves])
    moved = np.sum((lengths * size)[np.isfinite(size)]) + opened.total
    tolerance = rtol * size + 100 * autodiff.eps * moved / lengths
    a, b = autodiff.factors

    def outcome(name, apart):
        return judge(name, apart, size, tolerance)

    found = [
        outcome(
            "holomorphic" if holomorphic else "linear",
            [norm(a * g[0] + b * g[1] - g[2]) for g in several],
        ),
        outcome("zero", [norm(g[3]) for g in several]),
    ]
    if opened.batched:
        apart = [norm(g[0] - one) for g, one in zip(several, gradient, strict=True)]
        found.append(outcome("vmap", apart))
    else:
        found.append(Identity("vmap", None, 0.0, 0, "f cannot be mapped"))
    if autodiff.pushed is not None:
        parts = autodiff.gradient * autodiff.signs
        pulled = [math.fsum(parts[leaf.start : leaf.stop]) for leaf in opened.leaves]
        found.append(outcome("transpose", np.abs(autodiff.pushed - pulled)))
    else:
        found.append(Identity("transpose", None, 0.0, 0, "f has no forward mode"))
    facts = opened.facts
    if facts is None or facts.loops or facts.equations > LARGE:
        found.append(Identity("jit", None, 0.0, 0, "f is large, has loops or cannot be traced"))
    else:
        with opened.context():
            plain = opened.backward(opened.moved, opened.fixed, opened.cotangents)
        apart = [norm(np.asarray(p) - g) for p, g in zip(plain, gradient, strict=True)]
        found.append(outcome("jit", apart))
    return found


def symmetry(autodiff: Autodiff, position: int, others: Sequence[Any], rtol: float) -> Identity:
    """Whether <u, H v> = <v, H u>.

    Args:
      autodiff: of a slope along `v`, so that its gradient is `H v`; the leaves of `v` are fixed
        arguments from `position` on.
      others: `u`.
      rtol: error that is let pass.
    """
    opened = autodiff.opened
    stop = position + len(others)
    with opened.context():
        swapped = [*opened.fixed[:position], *others, *opened.fixed[stop:]]
        other = opened.derived(
            "backward", opened.backward, opened.moved, swapped, opened.cotangents
        )
    hu = np.concatenate(list(map(evaluation.coordinates_of_gradient, other)))
    v = np.concatenate([evaluation.coordinates(w) for w in opened.fixed[position:stop]])
    u = np.concatenate([evaluation.coordinates(w) for w in others])
    hv = autodiff.gradient
    size = float(np.linalg.norm(u * hv) + np.linalg.norm(v * hu))
    tolerance = rtol * size + 100 * autodiff.eps * opened.total
    return judge("symmetry", [abs(float(u @ hv - v @ hu))], [size], [tolerance])


def judge(name: str, apart, size, tolerance) -> Identity:
    """Hold the differences `apart` of each leaf against a `tolerance`, all `[L]`.

    A difference that is not a number says nothing; such gradients are judged elsewhere.
    """
    apart, size, tolerance = (np.asarray(a, np.float64) for a in (apart, size, tolerance))
    known = np.isfinite(apart) & np.isfinite(size)
    error = np.where(known, apart / np.where(size > 0, size, 1.0), 0.0)
    excess = np.where(known, apart - tolerance, -np.inf)
    holds = bool(np.all(excess <= 0))
    leaf = int(np.argmax(error if holds else excess))
    return Identity(name, holds, float(error[leaf]), leaf, "")


def norm(values: np.ndarray) -> float:
    """Euclidean norm without overflow; NaN if not finite."""
    size = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(size):
        return math.nan
    return size * float(np.linalg.norm(np.ravel(values) / size)) if size > 0 else 0.0
