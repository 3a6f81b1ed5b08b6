"""Annotated shapes are checked in the whole library while its tests run."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, Key

from tests import shape_checks


class Pair(NamedTuple):
    first: Float[Array, " n"]
    second: Float[Array, "n m"] | None = None


@shape_checks.checked
def transpose(
    x: Float[Array, "n m"],
    scale: float | Float[Array, ""] = 1.0,
    *,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "m n"]:
    if x.ndim != 2:
        raise ValueError("x must be a matrix")
    return x.T


@shape_checks.checked
def untrue(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return x.T


@shape_checks.checked
def pair(x: Float[Array, "n m"], *, second: bool) -> tuple[Pair, int]:
    return Pair(x[:, 0], x.T if second else None), 0


X = jnp.ones((2, 3))


def test_true_annotations_pass():
    transpose(X)
    transpose(X, 2, key=jax.random.key(0))
    jax.jit(jax.grad(lambda x: transpose(x, x[0, 0]).sum()))(X)
    assert jax.vmap(transpose)(X[None]).shape == (1, 3, 2)
    untrue(jnp.ones((2, 2)))
    pair(X, second=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda: transpose(X, "twice"),
        lambda: transpose(X, jnp.ones(2)),
        lambda: transpose(X.astype(int)),
        lambda: transpose(X, key=jax.random.key_data(jax.random.key(0))),
        lambda: untrue(X),
        lambda: jax.jit(untrue)(X),
        lambda: jax.vmap(untrue)(X[None]),
        lambda: pair(X, second=True),
    ],
)
def test_untrue_annotations_raise(call):
    with pytest.raises(shape_checks.ShapeError, match="is annotated"):
        call()


def test_errors_of_the_function_come_first():
    with pytest.raises(ValueError, match="must be a matrix"):
        transpose(jnp.ones(3))


def test_functions_without_arrays_stay_as_they_are():
    def function(x: int) -> int:
        return x

    assert shape_checks.checked(function) is function


def test_the_import_hook_wraps_modules(tmp_path, monkeypatch):
    (tmp_path / "shaped.py").write_text(
        "from __future__ import annotations\nimport jax\nfrom jaxtyping import Array, Float\n\n\n"
        "@jax.jit\ndef first(x: Float[Array, 'n']) -> Float[Array, 'n']:\n    return x[:1]\n\n\n"
        "class Holder:\n    def second(self, x: Float[Array, 'n n']):\n        return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    shape_checks.install("shaped")
    import shaped  # pyright: ignore[reportMissingImports]

    assert shaped.first(jnp.ones(1)).shape == (1,)
    with pytest.raises(shape_checks.ShapeError, match="result of first"):
        shaped.first(jnp.ones(2))
    with pytest.raises(shape_checks.ShapeError, match="second"):
        shaped.Holder().second(X)


def test_the_library_was_imported_through_the_hook():
    import jaxgrad

    assert isinstance(jaxgrad.__loader__, shape_checks._Loader)
    with pytest.raises(RuntimeError, match="imported before"):
        shape_checks.install("jaxgrad")
