"""Layers of layers: one after another, a branch added to its input, a stack of equal blocks."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad._numerics import in_float64, weighted_log_sum_exp
from jaxgrad.layers._layer import Layer, check_is_layer, fold_key, layer, number, static
from jaxgrad.layers._log_space import IDENTITY, Copy, Derivative, Stack, add, compose
from jaxgrad.layers._weights import LARGE
from jaxgrad.theory import Tokens


@layer
class Sequential(Layer):
    """One layer after the other; see `sequential`."""

    layers: Any

    homogeneous = property(lambda self: all(part.homogeneous for part in self.layers))
    mixes = property(lambda self: any(part.mixes for part in self.layers))
    vocabulary = property(lambda self: self.layers[0].vocabulary if self.layers else None)

    def draw(self, shape, *, key, dtype):
        drawn = []
        # Part i draws from fold_in(key, i), here and wherever else there is a key.
        for i, part in enumerate(self.layers):
            params, shape = part.draw(shape, key=fold_key(key, i), dtype=dtype)
            drawn.append(params)
        return tuple(drawn), shape

    def init_state(self, params):
        return tuple(part.init_state(params[i]) for i, part in enumerate(self.layers))

    def apply(self, params, state, h, *, key=None):
        after = []
        for i, part in enumerate(self.layers):
            before = None if state is None else state[i]
            h, part_state = part.apply(params[i], before, h, key=fold_key(key, i))
            after.append(part_state)
        return h, None if state is None else tuple(after)

    def linearize(self, params, h, *, key=None):
        whole = IDENTITY
        for i, part in enumerate(self.layers):
            h, derivative = part.linearize(params[i], h, key=fold_key(key, i))
            whole = compose(whole, derivative)
        return h, whole

    def stacks(self, params, *, key=None):
        each = (part.stacks(params[i], key=fold_key(key, i)) for i, part in enumerate(self.layers))
        return tuple(itertools.chain.from_iterable(each))

    def predict_each(self, moments):
        each = ()
        for part in self.layers:
            each += part.predict_each(moments)
            moments = jax.tree.map(lambda a: a[-1], each[-1])
        return each

    @in_float64
    def predict(self, moments):
        for part in self.layers:
            moments = part.predict(moments)
        return moments


def sequential(*layers: Layer) -> Sequential:
    """Make a layer of several, one after the other; none at all is the identity.

    Layer `i` of 0, 1, ... draws from `fold_in(key, i)`. Parameters and state are tuples with one
    entry for each layer.
    """
    for part in layers:
        check_is_layer("layers", part)
    return Sequential(layers)


@layer
class Residual(Layer):
    """`skip * h + scale * branch(h)`; see `residual`."""

    branch: Any
    scale: Any
    skip: Any = None
    trained: bool = static(default=False)
    per_feature: bool = static(default=False)

    homogeneous = property(lambda self: self.branch.homogeneous)
    mixes = property(lambda self: self.branch.mixes)

    def draw(self, shape, *, key, dtype):
        params, after = self.branch.draw(shape, key=key, dtype=dtype)
        if tuple(after) != tuple(shape):
            raise ValueError(
                f"branch must keep the shape {tuple(shape)} of what it is added to, got "
                f"{tuple(after)}; end it with a layer of {shape[-1]} units"
            )
        if not self.trained:
            return params, shape
        scale = jnp.broadcast_to(self.scale, shape[-1:] if self.per_feature else ())
        return {"branch": params, "scale": jnp.asarray(scale, dtype)}, shape

    def init_state(self, params):
        return self.branch.init_state(self._parts(params)[0])

    def apply(self, params, state, h, *, key=None):
        params, scale = self._parts(params)
        added, state = self.branch.apply(params, state, h, key=key)
        # A scale of float32 must not widen a signal of half precision.
        added = (_broadcast(scale, added) * added).astype(h.dtype)
        return (h if self.skip is None else (self.skip * h).astype(h.dtype)) + added, state

    def linearize(self, params, h, *, key=None):
        params, scale = self._parts(params)
        added, derivative = self.branch.linearize(params, h, key=key)

        def scaled(a):
            return a._replace(value=_broadcast(scale, a.value) * a.value)

        def skipped(a):
            return a if self.skip is None else a._replace(value=self.skip * a.value)

        def total(a, b):
            # A branch of scale zero must not set the scale of the sum.
            return add(skipped(a), b, jnp.any(scale != 0).astype(b.value.dtype))

        def push(tangent):
            return total(tangent, scaled(derivative.push(tangent)))

        def pull(cotangent):
            gradient, log_square = derivative.pull(scaled(cotangent))
            return total(cotangent, gradient), log_square

        return total(h, scaled(added)), Derivative(push, pull, derivative.units)

    def _parts(self, params):
        """Return the parameters of the branch and its scale."""
        return (params["branch"], params["scale"]) if self.trained else (params, self.scale)

    @in_float64
    def predict(self, moments):
        # Whether the branch has weights shows in what it makes of moments that are not fresh.
        added = self.branch.predict(dataclasses.replace(moments, fresh=False))
        if not added.fresh:
            raise ValueError(
                "branch must have weights in every path from its input, so that it is independent "
                "of what it is added to, got one without; put a dense layer into it"
            )
        scale = jnp.asarray(self.scale, float)
        skip = jnp.asarray(1.0 if self.skip is None else self.skip, float)
        # E (a h + s b)^2 = a^2 E h^2 + s^2 E b^2 + 2 a s E h E b, with h and b independent.
        log_q = weighted_log_sum_exp(
            (skip**2, scale**2, 2 * skip * scale * moments.mean * added.mean),
            (moments.log_q, added.log_q, (moments.log_q + added.log_q) / 2),
        )
        # Means and gaps are relative to the size of their part, and become so to that of the sum.
        share, added_share = (jnp.minimum(m.log_q - log_q, LARGE) for m in (moments, added))
        gap = None
        if moments.gap is not None and added.gap is not None:
            gap = skip**2 * moments.gap * jnp.exp(share)
            gap = gap + scale**2 * added.gap * jnp.exp(added_share)
        logs = moments.log_gradient, added.log_gradient
        log_gradient = weighted_log_sum_exp((skip**2, scale**2), logs)
        tokens = moments.tokens
        if tokens is not None and added.tokens is not None:
            changes = (jnp.minimum(log - log_gradient, LARGE) for log in logs)
            token_gap, change_gap = (
                skip**2 * jnp.exp(log) * gap + scale**2 * jnp.exp(added_log) * added_gap
                for (log, added_log), gap, added_gap in (
                    ((share, added_share), tokens.gap, added.tokens.gap),
                    (tuple(changes), tokens.change_gap, added.tokens.change_gap),
                )
            )
            tokens = Tokens(tokens.count, token_gap, change_gap, tokens.width)
        mean = skip * moments.mean * jnp.exp(share / 2)
        return dataclasses.replace(
            moments,
            log_q=log_q,
            log_gradient=log_gradient,
            mean=mean + scale * added.mean * jnp.exp(added_share / 2),
            gap=gap,
            # `fresh` stays that of the input, which reaches the output without weights.
            gaussian=moments.gaussian and added.gaussian,
            tokens=tokens,
        )


def residual(
    branch: Layer,
    scale: Any = 1.0,
    *,
    skip: Any = None,
    trained: bool = False,
    per_feature: bool = False,
) -> Residual:
    """Make a layer `skip * h + scale * branch(h)`.

    Its parameters are those of the branch or, if the scale is trained,
    `{"branch": parameters, "scale": [] or [features]}`. A prediction is that at the first scale.

    Args:
      branch: a layer that keeps the shape of its input and, to be predicted, has weights.
      scale: one number, may be traced.
      skip: weight of the input, above 0, may be traced; `None` for 1.
      trained: whether the scale is a parameter. One that starts at 0 is SkipInit.
      per_feature: whether each feature has a trained scale of its own.

    Source: He, Zhang, Ren, Sun (2016), eq. 1; De, Smith (2020) for a trained scale, Touvron et al.
    (2021) for one per feature; the prediction as in Yang, Schoenholz (2017), by the independence of
    the branch's weights.

    >>> from jaxgrad.layers import dense
    >>> from jaxgrad.theory import Moments
    >>> layer = residual(dense(8, w_variance=0.5), scale=2.0)
    >>> round(float(jnp.exp(layer.predict(Moments(log_q=0.0)).log_q)), 6)
    3.0
    """
    check_is_layer("branch", branch)
    _validate.scalar("scale", scale)
    if skip is not None:
        _validate.scalar("skip", skip, minimum=0.0, above=True)
    _validate.flag("trained", trained)
    _validate.flag("per_feature", per_feature)
    if per_feature and not trained:
        raise ValueError("per_feature is for trained scales, got trained=False; pass trained=True")
    skip = None if skip is None else number(skip)
    return Residual(branch, number(scale), skip, bool(trained), bool(per_feature))


def _broadcast(scale, like):
    """Give one number, or one for each feature, the shape of an array."""
    return jnp.broadcast_to(scale, like.shape) if jnp.ndim(scale) else scale


@layer
class Repeat(Layer):
    """Copies of one block; see `repeat`."""

    block: Any
    depth: int = static()
    active: Any

    homogeneous = property(lambda self: self.block.homogeneous)
    mixes = property(lambda self: self.block.mixes)

    def draw(self, shape, *, key, dtype):
        shape = tuple(shape)

        def draw(key_block):
            params, after = self.block.draw(shape, key=key_block, dtype=dtype)
            if tuple(after) != shape:
                raise ValueError(
                    f"block must keep the shape {shape}, to be stacked, got {tuple(after)}; put "
                    "the change of width into a first layer of your own"
                )
            if not jax.tree.leaves(params):
                raise ValueError(
                    "block must have parameters, whose leading axis is the depth, got none; add a "
                    "layer of weights to it"
                )
            return params

        # A loop rather than a vmap, which would compile the draws of all copies at once.
        return jax.lax.map(draw, fold_key(key, 1 + jnp.arange(self.depth))), shape

    def init_state(self, params):
        return jax.vmap(self.block.init_state)(params)

    def apply(self, params, state, h, *, key=None):
        def step(h, inputs):
            index, copy, copy_state = inputs

            def act(h, copy_state):
                return self.block.apply(copy, copy_state, h, key=fold_key(key, index))

            if self.active is None:
                return act(h, copy_state)
            # A branch, so that copies that do not act cost no products, except under a vmap.
            return jax.lax.cond(index < self.active, act, lambda *same: same, h, copy_state)

        # A scan needs one dtype throughout. A state of None has no leaves to scan over.
        h = h.astype(jnp.result_type(h, *jax.tree.leaves(params)))
        return jax.lax.scan(step, h, (jnp.arange(self.depth), params, state))

    def stacks(self, params, *, key=None):
        index = jnp.arange(self.depth)
        active = None if self.active is None else index < self.active
        return (Stack(self.block, Copy(params, index, fold_key(key, index), active)),)

    def predict(self, moments):
        return jax.tree.map(lambda a: a[-1], self.predict_each(moments)[0])

    def predict_each(self, moments):
        each = _predict_each(self.block, moments, self.depth)
        return (each if self.active is None else _select(moments, each, self.active),)


def repeat(block: Layer, depth: int, *, active: Any = None) -> Repeat:
    """Make a stack of `depth` copies of one block, run by one scan over depth.

    Copy `l` of 1, ..., depth draws from `fold_in(key, l)`, so a deeper stack of the same key begins
    with the copies of the shallower one. The parameters and the state are those of the block, each
    with a leading axis of `depth`. A thousand copies compile as fast as four.

    With `active`, networks of different depths are one program, and depth can be mapped over. The
    copies that do not act still cost their memory traffic, and under `jax.vmap` all of their time:
    split a wide range of depths into a few, each with a `depth` of its own.

    Args:
      block: a layer that keeps the shape of its input and has parameters.
      depth: number of copies, at least 1.
      active: how many of them act, from 0 to `depth`, may be traced; the others, last in order,
        return their input, and only a penalty moves their parameters. `None` for all.
    """
    check_is_layer("block", block)
    depth = _validate.integer("depth", depth, 1)
    if active is not None and not _validate.is_traced(active):
        active = _validate.integer("active", active, 0)
        if active > depth:
            raise ValueError(
                f"active must be at most the depth {depth}, got {active}; raise the depth"
            )
    return Repeat(block, depth, active)


@in_float64
@functools.partial(jax.jit, static_argnums=2)
def _predict_each(block, moments, depth):
    def double(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)

    # The first copy may make Gaussian what was not; a scan needs the kind to stay.
    first = double(block.predict(double(moments)))
    if jax.tree.structure(first) != jax.tree.structure(jax.eval_shape(block.predict, first)):
        raise ValueError(
            "block must keep the kind of moments from its second application on, got "
            f"gaussian={first.gaussian}, fresh={first.fresh} after the first and another after "
            "the second; predict the blocks one by one"
        )
    rest = jax.lax.scan(lambda m, _: (block.predict(m),) * 2, first, length=depth - 1)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


@in_float64
def _select(first, each, active):
    """Return the moments after each copy where the first `active` ones act."""
    depth = len(each.log_q)
    count = jnp.minimum(jnp.arange(1, depth + 1), active)

    def select(before, after):
        before = jnp.broadcast_to(before, after.shape[1:]).astype(after.dtype)
        return jnp.concatenate([before[None], after])[count]

    # Only what holds for any count is certain.
    certain = {name: getattr(first, name) and getattr(each, name) for name in ("gaussian", "fresh")}
    first, each = (dataclasses.replace(moments, **certain) for moments in (first, each))
    return jax.tree.map(select, first, each)
