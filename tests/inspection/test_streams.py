"""What residual branches add to their stream, and when that is too much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.inspection import prescribe, xray
from jaxgrad.inspection._streams import streams

DEPTH, WIDTH, BATCH = 16, 32, 64
SIDES = ("plain", "pre", "post")


def norm(x, scale=1.0):
    return scale * x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def loss_of(side, factor=1.0, scanned=True):
    def block(x, w):
        up, down, scale = w
        y = norm(x, scale[None]) if side == "pre" else x
        branch = jnp.maximum(y @ up, 0) @ down
        x = x + (branch if factor == 1 else factor * branch)
        return norm(x, scale[None]) if side == "post" else x

    def loss(params, x):
        if scanned:
            x, _ = jax.lax.scan(lambda x, w: (block(x, w), None), x, params)
        else:
            for w in params:
                x = block(x, w)
        return jnp.mean(x[:, 0] ** 2 + x[:, 1])

    return loss


def draw(key, depth=DEPTH):
    """Weights of branches that are as large as what enters them, and scales."""
    keys = jax.random.split(key)
    up, down = (jax.random.normal(k, (depth, WIDTH, WIDTH)) * WIDTH**-0.5 for k in keys)
    return 2**0.5 * up, down, jnp.ones((depth, WIDTH))


@pytest.fixture
def params(key):
    return draw(key)


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (BATCH, WIDTH))


def by_hand(side, params, x, factor=1.0):
    """Logs of what each sum is larger than the stream before it."""
    logs = []
    for up, down, _ in zip(*params, strict=True):
        y = norm(x) if side == "pre" else x
        total = x + factor * (jnp.maximum(y @ up, 0) @ down)
        logs.append(jnp.log(jnp.mean(total**2) / jnp.mean(x**2)) / 2)
        x = norm(total) if side == "post" else total
    return np.array(logs)


@pytest.mark.parametrize("side", SIDES)
def test_dilution_is_that_of_a_network_taken_apart(side, params, x):
    trace = xray(loss_of(side, 0.5), params, x)
    (stream,) = streams(trace.sites, trace.problem)
    expected = by_hand(side, params, x, 0.5)
    # What enters the first block is not measured, nor what a normalization returns.
    exact = slice(1, None) if side != "post" else slice(0, 0)
    np.testing.assert_allclose(stream.dilution[exact], expected[exact], atol=1e-4)
    # A branch is independent of the stream but for the chance of a small width.
    np.testing.assert_allclose(stream.dilution, expected, atol=0.2)
    assert stream.dilution.sum() == pytest.approx(expected.sum(), rel=0.2)
    assert (stream.parameter, stream.branches) == ("[1]", 1)
    assert trace.sites[stream.site].operation == "add"
    assert stream.growth == pytest.approx(0.0 if side == "post" else expected[1:].sum(), abs=0.1)


@pytest.mark.slow
def test_unrolled_blocks_are_one_stream(params, x):
    depth = 5
    rows = [tuple(leaf[i] for leaf in params) for i in range(depth)]
    trace = xray(loss_of("plain", scanned=False), rows, x)
    (stream,) = streams(trace.sites, trace.problem)
    expected = by_hand("plain", [leaf[:depth] for leaf in params], x)
    np.testing.assert_allclose(stream.dilution[1:], expected[1:], atol=1e-4)
    assert stream.parameter == "[#][#]"


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_branches_are_accused_where_they_leave_little_of_the_stream(side, params, x):
    faults = [f for f in xray(loss_of(side), params, x).faults if f.kind == "branches"]
    # Pre-norm branches are a share of 1 / k of the stream of block k.
    if side == "pre":
        assert not faults
        return
    (fault,) = faults
    total = by_hand(side, params, x)[1:].sum()
    assert "each of 16 blocks adds, so that" in fault.text
    words = fault.text.split()
    diluted = float(words[words.index("diluted") + 1])
    assert np.log(diluted) == pytest.approx(total, rel=0.01 if side == "plain" else 0.2)
    assert ("the stream grows" in fault.text) == (side == "plain")
    assert "such as [1] of variance" in fault.text
    # The scale is that with which `prescribe` levels the stream.
    fix = prescribe(xray(loss_of(side), params, x), total=2**0.5)
    factor = float(np.ravel(fix.factors[1])[0])
    assert float(words[-1]) == pytest.approx(factor, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_small_branches_and_shallow_networks_are_not_accused(side, params, x):
    trace = xray(loss_of(side, DEPTH**-0.5), params, x)
    assert trace.summary == "nothing stands out"
    shallow = xray(loss_of(side), tuple(leaf[:4] for leaf in params), x)
    assert shallow.summary == "nothing stands out"


@pytest.mark.slow
def test_a_pre_norm_stream_that_starts_small_is_not_accused_at_any_depth(key, x):
    trace = xray(loss_of("pre"), draw(key, 400), 0.01 * x)
    (stream,) = streams(trace.sites, trace.problem)
    # It grows as the root of the number of blocks, which is more than 10 times.
    assert stream.growth > np.log(12)
    assert not [fault for fault in trace.faults if fault.kind == "branches"]


def test_branches_from_one_block_on(params, x):
    up, down, scale = params
    trace = xray(loss_of("plain"), (up, down.at[:6].multiply(0.1), scale), x)
    (fault,) = [f for f in trace.faults if f.kind == "branches"]
    assert "each of 16 blocks adds from block 6 on, so that" in fault.text
    variance = float(np.median(WIDTH * np.mean(np.square(down[6:]), axis=(1, 2))))
    assert f"of variance {variance:.3g} / fan-in" in fault.text


def test_branches_of_a_recurrence_are_no_blocks(params, x):
    def loss(params, x):
        up, down, _ = (leaf[0] for leaf in params)

        def step(h, x):
            return norm(h + jnp.maximum(h @ up, 0) @ down + x), None

        return jnp.mean(jax.lax.scan(step, x, jnp.stack(DEPTH * [x]))[0][:, 0])

    trace = xray(loss, params, x)
    assert streams(trace.sites, trace.problem) == []
    assert all(fault.kind != "branches" for fault in trace.faults)
