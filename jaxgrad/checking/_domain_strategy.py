"""The points of a domain as a strategy of hypothesis."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad.checking._domain_values import Interval, space, special_numbers


def arguments(*domains: Any) -> Any:
    """Return a hypothesis strategy of arguments at which gradients tend to fail.

    It draws numbers of all exponents, special ones, ties between elements and between arguments,
    and shrinks to zeros, ones and other simple numbers.

    Args:
      *domains: as for `check_domain`; leaves that are not floating point are held fixed.

    Returns:
      A strategy of tuples, one entry for each domain.

    Raises:
      ImportError: if hypothesis is not installed; `pip install jaxgrad[test]` installs it.

    >>> import hypothesis, jax, jax.numpy as jnp
    >>> strategy = arguments(jax.ShapeDtypeStruct((), jnp.float32))
    >>> (x,) = hypothesis.find(strategy, lambda args: not jnp.isfinite(jnp.exp(args[0])))
    >>> bool(x > 88)
    True
    """
    _validate.installed("arguments", "test", "hypothesis")
    from hypothesis import strategies as st

    flat = space(domains, None)
    leaves = [_leaf(st, leaf) for leaf in flat.intervals]
    points = st.tuples(*leaves)
    first = flat.intervals[0]
    if len(leaves) > 1 and all(leaf == first for leaf in flat.intervals):
        # A failure may need arguments that are equal.
        points = leaves[0].map(lambda value: (value,) * len(leaves)) | points
    return points.map(flat.arguments)


def _leaf(st: Any, leaf: Interval) -> Any:
    """Return a strategy of arrays: of one number, of two, or of any."""
    numbers = _numbers(st, leaf)
    size = int(np.prod(leaf.shape, dtype=int))
    if leaf.shape == ():
        return numbers

    def array(values):
        return np.array(values).astype(leaf.dtype).reshape(leaf.shape)

    lists = {"min_size": size, "max_size": size}
    equal = numbers.map(lambda number: array([number] * size))
    two = st.tuples(numbers, numbers).flatmap(
        lambda pair: st.lists(st.sampled_from(pair), **lists).map(array)
    )
    return equal | two | st.lists(numbers, **lists).map(array)


def _numbers(st: Any, leaf: Interval) -> Any:
    """Return a strategy of numbers, the simplest of which come first."""
    info = jnp.finfo(leaf.dtype)
    cast = np.dtype(leaf.dtype).type
    inside = [x for x in [*_SIMPLE, *special_numbers(leaf.dtype)] if leaf.low <= x <= leaf.high]
    low, high = math.ceil(math.log10(info.tiny)), math.floor(math.log10(info.max))
    powers = st.builds(
        lambda sign, exponent: sign * 10.0**exponent,
        st.sampled_from([1.0, -1.0]),
        st.integers(0, high) | st.integers(low, high),
    ).filter(lambda x: leaf.low <= x <= leaf.high)
    # Other types are narrower than float32 in their digits alone.
    width = {2: 16, 8: 64}.get(cast(0).itemsize, 32) if leaf.dtype != jnp.bfloat16 else 32
    drawn = st.floats(leaf.low, leaf.high, width=width, allow_subnormal=False)
    options = [drawn]
    if math.isfinite(leaf.low) and leaf.low <= -1 and leaf.high >= 1:
        options = [powers, drawn]
    if inside:
        options = [st.sampled_from(inside), *options]
    return st.one_of(options).map(cast)


_SIMPLE = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 10.0, -10.0, 100.0, -100.0, 1e3, -1e3)
