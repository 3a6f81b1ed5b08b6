"""Layers of weights: how they are drawn and scaled, and what they do to moments."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad import _validate, initializers
from jaxgrad._numerics import in_float64, rescale, weighted_log_sum_exp
from jaxgrad.layers._layer import Layer, layer, number, static
from jaxgrad.layers._log_space import Scaled, add, linearize
from jaxgrad.theory import Tokens

Parameterization = Literal["standard", "ntk"]

LARGE = 700.0
"""The exponential of this is still finite."""


@layer
class Weights(Layer):
    """What layers of weights share; see `dense` and `mlp` for the fields."""

    features: int = static()
    w_variance: Any
    b_variance: Any
    bias: bool = static()
    kernel_init: Any
    bias_init: Any
    parameterization: Parameterization = static()

    # The argument decides, not the size of the biases, which may be traced.
    homogeneous = property(lambda self: not self.bias)

    def draw_weights(self, keys, kernel_shape, dtype):
        """Draw `{"kernel": [*window, in, out], "bias": [out]}` from a key for each."""
        parts = [
            ("kernel", self.kernel_init or initializers.lecun(), kernel_shape, self.w_variance)
        ]
        if self.bias:
            init = self.bias_init or initializers.normal(1.0)
            parts.append(("bias", init, kernel_shape[-1:], self.b_variance))
        params = {}
        for key, (name, init, shape, variance) in zip(keys, parts, strict=False):
            value = init(key, shape, dtype)
            if value.shape != shape:
                raise ValueError(
                    f"{name}_init must return the shape it is asked for, {shape}, got "
                    f"{value.shape}; use an initializer of jaxgrad.initializers or "
                    "jax.nn.initializers"
                )
            params[name] = value if self._ntk else _scale(value, variance)
        return params

    def scale_and_shift(
        self, params: dict[str, Any], product: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Return the outputs from the product of the inputs and the kernel."""
        # With "ntk" the variances come after the product: under a vmap over variances the product
        # does not depend on them, so that one serves them all.
        if self._ntk:
            product = _scale(product, self.w_variance)
        if not self.bias:
            return product
        bias = _scale(params["bias"], self.b_variance) if self._ntk else params["bias"]
        return product + jnp.broadcast_to(bias, product.shape)

    @property
    def log_gains(self) -> tuple[Any, Any]:
        """Logs of the factors by which `apply` multiplies the product and the biases."""
        if not self._ntk:
            return 0.0, 0.0
        return 0.5 * jnp.log(self.w_variance), 0.5 * jnp.log(self.b_variance)

    def linearize(self, params, h, *, key=None):
        log_w, log_b = self.log_gains
        product = dataclasses.replace(self, bias=False, parameterization="standard")
        out, derivative = linearize(product, {"kernel": params["kernel"]}, h, key=key)
        out = out.times(log_w)
        if self.bias:
            # At its own scale, so that biases of zero leave a small signal as it is.
            bias, _, log_square = rescale(
                params["bias"][None].astype(h.value.dtype), together=False
            )
            log_bias = jnp.broadcast_to(log_b + log_square / 2, out.log_scale.shape)
            out = add(out, Scaled(jnp.broadcast_to(bias, out.value.shape), log_bias))
        return out, derivative.times(log_w)

    @in_float64
    def predict(self, moments):
        # From the moments of the values that a unit adds up: q' = w q + b.
        w, b = (jnp.asarray(variance, float) for variance in (self.w_variance, self.b_variance))
        log_q = weighted_log_sum_exp((w, b), (moments.log_q, 0.0))
        gap = moments.gap
        if gap is not None:
            # q' gap' = w q gap: biases are the same for all examples.
            gap = gap * w * jnp.exp(jnp.minimum(moments.log_q - log_q, LARGE))
        tokens = moments.tokens
        if tokens is not None:
            token_gap = tokens.gap * w * jnp.exp(jnp.minimum(moments.log_q - log_q, LARGE))
            width = None if tokens.width is None else self.features
            tokens = Tokens(tokens.count, token_gap, tokens.change_gap, width)
        return dataclasses.replace(
            moments,
            log_q=log_q,
            log_gradient=moments.log_gradient + jnp.log(w),
            mean=jnp.zeros_like(log_q),
            gap=gap,
            gaussian=True,
            fresh=True,
            tokens=tokens,
        )

    @property
    def _ntk(self):
        return self.parameterization == "ntk"


@layer
class Dense(Weights):
    """`h W + b` on the last axis; see `dense`."""

    def draw(self, shape, *, key, dtype):
        params = self.draw_weights(jax.random.split(key), (shape[-1], self.features), dtype)
        return params, (*shape[:-1], self.features)

    def apply(self, params, state, h, *, key=None):
        return self.scale_and_shift(params, h @ params["kernel"]), state


def dense(
    features: int,
    *,
    w_variance: Any = 1.0,
    b_variance: Any = 0.0,
    bias: bool = False,
    kernel_init: Callable[..., Any] | None = None,
    parameterization: Parameterization = "standard",
) -> Dense:
    """Make a layer `h W + b` that acts on the last axis.

    Its parameters are `{"kernel": [in, features], "bias": [features]}`.

    Args:
      features: number of outputs.
      w_variance: variance of the weights times `fan_in`, at least 0, may be traced.
      b_variance: variance of the biases, at least 0, may be traced.
      bias: whether there are biases.
      kernel_init: initializer of mean square `1 / fan_in`, whose variance is multiplied by
        `w_variance`; `None` for `initializers.lecun()`.
      parameterization: "standard" multiplies by the variances when the parameters are drawn. "ntk"
        draws with unit variances and multiplies the outputs, so that one draw serves all variances.
        The outputs are the same for the same key.

    Source: Poole et al. (2016), eq. 3 and 5, and Schoenholz et al. (2017), eq. 9, for the
    prediction; Jacot, Gabriel, Hongler (2018) for "ntk".
    """
    return Dense(**weights(features, w_variance, b_variance, bias, kernel_init, parameterization))


def weights(
    features, w_variance, b_variance, bias, kernel_init, parameterization, bias_init=None
) -> dict[str, Any]:
    """Return the checked fields of `Weights`."""
    # A variance in the place of `bias` would pass for true.
    if not isinstance(bias, bool):
        raise TypeError(
            f"bias must be True or False, got {_validate.show(bias)}; give its size as b_variance"
        )
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    is_zero = not _validate.is_traced(b_variance) and b_variance == 0
    if not bias and not (is_zero and bias_init is None):
        name = "bias_init" if is_zero else "b_variance"
        raise ValueError(f"{name} is for layers with biases, got bias=False; pass bias=True")
    if bias_init is not None and is_zero:
        raise ValueError(
            "b_variance must be above 0 with bias_init, whose variance it multiplies, got 0; pass "
            "b_variance=1.0 to leave the draws as they are"
        )
    _validate.choice("parameterization", parameterization, ("standard", "ntk"))
    return {
        "features": _validate.integer("features", features, 1),
        "w_variance": number(w_variance),
        "b_variance": number(b_variance),
        "bias": bias,
        "kernel_init": _as_pytree("kernel_init", kernel_init),
        "bias_init": _as_pytree("bias_init", bias_init),
        "parameterization": parameterization,
    }


def _as_pytree(name, initializer):
    if initializer is not None and not callable(initializer):
        raise TypeError(
            f"{name} must be a function of (key, shape, dtype), got {_validate.show(initializer)}; "
            "use one of "
            "jaxgrad.initializers or jax.nn.initializers"
        )
    # To JAX an object that is not registered as a pytree is itself a leaf; None is an empty tree.
    is_leaf = jax.tree_util.all_leaves([initializer])
    return jax.tree_util.Partial(initializer) if is_leaf else initializer


def _scale(a, variance):
    return a * jnp.sqrt(variance).astype(a.dtype)
