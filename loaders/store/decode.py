"""Bytes of an image file -> RGB pixels of one size, or the reason why not.

What ImageNet holds in the way of surprises is decoded rightly: greyscale, CMYK, rotation by EXIF, a PNG
named .JPEG (the content decides, never the name), EXIF that cannot be read. What is damaged is a
`BadImageError`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoders that need nothing but their own library: Pillow's EPS, for one, starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_FILE_BYTES = 1 << 28
MAX_PIXELS = 100_000_000  # ImageNet's largest has 61 million
WITHOUT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # for a pipe
ORIENTATION = 0x0112  # tag of EXIF
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second


class BadImageError(ValueError):
    """The bytes are no image that can be used; the message is the reason."""


def read_source(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Return the bytes of a file, or `size` of them from `offset`: an image within an archive.

    Raises
    ------
    BadImageError
        If it is no plain file, too large to be an image, or ends early.
    OSError
        If it cannot be read.
    """
    descriptor = os.open(path, WITHOUT_WAITING)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise BadImageError("no plain file")
        size = about.st_size if size is None else size
        if size > MAX_FILE_BYTES:
            raise BadImageError(f"{size} bytes; an image has up to {MAX_FILE_BYTES}")
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more  # a network file system may cut a read short, which is no damage
        if len(data) < size:
            raise BadImageError(f"ends after {len(data)} of {size} bytes")
        return data
    finally:
        os.close(descriptor)


def decode(data: bytes, size: int) -> Image:
    """Return an image as RGB, upright, resized on the short side and cropped at the centre.

    Pillow may warn of harmless damage, such as EXIF that cannot be read. That is left to the caller:
    `warnings.catch_warnings` in threads, as the reader has them, leaves all of a process's warnings off.

    Parameters
    ----------
    data : bytes
        Of a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file.
    size : int
        Side of the result, in pixels.

    Raises
    ------
    BadImageError
        If it cannot be decoded whole, unpacks to more than `MAX_PIXELS`, or is grey in a range that its
        format does not tell.
    """
    from PIL import Image, TiffImagePlugin, WebPImagePlugin

    del TiffImagePlugin, WebPImagePlugin  # imported to be known

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width} x {image.height} pixels; up to {MAX_PIXELS}")
            # The JPEG decoder leaves out detail finer than a third of a pixel of the result.
            drafted = image.draft(None, (3 * size, 3 * size))
            image.load()
            # Its last row and column may be a part of a pixel only: what lies beyond is no image.
            width, height = drafted[1][2:] if drafted else image.size
            return _upright(_square(_as_rgb(image), width, height, size), image)
    except BadImageError:
        raise
    except Exception as error:  # a damaged image fails in any of Pillow's decoders, in any way
        reason = str(error).replace("\n", " ")
        if "cannot identify image" in reason:
            reason = "no image of a known format"
        raise BadImageError(f"{reason or type(error).__name__}") from error


def _square(rgb: Image, width: float, height: float, size: int) -> Image:
    """Return the largest square at the centre of the first `width` x `height` pixels, resized."""
    from PIL.Image import Resampling

    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return rgb.resize((size, size), Resampling.BICUBIC, (left, top, left + side, top + side))


def _as_rgb(image: Image) -> Image:
    if image.mode == "RGB":
        return image
    # Of these two, Pillow gives grey above 8 bits as 32 bits that hold 0 to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # convert() would clip 16 bits at 255; that a TIFF has 12, or 0 for white, only its tags tell.
        tags = getattr(image, "tag_v2", {})
        bits = min(tags.get(BITS, (16,)))
        scale, offset = 1 / (1 << (bits - 8)), 0.0
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            scale, offset = -scale, ((1 << bits) - 1) * scale
        return image.convert("I").point(lambda value: value * scale + offset).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise BadImageError(f"32-bit grey (mode {image.mode}) has no known range; expected 8 or 16 bits")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _upright(rgb: Image, image: Image) -> Image:
    """Return `rgb` turned as the EXIF of `image` says; as it is if that cannot be read."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    orientation = None
    with contextlib.suppress(Exception):  # damaged EXIF raises nearly anything
        orientation = image.getexif().get(ORIENTATION)
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def moments(image: Image) -> tuple[list[int], list[int]]:
    """Return the sums of the pixels and of their squares, channel by channel: exact integers."""
    counts, values = np.array(image.histogram(), dtype=np.int64).reshape(-1, 256), np.arange(256)
    return (counts @ values).tolist(), (counts @ values**2).tolist()
