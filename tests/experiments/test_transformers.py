"""The map of trained transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from jax.flatten_util import ravel_pytree

from experiments.trainability import transformers
from jaxgrad import layers, training
from tests.experiments.legible import legible, message

SMALL = transformers.Options(
    depths=(1, 3), scale_min=0.1, scale_max=10.0, scales=3, rates=(0.1, 1e30), width=8, steps=40
)


def made(curvature, accuracy, rates=(0.1, 1.0), depths=(1, 2, 4), scales=(0.1, 1.0, 10.0)):
    """A map of given curvatures `[scale, depth]` and accuracies `[scale, depth, rate]`."""
    dims = ("placement", "seed", "scale", "depth", "rate")
    shape = (1, 2, len(scales), len(depths), len(rates))
    variables = {
        "accuracy": (dims, np.broadcast_to(accuracy, shape)),
        "curvature": (dims, np.broadcast_to(np.asarray(curvature)[..., None], shape)),
        "rise": (dims, np.ones(shape)),
    }
    coords = {"placement": ["pre"], "scale": list(scales), "depth": list(depths)}
    return xarray.Dataset(variables, coords | {"rate": list(rates)})


CURVATURE = np.outer([0.1, 1.0, 10.0, 100.0], [1.0, 1.5, 2.0])
SCALES = (0.1, 0.5, 2.0, 10.0)
PRODUCT = CURVATURE[..., None] * np.array([0.1, 1.0])
OPTIONS = dataclasses.replace(SMALL, placements=("pre",), depths=(1, 2, 4), rates=(0.1, 1.0))
OPTIONS = dataclasses.replace(OPTIONS, scales=4)


def test_the_border_is_fitted_to_half_of_the_scales_and_tested_on_the_others():
    accuracy = np.where(PRODUCT <= 12, 0.9, 0.1)
    maps = transformers.compare(made(CURVATURE, accuracy, scales=SCALES))
    # Of the fitted scales, products of 2 learn and 10 learns, and 15 and 20 do not.
    assert 2 < np.exp(maps.border) <= 20
    assert maps.right().all()
    # A cell of a scale that is not fitted changes the test, and not the border.
    accuracy[1, 0] = 0.1
    other = transformers.compare(made(CURVATURE, accuracy, scales=SCALES))
    assert other.border == maps.border
    assert other.right()[:, :, transformers.TESTED].mean() == 10 / 12
    report = transformers.report(other, OPTIONS)
    assert [claim.estimate.mean for claim in report.claims[:2]] == [10 / 12, 10 / 12]
    assert report.claims[0].estimate.mean < report.claims[0].expected < 0.9
    assert "pre-norm" in report.text()
    assert "83.3%" in report.text()


def test_a_border_of_nothing_but_successes_is_not_below_them():
    product = np.log([1.0, 2.0, 4.0])
    assert transformers.fit_border(product, np.array([True, True, False])) == np.log(8) / 2
    assert np.exp(transformers.fit_border(product, np.ones(3, bool))) > 2


def test_figure_names_what_it_shows():
    accuracy = np.where(PRODUCT <= 12, 0.9, 0.1)
    maps = transformers.compare(made(CURVATURE, accuracy, scales=SCALES))
    figure = legible(lambda: transformers.draw(maps, OPTIONS))
    assert "right for 100% of the cells" in message(figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == [f"pre-norm, learning rate {rate}: 100% right" for rate in ("0.1", "1")]


@pytest.mark.slow
def test_networks_are_trained_as_their_parts_say(tmp_path):
    dataset = transformers.measure(SMALL, store=tmp_path / "map.zarr")
    sizes = {"placement": 2, "depth": 2, "scale": 3, "rate": 2, "seed": 2}
    assert dataset["accuracy"].sizes == sizes
    learns, diverges = dataset.isel(rate=0), dataset.isel(rate=1)
    # Chance is 0.1; after 40 steps the best network is well above it.
    assert float(learns["accuracy"].max()) > 0.3
    assert float(diverges["accuracy"].max()) < 0.25
    # Curvature is that of initialization, also of networks that diverge.
    assert np.isfinite(diverges["curvature"].values).all()
    # A branch of a larger scale has a larger curvature in both kinds.
    curvature = learns["curvature"].mean(["seed", "depth"]).transpose("placement", "scale").values
    assert np.all(np.diff(curvature, axis=1)[:, 0] > 0)


@pytest.mark.slow
def test_curvature_equals_that_of_the_whole_hessian(x64):
    options = dataclasses.replace(SMALL, width=2, batch=4)
    layer = transformers.network(options, "post", 1, 1.0)
    data, _ = transformers.digits(options)
    x, labels = jnp.asarray(data.x[:8], float), data.labels[:8]
    params, _ = layers.init(layer, x.shape[1:], key=jax.random.key(0), dtype=float)
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        logits = transformers.classifier.logits(layer, unravel(flat), None, x)
        return transformers.classifier.cross_entropy(logits, labels)

    value = training.largest_curvature(loss, flat, key=jax.random.key(1), steps=40).value
    expected = np.linalg.eigvalsh(jax.hessian(loss)(flat))[-1]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_mean_token_and_bad_options():
    layer, x = transformers.MeanToken(), np.arange(12.0).reshape(1, 3, 4)
    out, _ = layers.apply(layer, {}, None, x)
    np.testing.assert_array_equal(out, [[4.0, 5.0, 6.0, 7.0]])
    with pytest.raises(ValueError, match="width must be a multiple of 2, got 3"):
        dataclasses.replace(SMALL, width=3).check()
    with pytest.raises(ValueError, match="scale_m"):
        dataclasses.replace(SMALL, scale_min=20.0).check()
