"""Feedback alignment (Lillicrap et al. 2016): e_{l-1} = (f'(a_l) * e_l) B_l^T, B_l fixed, random."""

from __future__ import annotations

from collections.abc import Sequence

from npgait.backend import Array
from npgait.network import Layer, Record, Update


def fa(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    feedback: Sequence[Array | None],
) -> list[Update]:
    """Return (dW, db) of each layer by feedback alignment.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer.
    error : array (B, u_L)
        e_L = dLoss/dy_L.
    feedback : sequence of array (n_in, used)
        B_l, one a layer; the first layer's is not used.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted; see `bp`.
    """
    updates: list[Update] = []
    e = error
    walk = zip(reversed(layers), reversed(records), reversed(feedback), strict=True)
    for layer, (x, a, _), B in walk:
        updates.insert(0, layer.local_update(x, a, e))
        if layer is not layers[0]:
            e = layer.transpose(layer.f.times_derivative(a, e), B)  # (f'(a) * e) B^T
    return updates
