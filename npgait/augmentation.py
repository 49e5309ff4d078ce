"""Random crops and flips of a batch of images, on whatever device the batch is.

Chance is drawn on the host from the generator that is passed in, so that a batch is the same on NumPy
and CuPy, and a function of its seed alone: a resumed run sees it again without drawing what came before.
"""

from __future__ import annotations

import math

import numpy as np

from npgait.backend import Array, array_module

AUGMENTATIONS = ("none", "crop", "resized")
PADDING = 8  # images no larger than the crop are padded by 1/8 of their side, as 4 pixels of CIFAR's 32
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a resized crop: share of the image, width over height
AT_ONCE = 1 << 22  # pixels worked on at a time, so that a large batch does not need large temporaries


def augment(x: Array, kind: str, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Return a batch with each image cropped at random, and flipped left to right with probability 1/2.

    Parameters
    ----------
    x : array (B, H, W, C)
    kind : {"none", "crop", "resized"}
        "crop" cuts `size` out at a random place, of an image padded with zeros by 1/8 where it is no
        larger than that; "resized" cuts 8 to 100 % of the area at a ratio of 3/4 to 4/3 and resizes it
        (bilinear), as is usual for ImageNet; "none" cuts at the centre and does not flip.
    size : (int, int)
        Height and width of the result, up to those of x.
    rng : numpy.random.Generator

    Returns
    -------
    array (B, *size, C)
        Of the dtype of x; float32 if "resized".

    Raises
    ------
    ValueError
        If `kind` is unknown, or `size` is larger than the images.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation {kind!r} is unknown; use one of {', '.join(AUGMENTATIONS)}")
    if size[0] > x.shape[1] or size[1] > x.shape[2]:
        raise ValueError(
            f"images of {x.shape[1]} x {x.shape[2]} cannot be cropped to {size[0]} x {size[1]}"
        )
    if kind == "none":
        return centre_crop(x, size)
    flips = rng.random(len(x)) < 0.5
    if kind == "crop":
        return _crop(x, size, flips, rng)
    boxes = _draw_boxes(x.shape[1:3], len(x), rng)
    step = max(1, AT_ONCE // (x.shape[2] * size[0]))
    xp = array_module(x)
    out = xp.empty((len(x), *size, x.shape[3]), np.float32)
    for i in range(0, len(x), step):
        part = slice(i, i + step)
        out[part] = _resized(x[part], size, boxes[part], flips[part])
    return out


def centre_crop(x: Array, size: tuple[int, int]) -> Array:
    """Return the middle of each image, (B, *size, C), as a view."""
    top, left = (x.shape[1] - size[0]) // 2, (x.shape[2] - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


def _crop(x: Array, size: tuple[int, int], flips: np.ndarray, rng: np.random.Generator) -> Array:
    xp = array_module(x)
    (rows, row_in), (columns, column_in) = (
        _offsets(stored, wanted, len(x), rng) for stored, wanted in zip(x.shape[1:3], size, strict=True)
    )
    columns[flips], column_in[flips] = columns[flips, ::-1], column_in[flips, ::-1]
    b, rows, columns = (xp.asarray(v) for v in (np.arange(len(x)), rows, columns))
    out = x[b[:, None, None], rows[:, :, None], columns[:, None, :]]
    if not (row_in.all() and column_in.all()):
        inside = row_in[:, :, None] & column_in[:, None, :]
        out *= xp.asarray(inside[..., None]).astype(x.dtype)
    return out


def _offsets(
    stored: int, wanted: int, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (or columns) of `n` crops, (n, wanted), and which of them lie in the image."""
    padding = wanted // PADDING if stored == wanted else 0
    first = rng.integers(-padding, stored - wanted + padding, n, endpoint=True)
    index = first[:, None] + np.arange(wanted)
    return index.clip(0, stored - 1), (index >= 0) & (index < stored)


def _draw_boxes(stored: tuple[int, int], n: int, rng: np.random.Generator) -> np.ndarray:
    """Return (top, left, height, width) of `n` resized crops within images of `stored` pixels."""
    height, width = stored
    area = rng.uniform(*AREA, n) * height * width
    ratio = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), n))
    h = np.minimum(np.sqrt(area / ratio), height)
    w = np.minimum(np.sqrt(area * ratio), width)
    return np.stack([rng.random(n) * (height - h), rng.random(n) * (width - w), h, w], axis=1)


def _resized(x: Array, size: tuple[int, int], boxes: np.ndarray, flips: np.ndarray) -> Array:
    """Return the boxes of a batch resized to `size`, bilinear: first down the rows, then across."""
    xp = array_module(x)
    top, left, height, width = boxes.T
    y0, y1, y = _between(top, height, size[0], x.shape[1])
    x0, x1, across = _between(left, width, size[1], x.shape[2])
    for index in (x0, x1, across):
        index[flips] = index[flips, ::-1]
    y0, y1, y, x0, x1, across = (xp.asarray(v) for v in (y0, y1, y, x0, x1, across))
    b = xp.arange(len(x))[:, None]
    rows = x[b, y0].astype(np.float32)
    rows += (x[b, y1] - rows) * y[:, :, None, None]
    r = xp.arange(size[0])[None, :, None]
    b = b[:, :, None]
    out = rows[b, r, x0[:, None]]
    out += (rows[b, r, x1[:, None]] - out) * across[:, None, :, None]
    return out


def _between(
    first: np.ndarray, extent: np.ndarray, wanted: int, stored: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each pixel wanted, the two that it lies between and its share of the second."""
    centres = first[:, None] + extent[:, None] * (np.arange(wanted) + 0.5) / wanted - 0.5
    centres = centres.clip(0, stored - 1)
    low = np.minimum(centres.astype(np.int64), max(stored - 2, 0))
    return low, np.minimum(low + 1, stored - 1), (centres - low).astype(np.float32)
