"""Direct feedback alignment (Nokland 2016): e_l = e_L B_l, B_l (u_L, u_l) fixed, random."""

from __future__ import annotations

from collections.abc import Sequence

from npgait.backend import Array
from npgait.blas import product
from npgait.network import Layer, Record, Update


def dfa(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    feedback: Sequence[Array | None],
) -> list[Update]:
    """Return (dW, db) of each layer by direct feedback alignment.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer.
    error : array (B, u_L)
        e_L = dLoss/dy_L.
    feedback : sequence of array (u_L, u_l)
        B_l, one a layer; None for the last, which sees e_L itself.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted; see `bp`.
    """
    updates: list[Update] = []
    walk = zip(reversed(layers), reversed(records), reversed(feedback), strict=True)
    for layer, (x, a, y), B in walk:
        e = error if B is None else product(error, B).reshape(len(y), *layer.shape_out)
        updates.insert(0, layer.local_update(x, a, e))
    return updates
