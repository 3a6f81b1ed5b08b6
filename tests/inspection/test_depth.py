"""Growth per block: its standard error, and from which block on it is what it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgrad.inspection import Statistics, xray
from jaxgrad.inspection._depth import _probability, _segments, growth, in_blocks, steady

WIDTH, DEPTH = 32, 12


class Series(NamedTuple):
    """A site in a scan, with logs of mean squares by block."""

    forward: Statistics
    backward: Statistics
    operation: str = "dot_general"
    scope: str = ""
    parameter: str = "['w']"
    line: str = "f.py:1"
    shape: tuple[int, ...] = ()
    scan: tuple[int, ...] = (0,)


def row_of(signal, gradient):
    parts = [
        Statistics(np.asarray(logs), *3 * [np.zeros(len(logs))]) for logs in (signal, gradient)
    ]
    (row,) = growth([Series(*parts)])
    return row


def walk(steps):
    return np.concatenate([[0.0], np.cumsum(steps)])


def test_the_standard_error_is_that_of_a_random_walk():
    generator = np.random.default_rng(0)
    rows = [row_of(*2 * [walk(generator.normal(0.2, 0.5, 15))]) for _ in range(2000)]
    whole = [row for row in rows if row.forward_range == (0, 15)]
    assert len(whole) > 1900
    logs = np.log([row.forward for row in whole])
    errors = np.array([row.forward_error / row.forward for row in whole])
    assert np.mean(errors**2) == pytest.approx(np.var(logs), rel=0.1)
    # Gradients go the other way.
    np.testing.assert_allclose(logs, -np.log([row.backward for row in whole]), atol=1e-12)
    assert np.mean(np.abs(logs - 0.1) < 2 * errors) == pytest.approx(0.94, abs=0.02)


@pytest.mark.parametrize("count", [5, 15, 47])
def test_a_change_that_is_none_is_seen_in_one_of_twenty_at_most(count):
    noise = np.random.default_rng(2).normal(size=(1000, count))
    share = np.mean([len(_segments(steps, 0)) > 1 for steps in noise])
    # Five standard errors of a share of 5 %.
    assert 0.01 < share < 0.05 + 5 * (0.05 * 0.95 / 1000) ** 0.5


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(0.0, 2), (-1.7, 13)], (2, 15)),
        ([(-1.7, 12), (0.0, 3)], (0, 12)),
        ([(0.0, 4), (2.0, 8), (0.0, 4)], (4, 12)),
        ([(0.0, 5), (2.0, 5), (1.0, 40)], (10, 50)),
        # A start of one block, as of a stream that begins small.
        ([(6.0, 1), (0.5, 12)], (1, 13)),
        ([(0.5, 15)], (0, 15)),
        # In all of them the size changes by less than a factor of 10.
        ([(0.0, 10), (0.4, 10), (0.0, 20)], (0, 40)),
        # Neither part is long enough to be one.
        ([(0.0, 1), (5.0, 2)], (0, 3)),
    ],
)
def test_changes_between_blocks_are_located(parts, expected):
    noise = 0.1 * np.random.default_rng(1).normal(size=sum(count for _, count in parts))
    steps = np.concatenate([np.full(count, step) for step, count in parts])
    assert steady(steps + noise) == expected
    row = row_of(walk(steps + noise), walk(noise))
    # The first change of a regime is that to its first block.
    blocks = (expected[0] + 1 if expected[0] else 0, expected[1])
    assert (row.forward_range, row.backward_range) == (blocks, (0, len(steps)))
    slope = np.polyfit(np.arange(len(steps) + 1), walk(steps + noise), 1)[0]
    if expected == (0, len(steps)):
        assert row.forward == pytest.approx(np.exp(slope / 2))
    else:
        mean = steps[slice(*expected)].mean()
        assert row.forward == pytest.approx(np.exp(mean / 2), abs=4 * row.forward_error)


@pytest.mark.parametrize(("freedom", "largest"), [(3, 1.6), (14, 1.05), (60, 1.01)])
def test_probabilities_are_those_of_students_t(freedom, largest):
    for chance in (0.1, 0.01, 1e-4):
        t = stats.t(freedom).isf(chance / 2)
        assert 0.99 < _probability(t * t, freedom) / chance < largest


def test_parts_of_the_blocks_in_words():
    parts = [(0, 9), (3, 9), (0, 7), (3, 7)]
    words = ["", " from block 3 on", " up to block 7", " in blocks 3 to 7"]
    assert [in_blocks(part, 10) for part in parts] == words


def weights_after(healthy, key):
    """Weights of He's variance in the first blocks, and a sixth of it in the others."""
    weights = jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5
    return weights.at[healthy:].multiply(6**-0.5)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [True, False])
def test_a_network_whose_first_blocks_are_healthy(key, scanned):
    def loss(weights, x):
        if scanned:
            x = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)[0]
        else:
            for w in weights:
                x = jax.nn.relu(x @ w)
        return jnp.mean(x**2)

    weights = weights_after(3, key)
    args = (weights if scanned else list(weights), jax.random.normal(key, (64, WIDTH)))
    trace = xray(loss, *args)
    (product,) = (row for row in trace.growth if row.parameter)
    assert product.forward_range == product.backward_range == (3, DEPTH - 1)
    assert product.forward == pytest.approx(6**-0.5, abs=0.04)
    assert "a block in 12 blocks from block 3 on, because" in trace.summary
    variance = float(np.median(WIDTH * np.mean(np.square(weights[3:]), axis=(1, 2))))
    assert f"has the variance {variance:.3g} / fan-in" in trace.summary
    healthy = xray(loss, weights_after(DEPTH, key), args[1]) if scanned else None
    assert healthy is None or healthy.summary == "nothing stands out"
