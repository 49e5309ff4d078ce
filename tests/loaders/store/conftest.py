"""Sources for image stores: trees of made images, with all that ImageNet has in the way of surprises."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(array, form="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def smooth(rng, height, width) -> np.ndarray:
    """An image that JPEG keeps well: a few random values, enlarged."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def make_tree(root: Path, rng, *, classes=3, images=7, suffix=".JPEG") -> Path:
    """CLASS/FILE of small JPEG files of many shapes."""
    for c in range(classes):
        folder = root / f"n{c:08d}"
        folder.mkdir(parents=True)
        for i in range(images):
            height, width = rng.integers(20, 60, 2)
            (folder / f"n{c:08d}_{i}{suffix}").write_bytes(encoded(smooth(rng, height, width)))
    return root


@pytest.fixture
def tree(tmp_path, rng) -> Path:
    return make_tree(tmp_path / "source", rng)
