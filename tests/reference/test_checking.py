"""Verdicts, numbers and error bars of gradient checks: those of 0.1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import testing
from jaxgrad.checking import check_along_training, check_grads, check_terms, finite_differences
from tests.reference.record import flatten, hold, recorded

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
KEYS = jax.random.split(KEY, 5)
PARAMS = {
    "w1": jax.random.normal(KEYS[0], (6, 5)),
    "b1": jax.random.normal(KEYS[1], (5,)),
    "w2": jax.random.normal(KEYS[2], (5, 3)),
    "b2": jax.random.normal(KEYS[3], (3,)),
}
X = jax.random.normal(KEYS[4], (7, 6))


def rows(report):
    """A report by leaf, mode and order."""
    out = {
        "verdict": str(report.verdict),
        "ok": report.ok,
        "precision": report.precision,
        "left_out": np.asarray([f"{path}: {kind}" for path, kind in report.left_out] or [""]),
        "identities": {
            identity.name: {"holds": -1 if identity.holds is None else int(identity.holds)}
            for identity in report.identities
        },
    }
    for leaf in report.leaves:
        index = [-1] if leaf.worst_index is None else leaf.worst_index
        out[f"leaf {leaf.path} {leaf.mode} {leaf.order}"] = {
            "verdict": str(leaf.verdict),
            "shape": np.asarray(leaf.shape, int),
            "relative_error": leaf.relative_error,
            "error_bar": leaf.error_bar,
            "minimum_detectable": leaf.minimum_detectable,
            "worst_index": np.asarray(index, int),
            "autodiff": leaf.autodiff,
            "numeric": leaf.numeric,
            "dtype": str(leaf.dtype),
            "coverage": leaf.coverage,
            "miss_probability": leaf.miss_probability,
            "working_error": leaf.working_error,
            "reason": leaf.reason,
        }
    return out


ROUNDED = ("relative_error", "error_bar", "minimum_detectable", "working_error")
"""Fields of a leaf that hold rounding errors, which are others on another processor."""


def hold_report(group, value):
    """Verdicts and reasons are equal; numbers as near as their error bars let them be."""
    new, old = flatten(value), recorded()[group]
    rounded = []
    for name in (n.removesuffix("relative_error") for n in old if n.endswith("/relative_error")):
        rounded += [name + field for field in (*ROUNDED, "autodiff", "numeric")]
        bars = new[name + "error_bar"] + old[name + "error_bar"]
        for field in ("error_bar", "minimum_detectable", "working_error"):
            if name + field in old:
                hold_size(new[name + field], old[name + field])
        # Which element of a right gradient is furthest off, rounding decides.
        same = np.array_equal(new[name + "worst_index"], old[name + "worst_index"])
        if not same and str(old[name + "verdict"]) == "AGREE":
            rounded.append(name + "worst_index")
            continue
        close = {"rtol": 1e-5, "atol": bars if np.isfinite(bars) else 0.0}
        for field in ("autodiff", "numeric"):
            np.testing.assert_allclose(new[name + field], old[name + field], **close)
        size = np.abs(old[name + "numeric"])
        close["atol"] = 1e-6 + (close["atol"] / size if size > 0 else 0.0)
        field = name + "relative_error"
        np.testing.assert_allclose(new[field], old[field], **close | {"rtol": 1e-3})
    hold(group, value, left_out=tuple(rounded))


def hold_size(new, old):
    """The same power of ten, or the same of zero, infinity and NaN."""
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(np.log10(new), np.log10(old), atol=1.0, rtol=0)


def with_backward(function, backward):
    """A function with `backward(args, cotangent)` as its reverse mode."""
    rule = jax.custom_vjp(function)
    rule.defvjp(lambda *args: (function(*args), args), backward)
    return rule


def network(params, x):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((h @ params["w2"] + params["b2"][None]) ** 2)


def wrong_network(leaf, factor):
    def backward(args, cotangent):
        gradient = jax.grad(network)(*args)
        scaled = {k: cotangent * (factor * v if k == leaf else v) for k, v in gradient.items()}
        return scaled, None

    return with_backward(network, backward)


ALTERED = {
    "opposite": lambda g: -g,
    "half": lambda g: g / 2,
    "zero": lambda g: 0 * g,
    "transposed": lambda g: g.T,
    "element": lambda g: g.at[3, 1].multiply(1.005),
    "row": lambda g: g.at[2].multiply(0),
    "column": lambda g: g.at[:, 4].add(0.1),
    "shifted": lambda g: jnp.roll(g, 1, axis=0),
}


def altered(size, kind):
    """A kernel's gradient that is wrong in one of the usual ways."""
    w = jax.random.normal(KEY, (size, size))
    x = jax.random.normal(jax.random.fold_in(KEY, 1), (3, size))

    def f(p):
        h = jnp.tanh(x @ p["w"] + p["b"][None])
        return jnp.sum(h * jnp.arange(1.0, size + 1)[None])

    def backward(args, cotangent):
        gradient = jax.grad(f)(args[0])
        wrong = {"w": ALTERED[kind](gradient["w"]), "b": gradient["b"]}
        return (jax.tree.map(lambda g: cotangent * g, wrong),)

    return check_grads(with_backward(f, backward), {"w": w, "b": jnp.zeros(size)})


@jax.custom_jvp
def wrong_forward(x):
    return jnp.sin(x)


wrong_forward.defjvp(lambda p, t: (jnp.sin(p[0]), 1.1 * jnp.cos(p[0]) * t[0]))


def counting():
    calls = []

    def f(x):
        calls.append(1)
        return float(np.sum(np.asarray(x))) + len(calls)

    return f


def stopped(p):
    entropy = jnp.sum(jax.nn.softmax(p["logits"]) * jax.nn.log_softmax(p["logits"]))
    return entropy + jnp.sum(jax.lax.stop_gradient(p["b"]) * p["b"])


def kink_rule(args, cotangent):
    return (cotangent * (jnp.sign(args[0]) + 3 * (args[0] == 0)),)


def absolute(x):
    return jnp.sum(jnp.abs(x))


def cube_and_aux(x):
    return jnp.sum(x**3), {"aux": x}


def called(x):
    kind = jax.ShapeDtypeStruct((2,), jnp.float32)
    sine = jax.pure_callback(lambda x: np.sin(np.asarray(x)), kind, x.astype(jnp.float32))
    return jnp.sum(sine)


def cosine(args, cotangent):
    return (cotangent * jnp.cos(args[0]),)


def squared_tanh(w):
    return jnp.sum(jnp.tanh(w) ** 2)


def repeated(x):
    return jax.lax.fori_loop(0, 5, lambda i, h: jnp.sin(h) + h, x).sum()


def scales(p):
    return 1e8 * jnp.sum(p["a"] ** 2) + 1e-8 * jnp.sum(jnp.sin(p["b"]))


def rounded(x):
    return jnp.sum(jnp.round(x * 1e4)) / 1e4 + jnp.sum(x * x)


def masked_root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()


def weighted_relu(x):
    return jnp.sum(jax.nn.relu(x) * jnp.arange(1.0, 4.0))


def holomorphic(z):
    return jnp.sum(jnp.exp(z) * z)


def of_complex(z):
    return jnp.sum(jnp.abs(z) ** 2 + jnp.real(z**3))


TWO, CORNER = jnp.asarray([0.3, 1.2]), jnp.asarray([-1.0, 0.0, 2.0])
COMPLEX = jnp.asarray([1.0 + 2.0j, -0.5 + 0.1j])
LARGE = jax.random.normal(KEY, (50, 40))
SMALL_AND_LARGE = {"a": jnp.asarray([1e-4, 2e-4]), "b": jnp.asarray([1e4, 3.0])}
STOPPED = {"logits": jnp.asarray([0.1, 0.5, -2.0]), "b": jnp.asarray([1.0, 2.0])}
WITH_INTEGERS = {"x": TWO, "n": jnp.asarray([2, 3])}

# The function, its arguments, options of `check_grads`.
CHECKS = {
    "network": (network, (PARAMS, X), {}),
    "both_modes": (network, (PARAMS, X), {"modes": ("rev", "fwd")}),
    "argnums": (network, (PARAMS, X), {"argnums": (0, 1)}),
    "wrong_w1": (wrong_network("w1", 1.01), (PARAMS, X), {}),
    "wrong_b2": (wrong_network("b2", 0.5), (PARAMS, X), {}),
    "kink": (absolute, (CORNER,), {}),
    "kink_outside": (with_backward(absolute, kink_rule), (CORNER,), {}),
    "relu_at_zero": (weighted_relu, (CORNER,), {}),
    "unresolved": (rounded, (jnp.asarray([0.3, 1.7]),), {}),
    "nonfinite": (masked_root, (jnp.asarray([-1.0, 0.5, 2.0]),), {}),
    "edge": (lambda x: jnp.sum(jnp.sqrt(x)), (jnp.asarray([0.0, 1.0]),), {}),
    "nondeterministic": (counting(), (jnp.asarray([1.0, 2.0]),), {}),
    "complex": (of_complex, (COMPLEX,), {}),
    "holomorphic": (holomorphic, (COMPLEX,), {"holomorphic": True}),
    "order_two": (network, (PARAMS, X), {"order": 2}),
    "order_three": (
        lambda x: jnp.sum(jnp.sin(x) * x**3),
        (jnp.asarray([0.3, -1.2]),),
        {"order": 3},
    ),
    "forward": (lambda x: jnp.sum(wrong_forward(x)), (TWO,), {"modes": "fwd"}),
    "has_aux": (cube_and_aux, (TWO,), {"has_aux": True}),
    "vector_output": (lambda x: {"a": jnp.sin(x), "b": x[0] * x[1]}, (TWO,), {}),
    "integers": (lambda p: jnp.sum(p["x"] * p["n"]), (WITH_INTEGERS,), {}),
    "bfloat16": (lambda x: jnp.sum(jnp.sin(x)), (jnp.asarray([0.3, 1.2], jnp.bfloat16),), {}),
    "large": (squared_tanh, (LARGE,), {}),
    "key": (squared_tanh, (LARGE,), {"key": jax.random.key(5), "directions": 4}),
    "stop_gradient": (stopped, (STOPPED,), {}),
    "scales": (scales, (SMALL_AND_LARGE,), {}),
    "loop": (repeated, (TWO,), {}),
    "untraceable": (lambda x: jnp.sum(x**2) if x[0] > 0 else jnp.sum(x), (TWO,), {}),
    "callback": (with_backward(called, cosine), (TWO,), {}),
    "loose": (wrong_network("w1", 1.01), (PARAMS, X), {"rtol": 0.1}),
    "scalar": (jnp.sin, (1.0,), {}),
    "zero_gradient": (lambda x: jnp.sum(x * 0.0) + 3.0, (TWO,), {}),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check_grads(name):
    function, args, options = CHECKS[name]
    hold_report(f"checking.check_grads.{name}", rows(check_grads(function, *args, **options)))


@pytest.mark.parametrize("kind", ALTERED)
def test_altered_gradients(kind):
    hold_report(f"checking.check_grads.altered_{kind}", rows(altered(5, kind)))


@pytest.mark.parametrize("kind", ["half", "element", "row", "column"])
def test_altered_gradients_along_directions(kind):
    hold_report(f"checking.check_grads.directions_{kind}", rows(altered(40, kind)))


def test_check_terms():
    cube = with_backward(lambda w: jnp.sum(w**3), lambda args, ct: (ct * 2 * args[0] ** 2,))

    def terms(w):
        return {
            "data": jnp.sum(jnp.sin(w)),
            "regulariser": 1e6 * jnp.sum(w**2),
            "wrong": cube(w),
        }

    reports = check_terms(terms, jnp.asarray([0.4, 1.0, 2.0]))
    hold_report("checking.check_terms", {name: rows(report) for name, report in reports.items()})


def test_check_along_training():
    def loss(w, x):
        return jnp.mean((jnp.tanh(x @ w) - 0.5) ** 2)

    batches = [(jax.random.normal(KEY, (4, 4)),)] * 6
    reports = check_along_training(loss, jnp.ones(4), batches, optax.sgd(0.1), steps=(0, 2, 5))
    hold_report(
        "checking.check_along_training",
        {str(step): rows(report) for step, report in reports.items()},
    )


POINT = {"a": np.asarray([0.3, 1.2, -0.7]), "b": np.asarray([[0.1, 2.0], [1.0, -1.0]])}


def smooth(p):
    return jnp.sum(jnp.sin(p["a"])) * jnp.sum(p["b"] ** 2)


def test_finite_differences(x64):
    fd, p = finite_differences, jax.tree.map(jnp.asarray, POINT)
    gradient, direction = jax.grad(smooth)(p), jax.tree.map(jnp.cos, p)
    wrong = jax.tree.map(lambda a: 1.1 * a, gradient)
    coarse = fd.central_difference(smooth, p, 0.1)
    errors = (1e-8, 1e-6, 5e-5, 1e-4, 5e-3, 0.1, float("nan"))
    out = {
        "central": fd.central_difference(smooth, p),
        "central_coarse": coarse,
        "one_sided": fd.one_sided_difference(smooth, p),
        "one_sided_coarse": fd.one_sided_difference(smooth, p, -0.1),
        "complex_step": fd.complex_step(smooth, p),
        "taylor": fd.taylor_remainder(smooth, p, gradient, direction),
        "taylor_wrong": fd.taylor_remainder(smooth, p, wrong, direction),
        "relative_error": fd.relative_error(coarse, gradient),
        "relative_error_zero": fd.relative_error(0.0 * p["a"], 0.0 * p["a"]),
        "tiers": np.asarray([fd.tier(error, text) for text in fd.TIERS for error in errors]),
    }
    # Differences of values of size 1, divided by steps of 1e-7 and more.
    hold("checking.finite_differences", out, tolerance=1e5)


def test_derivative():
    fd = finite_differences

    def f(p):
        return smooth(p) + jnp.abs(p["a"][0] - 0.5)

    out = {
        "sin": fd.derivative(jnp.sin, 0.5),
        "kink": fd.derivative(jnp.abs, 0.0),
        "edge": fd.derivative(jnp.sqrt, 0.0),
        "along": fd.derivative(f, POINT, jax.tree.map(np.cos, POINT)),
        "gradient": fd.gradient(f, POINT),
    }
    new, old = flatten(out), recorded()["checking.derivative"]
    rounded = [name for name in old if name.split("/")[1] in ("error", "noise")]
    for name in rounded:
        hold_size(new[name], old[name])
    hold("checking.derivative", out, left_out=tuple(rounded), tolerance=1e4)


def raises(check, *args, **options):
    try:
        check(*args, **options)
    except AssertionError:
        return True
    return False


def test_testing():
    wrong = with_backward(lambda x: jnp.sum(x**2), lambda args, ct: (ct * args[0],))
    x, drop_in = jnp.asarray([1.0, 2.0]), functools.partial(raises, testing.check_grads)
    outcomes = [
        raises(testing.assert_grads, wrong, x),
        drop_in(wrong, (x,), 1, modes=("rev",)),
        drop_in(jnp.tanh, (x,), 2),
        drop_in(wrong, (x,), 1, modes=("rev",), rtol=0.9, use_rtol=True),
    ]
    right = rows(testing.assert_grads(network, PARAMS, X))
    hold_report("testing", {"assert_right": right, "raises": np.asarray(outcomes)})
