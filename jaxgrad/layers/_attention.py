"""Multi-head self-attention, which mixes the tokens of an example."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxgrad import _validate, theory
from jaxgrad._numerics import in_float64
from jaxgrad.layers._layer import Layer, layer, number, static
from jaxgrad.layers._log_space import Scaled, linearize
from jaxgrad.layers._weights import Dense, weights

AttentionScale = Literal["1/sqrt(d)", "1/d"]

PARTS = ("query", "key", "value", "output")
LARGE = 60.0
"""Logits times the exponential of this are still finite, and softmax is a choice of one token."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A known mask, which is compared by its values and is thus part of a layer's structure."""

    values: bytes = dataclasses.field(repr=False)
    tokens: int


@layer
class Attention(Layer):
    """Multi-head self-attention; see `attention`."""

    heads: int = static()
    query_variance: Any
    key_variance: Any
    value_variance: Any
    output_variance: Any
    logit_scale: Any
    b_variance: Any
    traced_mask: Any
    pattern: Pattern | None = static()
    head_features: int | None = static()
    scale: AttentionScale = static()
    causal: bool = static()
    bias: bool = static()
    kernel_init: Any

    @property
    def mask(self) -> Any:
        """Which token (row) attends to which (column), without `causal`; `None` for all."""
        if self.pattern is None:
            return self.traced_mask
        size = self.pattern.tokens
        return np.frombuffer(self.pattern.values, np.bool_).reshape(size, size)

    def draw(self, shape, *, key, dtype):
        tokens, features = self._check_shape(shape)
        inner, params = self.heads * self.features_of_head(features), {}
        for part, part_key in zip(PARTS, jax.random.split(key, 4), strict=True):
            n_in, n_out = (inner, features) if part == "output" else (features, inner)
            dense = Dense(
                features=n_out,
                w_variance=getattr(self, f"{part}_variance"),
                b_variance=self.b_variance,
                bias=self.bias,
                kernel_init=self.kernel_init,
                bias_init=None,
                parameterization="standard",
            )
            params[part], _ = dense.draw((tokens, n_in), key=part_key, dtype=dtype)
        return params, shape

    def apply(self, params, state, h, *, key=None):
        return self.outputs(params, h), state

    def linearize(self, params, h, *, key=None):
        shift = jnp.where(jnp.isfinite(h.log_scale), h.log_scale, 0.0)
        if self.bias:
            # Biases do not shrink with the signal; where all of them are zero, they need not.
            biases = jnp.stack([jnp.any(params[part]["bias"] != 0) for part in PARTS])
            shift = jnp.where(jnp.any(biases), jnp.maximum(shift, 0.0), shift)
        relative = Scaled(h.relative_to(shift), shift)
        return linearize(_Shifted(self, shift), params, relative, key=key)

    def outputs(
        self,
        params: dict[str, Any],
        h: Float[Array, "batch tokens features"],
        shift: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """Return `exp(-s) F(exp(s) h)` for the outputs `F` and the shift `s` of each example.

        No number in it grows with `s`, so that signals beyond the range of floats have outputs.
        """

        def project(part, h):
            product = h @ params[part]["kernel"]
            if not self.bias:
                return product
            bias = params[part]["bias"][None, None]
            if shift is not None:
                bias = bias * jnp.exp(jnp.minimum(-shift, LARGE))[:, None, None]
            return product + jnp.broadcast_to(bias, product.shape).astype(product.dtype)

        query, keys, values = (
            jnp.moveaxis(a.reshape(*a.shape[:2], self.heads, -1), 2, 1)
            for a in (project(part, h) for part in PARTS[:3])
        )
        # At least float32, and multiplied before the product: a compiled program would round a
        # product by the gain in one place and not in another, and differences of large logits fail.
        query = query.astype(jnp.promote_types(query.dtype, jnp.float32))
        query = query * (self.logit_scale * self.logit_factor(query.shape[-1]))
        if shift is not None:
            # A logit is a product of two signals, which takes the factor exp(2 s).
            query = query * jnp.exp(jnp.minimum(2 * shift, LARGE))[:, None, None, None]
        logits = query @ jnp.swapaxes(keys, -1, -2).astype(query.dtype)
        mixed = softmax(logits, self.allowed(h.shape[1])).astype(values.dtype) @ values
        return project("output", jnp.moveaxis(mixed, 1, 2).reshape(*h.shape[:2], -1))

    @in_float64
    def predict(self, moments):
        width = None if moments.tokens is None else moments.tokens.width
        head_features = self.head_features if width is None else self.features_of_head(width)
        # The product of a query and a key has d_head terms: with 1 / sqrt(d) their number cancels.
        gain = jnp.square(jnp.asarray(self.logit_scale, float))
        if self.scale == "1/d":
            if head_features is None:
                raise ValueError(
                    "moments must have tokens of a known width for a scale of 1/d, got None; pass "
                    "Tokens(..., width=features), or head_features to attention"
                )
            gain = gain / head_features
        return theory.attend(
            moments,
            query_variance=self.query_variance,
            key_variance=self.key_variance,
            value_variance=self.value_variance,
            output_variance=self.output_variance,
            b_variance=self.b_variance,
            logit_gain=gain,
            head_features=head_features,
            causal=self.causal,
            mask=self.mask,
        )

    def features_of_head(self, features: int) -> int:
        """Return the number of features of one head."""
        return self.head_features or features // self.heads

    def logit_factor(self, head_features: int) -> float:
        """Return the number that multiplies the product of a query and a key."""
        return 1 / (math.sqrt(head_features) if self.scale == "1/sqrt(d)" else head_features)

    def allowed(self, tokens: int) -> Bool[Array, "tokens tokens"] | None:
        """Return which token (row) attends to which (column); `None` if each does to all."""
        past = jnp.tri(tokens, dtype=bool) if self.causal else None
        if past is None or self.mask is None:
            return past if self.mask is None else jnp.asarray(self.mask)
        return past & self.mask

    def _check_shape(self, shape):
        if len(shape) != 2:
            raise ValueError(
                f"shape must be (tokens, features) for attention, got {tuple(shape)}; give each "
                "example an axis of tokens"
            )
        tokens, features = shape
        if self.head_features is None and features % self.heads:
            raise ValueError(
                f"heads must divide the {features} features of the signal, got {self.heads}; pass "
                "head_features, or another number of heads"
            )
        if self.mask is not None and self.mask.shape != (tokens, tokens):
            raise ValueError(
                f"mask must have shape [tokens, tokens], ({tokens}, {tokens}) here, got "
                f"{self.mask.shape}; make one for this number of tokens"
            )
        return tokens, features


@layer
class _Shifted(Layer):
    """Attention of a signal that is divided by `exp(shift)`, as are its outputs."""

    attention: Any
    shift: Any

    # The scale that was taken out passes by.
    homogeneous = True

    def apply(self, params, state, h, *, key=None):
        return self.attention.outputs(params, h, self.shift), state


def softmax(
    logits: Float[Array, "*batch queries keys"], allowed: Bool[Array, "queries keys"] | None = None
) -> Float[Array, "*batch queries keys"]:
    """Return weights over keys that add up to 1, exactly 0 where `allowed` is false.

    A row without any allowed key has zeros, and a derivative of zero.
    """
    allowed = jnp.broadcast_to(True if allowed is None else allowed, logits.shape)
    top = jnp.max(logits, axis=-1, keepdims=True, where=allowed, initial=-jnp.inf)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    # Masked before the exponential too: the branch that is not taken still has a derivative.
    below = jnp.where(allowed, logits - top, 0.0)
    # A compiled program may round the top, but not a logit from which it subtracts it. Of large
    # logits the difference would be far from 0 at the top.
    error = jnp.where(logits >= top, below, jnp.maximum(below, 0.0))
    sizes = jnp.exp(below - jax.lax.stop_gradient(error))
    sizes = jnp.where(allowed, sizes, 0.0)
    total = jnp.sum(sizes, axis=-1, keepdims=True)
    return sizes / jnp.where(total > 0, total, 1.0)


def attention(
    heads: int,
    *,
    query_variance: Any = 1.0,
    key_variance: Any = 1.0,
    value_variance: Any = 1.0,
    output_variance: Any = 1.0,
    logit_scale: Any = 1.0,
    scale: AttentionScale = "1/sqrt(d)",
    causal: bool = False,
    mask: Bool[Array | np.ndarray, "tokens tokens"] | None = None,
    bias: bool = False,
    b_variance: Any = 0.0,
    head_features: int | None = None,
    kernel_init: Callable[..., Any] | None = None,
) -> Attention:
    """Make a layer of self-attention on examples of shape `(tokens, features)`.

    Each head `h` adds up values with weights `softmax(logit_scale * scale * Q_h K_h^T)`, and the
    output kernel maps the heads, side by side, back to the features. Its parameters are
    `{"query": {"kernel": [features, heads * head_features]}, "key": ..., "value": ...,
    "output": {"kernel": [heads * head_features, features]}}`, with a `"bias"` each if there are
    biases.

    Signals beyond the range of floats are measured, too; there softmax selects one token. Where
    tokens become equal but for rounding meanwhile, gradients through their logits are noise.

    Args:
      heads: number of heads.
      query_variance, key_variance, value_variance, output_variance: variance of the weights times
        `fan_in`, at least 0, may be traced.
      logit_scale: factor of the logits, may be traced.
      scale: "1/sqrt(d)" or "1/d", with the number `d` of features of a head.
      causal: whether a token attends only to itself and those before it.
      mask: whether a token (row) attends to another (column), an array of booleans, may be traced;
        `None` for all. A known mask that leaves a token none is refused; in a traced one this token
        gets a mixture of zero.
      bias, b_variance, kernel_init: as of `dense`, for all four kernels.
      head_features: features of one head; `None` for `features / heads`.

    Source: Vaswani et al. (2017), eq. 1; Yang et al. (2022), sec. 3, for "1/d".

    >>> from jaxgrad import layers
    >>> layer = attention(2, causal=True)
    >>> params, _ = layers.init(layer, (5, 8), key=jax.random.key(0))
    >>> params["query"]["kernel"].shape
    (8, 8)
    >>> layers.apply(layer, params, None, jnp.ones((3, 5, 8)))[0].shape
    (3, 5, 8)
    """
    heads = _validate.integer("heads", heads, 1)
    variances = {
        "query_variance": query_variance,
        "key_variance": key_variance,
        "value_variance": value_variance,
        "output_variance": output_variance,
    }
    for name, value in variances.items():
        _validate.scalar(name, value, minimum=0.0)
    _validate.scalar("logit_scale", logit_scale)
    _validate.choice("scale", scale, ("1/sqrt(d)", "1/d"))
    _validate.flag("causal", causal)
    if head_features is not None:
        head_features = _validate.integer("head_features", head_features, 1)
    shared = weights(1, 1.0, b_variance, bias, kernel_init, "standard")
    return Attention(
        heads=heads,
        **{name: number(value) for name, value in variances.items()},
        logit_scale=number(logit_scale),
        b_variance=shared["b_variance"],
        **_split_mask(mask, causal),
        head_features=head_features,
        scale=scale,
        causal=bool(causal),
        bias=bias,
        kernel_init=shared["kernel_init"],
    )


def _split_mask(mask, causal):
    """Check a mask, and return the fields that hold it."""
    if mask is None:
        return {"traced_mask": None, "pattern": None}
    is_boolean = getattr(mask, "dtype", None) == np.bool_
    if not is_boolean or mask.ndim != 2 or mask.shape[0] != mask.shape[1] or not mask.size:
        raise TypeError(
            "mask must be an array of booleans [tokens, tokens], got "
            f"{_validate.show(mask)}; compare one with 0, for example"
        )
    if _validate.is_traced(mask):
        return {"traced_mask": mask, "pattern": None}
    seen = np.tril(mask) if causal else np.asarray(mask)
    empty = np.flatnonzero(~seen.any(axis=1))
    if len(empty):
        raise ValueError(
            f"mask must let each token attend to at least one, got none for token {empty[0]}; "
            "let it attend to itself"
        )
    return {"traced_mask": None, "pattern": Pattern(np.asarray(mask).tobytes(), len(mask))}
