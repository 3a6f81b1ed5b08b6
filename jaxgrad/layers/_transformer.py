"""Residual blocks by the position of their norms, recipes for their scales, and transformers."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxgrad import _validate
from jaxgrad.activations import Activation
from jaxgrad.layers._activation import activation as activation_layer
from jaxgrad.layers._attention import AttentionScale, attention
from jaxgrad.layers._composite import Repeat, repeat, residual, sequential
from jaxgrad.layers._gated import gated
from jaxgrad.layers._layer import Layer, check_is_layer
from jaxgrad.layers._normalization import layer_norm
from jaxgrad.layers._weights import dense

Placement = Literal["pre", "post", "sandwich", "none"]
ResidualRecipe = Literal["1/sqrt(L)", "1/L", "deepnorm", "skipinit", "fixup"]

PLACEMENTS = ("pre", "post", "sandwich", "none")
RECIPES = ("1/sqrt(L)", "1/L", "deepnorm", "skipinit", "fixup")


class ResidualScale(NamedTuple):
    """How the branches of a residual network are scaled.

    Attributes:
      scale: of the branch.
      skip: weight of the signal that the branch is added to; `None` for 1.
      trained: whether the scale is a parameter.
      w_variance: factor of the variances of the weights in the branch, other than its last layer.
        In attention these are the values', not those of queries and keys.
      last_variance: factor of the variance of the weights of the branch's last layer.
    """

    scale: Any = 1.0
    skip: Any = None
    trained: bool = False
    w_variance: Any = 1.0
    last_variance: Any = 1.0


def residual_scale(name: ResidualRecipe, branches: int, *, layers: int = 2) -> ResidualScale:
    """Return a published recipe for the scales of residual branches.

    - "1/sqrt(L)" and "1/L" multiply each of the `L` branches by that number.
    - "deepnorm" multiplies the skip by `alpha = L^(1/4)` and the weights of values, outputs and
      feed-forward layers by `beta = (4 L)^(-1/4)`; for norms after the sum. These are
      `(2 N)^(1/4)` and `(8 N)^(-1/4)` for `N` blocks of attention and feed-forward branches.
    - "skipinit" trains the scale, from 0.
    - "fixup" draws the last layer of a branch as zeros, multiplies the weights of the others by
      `L^(-1 / (2 m - 2))` for `m` layers, and trains the scale, from 1. Its scalar biases are not
      part of the recipe here.

    Args:
      name: of the recipe.
      branches: number `L` of residual branches in the network, at least 1.
      layers: number `m` of layers of weights in a branch, for "fixup", at least 2.

    Source: Wang et al. (2022), fig. 2, for DeepNorm; De, Smith (2020), sec. 4; Zhang, Dauphin, Ma
    (2019), sec. 3.

    >>> recipe = residual_scale("deepnorm", 2 * 12)
    >>> round(recipe.skip, 4), round(recipe.w_variance**0.5, 4)
    (2.2134, 0.3195)
    """
    _validate.choice("name", name, RECIPES)
    branches = _validate.integer("branches", branches, 1)
    layers = _validate.integer("layers", layers, 2)
    # Branches are independent at first, so that their squares add up to that of the input.
    match name:
        case "1/sqrt(L)":
            return ResidualScale(scale=branches**-0.5)
        case "1/L":
            return ResidualScale(scale=1 / branches)
        case "deepnorm":
            # alpha = L^(1/4) multiplies the skip; a variance takes the square of beta.
            square = (4 * branches) ** -0.5
            return ResidualScale(skip=branches**0.25, w_variance=square, last_variance=square)
        case "skipinit":
            return ResidualScale(scale=0.0, trained=True)
    # Fixup: the square of L^(-1 / (2 m - 2)).
    square = branches ** (-1 / (layers - 1))
    return ResidualScale(trained=True, w_variance=square, last_variance=0.0)


def block(
    branch: Layer,
    norm: Layer,
    placement: Placement = "pre",
    *,
    scale: Any = 1.0,
    skip: Any = None,
    trained: bool = False,
    per_feature: bool = False,
) -> Layer:
    """Make a residual block with norms at one of four places.

    - "pre": `a h + s branch(norm(h))`
    - "post": `norm(a h + s branch(h))`
    - "sandwich": `a h + s norm(branch(norm(h)))`
    - "none": `a h + s branch(h)`

    Args:
      branch: a layer that keeps the shape of its input.
      norm: a layer such as `layer_norm(1e-6)`; each place has parameters of its own.
      placement: where norms are.
      scale, skip, trained, per_feature: as of `residual`, for `s` and `a`.

    Source: Vaswani et al. (2017) for "post", Xiong et al. (2020) for "pre", Ding et al. (2021) for
    "sandwich".

    >>> import jax, jax.numpy as jnp
    >>> from jaxgrad import layers
    >>> branch = sequential(dense(4), activation_layer("relu"))
    >>> params, _ = layers.init(block(branch, layer_norm(), "post"), (4,), key=jax.random.key(0))
    >>> h, _ = layers.apply(block(branch, layer_norm(), "post"), params, None, jnp.eye(4))
    >>> jnp.allclose(jnp.var(h, axis=-1), 1.0).item()
    True
    """
    check_is_layer("branch", branch)
    check_is_layer("norm", norm)
    _validate.choice("placement", placement, PLACEMENTS)
    options = {"scale": scale, "skip": skip, "trained": trained, "per_feature": per_feature}
    # Only after the sum does a norm act on the signal that runs along the blocks.
    match placement:
        case "pre":
            return residual(sequential(norm, branch), **options)
        case "post":
            return sequential(residual(branch, **options), norm)
        case "sandwich":
            return residual(sequential(norm, branch, norm), **options)
    return residual(branch, **options)


def transformer(
    depth: int,
    features: int,
    heads: int,
    *,
    placement: Placement = "pre",
    norm: Layer | None = None,
    hidden: int | None = None,
    activation: str | Activation | Callable[..., Any] = "gelu",
    gate: bool = False,
    scale: Any = 1.0,
    query_variance: Any = 1.0,
    key_variance: Any = 1.0,
    value_variance: Any = 1.0,
    output_variance: Any = 1.0,
    hidden_variance: Any = 1.0,
    last_variance: Any = 1.0,
    logit_scale: Any = 1.0,
    attention_scale: AttentionScale = "1/sqrt(d)",
    causal: bool = False,
    mask: Any = None,
    bias: bool = False,
) -> Repeat:
    """Make a stack of `depth` blocks, each of attention and a feed-forward network.

    Its inputs have shape `(tokens, features)`; a block is a `sequential` of two `block`s, and their
    parameters have a leading axis of the depth. After norms of placement "pre" a network usually
    ends with one more norm: `sequential(transformer(...), layer_norm(1e-6))`.

    Args:
      depth: number of blocks, at least 1.
      features: of a token.
      heads: of the attention, must divide `features`.
      placement, norm: as of `block`; a norm of `None` is `layer_norm(1e-6)`.
      hidden: units of the feed-forward network; `None` for `4 * features`.
      activation: of these units, see `jaxgrad.activations.get`.
      gate: whether they are `gated` units, whose two kernels both have `hidden_variance`.
      scale: of each of the `2 * depth` residual branches: a number, may be traced, or a
        `ResidualScale` of `residual_scale`.
      query_variance, key_variance, value_variance, output_variance, logit_scale: as of `attention`.
      hidden_variance, last_variance: variance of the weights of the feed-forward network's first
        and last layer times `fan_in`, at least 0, may be traced.
      attention_scale, causal, mask: as `scale`, `causal` and `mask` of `attention`.
      bias: whether all layers of weights have biases, which are zeros at first.

    Source: Vaswani et al. (2017), sec. 3.

    >>> import jax, jax.numpy as jnp
    >>> from jaxgrad import layers
    >>> network = transformer(3, 8, 2, scale=residual_scale("skipinit", 2 * 3))
    >>> params, _ = layers.init(network, (5, 8), key=jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    >>> bool(jnp.all(layers.apply(network, params, None, x)[0] == x))
    True
    """
    features = _validate.integer("features", features, 1)
    if not isinstance(scale, ResidualScale):
        _validate.scalar("scale", scale)
        scale = ResidualScale(scale)
    variances = {
        "value_variance": (value_variance, scale.w_variance),
        "output_variance": (output_variance, scale.last_variance),
        "hidden_variance": (hidden_variance, scale.w_variance),
        "last_variance": (last_variance, scale.last_variance),
    }
    value_variance, output_variance, hidden_variance, last_variance = (
        _scaled(name, *pair) for name, pair in variances.items()
    )
    # A recipe's layers of a branch are those of values and outputs; queries and keys stay.
    mixing = attention(
        _check_heads(heads, features),
        query_variance=query_variance,
        key_variance=key_variance,
        value_variance=value_variance,
        output_variance=output_variance,
        logit_scale=logit_scale,
        scale=attention_scale,
        causal=causal,
        mask=mask,
        bias=bias,
    )
    # Four times as wide, as in the original.
    hidden = 4 * features if hidden is None else _validate.integer("hidden", hidden, 1)
    units = _units(hidden, activation, gate, {"w_variance": hidden_variance, "bias": bias})
    feed_forward = sequential(*units, dense(features, w_variance=last_variance, bias=bias))
    norm = layer_norm(1e-6) if norm is None else norm
    options = {"scale": scale.scale, "skip": scale.skip, "trained": scale.trained}
    blocks = (block(branch, norm, placement, **options) for branch in (mixing, feed_forward))
    return repeat(sequential(*blocks), depth)


def _units(hidden, activation, gate, options):
    _validate.flag("gate", gate)
    if gate:
        return (gated(hidden, activation, gate_variance=options["w_variance"], **options),)
    return dense(hidden, **options), activation_layer(activation)


def _check_heads(heads, features):
    heads = _validate.integer("heads", heads, 1)
    if features % heads:
        raise ValueError(
            f"heads must divide the {features} features, got {heads}; pass another number"
        )
    return heads


def _scaled(name, variance, factor):
    _validate.scalar(name, variance, minimum=0.0)
    return variance * factor
