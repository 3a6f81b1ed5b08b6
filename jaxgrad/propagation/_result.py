"""The one result of measured and predicted propagation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _numerics, _validate
from jaxgrad.layers import Scaled, Units


class Propagation(NamedTuple):
    """What a signal and a gradient do, depth by depth.

    Arrays have shape `[depth]`, with one entry for each entry of the depth axis: a layer of an
    `mlp`, a copy of a `repeat`, the entries of the parts of a `sequential` one after another, and
    one entry for any other layer. A network of depth `l` is the first `l` entries. A field that is
    not known is NaN. Logs are natural; a log of a mean square is a mean over examples and units.

    The gradient of depth `l` is that of a loss of the outputs of entry `l`, by default of the
    random loss `sum(v * outputs)` with independent `v` of variance 1 over the number of outputs.
    The mean over `v` of its square is the squared Frobenius norm of a Jacobian per output, which
    is what `probe` estimates and `predict` predicts. For an `mlp` the gradient is taken with
    respect to the pre-activations of the first layer, for any other layer with respect to the
    input.

    Attributes:
      log_preactivation: log mean square of the arguments of the entry's activation, its last one if
        it has several; NaN without one.
      log_activation: log mean square of the entry's outputs.
      dead: share of the units of that activation that are saturated on every example.
      saturated: share of its (unit, example) pairs with a slope `|phi'(z)|` below `saturation`.
      log_gradient: log of the squared norm of the gradient, for the network of each depth.
      log_weight_gradient: the same with respect to the kernels of the first entry.
      log_last_gradient: for an `mlp` the same with respect to the pre-activations of the last
        layer; for any other layer that of the outputs, which is 0 for random losses.
      gap: `1 - c`, where `c` is the correlation of two examples: for an `mlp` of the
        pre-activations, for any other layer of the outputs. Predicted only.
      log_example_gradient: `log_gradient` before the mean over examples, `[depth, batch]`; from
        `probe` only, else `None`.
      depths: the `D` depths that have a loss; from `exact` only, else `None`.
      log_layer_gradient: log of the squared norm of the gradient with respect to the
        pre-activations of each layer or, for other layers than an `mlp`, the input of each entry,
        `[D, depth]`; NaN for entries beyond the depth of the loss. From `exact` only, else `None`.
      log_layer_weight_gradient: the same with respect to the kernels of each entry.
      token_gap: `1 - c`, where `c` is the correlation of two tokens of an example, of the outputs.
        Predicted only, where tokens are followed, else `None`.
    """

    log_preactivation: Any
    log_activation: Any
    dead: Any
    saturated: Any
    log_gradient: Any
    log_weight_gradient: Any
    log_last_gradient: Any
    gap: Any
    log_example_gradient: Any = None
    depths: Any = None
    log_layer_gradient: Any = None
    log_layer_weight_gradient: Any = None
    token_gap: Any = None

    @property
    def log_ratio(self) -> Any:
        """Log of the squared gradient at the first entry over that at the last, `[depth]`.

        It is NaN where both are zero, as with ReLU and `w_variance=0`.
        """
        return self.log_gradient - self.log_last_gradient

    def __sub__(self, other: Propagation) -> Propagation:
        """Subtract field by field, for example a prediction from a measurement.

        Leading axes are added where one side lacks them, so that a measurement `[seeds, depth]`
        can be compared with a prediction `[depth]`. Fields that are `None` on one side stay
        `None`; `depths` is that of the left side.
        """
        if not isinstance(other, Propagation):
            return NotImplemented
        # The depths say which losses the rows belong to; their difference would say nothing.
        pairs = zip(self, other, strict=True)
        differences = (None if a is None or b is None else _subtract(a, b) for a, b in pairs)
        return Propagation(*differences)._replace(depths=self.depths)


def unknown(like: Any) -> Propagation:
    """Return a result whose fields are NaN, in the shape and dtype of one of them."""
    return Propagation(*[jnp.full_like(like, jnp.nan)] * 8)


def signal_of(
    units: Units | None, log_square: Float[Array, " batch"], saturation: Any
) -> Propagation:
    """Describe the signal at one entry by its activation's units and its outputs' mean squares."""
    log_activation = _numerics.log_mean_exp(log_square)
    result = unknown(log_activation)._replace(log_activation=log_activation)
    if units is None:
        return result
    # |slope exp(log_scale)| < saturation, where the slope itself may underflow.
    bound = Scaled(jnp.full_like(units.slope.value, saturation), -units.slope.log_scale).plain()
    flat = jnp.abs(units.slope.value) < bound
    return result._replace(
        log_preactivation=_numerics.log_mean_exp(units.log_square),
        dead=jnp.mean(jnp.all(flat, axis=0)),
        saturated=jnp.mean(flat),
    )


def _subtract(a, b):
    # Leading axes are added explicitly, since users may forbid promotion of ranks.
    if _validate.is_traced(a) or _validate.is_traced(b):
        shape = np.broadcast_shapes(np.shape(a), np.shape(b))
        return jnp.broadcast_to(a, shape) - jnp.broadcast_to(b, shape)
    # NumPy keeps the float64 of a prediction; two dead networks differ by NaN.
    with np.errstate(invalid="ignore"):
        return np.asarray(a) - np.asarray(b)
