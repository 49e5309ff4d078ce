"""Every kind of image that ImageNet has is decoded rightly; what is damaged is said to be."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

from npgait.loaders.store.decode import BadImageError, decode, moments, read_source
from tests.loaders.store.conftest import encoded, smooth

TURNED = {  # how a camera stores an image that is to be seen upright, by EXIF orientation
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def close(image, expected, most) -> bool:
    return np.abs(np.asarray(image).astype(int) - np.asarray(expected).astype(int)).mean() < most


@pytest.mark.parametrize("orientation", TURNED)
def test_an_image_is_turned_as_its_exif_says(orientation, rng):
    upright = Image.fromarray(smooth(rng, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright.transpose(TURNED[orientation]), quality=95, exif=exif)
    assert close(decode(data, 32), upright, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_an_image_whose_exif_cannot_be_read_is_decoded_without_it(rng):
    x = smooth(rng, 32, 32)
    data = encoded(x, quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x99" * 40)
    assert close(decode(data, 32), x, 4)


def test_greyscale_becomes_three_equal_channels(rng):
    x = smooth(rng, 40, 40)[..., 0]
    pixels = np.asarray(decode(encoded(x, "PNG"), 40))
    assert (pixels == x[..., None]).all()


def test_cmyk_shows_the_colours_it_was_made_of(rng):
    x = smooth(rng, 40, 40)
    data = encoded(Image.fromarray(x).convert("CMYK"), quality=95)
    assert close(decode(data, 40), x, 6)


def test_sixteen_bits_are_scaled_not_clipped():
    x = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = np.asarray(decode(encoded(x, "PNG"), 32))
    assert np.abs(pixels[..., 0].astype(int) - (x >> 8)).max() <= 1


@pytest.mark.parametrize(("bits", "white"), [(12, 1), (16, 0), (16, 1)])
def test_tiff_of_12_bits_or_with_0_for_white_is_shown_as_it_is_meant(bits, white):
    x = np.linspace(0, (1 << bits) - 1, 32 * 32).reshape(32, 32).astype(np.uint16)
    data = encoded(x, "TIFF")
    if bits == 12:
        x_bits = np.unpackbits(x.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
        data = data.replace(x.tobytes(), np.packbits(x_bits).tobytes())
    for tag, value in ((258, bits), (262, white)):
        at = data.index(struct.pack("<HHI", tag, 3, 1)) + 8
        data = data[:at] + struct.pack("<H", value) + data[at + 2 :]
    meant = (x >> (bits - 8)).astype(int)
    got = np.asarray(decode(data, 32))[..., 0]
    assert np.abs(got - (meant if white else 255 - meant)).max() <= 1


@pytest.mark.parametrize("most", [256, 1000, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_greyscale_ppm_above_8_bits_is_scaled_by_its_largest_value(kind, most):
    x = np.linspace(0, most, 32 * 32).reshape(32, 32).astype(np.uint16)
    values = x.astype(">u2").tobytes() if kind == "P5" else b" ".join(b"%d" % v for v in x.flat)
    pixels = np.asarray(decode(b"%s\n32 32\n%d\n" % (kind.encode(), most) + values, 32)).astype(int)
    assert np.abs(pixels - (x * (255 / most))[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_grey_of_no_known_range_is_reported(kind):
    x = np.linspace(0, 100_000, 32 * 32).reshape(32, 32).astype(kind)
    with pytest.raises(BadImageError, match=r"32-bit grey .* has no known range"):
        decode(encoded(x, "TIFF"), 32)


def test_grey_of_no_known_range_is_skipped_not_stored_as_white(tree, tmp_path):
    from npgait.loaders.store import Settings, find_listings, prepare

    x = np.linspace(0, 1, 32 * 32).reshape(32, 32).astype(np.float32)
    (tree / "n00000000" / "float.tif").write_bytes(encoded(x, "TIFF"))
    (listing,) = find_listings("imagenet", tree)
    outcome = prepare(listing, tmp_path / "x.h5", Settings(24))
    assert outcome.skipped == 1
    assert "float.tif\t32-bit grey (mode F) has no known range" in outcome.report.read_text()


def test_the_short_side_is_resized_and_the_centre_cropped(rng):
    x = np.zeros((40, 120, 3), np.uint8)
    x[:, 40:80] = 255  # the centre square
    assert np.asarray(decode(encoded(x, "PNG"), 20)).min() > 200
    assert np.asarray(decode(encoded(x.transpose(1, 0, 2), "PNG"), 20)).min() > 200


def test_detail_that_the_jpeg_decoder_skips_cannot_be_seen(shared_data):
    from PIL import ImageOps

    for path in sorted((shared_data / "imagenet_sample").glob("train/*/*"))[:20]:
        with Image.open(path) as image:
            whole = ImageOps.fit(image.convert("RGB"), (48, 48), Image.Resampling.BICUBIC)
        got = np.asarray(decode(path.read_bytes(), 48), np.float64)
        assert decibels(got, whole) > 45  # the median is 53


def decibels(got, expected) -> float:
    """How far below white the difference is."""
    difference = np.asarray(got, np.float64) - np.asarray(expected, np.float64)
    return 10 * np.log10(255**2 / max((difference**2).mean(), 1e-9))


@pytest.mark.parametrize(
    ("height", "width"), [(577, 577), (576, 577), (577, 900), (583, 580), (289, 289)]
)
def test_an_image_just_above_a_scale_of_the_jpeg_decoder_is_not_stretched(height, width, rng):
    from PIL import ImageOps

    image = Image.fromarray(smooth(rng, height, width))
    data = encoded(image, quality=95)
    with Image.open(io.BytesIO(data)) as whole:
        expected = ImageOps.fit(whole, (24, 24), Image.Resampling.BICUBIC)
    assert decibels(decode(data, 24), expected) > 45


@pytest.mark.parametrize("keep", [0, 1, 10, 200, -300])
def test_a_file_that_ends_early_is_reported(keep, rng):
    data = encoded(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(BadImageError):
        decode(data[:keep], 32)


def png_of(width, height, rows: bytes) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_that_unpacks_to_too_many_pixels_is_refused_before_it_does():
    bomb = png_of(60_000, 60_000, zlib.compress(bytes(10_000_000), 9))
    with pytest.raises(BadImageError, match="pixels"):
        decode(bomb, 32)


def test_a_text_is_no_image():
    with pytest.raises(BadImageError, match="no image of a known format"):
        decode(b"not an image", 32)


def test_formats_that_start_other_programs_are_not_opened():
    with pytest.raises(BadImageError):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", 32)


def test_a_pipe_and_a_file_that_is_too_large_are_refused_without_reading(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadImageError, match="plain file"):
        read_source(str(tmp_path / "pipe"))
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadImageError, match="bytes"):
        read_source(str(tmp_path / "huge"))


def test_reads_that_the_system_cuts_short_are_finished(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 7)))
    assert read_source(str(tmp_path / "x")) == bytes(range(100))
    assert read_source(str(tmp_path / "x"), 3, 50) == bytes(range(3, 53))
    with pytest.raises(BadImageError, match="ends after 10 of 20 bytes"):
        read_source(str(tmp_path / "x"), 90, 20)


def test_a_stretch_beyond_the_end_of_its_archive_is_reported(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_source(str(tmp_path / "a"), 1, 3) == b"234"
    with pytest.raises(BadImageError, match="ends after 2 of 9 bytes"):
        read_source(str(tmp_path / "a"), 3, 9)


def test_moments_are_the_exact_sums_of_pixels_and_squares(rng):
    x = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    sums, squares = moments(Image.open(io.BytesIO(encoded(x, "PNG"))))
    wide = x.astype(np.int64)
    assert sums == wide.sum(axis=(0, 1)).tolist()
    assert squares == (wide**2).sum(axis=(0, 1)).tolist()
