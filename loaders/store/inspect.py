"""Looking at a store: every image against its checksum, and a sheet of samples."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from npgait.loaders.dataset import DataError
from npgait.loaders.store.layout import GOOD, Store
from npgait.loaders.store.reader import cores, decode_stored, open_images, read_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

STRETCH = 64  # images of one task
SIDE = 96  # of an image on a contact sheet, in pixels


@dataclass(frozen=True)
class Damage:
    """An image whose bytes are not what was written."""

    number: int
    source: str
    reason: str


def verify(store: Store, *, threads: int = 0) -> Iterator[tuple[int, list[Damage]]]:
    """Check every image against its checksum; yield (images looked at, damage found) as it goes.

    Parameters
    ----------
    store : Store
    threads : int
        That read. Default: one a core.

    Raises
    ------
    DataError
        If the file cannot be opened.
    """
    descriptor = open_images(store)
    n = len(store)
    # In slices: the futures of a million images would all wait at once.
    stretches = range(0, n, STRETCH)
    at_once = 4 * (threads or cores())
    try:
        with ThreadPoolExecutor(threads or cores()) as pool:
            for k in range(0, len(stretches), at_once):
                firsts = stretches[k : k + at_once]
                for first, found in zip(
                    firsts,
                    pool.map(lambda i: _verify_stretch(store, descriptor, i), firsts),
                    strict=True,
                ):
                    yield min(first + STRETCH, n), found
    finally:
        os.close(descriptor)


def _verify_stretch(store: Store, descriptor: int, first: int) -> list[Damage]:
    found = []
    for i in range(first, min(first + STRETCH, len(store))):
        try:
            got = zlib.crc32(read_bytes(store, descriptor, i))
        except (OSError, DataError) as error:
            found.append(Damage(i, source_name(store, i), f"cannot be read ({error})"))
            continue
        expected = int(store.head.checksums[i])
        if got != expected:
            reason = f"checksum {got:08x}, written as {expected:08x}"
            found.append(Damage(i, source_name(store, i), reason))
    return found


def source_name(store: Store, i: int) -> str:
    """Return the name of the file that image i was made of."""
    return bytes(store.head.sources[i]).decode("utf-8", "replace")


def contact_sheet(store: Store) -> Image:
    """Return a sheet of up to 100 good images drawn at random, sorted by class, as one RGB image."""
    from PIL import Image

    good = np.flatnonzero(store.head.state == GOOD)
    chosen = np.random.default_rng(0).permutation(good)[:100]
    chosen = chosen[np.argsort(store.head.labels[chosen], kind="stable")]
    columns = max(1, math.ceil(math.sqrt(len(chosen))))
    rows = max(1, -(-len(chosen) // columns))
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    descriptor = open_images(store)
    try:
        for k, i in enumerate(chosen.tolist()):
            pixels = _pixels(store, descriptor, i)
            if store.head.max_value < 255:
                pixels = (pixels * (255 / store.head.max_value)).astype(np.uint8)
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
            # Small images are enlarged by whole pixels, to be seen as they are.
            way = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.LANCZOS
            image = image.resize((SIDE - 2, SIDE - 2), way)
            sheet.paste(image, (k % columns * SIDE + 1, k // columns * SIDE + 1))
    finally:
        os.close(descriptor)
    return sheet


def _pixels(store: Store, descriptor: int, i: int) -> np.ndarray:
    data = read_bytes(store, descriptor, i)
    if store.head.offsets is not None:
        return decode_stored(store.path, i, data, store.head.image_shape[0])
    return np.frombuffer(data, np.uint8).reshape(store.head.image_shape)
