"""Layers of weights: how they are drawn and scaled, and what they do to moments."""

from __future__ import annotations

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
    """A plain function as an initializer, which is a pytree without leaves."""

    function: Callable[..., Any] = static()

    def __call__(self, key, shape, dtype):
        return self.function(key, shape, dtype)


@layer
class Weights(Layer):
    """What layers of weights share; see `dense` for the fields."""

    features: int = static()
    w_variance: Any
    b_variance: Any
    kernel_init: Any
    bias: bool = static()
    parameterization: Parameterization = static()

    @property
    def homogeneous(self) -> bool:
        """Biases are what does not scale with the input."""
        return not self.bias

    def draw_kernel(self, key, shape, dtype):
        """Draw a kernel `[*window, in, out]`; "standard" multiplies its variance here."""
        kernel_init = initializers.lecun() if self.kernel_init is None else self.kernel_init
        kernel = check_shape("kernel_init", kernel_init(key, shape, dtype), shape)
        if self.parameterization == "ntk":
            return kernel
        return (kernel * jnp.sqrt(self.w_variance)).astype(dtype)

    def draw_bias(self, key, features, dtype):
        """Draw biases `[features]`, of unit variance with "ntk"."""
        variance = 1.0 if self.parameterization == "ntk" else self.b_variance
        return initializers.normal(variance)(key, (features,), dtype)

    def draw_weights(self, window, shape, *, key, dtype):
        """Draw the parameters for inputs of a shape, and return them with the outputs' shape."""
        key_kernel, key_bias = jax.random.split(key)
        kernel_shape = (*window, shape[-1], self.features)
        params = {"kernel": self.draw_kernel(key_kernel, kernel_shape, dtype)}
        if self.bias:
            params["bias"] = self.draw_bias(key_bias, self.features, dtype)
        return params, (*shape[:-1], self.features)

    def scale_and_shift(
        self, params: dict[str, Any], product: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        """Turn the product with the kernel into the outputs.

        With "ntk" the variances are multiplied here, after the product, so that under `jax.vmap`
        over variances one product serves all of them.
        """
        ntk = self.parameterization == "ntk"
        if ntk:
            product = product * jnp.sqrt(self.w_variance).astype(product.dtype)
        if "bias" not in params:
            return product
        bias = params["bias"]
        if ntk:
            bias = bias * jnp.sqrt(self.b_variance).astype(bias.dtype)
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
        """The moments after weights and biases, from those of the values that a unit adds up.

        `q' = w_variance q + b_variance`, and `q' gap' = w_variance q gap`: biases are common to
        all examples.
        """
        w, b = (jnp.asarray(v, float) for v in (self.w_variance, self.b_variance))
        log_q = weighted_log_sum_exp((w, b), (moments.log_q, 0.0))
        gap = moments.gap
        if gap is not None:
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


@layer
class Dense(Weights):
    """`h W + b` on the last axis; see `dense`."""

    def draw(self, shape, *, key, dtype):
        return self.draw_weights((), shape, key=key, dtype=dtype)

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
      parameterization: "standard" multiplies the variances when the parameters are drawn. "ntk"
        draws with unit variances and multiplies the outputs, so that the same parameters serve all
        variances. Both give the same outputs from the same key.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Poole et al. (2016), eq. 3 and 5, and Schoenholz et al. (2017), eq. 9, for the
    prediction; Jacot, Gabriel, Hongler (2018) for "ntk".

    >>> from jaxgrad import layers
    >>> params, _ = layers.init(dense(16, w_variance=2.0), (8,), key=jax.random.key(0))
    >>> params["kernel"].shape
    (8, 16)
    """
    return Dense(
        *check_weights(features, w_variance, b_variance, bias, kernel_init, parameterization)
    )


def check_weights(features, w_variance, b_variance, bias, kernel_init, parameterization) -> tuple:
    """Return the fields of `Weights` in order, or raise."""
    features = _validate.integer("features", features, 1)
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be True or False, got {bias!r}; give its size as b_variance")
    if not bias and (_validate.is_traced(b_variance) or b_variance != 0):
        raise ValueError(
            f"b_variance must be 0 without biases, got {b_variance}; pass bias=True to have them"
        )
    _validate.choice("parameterization", parameterization, ("standard", "ntk"))
    return (
        features,
        number(w_variance),
        number(b_variance),
        check_initializer("kernel_init", kernel_init),
        bias,
        parameterization,
    )


def check_initializer(name: str, initializer: Any) -> Any:
    """Return an initializer as a pytree, or raise; `None` stays."""
    if initializer is not None and not callable(initializer):
        raise TypeError(
            f"{name} must be a function of (key, shape, dtype), got {initializer!r}; use one of "
            "jaxgrad.initializers or jax.nn.initializers"
        )
    # JAX takes an object that is not registered as a pytree for a leaf.
    is_leaf = initializer is not None and jax.tree_util.all_leaves([initializer])
    return _Function(initializer) if is_leaf else initializer


def check_shape(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """Return what an initializer drew if it has the shape that it was asked for, or raise."""
    if value.shape != shape:
        raise ValueError(
            f"{name} must return the shape it is asked for, {shape}, got {value.shape}; use an "
            "initializer of jaxgrad.initializers or jax.nn.initializers"
        )
    return value
