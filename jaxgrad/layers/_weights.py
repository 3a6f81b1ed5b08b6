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
from jaxgrad.layers._log_space import Derivative, Scaled, add, linearize
from jaxgrad.theory import Moments

Parameterization = Literal["standard", "ntk"]

LARGE = 700.0
"""The exponential of this is still finite."""


@layer
class _Function:
    """A plain function as an initializer that is a pytree without leaves."""

    function: Callable[..., Any] = static()

    def __call__(self, key, shape, dtype):
        return self.function(key, shape, dtype)


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

    @property
    def homogeneous(self) -> bool:
        # The argument decides, not the size of the biases, which may be traced.
        return not self.bias

    def draw_weights(self, keys, kernel_shape, dtype):
        """Draw `{"kernel": [*window, in, out], "bias": [out]}` from a key for each."""
        key_kernel, key_bias = keys
        init = initializers.lecun() if self.kernel_init is None else self.kernel_init
        draw = self._draw("kernel_init", init, key_kernel, kernel_shape, dtype)
        params = {"kernel": draw if self._ntk else _scale(draw, self.w_variance)}
        if self.bias:
            init = initializers.normal(1.0) if self.bias_init is None else self.bias_init
            draw = self._draw("bias_init", init, key_bias, kernel_shape[-1:], dtype)
            params["bias"] = draw if self._ntk else _scale(draw, self.b_variance)
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
        if self.parameterization == "standard":
            return 0.0, 0.0
        return 0.5 * jnp.log(self.w_variance), 0.5 * jnp.log(self.b_variance)

    def linearize(self, params, h, *, key=None):
        log_w, log_b = self.log_gains
        product = dataclasses.replace(self, bias=False, parameterization="standard")
        kernel = {"kernel": params["kernel"]}
        out, derivative = linearize(product, kernel, h, key=key)

        def pull(cotangent):
            # The kernel as it acts includes its gain, so that its gradient does not.
            cotangent, log_square = derivative.pull(cotangent)
            return cotangent.times(log_w), log_square

        out = out.times(log_w)
        if self.bias:
            # At its own scale, so that biases of zero leave a small signal as it is.
            bias, _, log_square = rescale(
                params["bias"][None].astype(h.value.dtype), together=False
            )
            bias = jnp.broadcast_to(bias, out.value.shape)
            log_bias = jnp.broadcast_to(log_b + log_square / 2, out.log_scale.shape)
            out = add(out, Scaled(bias, log_bias))
        return out, Derivative(lambda tangent: derivative.push(tangent).times(log_w), pull)

    @in_float64
    def weigh(self, moments: Moments) -> Moments:
        """Return the moments after the weights, from those of the values that a unit adds up."""
        w, b = (jnp.asarray(variance, float) for variance in (self.w_variance, self.b_variance))
        # q' = w q + b
        log_q = weighted_log_sum_exp((w, b), (moments.log_q, 0.0))
        gap = moments.gap
        if gap is not None:
            # q' gap' = w q gap: biases are the same for all examples.
            gap = gap * w * jnp.exp(jnp.minimum(moments.log_q - log_q, LARGE))
        return dataclasses.replace(
            moments,
            log_q=log_q,
            log_gradient=moments.log_gradient + jnp.log(w),
            mean=jnp.zeros_like(log_q),
            gap=gap,
            gaussian=True,
            fresh=True,
        )

    @property
    def _ntk(self):
        return self.parameterization == "ntk"

    @staticmethod
    def _draw(name, initializer, key, shape, dtype):
        value = initializer(key, shape, dtype)
        if value.shape != shape:
            raise ValueError(
                f"{name} must return the shape it is asked for, {shape}, got {value.shape}; use "
                "an initializer of jaxgrad.initializers or jax.nn.initializers"
            )
        return value


@layer
class Dense(Weights):
    """`h W + b` on the last axis; see `dense`."""

    def draw(self, shape, *, key, dtype):
        params = self.draw_weights(jax.random.split(key), (shape[-1], self.features), dtype)
        return params, (*shape[:-1], self.features)

    def apply(self, params, state, h, *, key=None):
        return self.scale_and_shift(params, h @ params["kernel"]), state

    def predict(self, moments):
        return self.weigh(moments)


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

    >>> from jaxgrad import layers
    >>> params, _ = layers.init(dense(16, w_variance=2.0), (8,), key=jax.random.key(0))
    >>> params["kernel"].shape
    (8, 16)
    """
    return Dense(**weights(features, w_variance, b_variance, bias, kernel_init, parameterization))


def weights(
    features, w_variance, b_variance, bias, kernel_init, parameterization, bias_init=None
) -> dict[str, Any]:
    """Return the checked fields of `Weights`."""
    # A variance in the place of `bias` would pass for true.
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be True or False, got {bias!r}; give its size as b_variance")
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
    if initializer is None:
        return None
    if not callable(initializer):
        raise TypeError(
            f"{name} must be a function of (key, shape, dtype), got {initializer!r}; use one of "
            "jaxgrad.initializers or jax.nn.initializers"
        )
    # To JAX an object that is not registered as a pytree is itself a leaf.
    is_leaf = jax.tree_util.all_leaves([initializer])
    return _Function(initializer) if is_leaf else initializer


def _scale(a, variance):
    return a * jnp.sqrt(variance).astype(a.dtype)
