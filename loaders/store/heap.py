"""Texts of variable length in HDF5 files: where their heap is damaged, the library may hang or crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from npgait.loaders.dataset import DataError

SECONDS = 30.0  # for the attributes of a file whose heap may be damaged
READ_ATTRIBUTES = """
import sys, h5py
with h5py.File(sys.argv[1], "r", locking=False) as file:
    [file.attrs[key] for key in sys.argv[2:]]
"""


def try_heap(path: Path, file: Any, names: Iterable[str]) -> None:
    """Have another process read attributes that lie in a heap: in a damaged one HDF5 may never end.

    Stores have had none there since they are written with texts of fixed length.

    Raises
    ------
    DataError
        If that process hangs or crashes, or an attribute is what no store has.
    """
    import h5py

    keys = [key for key in names if key in file.attrs]
    dtypes = [file.attrs.get_id(key).dtype for key in keys]
    kinds = [h5py.check_string_dtype(dtype) for dtype in dtypes]
    for key, dtype, kind in zip(keys, dtypes, kinds, strict=True):
        if dtype.kind in "OV" and kind is None:  # may lie in a heap, or have members that do
            raise DataError(
                f"{path}: a damaged image store (its attribute {key} is neither text nor numbers)"
            )
    if not any(kind and kind.length is None for kind in kinds):
        return
    command = [sys.executable, "-P", "-c", READ_ATTRIBUTES, str(path), *keys]
    try:
        status = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode
    except subprocess.TimeoutExpired:
        status = -1
    if status < 0:
        raise DataError(f"{path}: a damaged image store (HDF5 cannot read its attributes)")
