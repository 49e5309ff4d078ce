"""A network: layers in order, their random feedback if a rule needs it, and the forward pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import NamedTuple, Protocol

import numpy as np

from npgait.activations import Activation
from npgait.backend import Array, Device, array_module, as_array, device_of, to_host
from npgait.inverse import InverseSolver
from npgait.validation import check_name, whole


class Layer(Protocol):
    """What a rule asks of a layer; `layers/dense.py` is the reference of each method."""

    W: Array
    b: Array
    used: int
    f: Activation
    name: str

    @property
    def shape_in(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    def shape_out(self) -> tuple[int, ...]:
        """Shape of one output, used units only."""

    @property
    def n_units(self) -> int:
        """Units of one output, auxiliary units included."""

    @property
    def has_inverse(self) -> bool:
        """Whether W has an inverse: it is square, or implicit auxiliary units make it so."""

    def forward(self, x: Array, *, auxiliary: bool = False) -> tuple[Array, Array]:
        """Return a and y = f(a)."""

    def inverse(self, y: Array, x: Array) -> Array:
        """Return g(y), the input that gives y; x is the layer's input in the forward pass."""

    def difference_inverse(
        self,
        y: Array,
        v: Array,
        s: Array | float,
        *,
        solver: InverseSolver,
        G: Array | None = None,
    ) -> Array:
        """Return [g(y) - g(y - s v)] / s."""

    def transpose(self, delta: Array, B: Array | None = None) -> Array:
        """Return delta W^T, or delta B^T."""

    def local_update(self, x: Array, a: Array, error: Array) -> tuple[Array, Array]:
        """Return dW and db, summed over the batch."""


class Record(NamedTuple):
    """What one layer saw and did in a forward pass."""

    x: Array  # its input: the used units of the layer below
    a: Array  # pre-activation
    y: Array  # output f(a)


Update = tuple[Array, Array]  # (dW, db), a gradient: to be subtracted


@dataclass(eq=False)
class Network:
    """Layers in order, from the input to the output.

    Parameters
    ----------
    layers : list of Layer
        The last layer's used units are the classes. Layers that share a name are numbered.
    feedback : list of array or None, optional
        Fixed random feedback weights B_l of FA or DFA, one entry a layer (None where unused).

    Raises
    ------
    ValueError
        If a layer does not take what the layer below gives, is of another dtype, stands there twice, or
        has a name that no file can hold.
    """

    layers: list[Layer]
    feedback: list[Array | None] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network needs at least one layer")
        for below, layer in pairwise(self.layers):
            if layer.shape_in != below.shape_out:
                raise ValueError(
                    f"{layer.name} takes inputs {layer.shape_in}, but {below.name} gives "
                    f"{below.shape_out}"
                )
            if layer.W.dtype != below.W.dtype:
                raise ValueError(
                    f"{layer.name} is {layer.W.dtype}, but {below.name} is {below.W.dtype}; expected "
                    "one dtype of all layers"
                )
        if len(self.layers[-1].shape_out) != 1:
            raise ValueError(f"{self.layers[-1].name} gives images; the last layer has to be dense")
        self._number_names()

    def _number_names(self) -> None:
        """Number the layers that share a name: files and messages know a layer by it."""
        if len({id(layer) for layer in self.layers}) < len(self.layers):
            raise ValueError("one layer stands in the network twice; give each its own weights")
        for layer in self.layers:
            check_name(layer.name)
        names = Counter(layer.name for layer in self.layers)
        for layer in self.layers:
            if names[layer.name] > 1:
                taken = {other.name for other in self.layers}
                free = (f"{layer.name}{number}" for number in count(1))
                layer.name = next(name for name in free if name not in taken)

    @property
    def shape_in(self) -> tuple[int, ...]:
        """Shape of one input: (n,) or (H, W, C)."""
        return self.layers[0].shape_in

    @property
    def n_classes(self) -> int:
        """Number of classes: the used units of the last layer."""
        return self.layers[-1].used

    @property
    def device(self) -> Device:
        """Where the weights live."""
        return device_of(self.layers[0].W)

    @property
    def dtype(self) -> np.dtype:
        """Of the weights: float32 or float64."""
        return self.layers[0].W.dtype

    def forward(self, x: Array, *, auxiliary: bool = False) -> list[Record]:
        """Return x, a, y of each layer.

        Parameters
        ----------
        x : array (B, *shape_in)
            Of the network's own dtype and device.
        auxiliary : bool
            Whether y and a hold the auxiliary units too. Absolute targets need them.
        """
        self.device.use()
        records = []
        for layer in self.layers:
            a, y = layer.forward(x, auxiliary=auxiliary)
            records.append(Record(x, a, y))
            x = y[..., : layer.used]
        return records

    def output(self, x: Array) -> Array:
        """Return the outputs (logits) of a batch, (B, n_classes), keeping nothing of the way there."""
        self.device.use()
        for layer in self.layers:
            _, x = layer.forward(x)
        return x

    def predict(self, x: Array, *, batch_size: int = 1024) -> np.ndarray:
        """Return the most likely class of each sample.

        Parameters
        ----------
        x : array (N, *shape_in), or (N, ...) with as many values a sample
            NumPy, CuPy or any DLPack array; shape, dtype and device are converted.
        batch_size : int
            Samples that are worked on at a time.

        Returns
        -------
        numpy.ndarray (N,) of int64, on the host

        Raises
        ------
        TypeError, ValueError
            If x is not of real numbers, has another number of values a sample, or an output is NaN; if
            `batch_size` is no whole number from 1 on.
        """
        batch_size = whole("batch_size", batch_size)
        x = as_array(x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"x is of dtype {x.dtype}; expected real numbers")
        if x.ndim < 2 or math.prod(x.shape[1:]) != math.prod(self.shape_in):
            raise ValueError(
                f"x has shape {x.shape}; expected (N, {', '.join(map(str, self.shape_in))}), or as "
                "many values a sample"
            )
        xp = array_module(self.layers[0].W)
        self.device.use()
        classes = np.zeros(len(x), dtype=np.int64)
        samples = x.reshape(len(x), *self.shape_in)
        for start in range(0, len(x), batch_size):
            y = self.output(as_array(samples[start : start + batch_size], xp).astype(self.dtype))
            if bool(xp.isnan(y).any()):
                raise ValueError(
                    f"the outputs of samples {start} to {start + len(y) - 1} are not numbers (NaN), "
                    "which is no class; look for values that are not finite in x, or in the weights"
                )
            classes[start : start + batch_size] = to_host(y.argmax(axis=1))
        return classes

    def named_feedback(self) -> dict[str, Array]:
        """Return the feedback weights by number of layer, "0" the first, as files hold them."""
        return {str(l): B for l, B in enumerate(self.feedback or []) if B is not None}

    def parameters(self) -> list[Array]:
        """Return W and b of each layer, in order; the arrays themselves, to be updated in place."""
        return [p for layer in self.layers for p in (layer.W, layer.b)]

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Yield ("hidden1/W", W), ("hidden1/b", b), ... in the order of `parameters`."""
        for layer in self.layers:
            yield f"{layer.name}/W", layer.W
            yield f"{layer.name}/b", layer.b


def first_nonfinite(layers: Sequence[Layer], records: Sequence[Record]) -> str | None:
    """Return the name of the lowest layer whose weights or activity are not finite, else None."""
    for layer, record in zip(layers, records, strict=True):
        xp = array_module(layer.W)
        if not all(bool(xp.isfinite(array).all()) for array in (layer.W, layer.b, record.y)):
            return layer.name
    return None
