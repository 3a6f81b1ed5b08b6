"""A stack of equal blocks, by one scan over depth."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.layers._layer import Layer, check_is_layer, fold_key, layer, static
from jaxgrad.layers._log_space import Copy, Stack


@layer
class Repeat(Layer):
    """Copies of one block; see `repeat`."""

    block: Any
    depth: int = static()
    active: Any

    @property
    def homogeneous(self) -> bool:
        return self.block.homogeneous

    @property
    def mixes(self) -> bool:
        return self.block.mixes

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

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, self.depth + 1))
        # A loop rather than a vmap, which would compile the draws of all copies at once.
        return jax.lax.map(draw, keys), shape

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
        index, keys = jnp.arange(self.depth), None
        if key is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        active = None if self.active is None else index < self.active
        return (Stack(self.block, Copy(params, index, keys, active)),)

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

    >>> from jaxgrad.layers import activation, apply, dense, init, sequential
    >>> block = sequential(dense(8), activation("relu"))
    >>> params, _ = init(repeat(block, 100), (8,), key=jax.random.key(0))
    >>> params[0]["kernel"].shape
    (100, 8, 8)
    >>> def size(depth):
    ...     h, _ = apply(repeat(block, 100, active=depth), params, None, jnp.ones((1, 8)))
    ...     return jnp.mean(h**2)
    >>> jax.vmap(size)(jnp.asarray([0, 1, 100])).shape
    (3,)
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

    def step(moments, _):
        following = block.predict(moments)
        return following, following

    rest = jax.lax.scan(step, first, length=depth - 1)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


@in_float64
def _select(first, each, active):
    """Return the moments after each copy where the first `active` ones act."""
    depth = len(each.log_q)
    count = jnp.minimum(jnp.arange(1, depth + 1), active)

    def select(before, after):
        acts = jnp.reshape(count > 0, (depth, *(1,) * (after.ndim - 1)))
        before = jnp.broadcast_to(jnp.asarray(before, after.dtype)[None], after.shape)
        return jnp.where(jnp.broadcast_to(acts, after.shape), after[count - 1], before)

    # Only what holds for any count is certain.
    certain = {name: getattr(first, name) and getattr(each, name) for name in ("gaussian", "fresh")}
    first, each = (dataclasses.replace(moments, **certain) for moments in (first, each))
    return jax.tree.map(select, first, each)
