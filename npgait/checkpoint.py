"""Checkpoints: all that a run needs to go on as if never stopped, in one plain HDF5 file.

Layout (format version 2):

    first 512 bytes   a line of text: "npgait checkpoint", version, "sha256" of all bytes that follow
    /meta             JSON text: experiment, progress, data, rows, streams, network
    /parameters/...   layer/W, layer/b
    /optimizer/...    its state
    /feedback/...     B_l by number of layer, where the rule has them

No pickle; h5py alone reads it. The digest is checked before HDF5 sees the file: its library may
never return from reading damaged metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npgait.backend import to_host
from npgait.files import own_item, replacing

FORMAT, VERSION = b"npgait checkpoint", 2
SEAL_BYTES = 512  # at the start of the file, which HDF5 leaves to its user
MAX_BYTES = 1 << 36  # of one array; what a damaged header may promise is not allocated


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, is damaged, or belongs to another run; the message is one line."""


@dataclass
class Checkpoint:
    """What a checkpoint holds: plain values, and NumPy arrays by group and name."""

    meta: dict[str, Any]
    arrays: dict[str, dict[str, np.ndarray]]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all: temporary file, sync, rename.

    Raises
    ------
    OSError
        If it cannot be written (a full disk, say); the file that was there is as it was.
    """
    import h5py

    arrays = {
        group: {name: to_host(array) for name, array in members.items()}
        for group, members in checkpoint.arrays.items()
    }
    meta = json.dumps(checkpoint.meta, sort_keys=True)
    # Built in memory: HDF5 does not survive a disk that fills up under it.
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=SEAL_BYTES) as file:
        file["meta"] = np.frombuffer(meta.encode(), dtype=np.uint8)
        for group, members in arrays.items():
            file.create_group(group)
            for name, array in members.items():
                file[f"{group}/{name}"] = array
    # No view of it may be left in the traceback of an error: Python 3.13 complains on stderr.
    with image.getbuffer() as content:
        digest = hashlib.sha256(content[SEAL_BYTES:]).hexdigest()
        seal = b"%s %d sha256 %s\n" % (FORMAT, VERSION, digest.encode())
        content[: len(seal)] = seal
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(content)


def load_checkpoint(path: Path) -> Checkpoint:
    """Check the digest of a checkpoint and read it.

    Raises
    ------
    CheckpointError
        If the file is missing, no checkpoint, of a later version, or damaged.
    """
    import h5py

    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        _check_seal(path)
        # Who writes puts a whole file in its place; a lock of HDF5's would only fail, or not be there.
        with h5py.File(path, "r", locking=False) as file:
            text = _read(own_item(file, "meta"), path.stat().st_size).tobytes().decode()
            arrays = {
                group: _read_group(own_item(file, group), path.stat().st_size)
                for group in ("parameters", "optimizer", "feedback")
            }
        meta = json.loads(text)
        if not isinstance(meta, dict):
            raise CheckpointError(f"{path}: its meta data are no table")
        return Checkpoint(meta, arrays)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # h5py raises nearly every type there is on a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error


def _read_group(group: Any, file_bytes: int) -> dict[str, np.ndarray]:
    import h5py

    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if name.count("/") > 1:  # LAYER/W; of groups in groups without end each name is a longer way
            raise ValueError(f"{group.name} has groups within groups")
        if isinstance(item, h5py.Dataset):
            found[name] = _read(item, file_bytes)

    group.visititems(visit)
    return found


def _read(dataset: Any, file_bytes: int) -> np.ndarray:
    """Return a dataset, refusing what cannot be in a file of this size: nothing is compressed.

    Nor does anything lie in other files, which may be pipes.
    """
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in another file")
    if dataset.nbytes > min(file_bytes, MAX_BYTES) or dataset.dtype.kind not in "fiu":
        raise ValueError(f"{dataset.name} promises {dataset.nbytes} bytes of {dataset.dtype}")
    return dataset[()] if dataset.shape else np.asarray(dataset[()])


def _check_seal(path: Path) -> None:
    """Raise a CheckpointError where the file is not what was written."""
    with path.open("rb") as file:
        seal = file.read(SEAL_BYTES)
        if not seal.startswith(FORMAT):
            kind = "an HDF5 file, but " if seal.startswith(b"\x89HDF") else ""
            raise CheckpointError(
                f"{path}: {kind}not a checkpoint of npgait in format {VERSION}, or damaged at its start"
            )
        version, _, digest = seal.removeprefix(FORMAT).split(b"\n")[0].split()
        if int(version) > VERSION:
            raise CheckpointError(
                f"{path}: format version {int(version)}; this npgait reads up to {VERSION}, a later one "
                "is needed"
            )
        if hashlib.file_digest(file, "sha256").hexdigest().encode() != digest:
            raise CheckpointError(f"{path}: damaged: its content does not match its digest")
