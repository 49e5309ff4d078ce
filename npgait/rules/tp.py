"""Target propagation by exact inverses: t_{l-1} = g_l(t_l) (2020 paper).

`tp_absolute` is the equation to the letter. `tp` carries e_l = y_l - t_l in place of the target, the
same rule without the rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from npgait.backend import Array
from npgait.inverse import InverseSolver
from npgait.network import Layer, Record, Update
from npgait.rules.targets import Trace, error_of_used, keep_auxiliary, output_target, scaled


def tp(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    solver: InverseSolver,
    grams: Sequence[Array | None],
    trace: Trace | None = None,
) -> list[Update]:
    """Return (dW, db) of each layer by target propagation, difference form.

    Parameters
    ----------
    layers, records
        The network and its forward pass.
    error : array (B, u_L)
        e_L = y_L - t_L = dLoss/dy_L.
    solver : InverseSolver
        Makes the product with W^-1.
    grams : sequence of array or None
        W W^T of each layer, where it is at hand.
    trace : callable, optional
        Called with (l, v, s) of every layer that is inverted.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted; see `bp`.

    Raises
    ------
    ValueError
        If a layer above the first was not made to have an inverse.
    SingularWeightsError, ErrorsNotFiniteError
        See `InverseSolver`.
    """
    updates: list[Update] = []
    e = error
    for l in reversed(range(len(layers))):
        layer, (x, a, y) = layers[l], records[l]
        updates.insert(0, layer.local_update(x, a, e))
        if l == 0:
            break
        v, s = e, 1.0
        if trace is not None:
            trace(l, v, s)
        e = layer.difference_inverse(y, v, s, solver=solver, G=grams[l])
    return updates


def tp_absolute(layers: Sequence[Layer], records: Sequence[Record], error: Array) -> list[Update]:
    """Return (dW, db) of each layer by target propagation, absolute targets.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer with the auxiliary units, as `Network.forward(auxiliary=True)` gives.
    error : array (B, u_L)
        dLoss/dy_L.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted; see `bp`.

    Raises
    ------
    ValueError
        If a layer above the first was not made to have an inverse, or its auxiliary units are implicit.
    SingularWeightsError
        If the W of one has none, to the precision of its dtype.
    ErrorsNotFiniteError
        If the targets of a dense one are not finite.
    """
    updates: list[Update] = []
    t, m = output_target(records[-1].y, error)
    for l in reversed(range(len(layers))):
        layer, (x, a, y) = layers[l], records[l]
        updates.insert(0, layer.local_update(x, a, scaled(m, error_of_used(layer, y, t))))
        if l == 0:
            break
        t = keep_auxiliary(layer.inverse(t, x), records[l - 1].y)
    return updates
