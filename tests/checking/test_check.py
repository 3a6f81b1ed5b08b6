"""`check_grads`: verdicts by leaf, its arguments, and the state that it leaves untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.checking import Verdict, check_grads
from tests.checking.cases import by_path, network, with_backward


def test_a_right_gradient_agrees_in_every_leaf(params, x):
    report = check_grads(network, params, x)
    assert report.ok
    assert report.verdict is Verdict.AGREE == "AGREE"
    assert set(by_path(report)) == {"['w1']", "['b1']", "['w2']", "['b2']"}
    exact = jax.grad(network)(params, x)
    for leaf in report.leaves:
        value = exact[leaf.path[2:-2]]
        assert leaf.shape == value.shape
        assert leaf.autodiff == pytest.approx(float(value[leaf.worst_index]), rel=1e-4)
        assert abs(leaf.autodiff - leaf.numeric) <= leaf.error_bar + 1e-4 * abs(leaf.numeric)
        assert leaf.relative_error < 1e-8
        assert 0 < leaf.minimum_detectable < 1e-3 * np.abs(value).max()
    assert all(identity.holds for identity in report.identities)
    assert {i.name for i in report.identities} == {"linear", "zero", "vmap", "transpose", "jit"}


@pytest.mark.parametrize("wrong", ["w1", "b1", "w2", "b2"])
def test_the_wrong_leaf_is_named_and_first(params, x, wrong):
    def backward(args, ct):
        gradient = jax.grad(network)(*args)
        gradient = {k: ct * (1.01 * v if k == wrong else v) for k, v in gradient.items()}
        return gradient, None

    report = check_grads(with_backward(network, backward), params, x)
    assert not report.ok
    assert report.leaves[0].path == f"['{wrong}']"
    assert [leaf.verdict for leaf in report.leaves] == [Verdict.WRONG, *[Verdict.AGREE] * 3]
    assert report.leaves[0].relative_error == pytest.approx(0.01, rel=1e-3)
    assert report.leaves[0].reason == "autodiff is 1.01 times the numeric one"
    assert f"['{wrong}']" in str(report).splitlines()[3]


@pytest.mark.slow
def test_outputs_of_any_shape(key):
    w = jax.random.normal(key, (4, 3))

    def f(w):
        return {"a": jnp.tanh(w), "b": (1e6 * jnp.sum(w**2), jnp.arange(3)), "c": w @ w.T}

    assert check_grads(f, w).ok

    def small_output_wrong(w):
        rule = with_backward(jnp.tanh, lambda args, ct: (ct * (1.01 - jnp.tanh(args[0]) ** 2),))
        return f(w) | {"a": rule(w)}

    assert not check_grads(small_output_wrong, w).ok


def test_results_are_the_same_each_time_and_other_keys_draw_others(key):
    w = jax.random.normal(key, (3000,))

    def f(w):
        return jnp.sum(jnp.sin(w))

    first, again = check_grads(f, w), check_grads(f, w)
    assert first.leaves[0] == again.leaves[0]
    other = check_grads(f, w, key=jax.random.key(5))
    assert other.leaves[0].numeric != first.leaves[0].numeric
    assert 0 < first.leaves[0].miss_probability < 1e-2


@pytest.mark.slow
def test_no_state_is_touched(params, x):
    before = dict(jax.config.values)
    np.random.seed(3)
    drawn = np.random.get_state()[1].copy()
    check_grads(network, params, x, order=2, modes=("fwd", "rev"))
    assert dict(jax.config.values) == before
    assert np.array_equal(np.random.get_state()[1], drawn)
    assert jnp.ones(()).dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: check_grads(3, 1.0), TypeError, "f must be a function, got int"),
        (lambda: check_grads(jnp.sin), ValueError, "argnums must choose among the 0 arguments"),
        (lambda: check_grads(jnp.sin, 1.0, argnums=1), ValueError, "among the 1 arguments.*got 1"),
        (lambda: check_grads(jnp.sin, 1.0, argnums=-2), ValueError, "argnums"),
        (lambda: check_grads(jnp.sin, 1.0, argnums=()), ValueError, "argnums must choose"),
        (lambda: check_grads(jnp.sin, 1.0, argnums=(0, 0)), ValueError, "argnums.*not repeat"),
        (lambda: check_grads(jnp.sin, 1.0, argnums="x"), TypeError, "argnums must be"),
        (
            lambda: check_grads(jnp.sin, jnp.arange(3)),
            TypeError,
            r"floating-point leaves, got only int32\[3\]",
        ),
        (lambda: check_grads(jnp.sin, {}), TypeError, "got only no leaves"),
        (
            lambda: check_grads(lambda p: jnp.sum(p["w"]), {"w": jnp.float32([1, jnp.nan])}),
            ValueError,
            r"finite, got 1 NaN or infinite of 2 values at \['w'\]",
        ),
        (
            lambda: check_grads(lambda x: x @ jnp.ones((2, 2)), jnp.ones(3)),
            ValueError,
            "f raised TypeError at the given arguments: dot_general",
        ),
        (
            lambda: check_grads(lambda p, x: jnp.sum(x @ p["w"]), jnp.ones(3), {"w": jnp.ones(3)}),
            ValueError,
            r"string indexing.*f works with another order: pass f, args\[1\], args\[0\]",
        ),
        (
            lambda: check_grads(lambda p, x: p * x, 1.0),
            ValueError,
            "missing 1 required.*pass all arguments of f after f",
        ),
        (
            lambda: check_grads(lambda x: jnp.argmax(x), jnp.ones(3)),
            ValueError,
            "f raised TypeError.*must return a floating-point number or array, got int32",
        ),
        (
            lambda: check_grads(lambda x: x, jnp.ones(3), has_aux=True),
            ValueError,
            "must return a pair with has_aux=True",
        ),
        (
            lambda: check_grads(lambda z: z * 1j, 1.0),
            TypeError,
            "real number, got a complex one; pass holomorphic=True",
        ),
        (
            lambda: check_grads(jnp.sin, 1.0, holomorphic=True),
            TypeError,
            "must be complex with holomorphic=True, got float32",
        ),
        (lambda: check_grads(jnp.sin, 1.0, order=0), ValueError, "order must be at least 1"),
        (lambda: check_grads(jnp.sin, 1.0, modes=("up",)), ValueError, "modes must be one of"),
        (lambda: check_grads(jnp.sin, 1.0, modes=()), ValueError, "modes must not be empty"),
        (lambda: check_grads(jnp.sin, 1.0, directions=1), ValueError, "directions.*at least 2"),
        (lambda: check_grads(jnp.sin, 1.0, exhaustive=-1), ValueError, "exhaustive"),
        (lambda: check_grads(jnp.sin, 1.0, rtol=-1), ValueError, "rtol"),
        (lambda: check_grads(jnp.sin, 1.0, key=3), TypeError, "key must be one PRNG key, got"),
        (
            lambda: jax.jit(lambda x: check_grads(jnp.sin, x).ok)(1.0),
            TypeError,
            "call check_grads outside of jit",
        ),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_it_is_at_the_top_level():
    assert jaxgrad.check_grads is check_grads
