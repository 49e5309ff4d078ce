"""Arrays in memory as a source of batches, and the scaling of their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from npgait.backend import CPU, Array, Device, array_module, as_array, parse_dtype

NORMALISATIONS = ("none", "unit", "standard")


@dataclass(frozen=True)
class Scaling:
    """x -> (x - shift) * scale, channel by channel (the last axis of an image)."""

    shift: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0


def scaling_of(train_x: np.ndarray, kind: str, *, max_value: float = 255) -> Scaling:
    """Return the scaling that a training set asks for.

    Parameters
    ----------
    train_x : array (N, H, W) or (N, H, W, C) or (N, n)
    kind : {"none", "unit", "standard"}
        "unit" divides by `max_value`, so that pixels lie in 0..1 (2020 code); "standard" subtracts
        the mean and divides by the standard deviation of each channel (2023 code).
    max_value : float
        Largest value that a pixel can take.

    Raises
    ------
    ValueError
        If `kind` is unknown.
    """
    if kind == "none":
        return Scaling()
    if kind == "unit":
        return Scaling(0.0, 1.0 / max_value)
    if kind != "standard":
        raise ValueError(f"normalisation {kind!r} is unknown; use one of {', '.join(NORMALISATIONS)}")
    axes = tuple(range(min(train_x.ndim, 3)))  # one channel unless the array has a fourth axis
    mean = train_x.mean(axis=axes, dtype=np.float64)
    # In slices: float64 copies of a whole data set would not fit in memory.
    squares = sum(
        np.square(train_x[i : i + 1000] - mean).sum(axis=axes) for i in range(0, len(train_x), 1000)
    )
    variance = squares / (train_x.size / np.size(mean))
    return Scaling(mean, 1.0 / np.sqrt(np.where(variance > 0, variance, 1.0)))


@dataclass(frozen=True)
class ArrayData:
    """Samples and labels in memory, given out in batches on a device.

    Attributes
    ----------
    x : array (N, ...)
        Any real dtype; kept as it is, and scaled batch by batch.
    labels : integer array (N,)
    scaling : Scaling
    dtype : numpy.dtype
        Of the batches.
    device : Device
        Of the batches.
    shape : tuple of int
        Of one sample of a batch: (n,), or (H, W, C) for a network of convolutions.
    """

    x: Array
    labels: Array
    scaling: Scaling
    dtype: np.dtype
    device: Device
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.x)

    def batches(
        self, batch_size: int, order: np.ndarray | None = None, *, start: int = 0
    ) -> Iterator[tuple[Array, Array]]:
        """Yield (x, labels) of each batch on the device: x (B, *shape) and labels (B,).

        Parameters
        ----------
        batch_size : int
            The last batch holds what is left.
        order : integer array (N,), optional
            A permutation of the samples. Default: as they are stored.
        start : int
            Number of the first batch, counted from 0: where an interrupted epoch goes on.
        """
        xp = self.device.xp
        own = array_module(self.x)
        for first in range(start * batch_size, len(self), batch_size):
            chosen: Any = slice(first, first + batch_size)
            if order is not None:
                chosen = own.asarray(order[chosen])
            x = as_array(self.x[chosen], xp).astype(self.dtype)
            x -= xp.asarray(self.scaling.shift, dtype=self.dtype)
            x *= xp.asarray(self.scaling.scale, dtype=self.dtype)
            yield x.reshape(len(x), *self.shape), as_array(self.labels[chosen], xp)


def array_data(
    x: Any,
    labels: Any,
    *,
    n_classes: int | None = None,
    shape: tuple[int, ...] | None = None,
    scaling: Scaling | None = None,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
) -> ArrayData:
    """Return arrays that a user has as a source of batches, checked.

    Parameters
    ----------
    x : array (N, ...)
        NumPy, CuPy or any DLPack array of numbers.
    labels : integer array (N,)
        Classes, counted from 0.
    n_classes : int, optional
        Labels have to be below it. Default: not checked.
    shape : tuple of int, optional
        Of one sample, as the network takes it. Default: flattened.
    scaling, dtype, device
        See `ArrayData`.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such, do not fit each other, or hold NaN or infinity.
    """
    x, labels = as_array(x), as_array(labels)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x has shape {x.shape}; expected (N, n_in) or (N, H, W, C), N > 0")
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x is of dtype {x.dtype}; expected real numbers")
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {labels.shape}; expected ({len(x)},), one a sample")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels are of dtype {labels.dtype}; expected integers from 0")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (n_classes is not None and high >= n_classes):
        raise ValueError(f"labels lie in {low}..{high}; expected 0..{(n_classes or high + 1) - 1}")
    if x.dtype.kind == "f" and not bool(array_module(x).isfinite(x).all()):
        raise ValueError("x holds NaN or infinity; every value has to be finite")
    values = math.prod(x.shape[1:])
    shape = shape or (values,)
    if values != math.prod(shape):
        raise ValueError(f"x has {values} values a sample; the network takes {shape}")
    return ArrayData(x, labels, scaling or Scaling(), parse_dtype(dtype), device, shape)
