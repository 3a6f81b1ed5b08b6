"""The depth scale of rank collapse."""

import dataclasses

import numpy as np
import pytest

from jaxgrad import layers, propagation, theory
from jaxgrad.theory import Moments, Tokens


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_uniform_attention_with_a_skip(scale):
    # Deviations stay, the mean token grows by 1 + a^2.
    block = layers.residual(layers.attention(2, logit_scale=0.0), scale)
    x = theory.rank_collapse(block.predict, Moments(0.0, tokens=Tokens(8, 1.0)))
    np.testing.assert_allclose(x, 1 / np.log(1 + scale**2), rtol=1e-5)


@pytest.mark.slow
def test_it_is_the_rate_at_which_tokens_become_equal():
    network = layers.transformer(40, 64, 4, placement="post")
    moments = Moments(0.0, tokens=Tokens(16, 1.0))
    gaps = propagation.predict(network, moments).token_gap
    x = theory.rank_collapse(network.block.predict, moments)
    np.testing.assert_allclose(np.log(gaps[30] / gaps[29]), -1 / x, rtol=1e-3)


@pytest.mark.slow
def test_pre_norm_networks_collapse_ever_more_slowly():
    block = layers.transformer(1, 64, 4, placement="pre").block
    moments = Moments(0.0, tokens=Tokens(16, 1.0))
    scales = [theory.rank_collapse(block.predict, moments, depth=depth) for depth in (4, 8)]
    # The branch adds the same to a stream that grows in proportion to the depth.
    np.testing.assert_allclose(scales[1] / scales[0], 2, rtol=0.02)


def test_a_map_that_moves_tokens_apart_has_a_negative_scale():
    def predict(moments):
        return dataclasses.replace(
            moments, tokens=dataclasses.replace(moments.tokens, gap=2 * moments.tokens.gap)
        )

    x = theory.rank_collapse(predict, Moments(0.0, tokens=Tokens(4, 1.0)))
    np.testing.assert_allclose(x, -1 / np.log(2), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_changes_become_equal_at_a_steady_rate(activation):
    options = {f"{name}_variance": 2.0 for name in ("value", "output", "hidden", "last")}
    network = layers.transformer(60, 64, 4, placement="post", activation=activation, **options)
    (each,) = network.predict_each(Moments(0.0, tokens=Tokens(8, 0.8)))
    log_gap = np.log(each.tokens.change_gap)
    # Far below the rounding of 1 - c, which is at e^-36.
    assert log_gap[-1] < -25
    # Both gaps of a smooth activation fall at one rate, which leaves a factor of order the depth.
    np.testing.assert_allclose(log_gap[59] - log_gap[49], log_gap[49] - log_gap[39], rtol=3e-3)


def test_moments_without_tokens_are_refused():
    with pytest.raises(ValueError, match="moments must have tokens"):
        theory.rank_collapse(lambda moments: moments, Moments(0.0))
    with pytest.raises(ValueError, match="predict must return moments with tokens"):
        theory.rank_collapse(
            lambda moments: dataclasses.replace(moments, tokens=None),
            Moments(0.0, tokens=Tokens(4, 1.0)),
        )
