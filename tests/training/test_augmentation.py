"""Random changes of images: their effects, their frequencies, and jit, vmap and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxgrad.training import augmentation
from tests.tolerances import rtol, within_errors

IMAGES = np.random.default_rng(0).uniform(0.5, 1.5, (5, 7, 8, 2)).astype(np.float32)
MANY = 2000


def every(key, images, strength, pixels):
    """Each function by itself, all of the same draws."""
    return {
        "flip": augmentation.flip(images, key=key, probability=strength / 2),
        "shift": augmentation.shift(images, pixels, key=key, fill=strength),
        "crop": augmentation.crop(images, (5, 6), key=key),
        "rotate": augmentation.rotate(images, 30 * strength, key=key, fill=strength),
        "zoom": augmentation.zoom(images, 1 + strength, key=key, fill=strength),
        "noise": augmentation.noise(images, strength, key=key),
    }


compiled = jax.jit(every)


def pictures(image):
    """Many copies, each of which draws for itself."""
    return jnp.broadcast_to(
        jnp.asarray(image, jnp.float32)[None, :, :, None], (MANY, *image.shape, 1)
    )


@pytest.mark.parametrize("degrees", [23.0, -71.0, 160.0])
def test_rotation_is_that_of_scipy(degrees, key, monkeypatch):
    monkeypatch.setattr(augmentation, "_signed", lambda key, n: jnp.full(n, np.sign(degrees)))
    # SciPy's "constant" cuts off at the border, this one fades into the fill.
    expected = [
        ndimage.rotate(image, degrees, reshape=False, order=1, mode="grid-constant", cval=0.5)
        for image in IMAGES
    ]
    result = augmentation.rotate(IMAGES, abs(degrees), key=key, fill=0.5)
    np.testing.assert_allclose(result, expected, rtol=rtol(jnp.float32), atol=1e-6)


def test_quarter_turns_are_exact():
    square = IMAGES[:, :, :7]
    one, none = jnp.ones(len(square)), jnp.zeros(len(square))
    quarter = augmentation._resampled(jnp.asarray(square), ((none, one), (-one, none)), 9.0)
    np.testing.assert_array_equal(quarter, np.rot90(square, axes=(1, 2)))
    half = augmentation._resampled(jnp.asarray(IMAGES), ((-one, none), (none, -one)), 9.0)
    np.testing.assert_array_equal(half, IMAGES[:, ::-1, ::-1])


@pytest.mark.parametrize("scale", [2.0, 0.6])
def test_zoom_is_that_of_scipy(scale, key, monkeypatch):
    monkeypatch.setattr(augmentation, "_signed", lambda key, n: jnp.full(n, np.sign(np.log(scale))))
    centre = (np.array(IMAGES.shape[1:3]) - 1) / 2
    expected = [
        ndimage.affine_transform(
            channel, np.eye(2) / scale, centre - centre / scale, order=1, mode="grid-constant"
        )
        for channel in np.moveaxis(IMAGES, 3, 1).reshape(-1, *IMAGES.shape[1:3])
    ]
    result = np.asarray(augmentation.zoom(IMAGES, max(scale, 1 / scale), key=key))
    flat = np.moveaxis(result, 3, 1).reshape(-1, *IMAGES.shape[1:3])
    np.testing.assert_allclose(flat, expected, rtol=rtol(jnp.float32), atol=1e-6)


@pytest.mark.parametrize(("axis", "index"), [("height", 1), ("width", 2)])
def test_flip_exchanges_sides_and_twice_is_none(axis, index, key):
    once = augmentation.flip(IMAGES, key=key, probability=1.0, axis=axis)
    np.testing.assert_array_equal(once, np.flip(IMAGES, index))
    np.testing.assert_array_equal(
        augmentation.flip(once, key=key, probability=1.0, axis=axis), IMAGES
    )
    np.testing.assert_array_equal(
        augmentation.flip(IMAGES, key=key, probability=0.0, axis=axis), IMAGES
    )


def test_strength_none_changes_nothing(key):
    same = compiled(key, IMAGES, 0.0, 0)
    del same["crop"]
    for name, images in same.items():
        np.testing.assert_array_equal(images, IMAGES, name)


def test_shift_is_a_roll_with_filled_borders(key):
    possible = {}
    for down in range(-2, 3):
        for right in range(-2, 3):
            rolled = np.roll(IMAGES, (down, right), axis=(1, 2))
            rolled[:, : max(down, 0)] = rolled[:, 7 + min(down, 0) :] = 0.25
            rolled[:, :, : max(right, 0)] = rolled[:, :, 8 + min(right, 0) :] = 0.25
            possible[down, right] = rolled
    seen = set()
    for k in jax.random.split(key, 8):
        for i, image in enumerate(np.asarray(compiled(k, IMAGES, 0.25, 2)["shift"])):
            (move,) = [m for m, rolled in possible.items() if np.array_equal(rolled[i], image)]
            seen.add(move)
    assert len(seen) > 15


def test_crop_is_a_window_of_the_image(key):
    windows = np.asarray(compiled(key, IMAGES, 1.0, 2)["crop"])
    views = np.lib.stride_tricks.sliding_window_view(IMAGES, (5, 6), axis=(1, 2))
    for i, window in enumerate(windows):
        match = (np.moveaxis(window, -1, 0) == views[i]).all((2, 3, 4))
        assert match.sum() == 1


def test_every_move_window_and_mirror_image_is_as_likely(key):
    # Where the one pixel is tells the move.
    image = np.zeros((5, 5))
    image[2, 2] = 1.0

    images, ramp = pictures(image), pictures(np.array([[0.0, 1.0]]))
    shifted = jax.jit(augmentation.shift)(images, jnp.asarray(1), key=key)[:, 1:4, 1:4]
    windows = jax.jit(augmentation.crop, static_argnums=1)(images, (3, 3), key=key)
    flip = jax.jit(
        lambda probability: augmentation.flip(ramp, key=key, probability=probability)[:, 0, 0, 0]
    )
    for pixels in (shifted, windows):
        counts = np.asarray(pixels).reshape(MANY, 9).sum(axis=0)
        assert counts.sum() == MANY
        assert stats.chisquare(counts).pvalue > 1e-3
    for probability in (0.3, 0.5):
        within_errors(flip(probability), probability)


def test_angles_and_log_factors_are_uniform(key):
    # Two ramps tell where the pixel at (1, 0) from the centre was read.
    ramps = np.stack(np.mgrid[-4.0:5, -4.0:5], -1).astype(np.float32)
    images = jnp.broadcast_to(jnp.asarray(ramps)[None], (MANY, *ramps.shape))
    down, right = np.asarray(jax.jit(augmentation.rotate)(images, 40.0, key=key))[:, 5, 4].T
    angles = np.rad2deg(np.arctan2(-right, down))
    np.testing.assert_allclose(np.hypot(down, right), 1.0, rtol=1e-5)
    assert stats.kstest(angles, stats.uniform(-40, 80).cdf).pvalue > 1e-3
    within_errors(angles, 0.0)
    factors = 1 / np.asarray(jax.jit(augmentation.zoom)(images, 2.0, key=key))[:, 5, 4, 0]
    assert stats.kstest(np.log2(factors), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_noise_has_its_deviation_in_each_value(key):
    added = np.asarray(augmentation.noise(pictures(np.ones((2, 2))), 0.3, key=key)) - 1.0
    within_errors(added, 0.0)
    within_errors(added**2, 0.09)
    assert np.abs(np.corrcoef(added.reshape(MANY, 4).T) - np.eye(4)).max() < 4 / np.sqrt(MANY)


@pytest.fixture(scope="module")
def drawn():
    return compiled(jax.random.key(1), IMAGES, 1.0, 2)


@pytest.mark.slow
def test_compiled_and_mapped_over_keys_and_strengths_it_is_the_same(drawn):
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    strengths, pixels = jnp.asarray([0.5, 1.0]), jnp.asarray([1, 2])
    mapped = jax.jit(jax.vmap(every, (0, None, 0, 0)))(keys, IMAGES, strengths, pixels)
    for name, images in drawn.items():
        np.testing.assert_allclose(mapped[name][1], images, rtol=1e-5, atol=1e-5, err_msg=name)
        assert not np.array_equal(mapped[name][0], images)
    eager = augmentation.shift(IMAGES, 2, key=jax.random.key(1), fill=1.0)
    np.testing.assert_array_equal(drawn["shift"], eager)
    eager = augmentation.zoom(IMAGES, 2.0, key=jax.random.key(1), fill=1.0)
    np.testing.assert_allclose(drawn["zoom"], eager, rtol=1e-5, atol=1e-5)


def test_each_image_draws_for_itself(key):
    copies = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    for name, images in compiled(key, copies, 1.0, 2).items():
        assert len({np.asarray(image).tobytes() for image in images}) > 1, name


def test_dtype_is_kept_and_draws_are_those_of_float32(drawn):
    for name, images in compiled(jax.random.key(1), IMAGES.astype(np.float16), 1.0, 2).items():
        assert images.dtype == jnp.float16, name
        np.testing.assert_allclose(images, drawn[name], 4e-3, 4e-3, err_msg=name)


@pytest.mark.slow
def test_gradients_are_those_of_the_affine_maps_they_are(drawn, x64):
    images = jnp.asarray(IMAGES, float)
    step = np.random.default_rng(1).standard_normal(IMAGES.shape)

    @jax.jit
    def sides(key, images, step):
        start, pull = jax.vjp(lambda x: every(key, x, 1.0, 2), images)
        weights = {name: jnp.cos(jnp.arange(v.size)).reshape(v.shape) for name, v in start.items()}
        end = every(key, images + step, 1.0, 2)
        forward = {name: jnp.vdot(w, end[name] - start[name]) for name, w in weights.items()}
        none = jax.tree.map(jnp.zeros_like, weights)
        backward = {name: jnp.vdot(pull(none | {name: w})[0], step) for name, w in weights.items()}
        return start, forward, backward

    start, forward, backward = sides(jax.random.key(1), images, step)
    for name in start:
        assert start[name].dtype == jnp.float64, name
        np.testing.assert_allclose(start[name], drawn[name], 1e-5, 1e-5, err_msg=name)
        np.testing.assert_allclose(backward[name], forward[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("flip", {"images": IMAGES[0]}, r"images must have shape \[batch, height, width, channels"),
        ("flip", {"images": np.ones((1, 2, 2, 1), int)}, "images must be floating point, got int"),
        ("noise", {"images": np.full((1, 2, 2, 1), np.nan), "std": 1.0}, "images must be finite"),
        ("flip", {"probability": 1.5}, "probability must be at most 1, got 1.5"),
        ("flip", {"probability": -0.5}, "probability must be at least 0, got -0.5"),
        ("flip", {"axis": "depth"}, "axis must be one of height, width"),
        ("shift", {"pixels": -1}, "pixels must be at least 0, got -1"),
        ("shift", {"pixels": 1.5}, "pixels must be a whole number, got 1.5"),
        ("shift", {"pixels": 1, "fill": np.inf}, "fill must be finite"),
        ("crop", {"shape": (8, 8)}, r"at most \(7, 8\).* got \(8, 8\)"),
        ("crop", {"shape": (4, 4, 2)}, r"a height and a width.* got \(4, 4, 2\)"),
        ("rotate", {"degrees": -10.0}, "degrees must be at least 0, got -10"),
        ("rotate", {"degrees": np.ones(5)}, "degrees must be one number, got shape"),
        ("zoom", {"factor": 0.5}, "factor must be at least 1, got 0.5"),
        ("noise", {"std": -1.0}, "std must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(name, options, message, key):
    options = {"images": IMAGES} | options
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(augmentation, name)(key=key, **options)


def test_traced_moves_must_be_whole(key):
    with pytest.raises(TypeError, match="pixels must be one whole number, got float32"):
        jax.jit(augmentation.shift)(IMAGES, 1.5, key=key)
