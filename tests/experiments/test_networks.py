"""Maps of other networks than mlps, and of any model: measured as theory says, and resumed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import depth_variance
from experiments._kit import networks
from jaxgrad import layers, plotting
from tests.experiments.legible import legible

pytestmark = pytest.mark.slow


def options(network, **changes):
    size: dict[str, Any] = {"depth": 6, "width": 8, "w_variances": 5, "examples": 4, "seeds": 3}
    return depth_variance.Options(network=network, **size | changes)


def test_defaults_are_those_of_the_architecture():
    assert depth_variance.Options().width == 128
    assert depth_variance.Options(network="transformer").activations == ("gelu",)
    assert options("transformer", width=16, w_variance_max=2.0).w_variance_max == 2.0
    # A store of an mlp has the same identity as before there were other networks.
    assert "network" not in depth_variance.Options().identity()
    assert depth_variance.Options(network="conv").identity()["network"] == "conv"
    with pytest.raises(ValueError, match="b_variance is for mlp, got network=conv"):
        options("conv", b_variance=0.1).check()


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_growth_is_that_of_theory(kind):
    """The mean over seeds of the log, at a width that has an effect of 1 / width a block."""
    size: dict[str, Any] = {
        "depth": 8,
        "width": 24,
        "activations": ("relu",),
        "placements": ("pre", "post"),
    }
    variances, seeds = np.array([0.5, 1.0, 2.0]), 8
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 1))
    for network in networks.build(kind, **size):

        @jax.jit
        def one(key, network=network):
            return networks.measure(network, x, jnp.asarray(variances), key=key)["log_ratio"]

        keys = jax.random.split(jax.random.key(1), seeds)
        logs = np.array([one(key) for key in keys])[..., -1] / size["depth"]
        error = logs.std(axis=0, ddof=1) / np.sqrt(seeds)
        expected = networks.predict(network, variances, np.asarray(x))["log_ratio"]
        assert np.all(error < 0.05)
        difference = np.abs(logs.mean(axis=0) - expected[:, -1] / size["depth"])
        assert np.all(difference < 4 * error + 1 / size["width"])


def test_a_transformer_is_measured_by_its_token_differences():
    """One tangent for each example estimates the gradient that reverse mode computes exactly."""
    (network,) = networks.build("transformer", 3, 8, ("gelu",), ("post",))
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    keys = jax.random.split(jax.random.key(1), 400)
    key_stem, key_body, _ = jax.random.split(keys[0], 3)
    params, _ = layers.init(network.stem, x.shape[1:], key=key_stem)
    h, _ = layers.apply(network.stem, params, None, x)
    body = network.body(0.7)
    params, _ = layers.init(body, h.shape[1:], key=key_body)

    def outputs(h):
        out, _ = layers.apply(body, params, None, h[None])
        return out[0] - jnp.mean(out[0], axis=0, keepdims=True)

    def square(h):
        # The squared Frobenius norm of the Jacobian over that of the outputs' projection.
        return jnp.sum(jax.jacobian(outputs)(h) ** 2) / (h.size * 4 / 5)

    expected = np.mean(jax.vmap(square)(h))

    def ratio(key):
        tangent = jax.random.normal(key, h.shape)
        log_change, _ = networks.carry_forward(network, body, params, h, tangent)
        return jnp.exp(log_change[-1])

    values = np.asarray(jax.jit(jax.vmap(ratio))(keys)) / (4 / 5)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.05 * expected
    assert abs(values.mean() - expected) < 4 * error


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_token_differences_are_those_of_theory(placement):
    """Over eight blocks, at a width whose effect on the growth is about 1 / width a block."""
    size: dict[str, Any] = {"depth": 8, "width": 64, "activations": ("relu",)}
    (network,) = networks.build("transformer", placements=(placement,), **size)
    variances, x = np.array([0.3, 1.0]), jax.random.normal(jax.random.key(0), (4, 8, 8))

    @jax.jit
    def one(key):
        return networks.measure(network, x, jnp.asarray(variances), key=key)["log_ratio"]

    logs = np.array([one(key) for key in jax.random.split(jax.random.key(1), 12)])[..., -1] / 8
    error = logs.std(axis=0, ddof=1) / np.sqrt(len(logs))
    expected = networks.predict(network, variances, np.asarray(x))["log_ratio"][:, -1] / 8
    assert np.all(error < 0.05)
    assert np.all(np.abs(logs.mean(axis=0) - expected) < 4 * error + 3 / 64), (logs, expected)


def test_the_map_of_a_transformer_is_resumed_and_drawn(tmp_path):
    small = options("transformer", output=tmp_path / "map")
    table = networks.measure_map(small).load()
    assert table["log_ratio"].dims == ("activation", "seed", "w_variance", "depth")
    assert table["activation"].values.tolist() == ["pre-norm", "post-norm"]
    again = networks.measure_map(dataclasses.replace(small, ratio=3.0)).load()
    np.testing.assert_array_equal(again["log_profile"], table["log_profile"])
    # Norms after the sum let the differences of tokens shrink where weights are large.
    last = table["log_ratio"].isel(depth=-1, w_variance=-1).mean("seed").values
    assert last[1] < last[0] - 2
    predicted = networks.predict_map(small)
    # Where weights are small the blocks change little, at any width; the first norm takes away two
    # directions of few.
    expected, measured = (
        array.isel(w_variance=0).diff("depth")
        for array in (predicted["log_ratio"], table["log_ratio"])
    )
    np.testing.assert_allclose(measured.mean("seed"), expected, atol=0.03)
    assert np.all(predicted["log_ratio"].isel(depth=-1, w_variance=-1).values[1] < -2)
    words: dict[str, Any] = {"block": "block", "quantity": "gradient of token differences"}
    figure = legible(lambda: plotting.depth_map(table, theory=predicted, **words))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "theory, infinite width: the same lines" in texts
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert "theory" not in "".join(t.get_text() for t in legend.get_texts())
    assert figure.axes[0].get_xlabel() == "depth (number of blocks)"
    assert figure.axes[0].get_title() == "pre-norm"
    assert figure.axes[-1].get_xlabel().startswith("gradient of token differences, its norm at")


def test_theory_is_drawn_over_a_map(tmp_path):
    small = options("conv", output=tmp_path / "map")
    predicted = networks.predict_map(small)
    # ReLU's gradient grows by half the variance a layer, whatever the window.
    growth = predicted["log_ratio"].sel(activation="relu").diff("depth")
    expected = np.log(small.grid / 2)[:, None]
    np.testing.assert_allclose(growth, np.broadcast_to(expected, growth.shape), atol=1e-9)
    # So does its signal, whose mean square is 1 before the first block.
    signal = predicted["log_activation"].sel(activation="relu")
    np.testing.assert_allclose(signal, expected * signal["depth"].values, atol=1e-9)
    table = networks.measure_map(small).load()
    words = [
        t.get_text() for t in plotting.depth_map(table, theory=predicted).legends[0].get_texts()
    ]
    assert "theory, infinite width: the same lines" in words
    assert not any("depth scales" in word for word in words)


def test_reports_of_all_networks_are_published(tmp_path, capsys):
    for kind in ("conv", "resnet", "transformer"):
        depth_variance.run(options(kind, output=tmp_path / kind))
        assert (tmp_path / f"{kind}.png").is_file()
    text = capsys.readouterr().out
    for words in (
        "tanh, weight variance x fan-in",
        "post-norm",
        "growth per block is that of theory",
    ):
        assert words in text


def init(key, depth, factor):
    return factor * jax.random.normal(key, (depth, 4, 4))


def loss(params, batch):
    h, _ = jax.lax.scan(lambda h, w: (h @ w, None), batch, params)
    return jnp.sum(h)


def test_a_map_of_any_model_over_any_number(tmp_path):
    """A linear network, whose gradient is the same products whatever the number."""
    factors = [0.5, 1.0, 2.0]
    how: dict[str, Any] = {
        "depths": (2, 5),
        "values": factors,
        "axis": "factor",
        "seeds": 3,
        "name": "linear",
    }
    batch = jnp.ones((2, 4))
    table = depth_variance.measure_model(init, loss, batch, **how, store=tmp_path / "map.zarr")
    table = table.load()
    assert table["log_ratio"].dims == ("activation", "depth", "seed", "factor")
    # From the outputs of the first block on there are depth - 1 factors.
    ratio = table["log_ratio"].sel(activation="linear")
    change = (ratio - ratio.sel(factor=1.0)).values
    expected = 2 * (np.array([2, 5]) - 1)[:, None, None] * np.log(factors)[None, None]
    np.testing.assert_allclose(change, np.broadcast_to(expected, change.shape), atol=1e-4)
    profile = table["log_profile"].sel(activation="linear")
    np.testing.assert_allclose(
        profile.isel(layer=0) - profile.isel(layer=-1), ratio.sel(depth=5), atol=1e-4
    )
    figure = plotting.depth_map(table, axis="factor", label="factor of the weights", block="block")
    assert figure.axes[0].get_ylabel() == "factor of the weights"
    again = depth_variance.measure_model(init, loss, batch, **how, store=tmp_path / "map.zarr")
    np.testing.assert_array_equal(again["log_ratio"], table["log_ratio"])
