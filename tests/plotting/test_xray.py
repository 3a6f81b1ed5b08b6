"""The figure of an x-ray shows every operation and iteration once, at its size."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad
from jaxgrad import plotting


def test_points_are_the_sizes_and_axes_are_named(key):
    def loss(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["blocks"])
        return jnp.sum(x @ params["head"])

    params = {"blocks": jax.random.normal(key, (5, 4, 4)), "head": jnp.ones((4, 2))}
    trace = jaxgrad.xray(loss, params, jnp.ones((3, 4)))
    figure = plotting.xray(trace, "A network")
    signal, gradient = figure.axes
    for ax, name in ((signal, "forward"), (gradient, "backward")):
        # The last line of a panel is the faint one through all points.
        *lines, path = ax.lines
        for line, site in zip(lines, trace.sites, strict=True):
            expected = np.ravel(getattr(site, name).log_mean_square) / 2 / np.log(10)
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
        x = path.get_xdata()
        assert len(x) == 5 + 5 + 1
        assert np.all(np.diff(x) > 0)
    assert figure.get_suptitle() == "A network"
    assert signal.get_ylabel().startswith("signal: log10")
    labels = [text.get_text() for text in gradient.get_xticklabels()]
    assert labels == ["['blocks']", "tanh", "['head']"]


def test_values_that_are_not_finite_are_left_out():
    trace = jaxgrad.xray(lambda x: jnp.sum(jnp.log(x)), jnp.zeros(3))
    signal, _ = plotting.xray(trace).axes
    assert len(signal.lines[0].get_ydata()) == 0
