"""Augment images: random changes that leave the label as it is, drawn anew in every step.

Every function maps `(key, images, ...)` to images of `[batch, height, width, channels]`, floating
point, and each image draws for itself. Strengths may be traced, so that one compiled program serves
a search over them. Several are applied one after the other, with keys of their own:

>>> import jax, jax.numpy as jnp
>>> @jax.jit
... def augment(key, images):
...     first, second = jax.random.split(key)
...     return rotate(first, shift(second, images, pixels=1), degrees=10.0)
>>> augment(jax.random.key(0), jnp.ones((5, 8, 8, 1))).shape
(5, 8, 8, 1)

Sources: Simard, Steinkraus, Platt (2003), sec. 2, for small affine changes of digits; Krizhevsky,
Sutskever, Hinton (2012), sec. 4.1, for random windows and mirror images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from jaxgrad import _validate

_AXES = {"height": 1, "width": 2}


def flip(
    key: jax.Array,
    images: ArrayLike,
    probability: Any = 0.5,
    axis: Literal["width", "height"] = "width",
) -> jax.Array:
    """Mirror some of the images.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      probability: that an image is mirrored, from 0 to 1, may be traced.
      axis: `width` exchanges left and right, `height` top and bottom.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> image = jnp.asarray([1.0, 2.0]).reshape(1, 1, 2, 1)
    >>> flip(jax.random.key(0), image, probability=1.0).ravel().tolist()
    [2.0, 1.0]
    """
    images = _checked(images)
    _validate.scalar("probability", probability, minimum=0.0)
    if not _validate.is_traced(probability) and probability > 1:
        raise ValueError(
            f"probability must be at most 1, got {probability}; it is the share of images changed"
        )
    _validate.choice("axis", axis, tuple(_AXES))
    flipped = jax.random.uniform(key, images.shape[:1], jnp.float32) < probability
    return jnp.where(flipped[:, None, None, None], jnp.flip(images, _AXES[axis]), images)


def shift(key: jax.Array, images: ArrayLike, pixels: Any, fill: Any = 0.0) -> jax.Array:
    """Move each image by whole pixels, vertically and horizontally.

    What leaves on one side does not come back on the other.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      pixels: the largest move, a whole number of at least 0, may be traced; every move from
        `-pixels` to `pixels` is as likely, in each direction.
      fill: the value of pixels that come in from outside, may be traced.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> image = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    >>> shift(jax.random.key(3), image, pixels=1)[0, :, :, 0].tolist()
    [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [0.0, 0.0, 0.0]]
    """
    images = _checked(images)
    if not _validate.is_traced(pixels):
        pixels = _validate.integer("pixels", pixels, 0)
    elif pixels.shape != () or not jnp.issubdtype(pixels.dtype, jnp.integer):
        raise TypeError(
            f"pixels must be one whole number, got {pixels.dtype} of shape {pixels.shape}; pass "
            "an integer, and use jax.vmap for several"
        )
    _validate.scalar("fill", fill)
    fill = jnp.asarray(fill, images.dtype)
    moves = jax.random.randint(key, (len(images), 2), -pixels, pixels + 1, jnp.int32)

    def moved(image, move):
        inside, sources = [], []
        for size, step in zip(image.shape[:2], move, strict=True):
            source = jnp.arange(size) - step
            inside.append((source >= 0) & (source < size))
            sources.append(jnp.clip(source, 0, size - 1))
        known = inside[0][:, None] & inside[1][None, :]
        return jnp.where(known[..., None], image[sources[0]][:, sources[1]], fill)

    return jax.vmap(moved)(images, moves)


def crop(key: jax.Array, images: ArrayLike, shape: Sequence[int]) -> jax.Array:
    """Cut a window out of each image, at a place of its own.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      shape: height and width of the window, at most those of the images; every place is as likely.

    Returns:
      Images of `[batch, *shape, channels]`, of the same dtype.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> crop(jax.random.key(0), jnp.zeros((5, 8, 8, 3)), (6, 7)).shape
    (5, 6, 7, 3)
    """
    images = _checked(images)
    window = _validate.shape("shape", shape, 2)
    whole = images.shape[1:3]
    if len(window) != 2 or window[0] > whole[0] or window[1] > whole[1]:
        raise ValueError(
            f"shape must be a height and a width of at most {whole}, those of the images, got "
            f"{window}; pass a smaller window"
        )
    room = jnp.asarray(whole) - jnp.asarray(window)
    corners = jax.random.randint(key, (len(images), 2), 0, room[None] + 1, jnp.int32)

    def cut(image, corner):
        rows, columns = (jnp.arange(size) + at for size, at in zip(window, corner, strict=True))
        return image[rows][:, columns]

    return jax.vmap(cut)(images, corners)


def rotate(key: jax.Array, images: ArrayLike, degrees: Any, fill: Any = 0.0) -> jax.Array:
    """Turn each image about its centre, with linear interpolation between pixels.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      degrees: the largest angle, at least 0, may be traced; every angle from `-degrees` to
        `degrees` is as likely. A positive one turns counter-clockwise, rows counted from the top.
      fill: the value of what lies outside of an image, may be traced.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> rotate(jax.random.key(0), jnp.ones((5, 8, 8, 1)), degrees=15.0).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("degrees", degrees, minimum=0.0)
    _validate.scalar("fill", fill)
    angles = jnp.deg2rad(degrees * _signed(key, len(images)))
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return _resampled(images, ((cosine, sine), (-sine, cosine)), fill)


def zoom(key: jax.Array, images: ArrayLike, factor: Any, fill: Any = 0.0) -> jax.Array:
    """Enlarge or shrink each image about its centre, with linear interpolation between pixels.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      factor: the largest factor, at least 1, may be traced; its logarithm is drawn uniformly
        between those of `1 / factor` and `factor`, so that halving is as likely as doubling.
      fill: the value of what lies outside of an image, may be traced.

    Returns:
      Images of the same shape and dtype; those enlarged lose their border.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> zoom(jax.random.key(0), jnp.ones((5, 8, 8, 1)), factor=1.2).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("factor", factor, minimum=1.0)
    _validate.scalar("fill", fill)
    inverse = jnp.exp(-jnp.log(factor) * _signed(key, len(images)))
    none = jnp.zeros_like(inverse)
    return _resampled(images, ((inverse, none), (none, inverse)), fill)


def noise(key: jax.Array, images: ArrayLike, std: Any) -> jax.Array:
    """Add independent Gaussian noise to every value.

    Args:
      key: PRNG key.
      images: `[batch, height, width, channels]`, floating point.
      std: the noise's standard deviation, at least 0, in units of the images, may be traced.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Bishop (1995), who shows that for small noise it acts as a penalty on derivatives.

    >>> noise(jax.random.key(0), jnp.ones((5, 8, 8, 1)), std=0.1).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("std", std, minimum=0.0)
    drawn = std * jax.random.normal(key, images.shape, jnp.float32)
    return images + drawn.astype(images.dtype)


def _checked(images: ArrayLike) -> jax.Array:
    return _validate.floating("images", images, 4, "[batch, height, width, channels]")


def _signed(key: jax.Array, count: int) -> jax.Array:
    """Uniform between -1 and 1, one an image."""
    return jax.random.uniform(key, (count,), jnp.float32, -1.0, 1.0)


def _resampled(images: jax.Array, matrix: Any, fill: Any) -> jax.Array:
    """Images read at `matrix` times the place of each pixel, counted from the centre.

    The entries of the matrix have shape [batch]. Sums are written out, since a GPU rounds a matrix
    product of coordinates to fewer digits than they need.
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    sizes = images.shape[1:3]
    down, right = (jnp.arange(size, dtype=wide) - (size - 1) / 2 for size in sizes)
    places = [
        row[0].astype(wide)[:, None, None] * down[None, :, None]
        + row[1].astype(wide)[:, None, None] * right[None, None, :]
        + (size + 1) / 2
        for row, size in zip(matrix, sizes, strict=True)
    ]
    # With a frame of `fill`, whose value may be traced, what lies outside is the nearest pixel.
    frame = ((0, 0), (1, 1), (1, 1), (0, 0))
    framed = jnp.pad(images.astype(wide), frame, constant_values=jnp.asarray(fill, wide))

    def read(channel, *place):
        return map_coordinates(channel, place, order=1, mode="nearest")

    channels = jax.vmap(read, (2, None, None), 2)
    return jax.vmap(channels)(framed, *places).astype(images.dtype)
