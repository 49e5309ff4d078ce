"""A network: layers in order, their random feedback if a rule needs it, and the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from npgait.activations import Activation
from npgait.backend import Array, Device, array_module, as_array, device_of, to_host
from npgait.orthogonality import InverseSolver


class Layer(Protocol):
    """What a rule asks of a layer; `layers/dense.py` is the reference of each method."""

    W: Array
    b: Array
    used: int
    f: Activation
    name: str

    @property
    def n_in(self) -> int:
        """Number of rows of W."""

    @property
    def n_out(self) -> int:
        """Number of outputs of a sample, auxiliary units included."""

    @property
    def is_square(self) -> bool:
        """Whether W is square."""

    def forward(self, x: Array, *, auxiliary: bool = False) -> tuple[Array, Array]:
        """Return a and y = f(a)."""

    def inverse(self, y: Array) -> Array:
        """Return x with forward(x) = y."""

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
        The last layer's used units are the classes.
    feedback : list of array or None, optional
        Fixed random feedback weights B_l of FA or DFA, one entry a layer (None where unused).

    Raises
    ------
    ValueError
        If a layer does not take what the layer below gives.
    """

    layers: list[Layer]
    feedback: list[Array | None] | None = field(default=None)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a network needs at least one layer")
        for below, layer in pairwise(self.layers):
            if layer.n_in != below.used:
                raise ValueError(
                    f"{layer.name} takes {layer.n_in} inputs, but {below.name} gives {below.used}"
                )

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
        x : array (B, n_in)
            Of the network's own dtype and device.
        auxiliary : bool
            Whether y and a hold the auxiliary units too. Absolute targets need them.
        """
        records = []
        for layer in self.layers:
            a, y = layer.forward(x, auxiliary=auxiliary)
            records.append(Record(x, a, y))
            x = y[..., : layer.used]
        return records

    def output(self, x: Array) -> Array:
        """Return the outputs (logits) of a batch, (B, n_classes), keeping nothing of the way there."""
        for layer in self.layers:
            _, x = layer.forward(x)
        return x

    def predict(self, x: Array, *, batch_size: int = 1024) -> np.ndarray:
        """Return the most likely class of each sample.

        Parameters
        ----------
        x : array (N, n_in) or (N, ...)
            NumPy, CuPy or any DLPack array; samples are flattened, dtype and device are converted.

        Returns
        -------
        numpy.ndarray (N,) of int64, on the host
        """
        x = as_array(x)
        if x.ndim < 2 or np.prod(x.shape[1:]) != self.layers[0].n_in:
            raise ValueError(
                f"x has shape {x.shape}; expected (N, {self.layers[0].n_in}), or samples that "
                "flatten to it"
            )
        xp = array_module(self.layers[0].W)
        classes = [
            to_host(self.output(xp.asarray(chunk, dtype=self.dtype)).argmax(axis=1))
            for chunk in _chunks(x.reshape(len(x), self.layers[0].n_in), batch_size)
        ]
        return np.concatenate(classes) if classes else np.zeros(0, dtype=np.int64)

    def parameters(self) -> list[Array]:
        """Return W and b of each layer, in order; the arrays themselves, to be updated in place."""
        return [p for layer in self.layers for p in (layer.W, layer.b)]

    def named_parameters(self) -> Iterator[tuple[str, Array]]:
        """Yield ("hidden1/W", W), ("hidden1/b", b), ... in the order of `parameters`."""
        for layer in self.layers:
            yield f"{layer.name}/W", layer.W
            yield f"{layer.name}/b", layer.b


def _chunks(x: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(x), size):
        yield x[start : start + size]


def first_nonfinite(layers: Sequence[Layer], records: Sequence[Record]) -> str | None:
    """Return the name of the lowest layer whose weights or activity are not finite, else None."""
    for layer, record in zip(layers, records, strict=True):
        xp = array_module(layer.W)
        if not all(bool(xp.isfinite(array).all()) for array in (layer.W, layer.b, record.y)):
            return layer.name
    return None
