"""What a case of the gradient corpus is, and how one is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Make = Callable[[jax.Array], tuple[Callable[..., Any], tuple[Any, ...]]]


class Case(NamedTuple):
    """A function whose gradient is known to be right or wrong at given arguments.

    Attributes:
      name: unique.
      make: maps a PRNG key to the function and its arguments.
      right: whether `jax.grad` gives a derivative of the function there; where one-sided slopes
        differ, whether it lies between them.
      source: a report of such an error, as `owner/repository#number`, or the pitfall it models.
      leaf: of a wrong case, `jax.tree_util.keystr` of the wrong leaf in what
        `jax.grad(f, argnums)` returns; None where no leaf is to blame.
      argnums, has_aux, holomorphic: as of `jax.grad`.
      order: the order of the derivative that `right` speaks of.
    """

    name: str
    make: Make
    right: bool
    source: str
    leaf: str | None = None
    argnums: int | tuple[int, ...] = 0
    order: int = 1
    has_aux: bool = False
    holomorphic: bool = False


def register(cases: list[Case], *, right: bool) -> Callable[..., Callable[[Make], Make]]:
    """Returns a decorator that appends a case, with the docstring of `make` as its source."""

    def case(**options: Any) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            if not right:
                options.setdefault("leaf", "")
            name = getattr(make, "__name__", "")
            cases.append(Case(name, make, right, make.__doc__ or "", **options))
            return make

        return add

    return case


def normal(key: jax.Array, *shape: int, scale: float = 1.0) -> jax.Array:
    """Normal float32 numbers with standard deviation `scale`."""
    return scale * jax.random.normal(key, shape, jnp.float32)


def uniform(key: jax.Array, *shape: int, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Uniform float32 numbers."""
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def away_from_zero(key: jax.Array, *shape: int, gap: float = 0.5) -> jax.Array:
    """Float32 numbers of either sign, at least `gap` and less than `gap + 1` in size."""
    key_size, key_sign = jax.random.split(key)
    sign = jax.random.rademacher(key_sign, shape, jnp.float32)
    return sign * uniform(key_size, *shape, low=gap, high=gap + 1)


def with_vjp(function: Callable[..., Any], backward: Callable[..., tuple[Any, ...]]) -> Any:
    """`function` with a backward pass by hand, `backward(args, out, cotangent)`."""

    @jax.custom_vjp
    def wrapped(*args):
        return function(*args)

    def forward(*args):
        out = function(*args)
        return out, (args, out)

    def pullback(residuals, cotangent):
        args, out = residuals
        return backward(args, out, cotangent)

    wrapped.defvjp(forward, pullback)
    return wrapped


def with_jvp(function: Callable[..., Any], forward: Callable[..., Any]) -> Any:
    """`function` with a tangent by hand, `forward(args, tangents)`."""

    @jax.custom_jvp
    def wrapped(*args):
        return function(*args)

    @wrapped.defjvp
    def _(args, tangents):
        return wrapped(*args), forward(args, tangents)

    return wrapped


def tampered(function: Callable[..., Any], change: Callable[[Any], Any]) -> Any:
    """`function` whose backward pass applies `change` to the tuple of right cotangents."""

    @jax.custom_vjp
    def wrong(*args):
        return function(*args)

    def forward(*args):
        return jax.vjp(function, *args)

    def backward(pullback, cotangent):
        return change(pullback(cotangent))

    wrong.defvjp(forward, backward)
    return wrong
