"""A process that decodes images: tasks come by standard input, answers go to standard output.

A process of its own, because a damaged image may take its decoder down; it holds no lock and no queue,
and ends with its input, so that nothing is left of a conversion that was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
import zlib
from typing import Any

from npgait.loaders.store.decode import BadImageError, decode, moments, read_source
from npgait.loaders.store.journal import Done, naming, write_all
from npgait.loaders.store.layout import GOOD, SKIPPED

MEMORY = 4 << 30  # bytes of addresses, beyond which an image is refused


def convert_image(where: tuple[str, int, int | None], settings: dict[str, Any]) -> tuple[Done, bytes]:
    """Return what became of one image, and its bytes as stored.

    Raises
    ------
    OSError
        If the source cannot be read, unless the settings say to skip such images.
    """
    try:
        data = _read(where, settings)
        image = decode(data, settings["size"])
        sums, squares = moments(image)
    except (BadImageError, MemoryError) as error:
        return skipped(str(error) or "takes too much memory", settings), _no_pixels(settings)
    if settings["store"] == "raw":
        data = image.tobytes()
    elif settings["store"] == "jpeg":
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=settings["quality"])
        data = encoded.getvalue()
    return Done(GOOD, zlib.crc32(data), len(data), sums, squares), data


def _read(where: tuple[str, int, int | None], settings: dict[str, Any]) -> bytes:
    try:
        with naming(where[0]):
            return read_source(*where)
    except OSError as error:
        if settings["skip_unreadable"]:
            raise BadImageError(f"cannot be read: {error.strerror}") from error
        raise


def skipped(reason: str, settings: dict[str, Any]) -> Done:
    """Return the entry of an image that could not be used: black pixels, or no bytes."""
    data = _no_pixels(settings)
    return Done(SKIPPED, zlib.crc32(data), len(data), [0, 0, 0], [0, 0, 0], reason[:500])


def _no_pixels(settings: dict[str, Any]) -> bytes:
    return bytes(3 * settings["size"] ** 2) if settings["store"] == "raw" else b""


def main() -> None:
    """Answer tasks until the input ends, or whoever asks is gone."""
    settings = json.loads(sys.argv[1])
    _limit_memory()
    warnings.simplefilter("ignore")  # of harmless damage, such as EXIF that cannot be read
    with contextlib.suppress(BrokenPipeError):
        _answer(b"ready\n")
        for line in sys.stdin.buffer:
            task = json.loads(line)
            answer, encoded = _do(task["where"], task["offsets"], settings)
            _answer(json.dumps(answer).encode() + b"\n" + encoded)
    os._exit(0)  # flushing what nobody reads any more would be an error


def _answer(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _do(where: list[Any], offsets: list[int], settings: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Convert the images of a task; pixels go into the part file, encoded bytes into the answer."""
    done: list[list[Any]] = []
    encoded: list[bytes] = []
    try:
        part = os.open(settings["part"], os.O_WRONLY)
        try:
            for one_where, offset in zip(where, offsets, strict=True):
                one, data = convert_image(tuple(one_where), settings)
                done.append(one.row())
                if settings["store"] == "raw":
                    with naming(settings["part"]):
                        write_all(part, data, offset)
                else:
                    encoded.append(data)
        finally:
            os.close(part)
    except BrokenPipeError:
        raise
    except OSError as error:
        return {"errno": error.errno, "text": error.strerror, "file": error.filename}, b""
    return {"done": done}, b"".join(encoded)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        allowed = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
