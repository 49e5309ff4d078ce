"""Patches of images: cut out (im2col), and added back where they came from (col2im).

Padding is TensorFlow's: SAME gives ceil(size / stride) positions, and where the padding is odd the extra
pixel goes to the bottom and right.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module

PADDINGS = ("SAME", "VALID")


@dataclass(frozen=True)
class Window:
    """Where a square kernel stands on an image.

    Parameters
    ----------
    height, width, channels : int
        Of the image.
    kernel : int
        k; a patch has k*k*channels values.
    stride : int
    padding : {"SAME", "VALID"}

    Raises
    ------
    ValueError
        If a number is below 1, the padding is unknown, or the kernel does not fit a VALID image.
    """

    height: int
    width: int
    channels: int
    kernel: int
    stride: int = 1
    padding: str = "SAME"

    def __post_init__(self) -> None:
        sizes = (self.height, self.width, self.channels, self.kernel, self.stride)
        if min(sizes) < 1:
            raise ValueError(f"{self}: every size has to be at least 1")
        if self.padding not in PADDINGS:
            raise ValueError(f"padding {self.padding!r} is unknown; use SAME or VALID")
        if self.padding == "VALID" and self.kernel > min(self.height, self.width):
            raise ValueError(
                f"a kernel of {self.kernel} does not fit an image of {self.height} x {self.width}; "
                "use larger images or SAME padding"
            )

    @property
    def patch_size(self) -> int:
        """Values of a patch, k*k*channels."""
        return self.kernel**2 * self.channels

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns of positions: (H', W')."""
        return self._positions(self.height), self._positions(self.width)

    @property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels of padding: ((top, bottom), (left, right))."""
        return self._pads(self.height), self._pads(self.width)

    def _positions(self, size: int) -> int:
        if self.padding == "SAME":
            return -(-size // self.stride)
        return (size - self.kernel) // self.stride + 1

    def _pads(self, size: int) -> tuple[int, int]:
        if self.padding == "VALID":
            return 0, 0
        span = (self._positions(size) - 1) * self.stride + self.kernel
        total = max(span - size, 0)
        return total // 2, total - total // 2


def cut_patches(x: Array, window: Window, out: Array | None = None) -> Array:
    """Return the patches of images, one a row, in the order of sample, row and column.

    Parameters
    ----------
    x : array (B, H, W, C)
    window : Window
    out : array, optional
        Memory for them, at least as many values.

    Returns
    -------
    array (B*H'*W', k*k*C), in (row, column, channel) order
    """
    xp = array_module(x)
    rows, columns = window.positions
    k, s = window.kernel, window.stride
    if kernels.apply_to(x):
        n = len(x) * rows * columns * window.patch_size
        patches = xp.empty(n, x.dtype) if out is None else out.reshape(-1)[:n]
        kernels.cut_patches(x, patches, _geometry(window))
        return patches.reshape(-1, window.patch_size)
    padded = _padded(x, window)
    b, h, w, c = padded.strides
    view = xp.lib.stride_tricks.as_strided(
        padded,
        shape=(len(x), rows, columns, k, k, window.channels),
        strides=(b, s * h, s * w, h, w, c),
    )
    if out is None:
        return view.reshape(-1, window.patch_size)
    patches = out.reshape(-1)[: view.size].reshape(view.shape)
    patches[...] = view
    return patches.reshape(-1, window.patch_size)


def _padded(x: Array, window: Window) -> Array:
    """Return images with their padding of zeros."""
    (top, bottom), (left, right) = window.pads
    if not (top or bottom or left or right):
        return x
    b, height, width, c = x.shape
    padded = array_module(x).zeros((b, height + top + bottom, width + left + right, c), x.dtype)
    padded[:, top : top + height, left : left + width] = x
    return padded


def add_patches(patches: Array, window: Window) -> Array:
    """Return the images whose pixels are the sums of the patches that cover them.

    Parameters
    ----------
    patches : array (B*H'*W', k*k*C)
    window : Window

    Returns
    -------
    array (B, H, W, C)
    """
    xp = array_module(patches)
    rows, columns = window.positions
    k, s, c = window.kernel, window.stride, window.channels
    (top, bottom), (left, right) = window.pads
    parts = patches.reshape(-1, rows, columns, k, k * c)
    if kernels.apply_to(patches):
        x = xp.empty((len(parts), window.height, window.width, c), patches.dtype)
        kernels.add_patches(patches, x, _geometry(window))
        return x
    # A stride above the kernel may leave pixels beyond the last patch uncovered: they stay zero.
    height = max(window.height + top + bottom, (rows - 1) * s + k)
    width = max(window.width + left + right, (columns - 1) * s + k)
    padded = xp.zeros((len(parts), height, width, c), dtype=patches.dtype)
    # A row of a patch, k*C values, lies in one piece; every so many columns such rows do not overlap.
    apart = -(-k // s)
    b, h, w, item = padded.strides
    for i in range(k):
        for first in range(min(apart, columns)):
            pixels = xp.lib.stride_tricks.as_strided(
                padded[:, i:, first * s :],
                shape=(len(parts), rows, -(-(columns - first) // apart), k * c),
                strides=(b, s * h, apart * s * w, item),
            )
            pixels += parts[:, :, first::apart, i]
    return padded[:, top : top + window.height, left : left + window.width]


def _geometry(window: Window) -> tuple[int, ...]:
    """Return what a kernel has to know: H, W, C, k, stride, top, left, rows, columns."""
    (top, _), (left, _) = window.pads
    shape = (window.height, window.width, window.channels)
    return (*shape, window.kernel, window.stride, top, left, *window.positions)


def count_patches(window: Window, xp: ModuleType, dtype: np.dtype) -> Array:
    """Return how many patches cover each pixel, (1, H, W, C)."""
    rows, columns = window.positions
    ones = xp.ones((rows * columns, window.patch_size), dtype=dtype)
    return add_patches(ones, window)
