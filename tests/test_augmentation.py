"""Random crops and flips: what they keep, and that a seed decides all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait import augmentation
from npgait.augmentation import _draw_boxes, _resized, augment, centre_crop
from npgait.backend import as_array, to_host
from npgait.data import Preparation, Scaling, array_data, scaling_of

sizes = st.integers(1, 12)


@given(height=sizes, width=sizes, h=sizes, w=sizes, kind=st.sampled_from(["none", "crop", "resized"]))
def test_crops_are_of_the_size_asked_for_and_hold_pixels_of_the_image(height, width, h, w, kind):
    rng = np.random.default_rng(height + 13 * width)
    x = rng.integers(1, 256, (3, height, width, 2), dtype=np.uint8)
    if h > height or w > width:
        with pytest.raises(ValueError, match="cannot be cropped"):
            augment(x, kind, (h, w), rng)
        return
    out = augment(x, kind, (h, w), rng)
    assert out.shape == (3, h, w, 2)
    for image, whole in zip(out, x, strict=True):
        if kind == "resized":
            assert whole.min() - 1e-3 <= image.min() <= image.max() <= whole.max() + 1e-3
        else:
            assert set(image.ravel().tolist()) <= {0, *whole.ravel().tolist()}


def test_a_crop_is_a_window_of_the_image_or_its_mirror_image(rng):
    x = np.arange(10 * 12).reshape(1, 10, 12, 1).astype(np.int32)
    seen = set()
    for _ in range(200):
        (crop,) = augment(x, "crop", (6, 7), rng)[..., 0]
        flipped = crop[0, 1] < crop[0, 0]
        crop = crop[:, ::-1] if flipped else crop
        top, left = divmod(int(crop[0, 0]), 12)
        np.testing.assert_array_equal(crop, x[0, top : top + 6, left : left + 7, 0])
        seen.add((top, left, bool(flipped)))
    assert len(seen) > 40  # of 5 x 6 x 2


def test_an_image_no_larger_than_the_crop_is_padded_with_zeros(rng):
    x = np.full((400, 16, 16, 3), 9, np.uint8)
    out = augment(x, "crop", (16, 16), rng)
    empty = (out == 0).all(axis=(2, 3)).sum(axis=1)  # rows of padding
    assert set(empty.tolist()) == {0, 1, 2}
    assert set(np.unique(out)) == {0, 9}


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (24, 16)])
def test_a_padded_crop_is_a_window_of_the_image_with_its_padding_or_its_mirror_image(height, width, rng):
    """Padded where the image is no larger than the crop, and cut where it is."""
    x = np.arange(1, height * width + 1, dtype=np.int32).reshape(1, height, width, 1)
    pads = [2 if n == 16 else 0 for n in (height, width)]
    padded = np.pad(x[0, ..., 0], [(n, n) for n in pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16)).reshape(-1, 256)
    known = {w.tobytes() for w in windows} | {
        np.ascontiguousarray(w.reshape(16, 16)[:, ::-1]).tobytes() for w in windows
    }
    crops = augment(np.repeat(x, 300, axis=0), "crop", (16, 16), rng)
    assert {np.ascontiguousarray(crop[..., 0]).tobytes() for crop in crops} <= known


def test_a_large_batch_is_resized_a_part_at_a_time_to_what_it_would_be_at_once(rng, monkeypatch):
    x = rng.integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    expected = augment(x, "resized", (8, 9), np.random.default_rng(7))
    monkeypatch.setattr(augmentation, "AT_ONCE", 3 * 10 * 8)
    parts = []
    resized = augmentation._resized
    monkeypatch.setattr(
        augmentation, "_resized", lambda x, *args: parts.append(len(x)) or resized(x, *args)
    )
    got = augment(x, "resized", (8, 9), np.random.default_rng(7))
    np.testing.assert_array_equal(got, expected)
    assert parts == [3, 3, 1]


def test_half_of_the_images_are_flipped(rng):
    x = np.tile(np.arange(8, dtype=np.uint8)[None, None, :, None], (2000, 4, 1, 1))
    out = augment(x, "crop", (4, 4), rng)
    share = (out[:, 0, 0, 0] > out[:, 0, 1, 0]).mean()
    assert 0.45 < share < 0.55


def test_a_resized_crop_of_the_whole_image_is_the_image(rng):
    x = rng.integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    boxes = np.tile([0.0, 0.0, 9.0, 7.0], (2, 1))
    flips = np.array([False, True])
    out = _resized(x, (9, 7), boxes, flips)
    np.testing.assert_allclose(out[0], x[0], atol=1e-4)
    np.testing.assert_allclose(out[1], x[1, :, ::-1], atol=1e-4)


def test_a_resized_crop_is_bilinear(rng):
    """A ramp stays a ramp under bilinear interpolation, wherever the box lies."""
    rows, columns = np.mgrid[0:40, 0:50]
    x = (2.0 * rows + 3.0 * columns)[None, ..., None].astype(np.float32)
    boxes = np.array([[5.3, 7.1, 20.0, 30.0]])
    out = _resized(x, (10, 15), boxes, np.array([False]))[0, ..., 0]
    y = 5.3 + 2 * (np.arange(10) + 0.5) - 0.5
    across = 7.1 + 2 * (np.arange(15) + 0.5) - 0.5
    np.testing.assert_allclose(out, 2 * y[:, None] + 3 * across, rtol=1e-5)


def test_resized_crops_are_8_to_100_percent_of_the_image_at_ratios_of_3_to_4_to_4_to_3(rng):
    top, left, height, width = _draw_boxes((90, 120), 20_000, rng).T
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 90
    assert (left + width).max() <= 120
    share, whole = height * width / (90 * 120), (height < 90) & (width < 120)
    ratio = width[whole] / height[whole]
    for values, low, high in ((share, 0.08, 1.0), (ratio, 3 / 4, 4 / 3)):
        assert low * (1 - 1e-9) <= values.min() < low * 1.02
        assert 0.98 * high < values.max() <= high * (1 + 1e-9)
    small = np.log(width / height)[share < 0.3]  # of those that no side of the image has cut
    assert abs(small.mean()) < 4 * small.std() / len(small) ** 0.5  # wide as often as high
    assert np.corrcoef(top / (90 - height + 1e-9), left / (120 - width + 1e-9))[0, 1] < 0.05


def test_the_same_on_every_device(device, rng):
    x = rng.integers(0, 256, (5, 20, 22, 3), dtype=np.uint8)
    for kind in ("crop", "resized"):
        expected = augment(x, kind, (12, 13), np.random.default_rng(7))
        got = augment(as_array(x, device.xp), kind, (12, 13), np.random.default_rng(7))
        np.testing.assert_allclose(to_host(got), expected, rtol=1e-5, atol=1e-3)


def test_the_centre_is_cut_where_nothing_is_left_to_chance(rng):
    x = rng.integers(0, 256, (2, 9, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(centre_crop(x, (5, 4)), x[:, 2:7, 2:6])
    np.testing.assert_array_equal(centre_crop(x, (6, 5)), x[:, 1:7, 1:6])  # the odd pixel is cut last
    prepare = Preparation(
        Scaling(), np.dtype("float32"), array_data(x, [0, 0]).prepare.device, (5, 4, 3), (5, 4), "crop"
    )
    np.testing.assert_array_equal(prepare(x), x[:, 2:7, 2:6])


def test_an_unknown_augmentation_is_refused(rng):
    with pytest.raises(ValueError, match="'mixup' is unknown"):
        augment(np.zeros((1, 4, 4, 3)), "mixup", (4, 4), rng)
    with pytest.raises(ValueError, match="takes images"):
        array_data(np.zeros((4, 9)), np.zeros(4, int), augmentation="crop")


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4)),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_scaling_is_the_equation_for_every_shape(shape, dtype):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    scaling = Scaling(rng.normal(size=shape[-1]), rng.uniform(0.1, 2, shape[-1]))
    expected = (x - scaling.shift) * scaling.scale
    for kind in (np.uint8, np.int16, np.float32):
        got = scaling.apply(x.astype(kind), np.dtype(dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    grey = scaling_of(x[..., 0] if len(x) else np.ones((2, 3, 3)), "standard")
    np.testing.assert_allclose(
        grey.apply(x[..., 0], np.dtype("float64")), (x[..., 0] - grey.shift) * grey.scale, atol=1e-12
    )
