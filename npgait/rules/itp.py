"""Incremental target propagation: t_{l-1} = g_l((1 - gamma) y_l + gamma t_l) (2020 paper).

GAIT-prop without the gradient adjustment: the nudge has the same size in every unit. `itp_absolute` is
the equation to the letter; `itp` carries the scaled error e_l = m_l (y_l - t_l) instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from npgait.backend import Array
from npgait.inverse import InverseSolver
from npgait.network import Layer, Record, Update
from npgait.rules.targets import Trace, error_of_used, keep_auxiliary, output_target, scaled


def itp(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    gamma: float,
    solver: InverseSolver,
    grams: Sequence[Array | None],
    trace: Trace | None = None,
) -> list[Update]:
    """Return (dW, db) of each layer by incremental target propagation, difference form.

    Parameters
    ----------
    layers, records
        The network and its forward pass.
    error : array (B, u_L)
        e_L = dLoss/dy_L.
    gamma : float
        Size of the incremental target, 0 < gamma <= 1.
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
    e, s = error, 1.0
    for l in reversed(range(len(layers))):
        layer, (x, a, y) = layers[l], records[l]
        updates.insert(0, layer.local_update(x, a, e))
        if l == 0:
            break
        v = e
        s = gamma * s
        if trace is not None:
            trace(l, v, s)
        e = layer.difference_inverse(y, v, s, solver=solver, G=grams[l])
    return updates


def itp_absolute(
    layers: Sequence[Layer], records: Sequence[Record], error: Array, *, gamma: float
) -> list[Update]:
    """Return (dW, db) of each layer by incremental target propagation, absolute targets.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer with the auxiliary units.
    error : array (B, u_L)
        dLoss/dy_L.
    gamma : float
        Size of the incremental target, 0 < gamma <= 1.

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
        t = keep_auxiliary(layer.inverse((1 - gamma) * y + gamma * t, x), records[l - 1].y)
        m = m / gamma
    return updates
