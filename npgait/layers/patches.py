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
from npgait.validation import whole

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
    TypeError, ValueError
        If a number is no whole number from 1 on, the padding is unknown, or the kernel does not fit a
        VALID image.
    """

    height: int
    width: int
    channels: int
    kernel: int
    stride: int = 1
    padding: str = "SAME"

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "kernel", "stride"):
            object.__setattr__(self, name, whole(f"{name} of a window", getattr(self, name)))
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
    check_array("x", x, (len(x), window.height, window.width, window.channels))
    xp = array_module(x)
    rows, columns = window.positions
    k, s = window.kernel, window.stride
    n = len(x) * rows * columns * window.patch_size
    patches = xp.empty(n, x.dtype) if out is None else out.reshape(-1)[:n]
    if xp is not np or kernels.apply_to(x):
        kernels.cut_patches(xp.ascontiguousarray(x), patches, geometry(window))
        return patches.reshape(-1, window.patch_size)
    padded = np.pad(x, ((0, 0), *window.pads, (0, 0))) if np.any(window.pads) else x
    padded = np.ascontiguousarray(padded)
    _, height, width, channels = padded.shape  # strides of axes of one value say nothing
    w = channels * padded.itemsize
    h, b = width * w, height * width * w
    # A row of a patch lies in one piece. NumPy copies pieces in half the time it takes for their values.
    piece, shape = np.dtype((np.void, k * w)), (len(x), rows, columns, k)
    pieces = np.ndarray(shape, piece, padded, strides=(b, s * h, s * w, h))
    patches.view(piece).reshape(shape)[...] = pieces
    return patches.reshape(-1, window.patch_size)


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
    n = len(patches) // (rows * columns)
    check_array("patches", patches, (n * rows * columns, window.patch_size))
    k, s, c = window.kernel, window.stride, window.channels
    if kernels.apply_to(patches):
        x = xp.empty((n, window.height, window.width, c), patches.dtype)
        kernels.add_patches(patches, x, geometry(window))
        return x
    (top, bottom), (left, right) = window.pads
    # A stride above the kernel may leave pixels beyond the last patch uncovered: they stay zero.
    height, width = window.height + top + bottom, window.width + left + right
    x = xp.zeros((n, height, width, c), dtype=patches.dtype)
    values = patches.reshape(n, rows, columns, k, k, c)
    for i in range(k):
        for j in range(k):
            x[:, i : i + s * rows : s, j : j + s * columns : s] += values[:, :, :, i, j]
    return x[:, top : top + window.height, left : left + window.width]


def check_array(name: str, x: Array, shape: tuple[int, ...], *, in_one_piece: bool = False) -> None:
    """Raise a ValueError where an array is not what kernels, which do not look, take it for."""
    if x.shape != shape:
        raise ValueError(f"{name} has shape {x.shape}; expected {shape}")
    if in_one_piece and not x.flags.c_contiguous:
        raise ValueError(f"{name} has strides {x.strides}; expected an array in one piece")


def geometry(window: Window) -> tuple[int, ...]:
    """Return what a kernel has to know of a window: H, W, C, k, stride, top, left, rows, columns."""
    (top, _), (left, _) = window.pads
    shape = (window.height, window.width, window.channels)
    return (*shape, window.kernel, window.stride, top, left, *window.positions)


def count_patches(window: Window, xp: ModuleType, dtype: np.dtype) -> Array:
    """Return how many patches cover each pixel, (1, H, W, C)."""
    rows, columns = window.positions
    ones = xp.ones((rows * columns, window.patch_size), dtype=dtype)
    return add_patches(ones, window)
