"""Backpropagation, the yardstick: e_{l-1} = (f'(a_l) * e_l) W_l^T."""

from __future__ import annotations

from collections.abc import Sequence

from npgait.backend import Array
from npgait.network import Layer, Record, Update


def bp(layers: Sequence[Layer], records: Sequence[Record], error: Array) -> list[Update]:
    """Return (dW, db) of each layer by backpropagation.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer, as `Network.forward` returns them.
    error : array (B, u_L)
        e_L = dLoss/dy_L.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted: shapes and dtype of W and b of each layer, summed over the batch.
    """
    updates: list[Update] = []
    e = error
    for layer, (x, a, _) in zip(reversed(layers), reversed(records), strict=True):
        updates.insert(0, layer.local_update(x, a, e))
        if layer is not layers[0]:
            e = layer.transpose(layer.f.times_derivative(a, e))  # (f'(a) * e) W^T
    return updates
