"""Random changes of images that leave their labels as they are.

Every function takes images of shape `[batch, height, width, channels]`, floating point, and a
`key`. Each image of the batch is changed independently. Results have the shape and the dtype of the
images, except for `crop`. Strengths and fill values may be traced, so that a search over them
compiles once. Arguments that are out of range or have another shape or dtype raise ValueError or
TypeError. To combine changes, give each its own key:

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

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate

_AXES = {"height": 1, "width": 2}

Images = Float[ArrayLike, "batch height width channels"]


def flip(
    images: Images,
    *,
    key: PRNGKeyArray,
    probability: Any = 0.5,
    axis: Literal["width", "height"] = "width",
) -> Float[Array, "batch height width channels"]:
    """Mirror each image with some probability.

    Args:
      key: Key that draws which images are mirrored.
      probability: Probability that an image is mirrored, from 0 to 1.
      axis: `"width"` exchanges left and right, `"height"` top and bottom.

    >>> image = jnp.asarray([1.0, 2.0]).reshape(1, 1, 2, 1)
    >>> flip(image, key=jax.random.key(0), probability=1.0).ravel().tolist()
    [2.0, 1.0]
    """
    images = _checked(images)
    _validate.scalar("probability", probability, minimum=0.0, maximum=1.0)
    _validate.choice("axis", axis, tuple(_AXES))
    flipped = jax.random.uniform(key, images.shape[:1], jnp.float32) < probability
    return jnp.where(flipped[:, None, None, None], jnp.flip(images, _AXES[axis]), images)


def shift(
    images: Images, pixels: Any, *, key: PRNGKeyArray, fill: Any = 0.0
) -> Float[Array, "batch height width channels"]:
    """Move each image by a random whole number of pixels, vertically and horizontally.

    Pixels that leave the image are lost: the image does not wrap around.

    Args:
      pixels: Largest shift, a whole number, at least 0. In each direction the shift
        is uniform over the whole numbers from `-pixels` to `pixels`.
      key: Key that draws the shifts.
      fill: Value of the pixels that enter from outside.

    >>> image = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    >>> shift(image, 1, key=jax.random.key(3))[0, :, :, 0].tolist()
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
    shifts = jax.random.randint(key, (len(images), 2), -pixels, pixels + 1, jnp.int32)

    def shifted(image, steps):
        inside, sources = [], []
        for size, step in zip(image.shape[:2], steps, strict=True):
            # The pixel at i comes from i - step, if that lies within the image.
            source = jnp.arange(size) - step
            inside.append((source >= 0) & (source < size))
            sources.append(jnp.clip(source, 0, size - 1))
        visible = inside[0][:, None] & inside[1][None, :]
        return jnp.where(visible[..., None], image[sources[0]][:, sources[1]], fill)

    return jax.vmap(shifted)(images, shifts)


def crop(
    images: Images, shape: Sequence[int], *, key: PRNGKeyArray
) -> Float[Array, "batch rows columns channels"]:
    """Cut a window out of each image at a random position.

    Args:
      shape: Height and width of the window, at most those of the images. All positions are equally
        likely.
      key: Key that draws the positions.

    Returns:
      Images of shape `[batch, *shape, channels]` and the same dtype.

    >>> crop(jnp.zeros((5, 8, 8, 3)), (6, 7), key=jax.random.key(0)).shape
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
    # The position of the upper left corner, one of room + 1 in each direction.
    room = jnp.asarray(whole) - jnp.asarray(window)
    corners = jax.random.randint(key, (len(images), 2), 0, room[None] + 1, jnp.int32)

    def cut(image, corner):
        rows, columns = (
            jnp.arange(size) + start for size, start in zip(window, corner, strict=True)
        )
        return image[rows][:, columns]

    return jax.vmap(cut)(images, corners)


def rotate(
    images: Images, degrees: Any, *, key: PRNGKeyArray, fill: Any = 0.0
) -> Float[Array, "batch height width channels"]:
    """Rotate each image about its centre by a random angle, with linear interpolation.

    Args:
      degrees: Largest angle, at least 0. Angles are uniform between `-degrees` and
        `degrees`. Positive angles turn counter-clockwise, with row 0 at the top.
      key: Key that draws the angles.
      fill: Value of the pixels outside the image.

    >>> rotate(jnp.ones((5, 8, 8, 1)), 15.0, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("degrees", degrees, minimum=0.0)
    _validate.scalar("fill", fill)
    angles = jnp.deg2rad(degrees * _signed(key, len(images)))
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    return _resampled(images, ((cosine, sine), (-sine, cosine)), fill)


def zoom(
    images: Images, factor: Any, *, key: PRNGKeyArray, fill: Any = 0.0
) -> Float[Array, "batch height width channels"]:
    """Enlarge or shrink each image about its centre, with linear interpolation.

    Enlarged images lose their border.

    Args:
      factor: Largest magnification, at least 1. The logarithm of the magnification
        is uniform between those of `1 / factor` and `factor`, so that halving and doubling are
        equally likely.
      key: Key that draws the magnifications.
      fill: Value of the pixels outside the image.

    >>> zoom(jnp.ones((5, 8, 8, 1)), 1.2, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("factor", factor, minimum=1.0)
    _validate.scalar("fill", fill)
    # The pixel at p comes from p / magnification.
    inverse = jnp.exp(-jnp.log(factor) * _signed(key, len(images)))
    zero = jnp.zeros_like(inverse)
    return _resampled(images, ((inverse, zero), (zero, inverse)), fill)


def noise(
    images: Images, std: Any, *, key: PRNGKeyArray
) -> Float[Array, "batch height width channels"]:
    """Add independent Gaussian noise to every value.

    Args:
      std: Standard deviation of the noise in the units of the images, at least 0.
      key: Key that draws the noise.

    Source: Bishop (1995), who shows that small noise acts as a penalty on derivatives.

    >>> noise(jnp.ones((5, 8, 8, 1)), 0.1, key=jax.random.key(0)).shape
    (5, 8, 8, 1)
    """
    images = _checked(images)
    _validate.scalar("std", std, minimum=0.0)
    # Drawn in float32, so that the draws do not depend on the dtype of the images.
    values = std * jax.random.normal(key, images.shape, jnp.float32)
    return images + values.astype(images.dtype)


def _checked(images: ArrayLike) -> Array:
    return _validate.floating("images", images, 4, "[batch, height, width, channels]")


def _signed(key: PRNGKeyArray, count: int) -> Array:
    """Uniform numbers between -1 and 1, one for each image."""
    return jax.random.uniform(key, (count,), jnp.float32, -1.0, 1.0)


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
    # With a frame of `fill` the nearest pixel of every position outside has the value `fill`.
    # `map_coordinates` takes no traced fill value.
    frame = ((0, 0), (1, 1), (1, 1), (0, 0))
    framed = jnp.pad(images.astype(wide), frame, constant_values=jnp.asarray(fill, wide))

    def read(channel, *position):
        return map_coordinates(channel, position, order=1, mode="nearest")

    channels = jax.vmap(read, (2, None, None), 2)
    return jax.vmap(channels)(framed, *positions).astype(images.dtype)
