"""A good call of every public function, and for each parameter values that it must refuse.

`cases()` returns rows; each has the function, good keyword arguments, and the bad values of each
parameter by its kind: a number, a key, an array, a pytree, a function and so on.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import jaxgrad
from jaxgrad import (
    activations,
    checking,
    initializers,
    inspection,
    layers,
    plotting,
    propagation,
    regimes,
    sweeps,
    testing,
    theory,
    training,
)
from jaxgrad.checking import finite_differences


class Nothing:
    """An object that is nothing that a function could use."""

    def __repr__(self):
        return "<nothing>"


NOTHING, NAN, INF = Nothing(), math.nan, math.inf
HUGE = 10**30
RAGGED = [[1.0], [1.0, 2.0]]
TEXTS = np.array(["a", "b"])


class Case(NamedTuple):
    """A function and its parameters.

    Attributes:
      function: what is called, with keywords except for `args`.
      good: a good value of each parameter.
      bad: values of each parameter that are refused; `*` stands for the positional ones.
      names: further names by which a message may call a parameter.
    """

    function: Callable[..., Any]
    good: Mapping[str, Any]
    bad: Mapping[str, list[Any]]
    args: tuple[Any, ...] = ()
    names: Mapping[str, str] = {}

    def call(self, name: str, value: Any) -> Any:
        """Call the function with one parameter changed; `*` stands for the positional ones."""
        if name == "*":
            return self.function(*value, **self.good)
        return self.function(*self.args, **(dict(self.good) | {name: value}))


def number(low=-INF, above=False, high=INF, *, none=False, several=False, infinite=False):
    bad = ["1.0", b"1", {}, NOTHING, 1j, True, NAN, 10**400, RAGGED, TEXTS, np.array([None])]
    bad += [] if infinite else [INF, -INF]
    bad += [] if none else [None]
    bad += [[NAN]] if several else [[], [1.0, 2.0], np.ones((2, 2))]
    bad += [low - 1.0] if low > -INF else []
    bad += [low] if above else []
    bad += [high + 1.0] if high < INF else []
    return bad


def integer(low=1, high=2**31, *, none=False):
    bad = ["3", b"3", 2.5, 3.0, NAN, INF, True, [3], [], {}, NOTHING, 3j, np.arange(2), HUGE]
    return [*bad, -HUGE, low - 1, *([] if none else [None])]


def key(*, none=False):
    bad = [0, 1.5, "key", [0, 1], (0, 1), {}, NOTHING, np.zeros(2), np.zeros(3, np.uint32), NAN]
    bad += [np.zeros((2, 2), np.uint32), np.zeros(2, np.int32), np.uint32(3), True]
    bad += [np.array(["a", "b"])]
    return [*bad, *([] if none else [None])]


def array(*wrong_shapes, integers=False, infinite=False, scalar=False, empty=False):
    bad = [None, "x", b"x", {}, [], RAGGED, NOTHING, TEXTS, np.array([[None, 1]]), abs, [None]]
    bad += [np.ones((2, 2), complex)]
    bad += [] if empty else [np.ones((0, 3))]
    bad += [] if scalar else [1.0, NAN]
    bad += [] if integers else [np.ones((2, 3), int), np.ones((2, 3), bool)]
    bad += [] if infinite else [np.full((2, 3), NAN), np.full((2, 3), INF)]
    return [*bad, *wrong_shapes]


ANYTHING = [None, "x", b"x", {}, RAGGED, NOTHING, TEXTS, np.array([[None, 1]]), abs, [None]]
FUNCTION = [3, "f", NAN, [], {}, np.ones(2), NOTHING, ()]
FLAG = [None, 2, "yes", "", NAN, [], [True], 0.5, {}, NOTHING, np.array([True, False])]
CHOICE = [None, 3, "other", "", [], ["a"], {}, NAN, NOTHING, np.ones(2), True, b"a"]
LAYER = [None, "dense", 3, NAN, [], (), {}, np.ones((2, 2)), abs, layers.Layer, NOTHING]
ACTIVATION = [None, 3, NAN, "rellu", "", [], {}, np.ones(2), NOTHING, jnp.sum, dict, b"relu"]
DTYPE = ["float33", "int32", int, 3, NAN, NOTHING, [], {}, jnp.int8, None, "a b", complex]
MAPPING = [3, "a", [1], NAN, {1: 2}, NOTHING, np.ones(2), ("a",)]
TEXT = [None, 3, b"a", [], NAN, {}, NOTHING]
SHAPE = [
    None,
    5,
    "ab",
    (2.0, 2),
    (2, 0),
    (2, -1),
    (HUGE, 2),
    ("a", 2),
    NAN,
    [[2, 2]],
    {},
    (2, True),
]
SHAPES = [jax.ShapeDtypeStruct((), jax.random.key(0).dtype)]
TREE = [None, (), {}, [], "x", {"a": "x"}, {"a": NOTHING}, [abs], NOTHING]


def no(*values):
    """Everything but `None` of some bad values."""
    return lambda bad: [value for value in bad if value is not None]


def square(x):
    return jnp.sum(x**2)


def positive(w, x):
    return jnp.mean((x @ w) ** 2)


@functools.cache
def cases() -> dict[str, Case]:
    """All rows by the name of the function."""
    rows = [*_layers(), *_propagation(), *_initializers(), *_theory(), *_regimes(), *_training()]
    rows += [*_data(), *_checking(), *_inspection(), *_others()]
    return {f"{row.function.__module__}.{row.function.__qualname__}": row for row in rows}


KEY = jax.random.PRNGKey(0)
X = np.ones((2, 3), np.float32)
NETWORK_SHAPES = {"first": {"kernel": (3, 4)}, "hidden": {"kernel": (1, 4, 4)}}


def _network():
    network = layers.mlp(4, 2, "tanh")
    drawn = jax.eval_shape(lambda: layers.init(network, (3,), key=KEY)[0])
    return network, jax.tree.map(lambda a: np.full(a.shape, 0.5, a.dtype), drawn)


def _weights():
    return {
        "features": integer(),
        "w_variance": number(0.0),
        "b_variance": number(0.0),
        "bias": FLAG,
        "kernel_init": FUNCTION,
        "parameterization": CHOICE,
    }


def _layers():
    network, params = _network()
    wrong = jax.tree.map(lambda a: a[..., :-1], params)
    trees = [*TREE, 3.0, np.ones(3), wrong, jax.tree.map(lambda a: "x", params)]
    x = array(np.ones((2, 4)), np.ones(3))
    yield Case(
        layers.activation,
        {"function": "tanh"},
        {"function": ACTIVATION},
        names={"function": "activation"},
    )
    yield Case(
        layers.apply,
        {"layer": network, "params": params, "state": None, "x": X},
        {"layer": LAYER, "params": trees, "x": x, "key": key(none=True)}
        | {"state": [3.0, "x", NOTHING, {"a": 1.0}, np.ones(3)]},
        names={"x": "params"},
    )
    variances = ("query_variance", "key_variance", "value_variance", "output_variance")
    mask = [3, "a", {}, [], X, np.ones((2, 3), bool), np.ones(2, bool), np.eye(2), NOTHING, abs]
    mask += [np.zeros((2, 2), bool), np.ones((2, 2), int), True, np.ones((0, 0), bool)]
    attending = {name: number(0.0) for name in variances} | {"logit_scale": number()}
    attending |= {"causal": FLAG, "mask": mask, "bias": FLAG, "heads": integer()}
    yield Case(
        layers.attention,
        {"heads": 2},
        attending
        | {"scale": CHOICE, "b_variance": number(0.0), "head_features": integer(none=True)}
        | {"kernel_init": FUNCTION},
    )
    yield Case(
        layers.batch_norm,
        {},
        {"epsilon": number(0.0), "spatial": integer(0), "momentum": number(0.0)},
    )
    yield Case(layers.beyond_window, {"log_size": jnp.zeros(())}, {"log_size": ANYTHING})
    summing = {"skip": number(0.0, True, none=True), "trained": FLAG, "per_feature": [*FLAG, True]}
    yield Case(
        layers.block,
        {"branch": layers.dense(3), "norm": layers.layer_norm()},
        {"branch": LAYER, "norm": LAYER, "placement": CHOICE, "scale": number()} | summing,
    )
    yield Case(
        layers.check_fit,
        {"layer": network, "params": params, "state": None, "x": jnp.asarray(X)},
        {"layer": LAYER, "params": trees, "x": [None, 3, "x", np.ones((2, 4))]},
        names={"x": "params|shape"},
    )
    yield Case(
        layers.check_is_layer,
        {"name": "layer", "value": network},
        {"value": LAYER},
        names={"value": "layer"},
    )
    yield Case(
        layers.convolution,
        {"features": 3},
        _weights() | {"kernel_size": [*SHAPE, (2, 3)], "padding": CHOICE},
    )
    yield Case(layers.dense, {"features": 3}, _weights())
    yield Case(
        layers.drop_units,
        {"x": jnp.asarray(X), "rate": 0.5, "key": KEY},
        {"x": ANYTHING, "rate": [*number(0.0), 1.0]} | {"key": key(none=True)},
    )
    yield Case(layers.dropout, {"rate": 0.5}, {"rate": [*number(0.0), 1.0]})
    yield Case(
        layers.embedding,
        {"vocabulary": 5, "features": 3},
        {"vocabulary": integer(), "features": integer(), "variance": number(0.0)},
    )
    gate = _weights() | {"activation": ACTIVATION, "gate_variance": number(0.0)}
    del gate["parameterization"]
    yield Case(layers.gated, {"features": 3}, gate)
    yield Case(
        layers.init,
        {"layer": network, "shape": (3,), "key": KEY},
        {"layer": LAYER, "shape": SHAPE, "key": key(), "dtype": DTYPE},
    )
    yield Case(
        layers.layer,
        {"cls": type("Empty", (layers.Layer,), {})},
        {"cls": [None, 3, "a", NAN, abs, NOTHING]},
    )
    yield Case(layers.layer_norm, {}, {"epsilon": number(0.0)})
    mlp = _weights()
    mlp["width"] = mlp.pop("features")
    yield Case(
        layers.mlp,
        {"width": 3, "depth": 2},
        mlp
        | {"depth": integer(), "activation": ACTIVATION, "out_features": integer(none=True)}
        | {"bias_init": FUNCTION},
    )
    yield Case(layers.positions, {}, {"kind": CHOICE, "variance": number(0.0)})
    yield Case(
        layers.repeat,
        {"block": layers.dense(3), "depth": 2},
        {"block": LAYER, "depth": integer(), "active": [*integer(0, none=True), 3]},
    )
    yield Case(
        layers.residual,
        {"branch": layers.dense(3)},
        {"branch": LAYER, "scale": number()} | summing,
    )
    yield Case(
        layers.residual_scale,
        {"name": "1/L", "branches": 4},
        {"name": CHOICE, "branches": integer(), "layers": integer(2)},
    )
    yield Case(layers.rms_norm, {}, {"epsilon": number(0.0)})
    yield Case(layers.sequential, {}, {"*": [(bad,) for bad in LAYER]}, names={"*": "layers"})
    yield Case(
        layers.transformer,
        {"depth": 2, "features": 4, "heads": 2},
        attending
        | {"depth": integer(), "features": integer(), "hidden": integer(none=True)}
        | {"placement": CHOICE, "norm": [bad for bad in LAYER if bad is not None]}
        | {"activation": ACTIVATION, "scale": number(), "attention_scale": CHOICE, "gate": FLAG}
        | {"hidden_variance": number(0.0), "last_variance": number(0.0)},
        names={"attention_scale": "scale"},
    )


def _propagation():
    network, params = _network()
    wrong = jax.tree.map(lambda a: a[..., :-1], params)
    trees = [*TREE, 3.0, np.ones(3), wrong, jax.tree.map(lambda a: "x", params)]
    good = {"layer": network, "params": params, "x": X}
    x = array(np.ones((2, 4)), np.ones(3))
    common = {"layer": LAYER, "params": trees, "x": x}
    names = {"x": "params"}
    depths = [3, "ab", (2, 1), (1, 1), (), (3,), (1.5,), (0,), NAN, {}, NOTHING, (HUGE,)]
    yield Case(
        propagation.exact,
        good | {"key": KEY},
        common
        | {"key": key(), "depths": depths, "loss": FUNCTION, "segments": integer()}
        | {"saturation": number(0.0)},
        names=names,
    )
    yield Case(
        propagation.isometry,
        {"log_singular_values": np.zeros(3)},
        {"log_singular_values": array(infinite=True)},
    )
    yield Case(
        propagation.lyapunov,
        good | {"key": KEY},
        common | {"key": key(), "count": [*integer(none=True), 5]},
        names=names,
    )
    yield Case(
        propagation.predict,
        {"layer": network, "inputs": theory.Moments(log_q=0.0)},
        {"layer": LAYER, "inputs": array(np.ones(3)), "pairs": FLAG},
        names={"pairs": "inputs"},
    )
    yield Case(
        propagation.probe,
        good | {"key": KEY},
        common
        | {"key": key(), "saturation": number(0.0)}
        | {"tangent": no()(array(np.ones((2, 3)), np.ones((3, 4))))},
        names=names,
    )
    yield Case(propagation.singular_values, good, common, names=names)


def _initializers():
    names = ("distribution", "groups", "strides", "transposed")
    strides = [None, 0, -1, 1.5, "2", NAN, (0,), ("a",), {}, NOTHING, True, HUGE]
    convolution = dict(zip(names, (CHOICE, integer(), strides, FLAG), strict=True))
    yield Case(initializers.constant, {"value": 1.0}, {"value": number()})
    yield Case(initializers.glorot, {}, convolution)
    yield Case(initializers.he, {}, convolution | {"mode": CHOICE, "negative_slope": number()})
    yield Case(initializers.lecun, {}, convolution)
    yield Case(initializers.normal, {"variance": 1.0}, {"variance": number(0.0)})
    yield Case(initializers.uniform, {"variance": 1.0}, {"variance": number(0.0)})
    yield Case(
        initializers.variance_scaling,
        {"scale": 1.0},
        convolution | {"scale": number(0.0), "mode": CHOICE},
    )
    yield Case(
        initializers.critical,
        {"activation": "tanh"},
        convolution
        | {"activation": ACTIVATION, "b_variance": number(0.0, none=True)}
        | {"q": number(0.0, above=True, none=True), "width": number(1.0, none=True)},
    )
    yield Case(initializers.delta_orthogonal, {}, {"gain": number()})
    yield Case(
        initializers.fans,
        {"shape": (3, 3, 4, 4)},
        {"shape": [*SHAPE, (3,)], "groups": [*integer(), 3], "transposed": FLAG}
        | {"strides": [*strides, (1,), (1, 2, 3)]},
    )
    yield Case(
        initializers.fixup,
        {"blocks": 3},
        {name: convolution[name] for name in names}
        | {"blocks": number(1.0)}
        | {"layers": integer(2)},
    )
    yield Case(initializers.orthogonal, {}, {"gain": number()})
    params = {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}
    yield Case(
        initializers.unit_variance,
        {"params": params, "outputs": lambda p: {"kernel": X @ p["kernel"], "bias": None}},
        {"params": TREE, "outputs": [None, *FUNCTION, lambda p: 3]}
        | {"stacked": [None, 3, "yes", NAN, {"a": True}, {"kernel": 3}, NOTHING, {"kernel": True}]}
        | {"tolerance": number(0.0, above=True), "iterations": integer()},
        names={"params": "outputs", "stacked": "outputs"},
    )
    drawn = {"key": KEY, "shape": (3, 4)}

    def draw(**arguments):
        return initializers.orthogonal()(**arguments)

    yield Case(
        draw,
        drawn,
        {"key": key(), "shape": [*SHAPE, (3,)], "dtype": DTYPE},
    )


def _theory():
    q, w, b = number(0.0, True, several=True), number(0.0, several=True), number(0.0, several=True)
    good = {"activation": "tanh", "q": 1.0, "w_variance": 1.0}
    bad = {"activation": ACTIVATION, "q": q, "w_variance": w, "b_variance": b}

    def case(function, *names, **more):
        kept = {name: good[name] for name in names if name in good}
        return Case(function, kept, {name: bad[name] for name in names} | more)

    yield case(theory.second_moment, "activation", "q")
    yield case(theory.slope_moment, "activation", "q")
    yield case(theory.q_map, "activation", "q", "w_variance", "b_variance")
    yield case(theory.chi_par, "activation", "q", "w_variance")
    yield case(theory.chi_perp, "activation", "q", "w_variance")
    row = case(
        theory.c_map,
        "activation",
        "q",
        "w_variance",
        "b_variance",
        gap=number(0.0, high=2.0, several=True),
    )
    yield row._replace(good=row.good | {"gap": 0.5})
    yield case(theory.correlation, "activation", "w_variance", "b_variance", "q")
    yield case(theory.limit, "activation", "w_variance", "b_variance", "q")
    yield case(theory.critical_line, "activation", "q")
    yield Case(
        theory.critical,
        {"activation": "tanh"},
        {"activation": ACTIVATION, "b_variance": number(0.0, none=True)},
    )
    yield Case(
        theory.fixed_points,
        {"activation": "tanh", "w_variance": 1.0},
        {"activation": ACTIVATION, "w_variance": number(0.0), "b_variance": number(0.0)},
    )
    yield Case(
        theory.tailored_relu,
        {"depth": 100},
        {"depth": [*integer(), 1], "target": number(0.0, True, 1.0)},
    )
    yield Case(
        theory.shaped,
        {"activation": "tanh", "depth": 100},
        {"activation": ACTIVATION, "depth": integer(), "slope": number(1.0, True, none=True)}
        | {"curvature": number(0.0, True, none=True)},
    )
    yield case(theory.unit_scales, "activation", "q")
    yield Case(
        theory.activate,
        {"moments": theory.Moments(0.0, gaussian=True), "activation": activations.get("tanh")},
        {"moments": [None, 3, "a", X, {}, NOTHING], "activation": ACTIVATION},
    )
    yield Case(theory.moments_of, {"x": X}, {"x": array(np.ones(3)), "gap": FLAG, "tokens": FLAG})
    yield Case(
        theory.softmax_moments,
        {"variance": 1.0, "tokens": 4},
        {"variance": number(0.0, high=100.0, several=True), "tokens": number(2.0, several=True)}
        | {"correlation": number(-1.0, high=1.0, several=True), "causal": FLAG}
        | {"mask": [3, "a", X, NOTHING, np.zeros((4, 4), bool), np.ones((3, 4), bool)]},
    )
    wrong = [None, 3, "a", X, {}, NOTHING]
    tokens = theory.Moments(0.0, tokens=theory.Tokens(4, 1.0))
    variance = number(0.0, several=True)
    names = ("query_variance", "key_variance", "value_variance", "output_variance", "b_variance")
    yield Case(
        theory.attend,
        {"moments": tokens},
        {"moments": [*wrong, theory.Moments(0.0)], "logit_gain": variance, "causal": FLAG}
        | {"mask": [3, "a", X, NOTHING, np.zeros((4, 4), bool), np.ones((3, 4), bool)]}
        | dict.fromkeys(names, variance)
        | {"head_features": integer(none=True)},
    )
    yield Case(
        theory.pull_back,
        {"predict": theory.attend, "moments": tokens},
        {"predict": FUNCTION, "moments": wrong, "cotangent": [3, "a", X, {}, NOTHING]},
    )
    yield Case(
        theory.rank_collapse,
        {"predict": theory.attend, "moments": tokens},
        {"predict": FUNCTION, "moments": wrong, "depth": integer()},
    )
    spectra, finite_width = theory.spectra, theory.finite_width
    yield Case(
        spectra.lyapunov_exponents,
        {"width": 3},
        {"width": integer(), "w_variance": number(0.0, True)},
    )
    yield Case(
        spectra.largest_eigenvalue,
        {"depth": 3},
        {"depth": number(1.0, several=True), "activation": ACTIVATION, "q": q, "weights": CHOICE},
    )
    yield Case(
        spectra.singular_value_spectrum,
        {"activation": "relu", "q": 1.0, "depth": 3},
        {"activation": ACTIVATION, "q": number(0.0, True), "depth": integer(), "weights": CHOICE},
    )
    yield Case(
        spectra.spectrum_variance,
        {"activation": "tanh", "q": 1.0, "depth": 3},
        {"activation": ACTIVATION, "q": number(0.0, True), "depth": number(0.0), "weights": CHOICE},
    )
    yield Case(
        finite_width.layer_law,
        {"activation": "tanh", "q": 1.0, "w_variance": 1.0, "width": 10},
        {"activation": ACTIVATION, "q": number(0.0, True), "w_variance": number(0.0)}
        | {"width": number(1.0)},
    )
    yield Case(
        finite_width.critical_w_variance,
        {"activation": "tanh", "q": 1.0, "width": 10},
        {"activation": ACTIVATION, "q": number(0.0, True), "width": number(1.0)},
    )
    yield Case(
        finite_width.alive_probability,
        {"width": 10, "depth": 10},
        {"width": number(1.0, several=True), "depth": number(0.0, several=True)},
    )
    yield Case(
        finite_width.gradient_law,
        {"activation": "tanh", "depth": 3, "w_variance": 1.0, "width": 10},
        {"activation": ACTIVATION, "depth": integer(), "w_variance": number(0.0)}
        | {"b_variance": number(0.0), "width": number(1.0), "input_square": number(0.0, True)},
    )
    yield Case(
        finite_width.fourth_moments,
        {"phi": activations.get("tanh"), "log_q": jnp.zeros(())},
        {"phi": ACTIVATION, "log_q": ["a", None, {}, NOTHING, []]},
        names={"phi": "activation"},
    )


def _regimes():
    ratios = np.zeros((3, 2), np.float32)
    arrays = array(np.zeros(3), np.zeros((3, 3)), np.zeros((1, 2)), infinite=True, integers=True)
    thresholds = [3, "a", {}, (2.0, 1.0), NOTHING]
    thresholds += [regimes.Thresholds(ratio=bad) for bad in number(1.0, above=True)]
    thresholds += [regimes.Thresholds(z=bad) for bad in number(0.0)]
    yield Case(
        regimes.classify,
        {"log_ratio": ratios, "depths": (1, 2)},
        {"log_ratio": arrays, "thresholds": thresholds}
        | {"depths": ["ab", 3, (1,), (1, NAN), None, {}, ("a", "b"), (1, 1j), NOTHING]},
        names={"log_ratio": "depths"},
    )
    errors = array(np.zeros(3), infinite=True, integers=True, scalar=True)
    yield Case(
        regimes.classify_mean,
        {"log_ratio": ratios, "log_ratio_se": ratios, "depths": (1, 2)},
        {"log_ratio": errors, "log_ratio_se": errors, "thresholds": thresholds}
        | {"depths": ["ab", (1, NAN), None, {}, 0, ("a", "b"), (1, 1j), NOTHING]},
        names={"log_ratio": "log_ratio_se"},
    )
    yield Case(
        regimes.mean_and_error,
        {"values": ratios},
        {"values": array(integers=True, infinite=True)},
    )
    yield Case(
        regimes.storage,
        {"log_mean_square": ratios},
        {"log_mean_square": ANYTHING, "dtype": DTYPE},
    )
    variances = ["ab", 3, (1,), (1, NAN), None, {}, (2, 2), (2, 1), (0, 1), ("a", "b"), NOTHING]
    yield Case(
        regimes.level,
        {"log_ratio": ratios, "variances": (1, 2)},
        {
            "log_ratio": arrays[:-1],
            "variances": [*variances, (1, INF), (1, 1j), (1, 2, 3)],
            "thresholds": [3, "a", {}, (2.0, 1.0), NOTHING],
        },
        names={"variances": "log_ratio"},
    )


def _training():
    data = {"x": np.ones((8, 3), np.float32), "y": np.ones(8, np.float32)}
    params = np.ones(3, np.float32)

    def loss(params, state, batch, key):
        return jnp.mean((batch["x"] @ params - batch["y"]) ** 2), state

    yield Case(
        training.largest_curvature,
        {"loss": lambda params: jnp.sum(params**2), "params": params, "key": KEY},
        {"loss": [None, *FUNCTION, lambda params: params], "params": [*TREE, np.ones(3, int)]}
        | {"key": key(), "steps": integer()},
    )
    yield Case(
        training.largest_learning_rate,
        {"loss": lambda params: jnp.sum(params**2), "params": params},
        {"loss": [None, *FUNCTION, lambda params: params], "params": [*TREE, np.ones(3, int)]}
        | {"descent_steps": integer(), "lanczos_steps": integer()},
    )
    yield Case(
        training.fit,
        {"loss": loss, "params": params, "optimizer": optax.sgd(0.1), "data": data, "key": KEY}
        | {"steps": 2, "batch_size": 4},
        {
            "loss": [None, *FUNCTION, lambda *args: 3.0, lambda *args: (jnp.ones(2), ())],
            "params": [*TREE, 3, np.ones(3, int), {"a": 1j}],
            "optimizer": [None, 3, "sgd", optax.sgd, {}, NOTHING, ()],
            "data": [*TREE, 3.0, {"x": np.ones((8, 3)), "y": np.ones(7)}, np.ones((0, 3))],
            "key": key(),
            "steps": integer(),
            "batch_size": [*integer(), 9],
            "every": [*integer(), 3],
            "evaluate": [*FUNCTION, lambda *args: 3.0, lambda *args: (jnp.ones(2), 0)],
            "patience": number(1.0, none=True),
            "monitor": FUNCTION,
        },
        names={"params": "loss"},
    )
    images = np.ones((2, 4, 4, 1), np.float32)
    arrays = array(np.ones((4, 4, 1)), np.ones((0, 4, 4, 1)), np.ones((2, 4, 4, 1), np.uint8))
    augmentation = training.augmentation

    def case(function, good=None, **more):
        named = {"images": arrays, "key": key()}
        return Case(function, {"images": images, "key": KEY} | (good or {}), named | more)

    yield case(augmentation.flip, probability=number(0.0, high=1.0), axis=CHOICE)
    yield case(augmentation.shift, {"pixels": 1}, pixels=integer(0), fill=number())
    yield case(augmentation.crop, {"shape": (2, 2)}, shape=[*SHAPE, (5, 2), (2,), (2, 2, 2)])
    yield case(augmentation.rotate, {"degrees": 10.0}, degrees=number(0.0), fill=number())
    yield case(augmentation.zoom, {"factor": 1.5}, factor=number(1.0), fill=number())
    yield case(augmentation.noise, {"std": 0.5}, std=number(0.0))
    yield Case(
        training.bias_variance.diagnose,
        {"train_error": 0.1, "dev_error": 0.2},
        {name: number(0.0, high=1.0) for name in ("train_error", "dev_error", "attainable_error")}
        | {"tolerance": number(0.0)}
        | {name: integer(none=True) for name in ("train_examples", "dev_examples")},
    )
    step = training.Step(params, (), None, KEY, params[0], params, params)
    weights = {"where": [None, 3, NAN, "nothing", "(", [], {}, NOTHING, b"a"]}
    tree = {"kernel": np.ones((2, 3), np.float32)}
    step = step._replace(params=tree, gradient=tree, updates=tree)
    stacked = {"stacked": [3, NAN, "(", [], {}, NOTHING, b"a", "nothing"]}
    yield Case(
        training.monitoring.layer_norms,
        {"step": step},
        weights | stacked | {"step": [None, 3, "a", {}, tree, NOTHING, step._replace(params=None)]},
        names={"step": "params"},
    )
    yield Case(
        training.monitoring.layer_names,
        {"params": tree},
        weights | stacked | {"params": TREE},
        names={"params": "where"},
    )
    z = np.ones((2, 3, 4), np.float32)
    yield Case(
        training.monitoring.units,
        {"z": z, "activation": "relu"},
        {"z": [*array(np.ones((3, 4)), infinite=True), [np.ones(3)], [np.ones((2, 0))], ["a"]]}
        | {"activation": ACTIVATION, "saturation": number(0.0)}
        | {"edges": [None, 3, "ab", (), (1, 1), (2, 1), (NAN,), ("a",), {}, NOTHING, (1j, 2)]},
    )
    result = training.Fit(tree, (), None, np.ones(4, np.float32), None, None, None)
    errors = [*array(integers=True, scalar=True, infinite=True)[:10], np.ones((2, 2))]
    yield Case(
        training.diagnosis.diagnose,
        {"fit": result},
        {
            "fit": [None, 3, "a", {}, X, NOTHING, result._replace(loss=None)]
            + [result._replace(loss=np.ones((2, 2))), result._replace(loss=TEXTS)],
            "norms": [3, "a", {}, X, NOTHING],
            "units": [3, "a", {}, X, NOTHING],
            "names": [3, NAN, NOTHING, ("a", 3), ("a", "a")],
            "inputs": [x for x in array(infinite=True, integers=True) if x is not None],
            "train_error": no()(errors),
            "dev_error": no()(errors),
        },
    )
    normalization, regularization = training.normalization, training.regularization
    yield Case(normalization.fit, {"x": X}, {"x": array(np.ones(3), np.ones((2, 2, 2)))})
    standardizer = normalization.Standardizer(np.zeros(3), np.ones(3))
    yield Case(
        normalization.apply,
        {"standardizer": standardizer, "x": X},
        {"standardizer": [None, 3, "a", {}, X, NOTHING]}
        | {"x": array(np.ones((2, 4)), integers=True, infinite=True, empty=True)},
    )
    penalty = {"params": TREE, "strength": number(0.0), "examples": number(0.0, True)} | weights
    yield Case(
        regularization.select,
        {"params": tree},
        {"params": TREE} | weights,
        names={"params": "where"},
    )
    for function in (regularization.l2, regularization.l1):
        yield Case(function, {"params": tree, "strength": 0.1}, penalty, names={"params": "where"})
    yield Case(regularization.early_stopping, {"params": tree}, {"params": TREE})
    state = regularization.EarlyStopping(tree, *map(jnp.asarray, (INF, -1, 0, 0, False)))
    yield Case(
        regularization.watch,
        {"state": state, "params": tree, "error": 0.5},
        {"state": [None, 3, "a", {}, tree, NOTHING], "params": [*TREE, {"kernel": np.ones(3)}]}
        | {"error": ["a", None, {}, [], np.ones(2), 1j, NOTHING, RAGGED]}
        | {"patience": number(1.0, none=True), "min_delta": number(0.0)},
    )


def _data():
    search, splits = training.search, training.splits
    yield Case(
        training.schedules.inverse_time,
        {"learning_rate": 0.1, "decay": 0.1},
        {"learning_rate": number(0.0, True), "decay": number(0.0)},
    )
    space = {"a": search.Range(0.0, 1.0, False)}
    spaces = [*MAPPING, None, {}, {"a": 3}, {"a": (0.0, 1.0)}, {"a": None}, {"a": "b"}]
    bounds = {"low": [*number(), 1.0, 2.0], "high": [*number(), 0.1, 0.0]}
    yield Case(search.uniform, {"low": 0.1, "high": 1.0}, bounds)
    yield Case(
        search.log_uniform, {"low": 0.1, "high": 1.0}, bounds | {"low": [*number(0.0, True), 1.0]}
    )
    yield Case(
        search.draw,
        {"space": space, "count": 3, "key": KEY},
        {"space": spaces, "count": integer(), "key": key()},
    )
    yield Case(
        search.grid,
        {"space": space, "counts": 3},
        {"space": spaces, "counts": [*integer(), {}, {"b": 3}, {"a": 0}, {"a": "b"}]},
    )
    keep = number(0.0, True, 1.0)
    yield Case(
        search.narrow,
        {"space": space, "points": {"a": jnp.ones(3)}, "scores": jnp.ones(3)},
        {"space": spaces, "points": [*MAPPING, None, {}, {"a": "b"}, {"a": TEXTS}, {"a": X}]}
        | {
            "scores": ["a", None, {}, [], 3, X, TEXTS, NOTHING, [1j, 2, 3], [NAN] * 3],
            "keep": keep,
        },
    )
    yield Case(
        search.search,
        {"f": lambda point: point["a"], "space": space, "key": KEY, "count": 3},
        {"f": [None, *FUNCTION, lambda point: 3 * X], "space": spaces, "key": key()}
        | {"count": integer(2), "rounds": integer(), "keep": keep},
    )
    yield Case(splits.fractions, {"examples": 10}, {"examples": integer(), "dev": FLAG})
    labels = np.array([0, 1] * 10)
    yield Case(
        splits.split,
        {"labels": labels, "fractions": (0.5, 0.5), "key": KEY},
        {"labels": ["a", None, {}, [], X, TEXTS, NOTHING, [0.5] * 9, [-1, 1] * 9, 0, -1, 2.5, True]}
        | {"fractions": [None, 3, "ab", (), (1.0,), (0.5, 0.6), (1.5, -0.5), (NAN, 1), {}, NOTHING]}
        | {"key": key(), "classes": [*integer(none=True), 1]},
        names={"labels": "classes"},
    )
    yield Case(
        splits.compare,
        {"first": X, "second": X, "key": KEY},
        {"first": array(X[:1], X[:, :2]), "second": array(X[:1], X[:, :2]), "key": key()}
        | {"permutations": integer()},
        names={"first": "second"},
    )
    ones = np.ones(3)
    comparison = splits.Comparison(ones, ones, ones[0], ones[0])
    yield Case(
        splits.same,
        {"comparison": comparison},
        {"comparison": [None, 3, "a", {}, X, NOTHING], "level": number(0.0, True, 1.0)},
    )


def _checking():
    argnums = ["0", None, 1, -2, HUGE, 0.5, NAN, (), (0, 0), ("a",), {}, NOTHING, True, [[0]]]
    bad_x = [
        None,
        "x",
        {},
        (),
        np.ones(2, int),
        np.array([NAN]),
        INF,
        np.ones((0, 2)),
        NOTHING,
        abs,
    ]
    bad = {
        "*": [*[(square, x) for x in bad_x], *[(f, X) for f in (None, *FUNCTION)]],
        "argnums": argnums,
        "has_aux": FLAG,
        "kwargs": MAPPING,
    }
    grads = bad | {
        "holomorphic": [*FLAG, True],
        "modes": [None, 3, "other", (), ("rev", "rev"), ("a",), NAN, {}, NOTHING, b"rev", (3,)],
        "order": integer(),
        "exhaustive": integer(0),
        "directions": integer(2),
        "rtol": number(0.0),
        "strict": FLAG,
        "key": key(none=True),
    }
    names = {"*": "f|args|argnums", "holomorphic": "args"}
    yield Case(checking.check_grads, {}, grads, (square, X), names)
    yield Case(
        testing.assert_grads,
        {},
        grads | {"label": TEXT},
        (square, X),
        names,
    )
    yield Case(
        checking.check_rules,
        {},
        {"*": [*[(f, X) for f in (None, *FUNCTION)]], "primitives": FLAG, "kwargs": MAPPING}
        | {"samples": integer(), "rtol": number(0.0), "key": key(none=True)}
        | {"select": [None, *FUNCTION]},
        (square, X),
        {"*": "f"},
    )
    yield Case(
        inspection.audit,
        {},
        {"*": [*[(f, X) for f in (None, *FUNCTION)]], "primitives": FLAG, "kwargs": MAPPING}
        | {"iterations": integer(), "rtol": number(0.0), "key": key(none=True)},
        (square, X),
        {"*": "f"},
    )
    yield Case(
        checking.check_terms,
        {},
        {"*": [*[(f, X) for f in (None, *FUNCTION)]], "rtol": number(0.0)},
        (lambda x: {"a": square(x), "b": jnp.sum(x)}, X),
        {"*": "f"},
    )
    batches = [(X,)] * 3
    yield Case(
        checking.check_along_training,
        {"loss": positive, "params": np.ones(3), "batches": batches, "steps": (0, 1)}
        | {"optimizer": optax.sgd(0.1)},
        {
            "loss": [None, *FUNCTION],
            "params": TREE,
            "batches": [None, 3, [], NAN, {}, NOTHING, [3], [None], "ab", [X]],
            "optimizer": [None, 3, "sgd", optax.sgd, {}, NOTHING],
            "steps": [None, 3, (), "ab", (-1,), (0.5,), NAN, {}, NOTHING, (True,), (HUGE,)],
            "has_aux": FLAG,
        },
        names={"params": "loss"},
    )
    domains = [None, "a", NOTHING, {}, np.ones(2, int), np.ones(2, complex), abs]
    yield Case(
        checking.check_domain,
        {},
        {"*": [*[(square, d) for d in domains], *[(f, X) for f in (None, *FUNCTION)]]}
        | {"argnums": no()(argnums), "has_aux": FLAG, "key": key(none=True)}
        | {"dtypes": [3, "float32", ("float33",), (int,), NAN, NOTHING, ()]}
        | {"points": integer(16), "judged": integer(), "operations": integer()}
        | {"lost": number(0.0, True)},
        (square, checking.interval(0.0, 1.0)),
        {"*": "f|domains"},
    )
    yield Case(
        checking.arguments,
        {},
        {"*": [(), *[(d,) for d in domains]]},
        names={"*": "domains"},
        args=(jax.ShapeDtypeStruct((), np.float32),),
    )
    yield Case(
        checking.check_expectation,
        {"key": KEY},
        {"*": [*[(f, X) for f in (None, *FUNCTION)]], "argnums": argnums, "has_aux": FLAG}
        | {"key": key(), "samples": integer(512), "grad": FUNCTION, "strict": FLAG}
        | {"alpha": number(0.0, True, 0.5), "resolution": number(0.0, True), "kwargs": MAPPING},
        (lambda key, x: square(x), X),
        {"*": "f"},
    )
    yield Case(
        testing.assert_expectation,
        {"key": KEY},
        {"*": [*[(f, X) for f in (None, *FUNCTION)]], "label": TEXT}
        | {"key": key(), "samples": integer(512)},
        (lambda key, x: square(x), X),
        {"*": "f"},
    )
    yield Case(
        testing.check_grads,
        {"f": square, "args": (X,), "order": 1},
        {"f": [None, *FUNCTION], "order": integer(), "use_rtol": FLAG}
        | {"rtol": [x for x in number(0.0, none=True) if not isinstance(x, dict)]}
        | {"modes": [None, 3, "other", (), ("a",), NAN, NOTHING, b"rev"]},
        names={},
    )
    yield Case(
        checking.interval,
        {},
        {"low": number(infinite=True), "high": number(infinite=True)}
        | {"shape": [shape for shape in SHAPE if not isinstance(shape, dict)], "dtype": DTYPE},
    )
    yield Case(
        checking.reference,
        {},
        bad
        | {"holomorphic": [*FLAG, True], "digits": integer(), "rtol": number(0.0)}
        | {"operations": integer()},
        (square, X),
        {"*": "f|args|argnums", "holomorphic": "args"},
    )
    scalars = [None, *FUNCTION, lambda x: x, lambda x: None]
    trees = [*TREE, 3, np.ones(3, int), {"a": 1j}, True]
    fd = finite_differences
    yield Case(
        fd.derivative,
        {"f": square, "x": X},
        {"f": scalars, "x": trees}
        | {"direction": [3, "a", {}, np.zeros((2, 3)), np.full((2, 3), NAN), NOTHING, np.ones(2)]},
        names={"x": "args"},
    )
    yield Case(fd.gradient, {"f": square, "x": X}, {"f": scalars, "x": trees}, names={"x": "args"})
    for function in (fd.central_difference, fd.complex_step):
        yield Case(
            function,
            {"f": square, "x": X},
            {"f": scalars, "x": trees, "eps": number(0.0, True)},
        )
    yield Case(
        fd.one_sided_difference,
        {"f": square, "x": X},
        {"f": scalars, "x": trees, "eps": [*number(), 0.0]},
    )
    like = [None, 3, "a", {}, NOTHING, np.ones(2)]
    yield Case(
        fd.taylor_remainder,
        {"f": square, "x": X, "gradient": 2 * X, "direction": X},
        {"f": scalars, "x": trees, "gradient": like, "direction": like}
        | {"steps": [None, 3, "ab", (), (0.0,), (-1.0,), (NAN,), ("a",), {}, NOTHING, (1j,), X]},
    )
    yield Case(
        fd.relative_error,
        {"numeric": X, "autodiff": X},
        {"numeric": [*TREE, np.ones(3), TEXTS], "autodiff": [*TREE, np.ones(3), TEXTS]},
        names={"numeric": "autodiff"},
    )
    yield Case(
        fd.tier,
        {"error": 0.1},
        {"text": CHOICE, "error": ["a", None, {}, [], np.ones(2), NOTHING, 1j, True]},
    )


@functools.cache
def trace():
    """An x-ray of a small model."""
    return jaxgrad.xray(positive, np.ones(3, np.float32), X, rules=False)


def _inspection():
    bad = {
        "*": [(positive,), (positive, np.ones(3, int), X), (positive, None, X)]
        + [(f, X) for f in (None, *FUNCTION, lambda x: x)],
        "argnums": ["0", None, 2, -1, HUGE, 0.5, NAN, (), (0, 1), {}, NOTHING, True],
        "has_aux": FLAG,
    }
    names = {"*": "loss|args|argnums"}
    args = (positive, np.ones(3, np.float32), X)
    yield Case(inspection.xray, {"rules": False}, bad | {"rules": FLAG}, args, names)
    yield Case(inspection.explain_non_finite, {}, bad, args, names)
    yield Case(
        inspection.instrument,
        {"loss": positive},
        {"loss": [None, *FUNCTION], "has_aux": FLAG}
        | {"argnums": ["0", None, -1, 0.5, NAN, (), {}, NOTHING, True]},
    )
    traces = [None, 3, "a", {}, X, NOTHING, [], jaxgrad]
    yield Case(
        inspection.measure_blocks,
        {"loss": positive, "blocks": 2},
        {"loss": [None, *FUNCTION], "blocks": integer(2), "has_aux": FLAG}
        | {"argnums": ["0", None, -1, 0.5, NAN, (), {}, NOTHING, True]},
    )
    yield Case(
        inspection.prescribe,
        {"trace": trace()},
        {"trace": traces, "total": number(0.0, True, none=True)},
    )

    def make(width, depth, key):
        w = jax.random.normal(key, (width, width)) / width**0.5
        return w, lambda w, x: jnp.mean((x @ w - 1) ** 2), np.ones((2, width), np.float32)

    sizes = [None, 3, "ab", (3,), (), (3, 3), (0, 3), (2.5, 3), ("a", "b"), NAN, {}, NOTHING]
    yield Case(
        inspection.coordinate_check,
        {"make": make, "widths": (2, 4), "optimizer": optax.sgd(0.1), "key": KEY},
        {
            "make": [None, *FUNCTION, lambda *args: 3, lambda *args: (X, 3, X)],
            "widths": sizes,
            "depths": [size for size in sizes if size != (3,)],
            "optimizer": [None, 3, "sgd", {}, NOTHING, lambda *args: 3],
            "key": key(),
            "steps": integer(),
            "seeds": integer(3),
        },
        names={"make": "make|loss"},
    )
    yield Case(plotting.xray, {"trace": trace()}, {"trace": traces, "title": TEXT})


def _others():
    yield Case(activations.leaky_relu, {}, {"slope": number()})
    yield Case(activations.parametric_relu, {}, {"slope": number()})
    yield Case(activations.elu, {}, {"alpha": number()})
    yield Case(
        activations.randomized_leaky_relu,
        {},
        {"lower": [*number(), 0.5], "upper": [*number(), 0.1]},
        names={"lower": "upper"},
    )
    yield Case(activations.get, {"activation": "tanh"}, {"activation": ACTIVATION})
    yield Case(
        sweeps.cell_key,
        {"point": {"a": 1}, "key": jax.random.key(0)},
        {
            "point": [None, 3, "a", [], {1: 2}, {"a": None}, {"a": {}}, {"a": NOTHING}, {"a": 1j}]
            + [{"a": v} for v in ([1], NAN, -HUGE, X, b"x", "\ud800", "a\0", jax.random.key(0))]
        }
        | {"key": key()},
    )
    places = [3, 1.5, [], {}, b"a", "", "a\0", True, X, (), NOTHING, abs, "a://b", "s3://"]
    places += ["~no_such_user/x", "x" * 5000, xr.Dataset()]
    yield Case(sweeps.open_store, {}, {"path": [None, "/nowhere", ".", "file:", *places]})

    def cell(key, point):
        return {"y": point["a"] * 2.0}

    axes = [None, 3, "a", [], {1: [2]}, {"a": 3}, {"a": []}, {"a": [1, 1]}, {"a": ["b", 1]}]
    axes += [{"a": [NAN]}, {"a": [None]}, {"a": [1j]}, {"a": X}, {"a": [HUGE]}]
    axes += [{"a": v} for v in (b"ab", np.array(3.0), ["a\0"], ["\ud800"], [KEY], [[1]])]
    axes += [{"a": [jax.random.key(0)]}, {"a": np.ma.masked_array([1, 2], [True, False])}, {}]
    axes += [{"a": [1], "a b": [1]}, {"a": [1], "computed": [1]}, {"a": [1], "y": [1]}]
    mappings = [3, "a", [1], NAN, {1: 2}, NOTHING, ("a",), X, np.ones(2), 0, "", (), False]
    outputs = ["a", None, NOTHING, HUGE, TEXTS, np.array([None]), np.ones(1, np.longdouble), [1.0]]
    outputs += [jax.random.key(0), jnp.ones(1, jnp.bfloat16), np.ones(1, "M8[s]")]
    leaves = ["a", b"a", NOTHING, abs, HUGE, 2**40, TEXTS, np.array([None]), object, slice(2)]
    leaves += [[1, "a"], {"a": NOTHING}, {"a": 1, 2: 3}, jax.ShapeDtypeStruct((2,), np.float32)]
    leaves += [np.longdouble(1), np.datetime64("2020"), np.void(b"ab")]
    nested: list[Any] = []
    nested.append(nested)
    yield Case(
        sweeps.run,
        {"function": cell, "axes": {"a": [1, 2]}, "variables": {"y": sweeps.Variable()}}
        | {"key": jax.random.key(0)},
        {
            "function": [None, *FUNCTION, lambda key, point: 3, lambda key, point: {}]
            + [lambda key: {}, lambda: {}, lambda key, point, arg: {}, lambda key, point, *, a: {}]
            + [lambda key, point, out=out: {"y": out} for out in outputs],
            "axes": axes,
            "variables": [*mappings, None, {"y": 3}, {"y": None}, {"z": sweeps.Variable()}, {}]
            + [{"y": sweeps.Variable(*v)} for v in ("k", [3], [("k l",)], [(), 3], [(), "1", None])]
            + [{"y": sweeps.Variable}, {1: sweeps.Variable()}, {"": sweeps.Variable()}],
            "key": [
                *key(),
                KEY,
                jax.random.split(jax.random.key(0)),
                jax.random.key(0, impl="rbg"),
                *SHAPES,
            ],
            "args": [3, "a", None, {}, NOTHING, X, iter([1]), *((leaf,) for leaf in leaves)],
            "coords": [*mappings, {"a": 3}, {"b": [1, 1]}],
            "units": [*mappings, {"b": "m"}, *({"a": v} for v in (3, None, b"m", ["m"], NOTHING))],
            "config": [3, "a", {"a": NOTHING}, {1: 2}, {"a": X}, NOTHING, {"a": NAN}, {"a": {1}}]
            + [{"a": b"x"}, {"a": {(1, 2): 3}}, {"a": 1j}, {"a": {1: 2, "1": 3}}, {"a": nested}],
            "store": places,
            "repair": FLAG,
            "other_versions": FLAG,
            "vectorized": FLAG,
            "chunk_cells": integer(none=True),
            "memory_limit": integer(),
            "static": [3, None, NAN, "b", ("b",), NOTHING, (3,), ("a", "a"), b"a", [["a"]]],
            "devices": [3, "a", (), [3], [None], NOTHING, NAN, {}, jax.devices()[0]]
            + [jax.devices()[:1] * 2, True],
            "progress": FUNCTION,
            "on_forecast": FUNCTION,
            "client": [3, "tcp://localhost:8786", [], NOTHING, True],
        },
        names={"function": "function|y"},
    )
    grid = [("seed", [0, 1]), ("w_variance", [1.0, 2.0])]
    relu, ones = [("activation", ["relu"]), *grid], np.ones((1, 2, 2, 2))
    depths = xr.Dataset(
        {
            "log_ratio": xr.DataArray(ones, [*relu, ("depth", [1, 2])]),
            "log_profile": xr.DataArray(ones, [*relu, ("layer", [1, 2])]),
        }
    )
    datasets = [3, "a", {}, X, NOTHING, [], jaxgrad, xr.Dataset(), xr.Dataset({"a": 1.0})]
    yield Case(
        plotting.depth_map,
        {"dataset": depths},
        {"dataset": [None, *datasets], "theory": datasets}
        | {"thresholds": [3, "a", {}, (2.0, 1.0), NOTHING]}
        | {"axis": [*TEXT, "a"], "label": TEXT, "quantity": TEXT, "block": TEXT},
        names={"axis": "dataset"},
    )
    growth = xr.DataArray(ones[0], [*grid, ("b_variance", [0.0, 1.0])])
    growth, limits = xr.Dataset({"growth": growth}), growth.isel(seed=0, drop=True)
    limits = xr.Dataset({"q": limits, "chi_perp": limits})
    limits = limits.assign_attrs(activation="tanh", critical=(1.0, 0.0))
    yield Case(
        plotting.phase_diagram,
        {"measured": growth, "theory": limits},
        {"measured": [None, *datasets], "theory": [None, *datasets], "title": TEXT},
    )
