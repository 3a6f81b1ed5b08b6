"""Which leaves of the arguments are differentiated."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import by_path


@pytest.mark.slow
def test_arguments_as_of_grad(key):
    def f(a, b, c):
        return jnp.sum(a * b["x"] ** 2 * c), {"aux": a}

    args = (jnp.float32([1.0, 2.0]), {"x": jnp.float32([3.0, 4.0])}, jnp.float32([5.0, 6.0]))
    first = check_grads(f, *args, has_aux=True)
    assert [leaf.path for leaf in first.leaves] == [""]
    second = check_grads(f, *args, argnums=1, has_aux=True)
    assert [leaf.path for leaf in second.leaves] == ["['x']"]
    both = check_grads(f, *args, argnums=(2, -2), has_aux=True)
    assert set(by_path(both)) == {"[0]", "[1]['x']"}
    assert both.ok
    expected = jax.grad(f, argnums=(2, 1), has_aux=True)(*args)[0]
    assert by_path(both)["[0]"].autodiff == pytest.approx(
        float(expected[0][by_path(both)["[0]"].worst_index])
    )


@pytest.mark.slow
def test_leaves_that_are_not_differentiated_are_said(key):
    point = {
        "w": jnp.arange(3.0),
        "count": 3,
        "index": jnp.arange(3),
        "mask": jnp.array([True, False, True]),
        "key": jax.random.key(0),
        "none": None,
        "empty": jnp.zeros((0, 2)),
        "name": "tanh",
    }

    def f(p):
        noise = jax.random.normal(p["key"], (3,))
        scale = p["count"] if p["name"] == "tanh" else 0
        return jnp.sum(jnp.sin(p["w"][p["index"]]) * p["mask"] * noise * scale)

    report = check_grads(f, point)
    assert report.ok
    assert [leaf.path for leaf in report.leaves] == ["['w']"]
    left = dict(report.left_out)
    assert set(left) == {f"['{name}']" for name in point if name != "w"}
    assert left["['none']"] == "None"
    assert left["['empty']"] == "empty"
    assert left["['index']"] == "int32[3]"
    assert left["['name']"] == "str"
    assert "['mask'] (bool[3])" in str(report)


@pytest.mark.slow
def test_models_as_pytrees():
    import equinox as eqx

    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    report = check_grads(lambda m, x: jnp.sum(m(x) ** 2), model, jnp.arange(3.0))
    assert report.ok
    assert ".layers[0].weight" in by_path(report)
    assert report.left_out


@pytest.mark.slow
def test_sharded_arguments(key):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, jax.P("rows"))
    w = jax.device_put(jax.random.normal(key, (8, 3)), spread)
    x = jax.device_put(jax.random.normal(key, (16, 8)), spread)
    report = check_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)), w, x)
    assert report.verdict is Verdict.AGREE
