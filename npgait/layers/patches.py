"""Patches of images: cut out (im2col), and added back where they came from (col2im).

Padding is TensorFlow's: SAME gives ceil(size / stride) positions, and where the padding is odd the extra
pixel goes to the bottom and right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module
from npgait.parallel import scratch, zero_padded

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
    n = len(x) * rows * columns * window.patch_size
    patches = xp.empty(n, x.dtype) if out is None else out.reshape(-1)[:n]
    if xp is not np:
        kernels.cut_patches(xp.ascontiguousarray(x), patches, _geometry(window))
        return patches.reshape(-1, window.patch_size)
    padded = np.ascontiguousarray(_padded(x, window, kept=out is not None))
    b, h, w, _ = padded.strides
    # A row of a patch lies in one piece. NumPy copies pieces in half the time it takes for their values.
    piece, shape = np.dtype((np.void, k * w)), (len(x), rows, columns, k)
    pieces = np.ndarray(shape, piece, padded, strides=(b, s * h, s * w, h))
    patches.view(piece).reshape(shape)[...] = pieces
    return patches.reshape(-1, window.patch_size)


def _padded(x: np.ndarray, window: Window, *, kept: bool) -> np.ndarray:
    """Return images with their padding of zeros; `kept`: in memory that the next call takes again."""
    (top, bottom), (left, right) = window.pads
    if not (top or bottom or left or right):
        return x
    pads = ((0, 0), (top, bottom), (left, right), (0, 0))
    return zero_padded(x, pads) if kept else np.pad(x, pads)


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
    if kernels.apply_to(patches):
        rows, columns = window.positions
        n = len(patches) // (rows * columns)
        x = array_module(patches).empty((n, window.height, window.width, window.channels), patches.dtype)
        kernels.add_patches(patches, x, _geometry(window))
        return x
    return _sum_of_parts(lambda part: patches[:, part], patches, window)


def add_products(d: Array, M: Array, window: Window) -> Array:
    """Return `add_patches(d M)`, on the CPU without the patches d M ever being written.

    Parameters
    ----------
    d : array (B*H'*W', u)
    M : array (u, k*k*C)
    window : Window

    Returns
    -------
    array (B, H, W, C)
    """
    if array_module(d) is not np:
        return add_patches(d @ M, window)
    widest = min(window.kernel, window.stride) * window.channels
    memory = scratch(len(d) * widest, d.dtype, d)

    def product(part: slice) -> Array:
        width = part.stop - part.start
        return np.matmul(d, M[:, part], out=memory[: len(d) * width].reshape(-1, width))

    return _sum_of_parts(product, d, window)


def _sum_of_parts(make: Callable[[slice], Array], like: Array, window: Window) -> Array:
    """Return the images to which `make` gives the patches, a part (slice of k*k*C) of all at a time.

    A part is up to `stride` pixels of one row of the kernel: of neighbouring patches these do not
    overlap, and lie one after the other in the image.
    """
    xp = array_module(like)
    rows, columns = window.positions
    k, s, c = window.kernel, window.stride, window.channels
    (top, bottom), (left, right) = window.pads
    # A stride above the kernel may leave pixels beyond the last patch uncovered: they stay zero.
    height = max(window.height + top + bottom, (rows - 1) * s + k)
    width = max(window.width + left + right, (columns - 1) * s + k)
    padded = xp.zeros((len(like) // (rows * columns), height, width, c), dtype=like.dtype)
    b, h, w, item = padded.strides
    for i in range(k):
        for j in range(0, k, s):
            size = min(s, k - j) * c
            pixels = xp.lib.stride_tricks.as_strided(
                padded[:, i:, j:], (len(padded), rows, columns, size), (b, s * h, s * w, item)
            )
            first = (i * k + j) * c
            pixels += make(slice(first, first + size)).reshape(pixels.shape)
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
