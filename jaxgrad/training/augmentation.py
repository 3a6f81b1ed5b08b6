"""Random changes of images that leave their labels as they are.

Every function takes images of shape `[batch, height, width, channels]`, floating point, and a `key`
that draws a change for each image independently. Results have the shape and dtype of the images,
except for `crop`. Strengths and `fill`, the value of pixels from outside of an image, may be
traced, so that a search over them compiles once. To combine changes, give each its own key:

>>> import jax, jax.numpy as jnp
>>> @jax.jit
... def augment(images, key):
...     key_shift, key_rotate = jax.random.split(key)
...     return rotate(shift(images, 1, key=key_shift), 10.0, key=key_rotate)
>>> augment(jnp.ones((5, 8, 8, 1)), jax.random.key(0)).shape
(5, 8, 8, 1)

Sources: Simard, Steinkraus, Platt (2003), sec. 2, for small affine changes of digits; Krizhevsky,
Sutskever, Hinton (2012), sec. 4.1, for random crops and mirror images.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate

Images = Float[ArrayLike, "batch height width channels"]
Changed = Float[Array, "batch height width channels"]


def flip(
    images: Images,
    *,
    key: PRNGKeyArray,
    probability: Any = 0.5,
    axis: Literal["width", "height"] = "width",
) -> Changed:
    """Mirror each image with some probability, left and right or, for `"height"`, top and bottom.

    >>> image = jnp.asarray([1.0, 2.0]).reshape(1, 1, 2, 1)
    >>> flip(image, key=jax.random.key(0), probability=1.0).ravel().tolist()
    [2.0, 1.0]
    """
    images = _checked(images, key)
    _validate.scalar("probability", probability, minimum=0.0, maximum=1.0)
    _validate.choice("axis", axis, ("height", "width"))
    flipped = jax.random.uniform(key, images.shape[:1], jnp.float32) < probability
    mirrored = jnp.flip(images, 1 if axis == "height" else 2)
    return jnp.where(flipped[:, None, None, None], mirrored, images)


def shift(images: Images, pixels: Any, *, key: PRNGKeyArray, fill: Any = 0.0) -> Changed:
    """Move each image by whole numbers of pixels, uniform from `-pixels` to `pixels`.

    Vertical and horizontal moves are independent. The image does not wrap around.

    >>> image = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    >>> shift(image, 1, key=jax.random.key(3))[0, :, :, 0].tolist()
    [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [0.0, 0.0, 0.0]]
    """
    images = _checked(images, key, fill)
    if not _validate.is_traced(pixels):
        pixels = _validate.integer("pixels", pixels, 0)
    elif pixels.shape != () or not jnp.issubdtype(pixels.dtype, jnp.integer):
        got = f"got {pixels.dtype} of shape {pixels.shape}"
        raise TypeError(f"pixels must be one whole number, {got}; use jax.vmap for several")
    framed = _framed(images, fill)
    shifts = jax.random.randint(key, (len(images), 2), -pixels, pixels + 1, jnp.int32)

    def shifted(image, steps):
        # The pixel at i comes from i - step, which the frame moves to i - step + 1.
        rows, columns = (
            jnp.clip(jnp.arange(1, size - 1) - step, 0, size - 1)
            for size, step in zip(image.shape[:2], steps, strict=True)
        )
        return image[rows][:, columns]

    return jax.vmap(shifted)(framed, shifts)


def crop(
    images: Images, shape: Sequence[int], *, key: PRNGKeyArray
) -> Float[Array, "batch rows columns channels"]:
    """Cut a window of `shape`, a height and a width, out of each image at a random position.

    >>> crop(jnp.zeros((5, 8, 8, 3)), (6, 7), key=jax.random.key(0)).shape
    (5, 6, 7, 3)
    """
    images = _checked(images, key)
    window, whole = _validate.shape("shape", shape, 2), images.shape[1:3]
    if len(window) != 2 or window[0] > whole[0] or window[1] > whole[1]:
        rule = f"be a height and a width of at most {whole}, those of the images"
        raise ValueError(f"shape must {rule}, got {window}; pass a smaller window")
    # The position of the upper left corner, one of room + 1 in each direction. Channels are whole.
    room = jnp.asarray(whole) - jnp.asarray(window)
    corners = jax.random.randint(key, (len(images), 2), 0, room[None] + 1, jnp.int32)
    corners = jnp.pad(corners, ((0, 0), (0, 1)))
    cut = functools.partial(jax.lax.dynamic_slice, slice_sizes=(*window, images.shape[3]))
    return jax.vmap(cut)(images, corners)


def rotate(images: Images, degrees: Any, *, key: PRNGKeyArray, fill: Any = 0.0) -> Changed:
    """Rotate each image about its centre, by an angle uniform between `-degrees` and `degrees`.

    Positive angles turn counter-clockwise, with row 0 at the top. Pixels are interpolated linearly.

    >>> rotate(jnp.ones((5, 8, 8, 1)), 15.0, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images, key, fill)
    _validate.scalar("degrees", degrees, minimum=0.0)
    angles = jnp.deg2rad(degrees * _signed(key, len(images)))
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return _resampled(images, ((cosine, sine), (-sine, cosine)), fill)


def zoom(images: Images, factor: Any, *, key: PRNGKeyArray, fill: Any = 0.0) -> Changed:
    """Enlarge or shrink each image about its centre, by `1 / factor` to `factor`, at least 1.

    The logarithm of the magnification is uniform, so that halving and doubling are equally likely.
    Enlarged images lose their border. Pixels are interpolated linearly.

    >>> zoom(jnp.ones((5, 8, 8, 1)), 1.2, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images, key, fill)
    _validate.scalar("factor", factor, minimum=1.0)
    # The pixel at p comes from p / magnification.
    inverse = jnp.exp(-jnp.log(factor) * _signed(key, len(images)))
    zero = jnp.zeros_like(inverse)
    return _resampled(images, ((inverse, zero), (zero, inverse)), fill)


def noise(images: Images, std: Any, *, key: PRNGKeyArray) -> Changed:
    """Add independent Gaussian noise of the standard deviation `std` to every value.

    Source: Bishop (1995), who shows that small noise acts as a penalty on derivatives.

    >>> noise(jnp.ones((5, 8, 8, 1)), 0.1, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images, key)
    _validate.scalar("std", std, minimum=0.0)
    # Drawn in float32, so that the draws do not depend on the dtype of the images.
    values = std * jax.random.normal(key, images.shape, jnp.float32)
    return images + values.astype(images.dtype)


def _checked(images: ArrayLike, key: Any, fill: Any = 0.0) -> Array:
    _validate.key("key", key)
    _validate.scalar("fill", fill)
    return _validate.floating("images", images, 4, "[batch, height, width, channels]")


def _signed(key: PRNGKeyArray, count: int) -> Array:
    """Uniform numbers between -1 and 1, one for each image."""
    return jax.random.uniform(key, (count,), jnp.float32, -1.0, 1.0)


def _framed(images: Array, fill: Any) -> Array:
    """Images in a frame of `fill`, the nearest pixel of every position outside."""
    frame = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jnp.pad(images, frame, constant_values=jnp.asarray(fill, images.dtype))


def _resampled(images: Array, matrix: Any, fill: Any) -> Array:
    """Resample images at `matrix @ position`, where positions are relative to the centre.

    The entries of the 2x2 `matrix` have shape `[batch]`.
    """
    wide = jnp.promote_types(images.dtype, jnp.float32)
    sizes = images.shape[1:3]
    down, right = (jnp.arange(size, dtype=wide) - (size - 1) / 2 for size in sizes)
    # The product is written out as sums, because a GPU computes matrix products with fewer digits
    # than coordinates need. The centre of the framed image is at (size + 1) / 2.
    positions = [
        row[0].astype(wide)[:, None, None] * down[None, :, None]
        + row[1].astype(wide)[:, None, None] * right[None, None, :]
        + (size + 1) / 2
        for row, size in zip(matrix, sizes, strict=True)
    ]

    def read(channel, *position):  # `map_coordinates` takes no traced fill value
        return map_coordinates(channel, position, order=1, mode="nearest")

    channels = jax.vmap(read, (2, None, None), 2)
    framed = _framed(images.astype(wide), fill)
    return jax.vmap(channels)(framed, *positions).astype(images.dtype)
