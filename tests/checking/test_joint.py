"""Many leaves are measured together; a leaf that is not clearly right is checked by itself."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad.checking import Verdict, _directions, check_grads
from jaxgrad.checking import _numeric as numeric
from tests.checking.cases import with_backward

WIDTH, DEPTH = 24, 6


def tower(params, x):
    for p in params:
        x = jnp.tanh(x @ p["w"] + p["b"][None])
    return jnp.mean(x**2)


@pytest.fixture
def params(key):
    keys = jax.random.split(key, DEPTH)
    return [
        {"w": jax.random.normal(k, (WIDTH, WIDTH)) / WIDTH**0.5, "b": jnp.full(WIDTH, 0.1)}
        for k in keys
    ]


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (5, WIDTH))


def changed(change):
    """The tower, with `change` made to its gradient."""

    def backward(args, ct):
        params, x = jax.vjp(tower, *args)[1](ct)
        return change(params), x

    return with_backward(tower, backward)


@pytest.mark.slow
def test_few_evaluations_show_that_many_leaves_are_right(params, x, monkeypatch):
    evaluations = []

    def evaluate(problem, kind, directions, steps):
        evaluations.append(steps.size)
        return _directions.evaluate(problem, kind, directions, steps)

    monkeypatch.setattr(numeric, "evaluate", evaluate)
    report = check_grads(tower, params, x)
    assert {leaf.verdict for leaf in report.leaves} == {Verdict.AGREE}
    assert len(report.leaves) == 2 * DEPTH
    assert sum(evaluations) < 100
    for leaf in report.leaves:
        # An element that is off by 1e-5 of the root mean square would have been seen.
        size = jnp.sqrt(jnp.mean(jax.grad(tower)(params, x)[int(leaf.path[1])][leaf.path[-3]] ** 2))
        assert leaf.minimum_detectable < 1e-5 * size


@pytest.mark.parametrize("share", [1e-4, 1.0])
@pytest.mark.slow
def test_one_wrong_element_is_found_and_other_leaves_are_right(params, x, share):
    def change(g):
        w = g[2]["w"]
        g[2]["w"] = w.at[3, 7].add(share * jnp.sqrt(jnp.mean(w**2)))
        return g

    first, *others = check_grads(changed(change), params, x).leaves
    assert (first.path, first.verdict, first.worst_index) == ("[2]['w']", Verdict.WRONG, (3, 7))
    assert {leaf.verdict for leaf in others} == {Verdict.AGREE}


@pytest.mark.slow
def test_opposite_errors_of_two_leaves_do_not_cancel(params, x):
    def change(g):
        g[1]["b"], g[4]["b"] = g[1]["b"] + 1e-3, g[4]["b"] - 1e-3
        return g

    wrong = {
        i.path
        for i in check_grads(changed(change), params, x).leaves
        if i.verdict is not Verdict.AGREE
    }
    assert wrong == {"[1]['b']", "[4]['b']"}


@pytest.mark.parametrize(
    ("scale", "factor"), [(1e-6, 1.001), (1e-6, 0.0), (1e-11, 0.0), (1.0, 0.0), (1.0, 1.001)]
)
@pytest.mark.slow
def test_errors_of_a_leaf_with_a_small_gradient_are_seen(params, x, scale, factor):
    def f(params, x, leaf):
        return tower(params, x) + scale * jnp.sum(jnp.sin(leaf))

    def backward(args, ct):
        params, x, leaf_gradient = jax.vjp(f, *args)[1](ct)
        return params, x, factor * leaf_gradient

    args = (params, x, jnp.linspace(0.5, 1.0, 40))
    leaves = check_grads(with_backward(f, backward), *args, argnums=(0, 2)).leaves
    assert [leaf.path for leaf in leaves if leaf.verdict is not Verdict.AGREE] == ["[1]"]
    right = check_grads(f, *args, argnums=(0, 2))
    assert right.verdict is Verdict.AGREE


@pytest.mark.slow
def test_errors_beside_many_kinks_are_seen(params):
    x = jax.random.normal(jax.random.key(5), (200, WIDTH))

    def f(params, x, share):
        for p in params:
            x = jax.nn.relu(x @ p["w"] + p["b"][None])
        return jnp.mean(x**2)

    def backward(args, ct):
        params, x, share = args
        params, x, none = jax.vjp(f, *args)[1](ct)
        w = params[2]["w"]
        # An error of that share of the norm, spread over the leaf.
        spread = jnp.asarray(jax.random.normal(jax.random.key(6), w.shape), w.dtype)
        params[2]["w"] = w + share * jnp.sqrt(jnp.mean(w**2)) * spread
        return params, x, none

    # The share is an argument, so that one program serves all.
    rule = with_backward(f, backward)
    for share in (0.0, 1e-4, 1e-3):
        leaves = check_grads(rule, params, x, share).leaves
        wrong = [leaf.path for leaf in leaves if leaf.verdict is Verdict.WRONG]
        assert wrong == ["[2]['w']"] * (share > 0)
        assert share or {leaf.verdict for leaf in leaves} == {Verdict.AGREE}


@pytest.mark.slow
def test_leaves_without_influence_agree(params, x):
    def f(params, x, unused):
        return tower(params, x) + 0 * jnp.sum(unused[0] * unused[1])

    unused = [jnp.ones(30), jnp.ones(30)]
    assert check_grads(f, params, x, unused, argnums=(0, 2)).verdict is Verdict.AGREE


@pytest.mark.slow
def test_a_kink_in_one_leaf_is_reported_for_that_leaf(params, x):
    def f(params, x, leaf):
        return tower(params, x) + jnp.sum(jnp.abs(leaf) + leaf)

    report = check_grads(f, params, x, jnp.zeros(20), argnums=(0, 2))
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts.pop("[1]") is Verdict.KINK
    assert set(verdicts.values()) == {Verdict.AGREE}


@pytest.mark.parametrize("modes", [("fwd",), ("rev", "fwd"), ("fwd", "rev")])
@pytest.mark.slow
def test_every_mode_is_judged(params, x, modes):
    @jax.custom_jvp
    def f(params, x):
        return tower(params, x)

    @f.defjvp
    def _(primals, tangents):
        value, tangent = jax.jvp(tower, primals, tangents)
        return value, tangent + 1e-3 * jnp.sum(tangents[0][0]["b"])

    report = check_grads(f, params, x, modes=modes)
    wrong = {(leaf.path, leaf.mode) for leaf in report.leaves if leaf.verdict is Verdict.WRONG}
    assert wrong == {("[0]['b']", mode) for mode in modes}


def test_a_wrong_batching_rule_beside_leaves_that_are_right(params, x):
    @jax.custom_batching.custom_vmap
    def same(x):
        return x

    same.def_vmap(lambda size, batched, x: (2 * x, batched[0]))

    def backward(args, ct):
        return jax.tree.map(same, jax.vjp(tower, *args)[1](ct))

    report = check_grads(with_backward(tower, backward), params, x)
    assert {i.name: i.holds for i in report.identities}["vmap"] is False
    assert not report.ok
