"""Where batches come from: what any source offers, and arrays in memory as one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from npgait import kernels
from npgait.augmentation import augment
from npgait.backend import CPU, Array, Device, array_module, as_array, parse_dtype
from npgait.gpu import uploader
from npgait.streams import Streams
from npgait.sums import column_sums

IN_CACHE = 1 << 16  # values that are worked on at a time: the second pass finds them in the cache
NORMALISATIONS = ("none", "unit", "standard")


class Source(Protocol):
    """Samples and labels in batches on a device: x (B, *shape) and labels (B,)."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[tuple[Array, Array]]:
        """Yield all samples as they are stored, for evaluation."""

    def shuffled(
        self, batch_size: int, streams: Streams, *, start: int = 0
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the batches of an epoch from number `start`: in random order, augmented.

        Order and augmentation are drawn from `streams` at once, so that equal streams give equal batches
        wherever the epoch is taken up.
        """


@dataclass(frozen=True)
class Scaling:
    """x -> (x - shift) * scale, channel by channel (the last axis of an image)."""

    shift: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0

    def apply(self, x: Array, dtype: np.dtype) -> Array:
        """Return (x - shift) * scale as a new array of `dtype`, of the shape of x."""
        xp = array_module(x)
        by_channel = [np.array(v, order="C") for v in np.broadcast_arrays(self.shift, self.scale)]
        if kernels.apply_to_bytes(x):
            shift, scale = (xp.asarray(v.reshape(-1), dtype=dtype) for v in by_channel)
            return kernels.normalise(x, shift, scale, dtype)
        out = xp.empty(x.shape, dtype)
        # An image's row at once: NumPy is slow along an axis as short as that of the channels.
        columns = x.shape[-2] if by_channel[0].ndim and x.ndim > 1 else 1
        shift, scale = (
            xp.asarray(np.tile(v, columns) if v.ndim else v, dtype=dtype) for v in by_channel
        )
        rows = (-1, shift.size) if shift.ndim else (-1, x[0].size if len(x) else 1)
        source, target = x.reshape(rows), out.reshape(rows)
        step = len(source) if xp is not np else max(1, IN_CACHE // max(1, source.shape[1]))
        for i in range(0, len(source), step):
            part = target[i : i + step]
            xp.subtract(source[i : i + step], shift, out=part, dtype=dtype, casting="unsafe")
            part *= scale
        return out


def scaling_of(train_x: np.ndarray | None, kind: str, *, max_value: float = 255) -> Scaling:
    """Return the scaling that a training set asks for.

    Parameters
    ----------
    train_x : array (N, H, W) or (N, H, W, C) or (N, n)
        Only looked at for "standard".
    kind : {"none", "unit", "standard"}
        "unit" divides by `max_value`, so that pixels lie in 0..1 (2020 code, and CIFAR-10 in that of
        2023); "standard" subtracts the mean and divides by the standard deviation of each channel
        (the 2023 code does so to ImageNet, by fixed numbers).
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
    assert train_x is not None
    moments = _moments_of_bytes if train_x.dtype == np.uint8 and train_x.size else _moments
    mean, variance = moments(train_x)
    return Scaling(mean, 1.0 / np.sqrt(np.where(variance > 0, variance, 1.0)))


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each channel; without a fourth axis there is one."""
    axes = tuple(range(min(x.ndim, 3)))
    mean = x.mean(axis=axes, dtype=np.float64)
    # In slices: float64 copies of a whole data set would not fit in memory.
    squares = sum(
        np.square(np.subtract(x[i : i + 1000], mean, dtype=np.float64)).sum(axis=axes)
        for i in range(0, len(x), 1000)
    )
    return mean, squares / (x.size / np.size(mean))


def _moments_of_bytes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_moments` does, of bytes: exactly, as sums of integers, and many times as fast.

    Sums of 256 squares of bytes are below 2^24, so that products in float32 hold them to the digit.
    """
    shape = x.shape[3:4]
    x = x.reshape(len(x), -1)
    sums, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for i in range(0, len(x), 256):
        some = x[i : i + 256].astype(np.float32)
        sums += column_sums(some)
        squares += column_sums(np.square(some, out=some))
    channels = math.prod(shape)
    n = x.size // channels
    totals = [[int(v) for v in each.reshape(-1, channels).sum(axis=0)] for each in (sums, squares)]
    mean = np.array([s / n for s in totals[0]]).reshape(shape)
    variance = np.array([(n * q - s * s) / n**2 for s, q in zip(*totals, strict=True)]).reshape(shape)
    return mean, variance


@dataclass(frozen=True)
class Preparation:
    """What is done to samples as they are stored before a network sees them.

    Attributes
    ----------
    scaling : Scaling
    dtype : numpy.dtype
        Of the batches.
    device : Device
        Of the batches.
    shape : tuple of int
        Of one sample of a batch: (n,), or (H, W, C) for a network of convolutions.
    crop : (int, int), optional
        Height and width that images are cropped to. Default: as they are stored.
    augmentation : {"none", "crop", "resized"}
        Of training batches; see `augmentation.augment`.
    """

    scaling: Scaling
    dtype: np.dtype
    device: Device
    shape: tuple[int, ...]
    crop: tuple[int, int] | None = None
    augmentation: str = "none"

    def __call__(self, x: Array, seed: tuple[int, int] | None = None) -> Array:
        """Return a batch on the device; augmented where there is a `seed`, which decides how."""
        self.device.use()
        if self.device.is_gpu and array_module(x) is np:
            return uploader(self.device)(x, lambda x: self._on_device(x, seed))
        return self._on_device(as_array(x, self.device.xp), seed)

    def _on_device(self, x: Array, seed: tuple[int, int] | None) -> Array:
        """Return a new array: x, which is on the device, cropped, augmented and scaled."""
        kind = "none" if seed is None else self.augmentation
        if kind != "none" or self.crop is not None:
            images = x if x.ndim == 4 else x[..., None]
            size = self.crop or (images.shape[1], images.shape[2])
            x = augment(images, kind, size, np.random.default_rng(seed))
        return self.scaling.apply(x, self.dtype).reshape(len(x), *self.shape)


@dataclass(frozen=True)
class ArrayData:
    """Samples and labels in memory, given out in batches on a device.

    Attributes
    ----------
    x : array (N, ...)
        Any real dtype; kept as it is, and prepared batch by batch.
    labels : integer array (N,)
    prepare : Preparation
    """

    x: Array
    labels: Array
    prepare: Preparation

    def __len__(self) -> int:
        return len(self.x)

    def batches(
        self,
        batch_size: int,
        order: np.ndarray | None = None,
        *,
        start: int = 0,
        seed: int | None = None,
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
        seed : int, optional
            Of the augmentation. Default: none.
        """
        own, xp = array_module(self.x), self.prepare.device.xp
        for number in range(start, -(-len(self) // batch_size)):
            chosen: Any = slice(number * batch_size, (number + 1) * batch_size)
            if order is not None:
                chosen = own.asarray(order[chosen])
            batch_seed = None if seed is None else (seed, number)
            yield self.prepare(self.x[chosen], batch_seed), as_array(self.labels[chosen], xp)

    def shuffled(
        self, batch_size: int, streams: Streams, *, start: int = 0
    ) -> Iterator[tuple[Array, Array]]:
        """Yield the batches of an epoch; see `Source`."""
        order = streams.order.permutation(len(self))
        seed = int(streams.augmentation.integers(1 << 62))
        return self.batches(batch_size, order, start=start, seed=seed)


def array_data(
    x: Any,
    labels: Any,
    *,
    n_classes: int | None = None,
    shape: tuple[int, ...] | None = None,
    scaling: Scaling | None = None,
    dtype: str | np.dtype = "float32",
    device: Device = CPU,
    augmentation: str = "none",
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
    scaling, dtype, device, augmentation
        See `Preparation`.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not such, do not fit each other, or hold NaN, infinity or what is too large for
        `dtype`.
    """
    x = as_array(x)
    labels = as_array(labels, array_module(x))  # so that one index chooses from both
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
    dtype = parse_dtype(dtype)
    if x.dtype.kind == "f" and x.size:
        _check_range(float(x.min()), float(x.max()), dtype)
    values = math.prod(x.shape[1:])
    shape = shape or (values,)
    if values != math.prod(shape):
        raise ValueError(f"x has {values} values a sample; the network takes {shape}")
    if augmentation != "none" and x.ndim not in (3, 4):
        raise ValueError(f"x has shape {x.shape}; augmentation {augmentation!r} takes images")
    prepare = Preparation(scaling or Scaling(), dtype, device, shape, augmentation=augmentation)
    return ArrayData(x, labels, prepare)


def _check_range(low: float, high: float, dtype: np.dtype) -> None:
    """Raise a ValueError where values from `low` to `high` are not finite in `dtype`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("x holds NaN or infinity; every value has to be finite")
    largest = float(np.finfo(dtype).max)
    if not -largest <= low <= high <= largest:
        raise ValueError(
            f"x reaches from {low:.3g} to {high:.3g}; {dtype} ends at {largest:.3g}: scale x down"
        )
