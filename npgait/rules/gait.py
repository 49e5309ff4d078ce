"""GAIT-prop: t_{l-1} = g_l((1 - eps_l) y_l + eps_l t_l), eps_l = gamma_l f'(a_l)^2.

Vanilla (2020 paper): gamma_l = gamma. Normalised (2023 paper): gamma_l = gamma sqrt(n_l) / ||t_l - y_l||
for each sample, n_l counting all units of the layer, auxiliary ones too.

`gait_absolute` is the equation to the letter. Vanilla, it fails on deep networks, as the 2023 paper
reports: y - t shrinks by gamma a layer until rounding eats it. `gait` carries the scaled error
e_l = m_l (y_l - t_l) in its place, with m_{l-1} = m_l / gamma_l. The same equations then read, exactly
and for any finite gamma,

    v_l     = f'(a_l)^2 * e_l
    s_l     = gamma_l / m_l
    d_l     = [f^-1(y_l) - f^-1(y_l - s_l v_l)] / s_l
    e_{l-1} = d_l W_l^-1
    dW_l    = x_l^T [f'(a_l) * e_l]

m itself is not needed, for s_l = gamma / m_l = gamma s_{l+1} with s_{L+1} = 1 (vanilla), and, since
||y_l - t_l|| = ||e_l|| / m_l, s_l = gamma sqrt(n_l) / ||e_l|| (normalised).

Where no kink is crossed d_l = f'(a_l) * e_l, so with orthogonal W (W^-1 = W^T) GAIT-prop *is*
backpropagation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from npgait.backend import Array, array_module
from npgait.inverse import InverseSolver
from npgait.network import Layer, Record, Update
from npgait.rules.targets import Trace, error_of_used, keep_auxiliary, output_target, scaled
from npgait.sums import norms


def gait(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    gamma: float,
    normalised: bool,
    solver: InverseSolver,
    grams: Sequence[Array | None],
    trace: Trace | None = None,
) -> list[Update]:
    """Return (dW, db) of each layer by GAIT-prop, difference form.

    Parameters
    ----------
    layers, records
        The network and its forward pass.
    error : array (B, u_L)
        e_L = y_L - t_L = dLoss/dy_L.
    gamma : float
        Size of the incremental target (published: 1e-3 vanilla, 1e-7 normalised).
    normalised : bool
        Whether gamma is normalised by the target error of each sample.
    solver : InverseSolver
        Makes the product with W^-1.
    grams : sequence of array or None
        W W^T of each layer, where it is at hand.
    trace : callable, optional
        Called with (l, v, s) of every layer that is inverted.

    Returns
    -------
    list of (dW, db)
        A gradient, to be subtracted: shapes and dtype of W and b of each layer, summed over the batch.

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
        v = layer.f.times_derivative(a, e, power=2)  # f'(a)^2 * e
        s = _normalised(gamma, layer.n_units, e) if normalised else gamma * s
        if trace is not None:
            trace(l, v, s)
        e = layer.difference_inverse(y, v, s, solver=solver, G=grams[l])
    return updates


def gait_absolute(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    *,
    gamma: float,
    normalised: bool,
) -> list[Update]:
    """Return (dW, db) of each layer by GAIT-prop, absolute targets: the papers to the letter.

    Parameters
    ----------
    layers : sequence of Layer
    records : sequence of Record
        x, a, y of each layer with the auxiliary units, as `Network.forward(auxiliary=True)` gives.
    error : array (B, u_L)
        dLoss/dy_L.
    gamma, normalised
        As in `gait`.

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
        gamma_l: Array = _normalised(gamma, layer.n_units, t - y) if normalised else gamma
        eps = gamma_l * layer.f.derivative(a) ** 2
        t = keep_auxiliary(layer.inverse((1 - eps) * y + eps * t, x), records[l - 1].y)
        m = _divide(m, gamma_l.reshape(m.shape) if normalised else gamma_l)
    return updates


def _normalised(gamma: float, n: int, e: Array) -> Array:
    """Return gamma sqrt(n) / ||e|| per sample: gamma_l of e = t - y, s_l of e = e_l; 0 where e = 0."""
    size = _divide(gamma * n**0.5, _norm_per_sample(e))
    return size.clip(None, np.finfo(e.dtype).max).astype(e.dtype)


def _norm_per_sample(e: Array) -> Array:
    """Return ||e||_2 of each sample in float64, with the axes of `e` kept: (B, 1) or (B, 1, 1, 1)."""
    return norms(e.reshape(len(e), prod(e.shape[1:]))).reshape(len(e), *[1] * (e.ndim - 1))


def _divide(numerator: Array | float, denominator: Array | float) -> Array:
    """Return the quotient, and 0 where the denominator is 0."""
    if isinstance(denominator, float):
        return numerator / denominator
    xp = array_module(denominator)
    zero = denominator == 0
    return xp.where(zero, denominator, numerator / xp.where(zero, 1, denominator))
