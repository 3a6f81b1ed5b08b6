"""The reason for a wrong gradient: which elements, and what usual mistake."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import with_backward


def altered(gradient, kind):
    if kind == "opposite":
        return -gradient
    if kind == "half":
        return gradient / 2
    if kind == "zero":
        return 0 * gradient
    if kind == "transposed":
        return gradient.T
    if kind == "element":
        return gradient.at[3, 1].multiply(1.005)
    if kind == "row":
        return gradient.at[2].multiply(0)
    if kind == "column":
        return gradient.at[:, 4].add(0.1)
    return jnp.roll(gradient, 1, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 40], ids=["every element", "directions"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("opposite", "of the opposite sign"),
        ("half", "0.5 times the numeric one"),
        ("zero", "zero"),
        ("transposed", "transposed"),
        ("element", "one element"),
        ("row", "row 2"),
        ("column", "column 4"),
        ("shifted", "shifted by one along axis 0"),
    ],
)
def test_how_a_leaf_is_wrong_is_said(key, size, kind, words):
    w = jax.random.normal(key, (size, size))
    x = jax.random.normal(jax.random.fold_in(key, 1), (3, size))

    def f(p):
        return jnp.sum(jnp.tanh(x @ p["w"] + p["b"][None]) * jnp.arange(1.0, size + 1)[None])

    def backward(args, ct):
        gradient = jax.grad(f)(args[0])
        return ({"w": ct * altered(gradient["w"], kind), "b": ct * gradient["b"]},)

    point = {"w": w, "b": jnp.zeros(size)}
    report = check_grads(with_backward(f, backward), point)
    leaf = report.leaves[0]
    assert (leaf.path, leaf.verdict) == ("['w']", Verdict.WRONG)
    assert leaf.coverage == ("every element" if size == 5 else "directions")
    assert words in leaf.reason
    assert report.leaves[1].verdict is Verdict.AGREE
    if kind == "element":
        assert leaf.worst_index == (3, 1)
    if kind == "row":
        assert leaf.worst_index[0] == 2
    exact = float(jax.grad(f)(point)["w"][leaf.worst_index])
    assert leaf.numeric == pytest.approx(exact, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_opposite_errors_do_not_cancel(key):
    w = jax.random.normal(key, (2000,))

    def backward(args, ct):
        return (ct * jnp.cos(args[0]).at[7].add(0.01).at[8].add(-0.01),)

    rule = with_backward(lambda w: jnp.sum(jnp.sin(w)), backward)
    for seed in range(5):
        report = check_grads(rule, w, key=jax.random.key(seed))
        assert report.verdict is Verdict.WRONG
        assert report.leaves[0].worst_index[0] in (7, 8)
