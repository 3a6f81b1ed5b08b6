"""`check_grads`: verdicts, arguments, and what it leaves untouched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import jaxgrad
from jaxgrad.checking import Verdict, check_grads, widening


def with_backward(function, backward):
    """`function` with `backward(args, cotangent)` for its reverse mode."""
    rule = jax.custom_vjp(function)
    rule.defvjp(lambda *args: (function(*args), args), backward)
    return rule


def network(params, x):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((h @ params["w2"] + params["b2"][None]) ** 2)


@pytest.fixture
def params(key):
    keys = jax.random.split(key, 4)
    return {
        "w1": jax.random.normal(keys[0], (6, 5)),
        "b1": jax.random.normal(keys[1], (5,)),
        "w2": jax.random.normal(keys[2], (5, 3)),
        "b2": jax.random.normal(keys[3], (3,)),
    }


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (7, 6))


def by_path(report):
    return {leaf.path: leaf for leaf in report.leaves}


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


def test_opposite_errors_do_not_cancel(key):
    w = jax.random.normal(key, (2000,))

    def backward(args, ct):
        return (ct * jnp.cos(args[0]).at[7].add(0.01).at[8].add(-0.01),)

    rule = with_backward(lambda w: jnp.sum(jnp.sin(w)), backward)
    for seed in range(5):
        report = check_grads(rule, w, key=jax.random.key(seed))
        assert report.verdict is Verdict.WRONG
        assert report.leaves[0].worst_index[0] in (7, 8)


def test_detectable_errors_are_detected_and_smaller_ones_are_not_promised(key):
    w = jax.random.normal(key, (30,))

    def f(w):
        return jnp.sum(jnp.sin(w))

    detectable = check_grads(f, w).leaves[0].minimum_detectable
    for size, expected in ((1.1, Verdict.WRONG), (-1.1, Verdict.WRONG), (1e-3, Verdict.AGREE)):

        def backward(args, ct, size=size):
            return (ct * jnp.cos(args[0]).at[4].add(size * detectable),)

        with jax.enable_x64(True):
            report = check_grads(with_backward(f, backward), w)
        assert report.verdict is expected


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


def test_outputs_of_any_shape(key):
    w = jax.random.normal(key, (4, 3))

    def f(w):
        return {"a": jnp.tanh(w), "b": (1e6 * jnp.sum(w**2), jnp.arange(3)), "c": w @ w.T}

    assert check_grads(f, w).ok

    def small_output_wrong(w):
        rule = with_backward(jnp.tanh, lambda args, ct: (ct * (1.01 - jnp.tanh(args[0]) ** 2),))
        return f(w) | {"a": rule(w)}

    assert not check_grads(small_output_wrong, w).ok


def test_an_infinite_output_entry_counts_nothing():
    def f(x):
        return jnp.where(jnp.arange(4) < 2, jax.nn.log_softmax(x), -jnp.inf)

    assert check_grads(f, jnp.arange(4.0)).verdict is Verdict.AGREE


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_narrow_types_are_checked_in_float64(dtype):
    x = jnp.linspace(0.5, 2.0, 8).astype(dtype)
    report = check_grads(lambda x: jnp.sum(jnp.log(x)), x)
    leaf = report.leaves[0]
    assert leaf.verdict is Verdict.AGREE
    assert leaf.relative_error < 1e-8
    assert leaf.dtype == dtype
    assert leaf.working_error < 4 * float(jnp.finfo(dtype).eps)


def test_a_loss_of_digits_in_the_working_type_is_said():
    def f(x):
        return jnp.sum((x + 1e4) ** 2 - x**2 - 1e8)

    x = jnp.linspace(0.5, 2.0, 8)
    report = check_grads(lambda x: jnp.sum(jnp.cos(1e3 * x)), 3 * x)
    assert report.ok
    assert report.leaves[0].working_error > 1e-5
    assert check_grads(f, x).ok
    cancelling = check_grads(lambda x: jnp.sum(jnp.log(1 + x) ** 2), 1e-4 * x)
    assert cancelling.ok
    assert "float32 loses" in str(cancelling)


def test_a_function_that_must_stay_in_float32():
    def f(x):
        return jax.lax.scan(
            lambda c, v: (c + jnp.sin(v).astype(jnp.float32), None), jnp.float32(0), x
        )[0]

    def strict_scan(x):
        # In float64 the carry changes its type, which `scan` refuses.
        return jax.lax.scan(lambda c, v: (c + jnp.sin(v), None), jnp.float32(0), x)[0]

    x = jnp.linspace(0.3, 2.0, 6)
    inside = check_grads(f, x)
    assert (inside.verdict, inside.precision) == (Verdict.AGREE, "float64")
    strict = check_grads(strict_scan, x)
    assert (strict.verdict, strict.precision) == (Verdict.AGREE, "float64")

    def host(x):
        kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), kind, x)

    right = with_backward(host, lambda args, ct: (ct * jnp.cos(args[0]),))
    wrong = with_backward(host, lambda args, ct: (1.2 * ct * jnp.cos(args[0]),))
    # What the host computes cannot be computed in another precision.
    given = check_grads(lambda x: strict_scan(right(x)), x)
    assert (given.verdict, given.precision) == (Verdict.AGREE, "the type of the arguments")
    assert given.leaves[0].minimum_detectable < 0.05
    assert "float64 was not possible" in str(given)
    assert check_grads(lambda x: strict_scan(wrong(x)), x).verdict is Verdict.WRONG


def test_functions_that_cannot_be_traced_or_mapped(key):
    def branches(x):
        return jnp.sum(x**2) if x[0] > 0 else jnp.sum(x)

    x = jnp.arange(1.0, 4.0)
    report = check_grads(branches, x)
    assert report.ok
    assert "cannot be traced" in str(report)

    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.sin(np.asarray(x)), shape, x)

    good = with_backward(host, lambda args, ct: (ct * jnp.cos(args[0]),))
    bad = with_backward(host, lambda args, ct: (ct * jnp.sin(args[0]),))
    assert check_grads(lambda x: jnp.sum(good(x)), x).verdict is Verdict.AGREE
    assert check_grads(lambda x: jnp.sum(bad(x)), x).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: jnp.sum(jnp.abs(x)), [0.0, 1.0, -2.0]),
        (lambda x: jnp.sum(jax.nn.relu(x)), [0.0, 1.0]),
        (jnp.max, [2.0, 2.0, 1.0]),
        (lambda x: jnp.sum(jnp.clip(x, -1, 1)), [1.0, 0.3]),
        (lambda x: jnp.sum(jnp.sort(x) * jnp.arange(3.0)), [1.0, 1.0, 0.5]),
        (lambda x: jnp.abs(x[0] - x[1]) ** 1.0 + x[2], [3.0, 3.0, 1.0]),
    ],
)
def test_kinks_are_kinks_not_errors(f, x):
    report = check_grads(f, jnp.float32(x))
    assert report.verdict is Verdict.KINK
    assert report.ok
    assert check_grads(f, jnp.float32(x), strict=True).ok
    assert "one-sided slopes" in report.leaves[0].reason


def test_outside_of_the_one_sided_slopes_is_wrong():
    rule = with_backward(jax.nn.relu, lambda args, ct: (ct * jnp.where(args[0] >= 0, 1.5, 0.0),))
    report = check_grads(lambda x: jnp.sum(rule(x)), jnp.float32([0.0, -1.0]))
    assert report.verdict is Verdict.WRONG
    assert report.leaves[0].worst_index == (0,)


def test_a_relu_network_with_a_large_batch_is_not_flagged(key):
    for seed in range(4):
        keys = jax.random.split(jax.random.fold_in(key, seed), 3)
        w = [jax.random.normal(k, s) for k, s in zip(keys, ((8, 20), (20, 1)), strict=False)]
        x = jax.random.normal(keys[2], (200, 8))
        report = check_grads(lambda w, x=x: jnp.mean((jax.nn.relu(x @ w[0]) @ w[1]) ** 2), w)
        assert report.verdict is Verdict.AGREE


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (jnp.linalg.norm, [0.0, 0.0]),
        (lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0)), [0.0, 1.0]),
        (lambda x: jnp.sum(jnp.where(x != 0, jnp.sin(x) / x, 1.0)), [0.0, 1.0]),
    ],
)
def test_a_nan_where_the_function_is_finite(f, x):
    report = check_grads(f, jnp.float32(x))
    assert report.verdict is Verdict.NONFINITE
    assert not report.ok


def test_an_overflow_of_the_working_type_alone():
    # In float32 the square overflows in the backward pass, the value does not.
    def f(x):
        return jnp.sum(jnp.sqrt(jnp.log1p(x**2)))

    rule = with_backward(
        f, lambda args, ct: (ct * jax.grad(f)(args[0]) * (args[0] ** 4) / args[0] ** 4,)
    )
    report = check_grads(rule, jnp.float32([1e12, 1.0]))
    assert report.verdict is Verdict.NONFINITE
    assert report.leaves[0].worst_index == (0,)
    assert "float32" in report.leaves[0].reason


def test_a_function_that_is_not_finite():
    report = check_grads(lambda x: jnp.log(-jnp.sum(x)), jnp.ones(2))
    assert report.verdict is Verdict.NONFINITE
    assert "f itself" in report.leaves[0].reason


def test_edges_of_the_domain_are_not_resolved():
    report = check_grads(lambda x: jnp.sum(jnp.sqrt(x)), jnp.float32([0.0, 1.0]))
    assert report.verdict is Verdict.UNRESOLVED
    assert report.ok
    assert "edge of the domain" in report.leaves[0].reason
    assert not check_grads(lambda x: jnp.sum(jnp.sqrt(x)), jnp.float32([0.0]), strict=True).ok
    close = jnp.float32([1e-30, 1e-10, 1.0])
    assert check_grads(lambda x: jnp.sum(jnp.log(x)), close).verdict is Verdict.AGREE


class Stateful:
    def __init__(self):
        self.calls = 0
        self.key = jax.random.key(0)

    def counter(self, x):
        self.calls += 1
        return jnp.sum(x) * self.calls

    def draw(self, x):
        self.key, key = jax.random.split(self.key)
        return jnp.sum(x * jax.random.normal(key, x.shape))

    @staticmethod
    def numpy(x):
        return jnp.sum(x * np.random.default_rng().normal(size=x.shape))

    @staticmethod
    def host(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = jax.pure_callback(
            lambda: np.random.default_rng().normal(size=shape.shape).astype(shape.dtype), shape
        )
        return jnp.sum(x * noise)


@pytest.mark.parametrize("name", ["counter", "draw", "numpy", "host"])
def test_two_values_for_one_input(name):
    report = check_grads(getattr(Stateful(), name), jnp.ones(3))
    assert report.verdict is Verdict.NONDETERMINISTIC
    assert not report.ok
    assert "key" in report.leaves[0].reason


def test_a_rule_that_ignores_its_cotangent():
    rule = with_backward(lambda x: jnp.sum(x), lambda args, ct: (jnp.ones_like(args[0]),))
    report = check_grads(rule, jnp.ones(3))
    assert {i.name: i.holds for i in report.identities}["linear"] is False
    assert {i.name: i.holds for i in report.identities}["zero"] is False
    assert report.verdict is Verdict.WRONG
    assert "linear in its cotangent" in str(report)


def test_forward_and_reverse_mode_that_are_no_transposes():
    def f(x):
        return jnp.sum(
            jax.custom_derivatives.linear_call(
                lambda _, x: 2 * x, lambda _, ct: 3 * ct, (), jnp.sin(x)
            )
        )

    report = check_grads(f, jnp.ones(3))
    assert {i.name: i.holds for i in report.identities}["transpose"] is False
    assert report.leaves[0].reason.startswith("autodiff is 1.5 times")
    forward = check_grads(f, jnp.ones(3), modes=("fwd",))
    assert forward.verdict is Verdict.AGREE


def test_a_wrong_batching_rule():
    @jax.custom_batching.custom_vmap
    def f(x):
        return jnp.sin(x)

    @f.def_vmap
    def _(axis_size, in_batched, x):
        return 2 * jnp.sin(x), True

    rule = with_backward(lambda x: jnp.sum(f(x)), lambda args, ct: (ct * f(jnp.pi / 2 - args[0]),))
    report = check_grads(rule, jnp.linspace(0.1, 1.0, 3))
    assert {i.name: i.holds for i in report.identities}["vmap"] is False
    assert report.leaves[0].numeric == pytest.approx(report.leaves[0].autodiff)
    assert not report.ok


def test_a_rule_that_differs_under_jit():
    def backward(args, ct):
        traced = isinstance(ct, jax.core.Tracer)
        return (ct * jnp.cos(args[0]) * (1 if traced else 2),)

    rule = with_backward(jnp.sin, backward)
    report = check_grads(rule, 0.5)
    assert {i.name: i.holds for i in report.identities}["jit"] is False
    assert not report.ok


def test_forward_mode(key):
    @jax.custom_jvp
    def f(x, y):
        return jnp.sum(jnp.sin(x) * y)

    @f.defjvp
    def _(primals, tangents):
        x, y = primals
        return f(x, y), jnp.sum(jnp.cos(x) * y * tangents[0] + 1.1 * jnp.sin(x) * tangents[1])

    args = (jax.random.normal(key, (5,)), jnp.arange(1.0, 6.0))
    for modes in (("fwd",), ("rev",), ("fwd", "rev")):
        report = check_grads(f, *args, argnums=(0, 1), modes=modes)
        assert {leaf.mode for leaf in report.leaves} == set(modes)
        assert {(x.path, x.verdict) for x in report.leaves} == {
            ("[0]", Verdict.AGREE),
            ("[1]", Verdict.WRONG),
        }
    large = check_grads(
        lambda x: f(x, jnp.ones(3000)), jax.random.normal(key, (3000,)), modes="fwd"
    )
    assert large.verdict is Verdict.AGREE


def test_forward_mode_of_a_while_loop():
    def f(x):
        return jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, 1.0 + 0 * x)
        )[1]

    assert check_grads(f, 1.5, modes=("fwd",)).verdict is Verdict.AGREE
    with pytest.raises(ValueError, match='reverse mode: .*modes=\\("fwd",\\)'):
        check_grads(f, 1.5)


def test_second_order(params, x):
    report = check_grads(network, params, x, order=2)
    assert report.ok
    assert {leaf.order for leaf in report.leaves} == {1, 2}
    assert "symmetry" in {i.name for i in report.identities if i.holds}

    def frozen(args, ct):
        # Right to first order; its own derivative is not.
        return (ct * jax.lax.stop_gradient(jnp.cos(args[0])),)

    rule = with_backward(jnp.sin, frozen)
    assert check_grads(rule, 0.5).ok
    second = check_grads(rule, 0.5, order=2)
    assert not second.ok
    assert second.leaves[0].order == 2
    # Of order two everywhere, also where the first derivative vanishes.
    at_rest = check_grads(rule, np.pi / 2, order=2)
    assert at_rest.leaves[0].order == 2
    assert not at_rest.ok
    assert check_grads(jnp.sin, np.pi / 2, order=2).ok


def test_second_order_of_a_rule_that_holds_numbers():
    point = np.float32(0.7)
    rule = with_backward(jnp.sin, lambda args, ct: (ct * np.cos(point),))
    assert check_grads(rule, point).ok
    assert not check_grads(rule, point, order=2).ok


@pytest.mark.parametrize("size", [4, 2000])
def test_complex_arguments(key, size):
    real, imaginary = jax.random.normal(key, (2, size))
    z = jax.lax.complex(real, imaginary)

    def energy(z):
        return jnp.sum(jnp.abs(z) ** 2 * jnp.arange(1.0, size + 1) / size)

    report = check_grads(energy, z)
    assert report.verdict is Verdict.AGREE
    exact = jax.grad(energy)(z)
    if size == 4:
        leaf = report.leaves[0]
        assert leaf.numeric == pytest.approx(complex(exact[leaf.worst_index]), rel=1e-5)
    conjugate = with_backward(energy, lambda args, ct: (ct * jnp.conj(jax.grad(energy)(args[0])),))
    assert check_grads(conjugate, z).verdict is Verdict.WRONG


def test_holomorphic_functions():
    z = jnp.complex64(0.3 + 0.4j)
    assert check_grads(lambda z: jnp.sin(z) ** 2, z, holomorphic=True).verdict is Verdict.AGREE
    report = check_grads(lambda z: z * jnp.conj(z), z, holomorphic=True)
    assert not report.ok
    assert "linear over the complex numbers" in str(report)


def test_inside_jit_vmap_scan_and_a_large_scan(key):
    x = jax.random.normal(key, (6, 4))

    @jax.jit
    def f(x):
        rows = jax.vmap(lambda r: jax.lax.scan(lambda c, v: (jnp.tanh(c + v), c), 0.0 * r[0], r))(x)
        return jnp.sum(rows[0]) + jnp.sum(rows[1] ** 2)

    assert check_grads(f, x).verdict is Verdict.AGREE


def test_sharded_arguments(key):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, jax.P("rows"))
    w = jax.device_put(jax.random.normal(key, (8, 3)), spread)
    x = jax.device_put(jax.random.normal(key, (16, 8)), spread)
    report = check_grads(lambda w, x: jnp.sum(jnp.tanh(x @ w)), w, x)
    assert report.verdict is Verdict.AGREE


def test_a_small_leaf_beside_a_large_one_and_a_regulariser(key):
    point = {"w": 1e3 * jax.random.normal(key, (30, 30)), "b": jnp.float32([1e-3, 2e-3])}

    def f(p):
        return 1e6 * jnp.sum(p["w"] ** 2) + jnp.sum(jnp.sin(p["b"]))

    def backward(args, ct):
        return ({"w": ct * 2e6 * args[0]["w"], "b": ct * 0.9 * jnp.cos(args[0]["b"])},)

    report = check_grads(with_backward(f, backward), point)
    found = by_path(report)
    assert found["['w']"].verdict is Verdict.AGREE
    # The bias moves the value by less than its rounding: said, not guessed.
    assert found["['b']"].verdict in (Verdict.WRONG, Verdict.UNRESOLVED)


def test_no_state_is_touched(params, x):
    before = dict(jax.config.values)
    np.random.seed(3)
    drawn = np.random.get_state()[1].copy()
    check_grads(network, params, x, order=2, modes=("fwd", "rev"))
    assert dict(jax.config.values) == before
    assert np.array_equal(np.random.get_state()[1], drawn)
    assert jnp.ones(()).dtype == jnp.float32


def test_the_same_function_is_compiled_once(params, x):
    traces = []

    def f(params, x):
        traces.append(1)
        return network(params, x)

    check_grads(f, params, x)
    first = len(traces)
    again = jax.tree.map(lambda v: 1.1 * v, params)
    report = check_grads(f, again, x)
    # Two traces to compare, one of the backward pass; nothing is compiled anew.
    assert len(traces) - first <= 5 < first
    assert report.ok


def test_a_changed_closure_is_seen():
    scale = [1.0]

    def f(x):
        return scale[0] * jnp.sin(x)

    first = check_grads(f, 0.5).leaves[0].numeric
    scale[0] = 3.0
    assert check_grads(f, 0.5).leaves[0].numeric == pytest.approx(3 * first)


def test_results_are_the_same_each_time_and_other_keys_draw_others(key):
    w = jax.random.normal(key, (3000,))

    def f(w):
        return jnp.sum(jnp.sin(w))

    first, again = check_grads(f, w), check_grads(f, w)
    assert first.leaves[0] == again.leaves[0]
    other = check_grads(f, w, key=jax.random.key(5))
    assert other.leaves[0].numeric != first.leaves[0].numeric
    assert 0 < first.leaves[0].miss_probability < 1e-2


def test_meant_to_differ(key):
    def straight_through(x):
        return jnp.sum((x + jax.lax.stop_gradient(jnp.round(x) - x)) ** 2)

    report = check_grads(straight_through, jnp.float32([0.3, 1.8]))
    assert report.verdict is Verdict.WRONG
    assert "meant to differ" in str(report)


def test_models_as_pytrees():
    import equinox as eqx

    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    report = check_grads(lambda m, x: jnp.sum(m(x) ** 2), model, jnp.arange(3.0))
    assert report.ok
    assert ".layers[0].weight" in by_path(report)
    assert report.left_out


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
        (lambda: check_grads(jnp.sin, 1.0, key=3), TypeError, "key must be a PRNG key, got int"),
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


def test_the_tolerance_of_a_solver_is_no_mistake():
    matrix = jnp.diag(jnp.arange(1.0, 21.0)) + 0.1

    def solved(b, tol):
        solve = functools.partial(jax.scipy.sparse.linalg.cg, tol=tol)
        x = jax.lax.custom_linear_solve(
            lambda v: matrix @ v, b, lambda _, b: solve(matrix, b)[0], symmetric=True
        )
        return jnp.sum(x**3 * jnp.arange(20.0))

    b = jnp.linspace(1.0, 2.0, 20)
    assert check_grads(lambda b: solved(b, 1e-4), b).ok
    rule = with_backward(
        lambda b: solved(b, 1e-4), lambda args, ct: (0.99 * ct * jax.grad(solved)(args[0], 1e-4),)
    )
    assert check_grads(rule, b).verdict is Verdict.WRONG


def test_functions_that_round_to_float32_are_checked_without_the_rounding(key):
    shifts = jax.random.uniform(key, (3000,), jnp.float32, -1.0, 1.0)

    def f(x):
        # Refused in float64, since the carry would change its type; kinks at every float32 step.
        return jax.lax.scan(
            lambda c, s: (c + jnp.sum(jax.nn.relu(x * 1e-2 + s)), None), jnp.float32(0), shifts
        )[0]

    x = jax.random.normal(key, (3,))
    report = check_grads(f, x)
    assert report.precision == "float64"
    assert report.leaves[0].error_bar < 1e-6
    slightly = with_backward(f, lambda args, ct: (1.001 * ct * jax.grad(f)(args[0]),))
    assert check_grads(slightly, x).verdict is Verdict.WRONG


WEIGHTS = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)


def _branches(x):
    return jax.lax.cond(x[0] > 0, lambda v: jnp.sum(v**2), lambda v: jnp.sum(v**3), x)


def _until(x):
    return jax.lax.while_loop(
        lambda c: c[1] < 5, lambda c: (c[0] * 1.5 + c[0] ** 2, c[1] + 1), (x, 0)
    )[0]


def _solved(x):
    a = jnp.eye(3, dtype=jnp.float32) * 3 + jnp.outer(x, x)
    return jax.scipy.linalg.solve(a, x, assume_a="pos")


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: x @ WEIGHTS,
        lambda x: jax.nn.softmax(x),
        _branches,
        _until,
        _solved,
        lambda x: jnp.zeros(5, x.dtype).at[jnp.array([1, 1, 3])].add(x),
        lambda x: jax.checkpoint(jnp.tanh)(x) + jax.random.normal(jax.random.key(0), (3,)),
        lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
        lambda x: jnp.cumsum(jnp.sort(x)) + jnp.linspace(0.0, 1.0, 3),
    ],
    ids=["matmul", "softmax", "cond", "while", "solve", "scatter", "random", "complex", "sort"],
)
@pytest.mark.parametrize("narrow", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_widening_removes_the_rounding_inside(inner, narrow):
    x = np.array([0.3, -0.7, 1.1])

    def f(x):
        return inner(x.astype(narrow).astype(jnp.float32))

    with jax.enable_x64(True):
        wide = widening.widened(lambda moved, fixed: [f(moved[0])], [x], [])
        assert wide is not None
        found = wide([x], [])[0]
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, inner(jnp.asarray(x)), rtol=1e-13, atol=1e-13)
        # A step that float32 does not see moves it.
        moved = wide([x + 1e-9], [])[0]
        slope = jax.jvp(inner, (x,), (np.ones(3),))[1]
        np.testing.assert_allclose((moved - found) / 1e-9, slope, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_widened_is_left_as_it_is():
    def host(x):
        kind = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda v: np.float32(v.sum()), kind, x)

    assert widening.widened(lambda moved, fixed: [host(moved[0])], [jnp.ones(2)], []) is None


def test_a_function_that_is_another_without_its_rounding_is_left_as_it_is():
    def f(x):
        # In float32 the large constant swallows the rest; the barrier keeps it from cancelling.
        swallowed = jax.lax.optimization_barrier(x.astype(jnp.float32) + 1e8) - 1e8
        return jnp.sum(swallowed) + 1e-3 * jnp.sum(x)

    assert check_grads(f, jnp.array([0.3, -0.7])).verdict is Verdict.WRONG
