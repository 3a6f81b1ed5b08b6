"""Layer norm and batch norm, and the parts of which they are made."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _validate
from jaxgrad._numerics import in_float64, weighted_log_sum_exp
from jaxgrad.layers._convolution import exp_scaled
from jaxgrad.layers._layer import Layer, layer, number, static
from jaxgrad.layers._log_space import Scaled, linearize


class Statistics(NamedTuple):
    """Mean and variance of a signal, of shapes that broadcast to it."""

    mean: Any
    variance: Any


def statistics(h: Float[Array, "..."], axes: Sequence[int]) -> Statistics:
    """Return mean and variance (divided by the number of values) over axes, which stay, of size 1.

    Over the batch and any spatial axes they are those of batch norm, over the features those of
    layer norm.
    """
    mean = jnp.mean(h, axis=tuple(axes), keepdims=True)
    return Statistics(mean, jnp.mean(jnp.square(h - mean), axis=tuple(axes), keepdims=True))


def normalize(
    h: Float[Array, "*shape"], statistics: Statistics, epsilon: Any = 0.0
) -> Float[Array, "*shape"]:
    """Return `(h - mean) / sqrt(variance + epsilon)`, and 0 where that root is 0.

    Source: Ioffe, Szegedy (2015), algorithm 1; Ba, Kiros, Hinton (2016), eq. 4.
    """
    centred = h - jnp.broadcast_to(statistics.mean, h.shape)
    variance = statistics.variance + epsilon
    varies = variance != 0  # true of NaN, which must not become 0
    # Masked before the root too: the branch that is not taken still has a derivative.
    inverse = jax.lax.rsqrt(jnp.where(varies, variance, 1.0)).astype(h.dtype)
    inverse, varies = (jnp.broadcast_to(part, h.shape) for part in (inverse, varies))
    return jnp.where(varies, centred * inverse, 0.0)


def update(running: Statistics, batch: Statistics, momentum: Any) -> Statistics:
    """Return `momentum running + (1 - momentum) batch`, in the shapes of `running`.

    The momentum is from 0 to 1 and may be traced; 1 leaves `running` as it is. The variance of the
    batch is divided by the number of values, as in flax and Keras; PyTorch and Ioffe, Szegedy
    (2015) divide by one less.
    """

    def mixed(old, new):
        return momentum * old + (1 - momentum) * jnp.reshape(new, old.shape).astype(old.dtype)

    return jax.tree.map(mixed, running, batch)


@layer
class Normalization(Layer):
    """What both norms share: a scale and a shift of each feature, and an epsilon."""

    epsilon: Any

    def draw(self, shape, *, key, dtype):
        return {"scale": jnp.ones(shape[-1:], dtype), "shift": jnp.zeros(shape[-1:], dtype)}, shape

    def linearize(self, params, h, *, key=None):
        # The outputs are those of h exp(-s) with epsilon exp(-2 s) in the place of epsilon.
        h = h.shared() if self.mixes else h
        # A small signal is not enlarged if there is an epsilon, which would overflow.
        shift = jnp.where(self.epsilon > 0, jnp.maximum(h.log_scale, 0.0), h.log_scale)
        epsilon = self.epsilon * jnp.exp(-2 * jnp.maximum(shift, 0.0))
        shape = (-1, *(1,) * (h.value.ndim - 1))
        epsilon = jnp.max(epsilon) if self.mixes else epsilon.reshape(shape)
        relative = Scaled(h.relative_to(shift), jnp.zeros_like(shift))
        layer = dataclasses.replace(self, epsilon=epsilon)
        out, derivative = linearize(layer, params, relative, key=key)
        return out, derivative.times(-shift)

    def _outputs(self, params, h, statistics):
        h = normalize(h, statistics, self.epsilon)
        scale, shift = (jnp.broadcast_to(params[name], h.shape) for name in ("scale", "shift"))
        return h * scale + shift

    def _divide(self, moments, log_variance):
        """Divide centred moments by a standard deviation."""
        log_divisor = weighted_log_sum_exp((1.0, self.epsilon), (log_variance, 0.0))
        log_q = moments.log_q - log_divisor
        log_gradient = moments.log_gradient - log_divisor
        mean = jnp.zeros_like(log_q)
        return dataclasses.replace(moments, log_q=log_q, log_gradient=log_gradient, mean=mean)


@layer
class LayerNorm(Normalization):
    """Normalization over the last axis; see `layer_norm`."""

    def apply(self, params, state, h, *, key=None):
        return self._outputs(params, h, statistics(h, (-1,))), state

    @in_float64
    def predict(self, moments):
        # Over many units the variance of an example is its expectation, q (1 - mean^2).
        varies = 1 - jnp.square(moments.mean)
        log_q = moments.log_q + jnp.log(varies)
        gap = None if moments.gap is None else moments.gap / varies
        tokens = moments.tokens
        if tokens is not None:
            tokens = dataclasses.replace(tokens, gap=tokens.gap / varies, normalized=True)
        centred = dataclasses.replace(moments, log_q=log_q, gap=gap, tokens=tokens)
        return self._divide(centred, log_q)


def layer_norm(epsilon: Any = 0.0) -> LayerNorm:
    """Make a layer that subtracts the mean over the last axis and divides by the deviation.

    Its parameters are `{"scale": [features], "shift": [features]}`, at first ones and zeros.

    Args:
      epsilon: added to the variance, at least 0, may be traced. With 0 a constant example becomes
        zeros.

    Source: Ba, Kiros, Hinton (2016), eq. 4; the prediction by the law of large numbers.
    """
    _validate.scalar("epsilon", epsilon, minimum=0.0)
    return LayerNorm(number(epsilon))


@layer
class RmsNorm(Normalization):
    """Division by the root mean square over the last axis; see `rms_norm`."""

    def draw(self, shape, *, key, dtype):
        return {"scale": jnp.ones(shape[-1:], dtype)}, shape

    def apply(self, params, state, h, *, key=None):
        square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
        h = normalize(h, Statistics(jnp.zeros_like(square), square), self.epsilon)
        return h * jnp.broadcast_to(params["scale"], h.shape), state

    @in_float64
    def predict(self, moments):
        # What is divided by is the same for all units, so that mean and gap stay.
        tokens = moments.tokens
        if tokens is not None:
            tokens = dataclasses.replace(tokens, normalized=True)
        divided = self._divide(moments, moments.log_q)
        return dataclasses.replace(divided, mean=moments.mean, tokens=tokens)


def rms_norm(epsilon: Any = 0.0) -> RmsNorm:
    """Make a layer that divides by the root mean square over the last axis.

    Its parameters are `{"scale": [features]}`, at first ones.

    Args:
      epsilon: added to the mean square, at least 0, may be traced. With 0 zeros stay zeros.

    Source: Zhang, Sennrich (2019), eq. 4; the prediction by the law of large numbers.

    >>> from jaxgrad import layers
    >>> h, _ = layers.apply(rms_norm(), {"scale": jnp.ones(2)}, None, jnp.asarray([[1.0, 7.0]]))
    >>> [round(float(a), 4) for a in h[0]]
    [0.2, 1.4]
    """
    _validate.scalar("epsilon", epsilon, minimum=0.0)
    return RmsNorm(number(epsilon))


@layer
class BatchNorm(Normalization):
    """Normalization over the batch; see `batch_norm`."""

    momentum: Any
    spatial: int = static()

    mixes = True

    def draw(self, shape, *, key, dtype):
        if len(shape) != self.spatial + 1:
            raise ValueError(
                f"shape must have {self.spatial} spatial axes and features, got {tuple(shape)}; "
                f"pass spatial={len(shape) - 1} to batch_norm"
            )
        return super().draw(shape, key=key, dtype=dtype)

    def init_state(self, params):
        shape = params["scale"].shape
        return Statistics(jnp.zeros(shape), jnp.ones(shape))

    def apply(self, params, state, h, *, key=None):
        # In use: an example does not depend on the others.
        if state is not None and key is None:
            return self._outputs(params, h, state), state
        batch = statistics(h, range(self.spatial + 1))
        if state is not None:
            state = update(state, batch, self.momentum)
        return self._outputs(params, h, batch), state

    @in_float64
    def predict(self, moments):
        if moments.tokens is not None:
            raise ValueError(
                "moments must have no tokens for batch norm, which is predicted position by "
                "position; take them from moments_of(x, gap=True)"
            )
        if moments.gap is None:
            raise ValueError(
                "moments must have a gap for batch norm, which divides by how much examples "
                "differ, got None; pass for example gap=1.0, examples without correlation"
            )
        shape = np.broadcast_shapes(np.shape(moments.log_q), np.shape(moments.gap))
        # Moments without spatial axes are those of every position.
        axes = tuple(range(-self.spatial, 0)) if len(shape) >= self.spatial else ()
        log_q, gap = (jnp.broadcast_to(a, shape) for a in (moments.log_q, moments.gap))
        q, log_scale = exp_scaled(log_q, axes)
        # Over examples a unit has the variance q gap and the squared mean q (1 - gap). Of the mean,
        # what is subtracted is its average over positions.
        variance, square = q * gap, q * (1 - gap)
        centred = variance + (square - jnp.mean(square, axis=axes, keepdims=True))
        log_variance = jnp.log(jnp.mean(variance, axis=axes, keepdims=True)) + log_scale
        log_q, gap = jnp.log(centred) + log_scale, variance / centred
        moments = dataclasses.replace(moments, log_q=log_q, gap=gap)
        return self._divide(moments, log_variance)


def batch_norm(epsilon: Any = 0.0, *, spatial: int = 0, momentum: Any = 0.9) -> BatchNorm:
    """Make a layer that subtracts each unit's mean over the batch and divides by its deviation.

    Its parameters are `{"scale": [features], "shift": [features]}`, at first ones and zeros. Its
    state is the running mean and variance, `[features]` each.

    Batch norm makes the growth of gradients the same at all weight variances, but not level: at the
    start of training the squared gradients of deep ReLU networks grow by `pi / (pi - 1)` a layer,
    and the first steps mend that. `python -m experiments.norm_layers` measures both.

    The prediction needs moments with a gap, which tells how much examples differ. It is for a large
    batch; growth rates are off by order `1 / batch`. It assumes that all units have the same
    variance over the batch. That holds after a layer of weights. After an activation it holds only
    where the arguments have gap 1, as in a block that normalizes too and has no biases; elsewhere
    the growth may be off by 10 % a block. With spatial axes it assumes that the correlation of two
    examples does not depend on position.

    Args:
      epsilon: as of `layer_norm`.
      spatial: number of spatial axes, which are averaged like the batch.
      momentum: share of the running statistics that stays in an update, at least 0, may be traced.

    Source: Ioffe, Szegedy (2015); Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz (2019).
    """
    _validate.scalar("epsilon", epsilon, minimum=0.0)
    _validate.scalar("momentum", momentum, minimum=0.0)
    return BatchNorm(number(epsilon), number(momentum), _validate.integer("spatial", spatial, 0))
