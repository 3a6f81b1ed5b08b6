"""What autodiff says of an opened function, gathered in one compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking import evaluation, probing, tracing
from jaxgrad.checking.evaluation import Directions, Opened
from jaxgrad.checking.localize import SIGNS

SEVERAL = 4


class Autodiff:
    """Gradients and tangents of the weighted outputs.

    Attributes:
      leaves: the gradient as leaves, NumPy; `None` without reverse mode.
      gradient: the same as coordinates, `[size]`.
      several: gradients for the stacked cotangents of `stack`, `[4, ...]` leaves, under `vmap`
        where the function can be mapped.
      signs: a tangent of random signs, `[size]`.
      pushed: <cotangent, J v_leaf> for that tangent's part in each leaf, by forward mode; `None`
        where it was not tried or is not defined.
      eps: relative rounding of the narrowest type in the backward pass.
      factors: `a` and `b`, such that the third cotangent is `a` times the first plus `b` times the
        second; the fourth is zero.
    """

    leaves: Any
    gradient: Any
    several: Any
    pushed: Any

    def __init__(self, opened: Opened, reverse: bool, holomorphic: bool, generator):
        self.opened = opened
        self.factors = (0.75 + 0.5j, -1.25j) if holomorphic else (0.75, -1.25)
        self.signs = generator.choice(SIGNS, opened.size)
        stacked = [self._stack(c, generator) for c in opened.cotangents]
        forward = opened.facts is not None and opened.facts.forward
        self.leaves = self.gradient = self.several = self.pushed = None
        self.eps = opened.eps
        if not reverse:
            return
        given = (opened.moved, opened.fixed, opened.cotangents)
        try:
            leaves, several, pushed = opened.derived(
                "autodiff", _program(opened, forward), *given, stacked, self.signs
            )
            if opened.facts is not None:
                with opened.context():
                    self.eps = max(self.eps, tracing.facts(opened.backward, *given).eps)
        except Exception as error:  # whatever a user's rule raises
            raise ValueError(
                f"f cannot be differentiated in reverse mode: {evaluation.line(error)}; mend its "
                'rule, or check forward mode alone with modes=("fwd",)'
            ) from error
        self.leaves = [np.asarray(g) for g in leaves]
        self.gradient = np.concatenate(list(map(evaluation.coordinates_of_gradient, leaves)))
        self.several = [np.asarray(g) for g in several]
        self.pushed = None if pushed is None else np.asarray(pushed, np.float64)

    def along(self, directions: Directions, mode: str) -> np.ndarray:
        """The derivative along each direction by reverse ("rev") or forward ("fwd") mode."""
        if mode == "rev" and self.gradient is not None:
            return probing.along(self.gradient, directions)
        try:
            return self.opened.pushforwards(directions)
        except Exception as error:  # whatever a user's rule raises
            raise ValueError(
                f"f cannot be differentiated in forward mode: {evaluation.line(error)}; check "
                'reverse mode alone with modes=("rev",)'
            ) from error

    def _stack(self, cotangent, generator):
        a, b = self.factors
        other = np.max(np.abs(cotangent), initial=0.0) * generator.standard_normal(cotangent.shape)
        other = np.where(cotangent == 0, 0, other)
        rows = [cotangent, other, a * cotangent + b * other, np.zeros_like(cotangent)]
        return np.stack(rows).astype(cotangent.dtype)


def _program(opened: Opened, forward: bool) -> Any:
    def program(moved, fixed, cotangents, stacked, signs):
        gradient = opened.backward(moved, fixed, cotangents)
        if opened.batched:
            copies = [jnp.broadcast_to(v[None], (SEVERAL, *v.shape)) for v in moved]
            several = jax.vmap(lambda m, c: opened.backward(m, fixed, c))(copies, stacked)
        else:
            rows = [opened.backward(moved, fixed, [c[i] for c in stacked]) for i in range(SEVERAL)]
            several = [jnp.stack(leaves) for leaves in zip(*rows, strict=True)]
        tangent = evaluation.shifts(moved, 1.0, signs)

        def push(which):
            one = [jnp.where(which == i, v, jnp.zeros_like(v)) for i, v in enumerate(tangent)]
            out = jax.jvp(lambda m: opened.call(m, fixed), (list(moved),), (one,))[1]
            return evaluation.weighted(cotangents, out)

        return gradient, several, jax.lax.map(push, jnp.arange(len(moved))) if forward else None

    return program
