"""Derivatives of higher order as problems of first order, one after another."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._prepare import Problem, prepare
from jaxgrad.checking._programs import Function, gradient_of


def problems(
    f: Callable[..., Any], args: tuple[Any, ...], order: int, seed: int, **options: Any
) -> Iterator[Problem]:
    """Yield the problems of a check, each prepared when it is asked for.

    The derivative of order `k` along random weights is a function, and its gradient is the problem
    of order `k + 1`. The `options` are those of `prepare`.
    """
    problem = prepare(f, args, seed=seed, **options)
    yield problem
    if order > 1:
        # A backward pass that holds numbers instead of its arguments is right at one point alone.
        # Autodiff and differences of that gradient then both say that its derivative is zero.
        nearby = problem.function.arguments(_nearby(problem, seed), problem.fixed)
        yield dataclasses.replace(prepare(f, nearby, seed=seed, **options), nearby=True)
    for level in range(2, order + 1):
        problem = _derivative(problem, level, seed)
        yield problem


@dataclass(frozen=True)
class _Derivative:
    """The derivative of a function along weights; equal to that of an equal function."""

    function: Function

    def __call__(self, moved, fixed, weights, cotangents):
        gradient = gradient_of(self.function, moved, fixed, cotangents)
        pairs = zip(weights, gradient, strict=True)
        return sum(jnp.sum(jnp.real(jnp.asarray(w, g.dtype) * g)) for w, g in pairs)


def _derivative(problem: Problem, level: int, seed: int) -> Problem:
    """Return the problem whose function is the derivative along random weights."""
    weights, others = (_weights(problem, [2, seed, level, i]) for i in range(2))
    args = (problem.moved, problem.fixed, weights, problem.cotangents)
    derivative = prepare(_Derivative(problem.function), args, seed=seed)
    pairs = zip(derivative.leaves, problem.leaves, strict=True)
    return dataclasses.replace(
        derivative,
        # A user knows the leaves by their names in the arguments of `f`.
        leaves=tuple(info._replace(path=original.path) for info, original in pairs),
        order=level,
        swap=(others, len(problem.fixed)),
    )


def _weights(problem: Problem, seed: list[int]) -> list[np.ndarray]:
    """Return normal weights of the size of each leaf: no leaf's curvature hides another's."""
    generator = np.random.default_rng(seed)
    weights = []
    for info, scale in zip(problem.leaves, problem.scales, strict=True):
        draw = generator.standard_normal(info.shape)
        if info.complex:
            draw = draw + 1j * generator.standard_normal(info.shape)
        weights.append(np.asarray(scale * draw).astype(info.dtype))
    return weights


def _nearby(problem: Problem, seed: int) -> list[jax.Array]:
    """Return the moved leaves with every element changed by a few per cent of itself."""
    generator = np.random.default_rng([seed, 3])
    return [
        value
        * jnp.asarray(
            1 + 0.03 * generator.standard_normal(value.shape), jnp.finfo(value.dtype).dtype
        )
        for value in problem.moved
    ]
