"""What the rules with targets (TP, ITP, GAIT-prop) share: absolute targets, and the trace of nudges."""

from __future__ import annotations

from collections.abc import Callable

from npgait.backend import Array, array_module
from npgait.network import Layer

# Called with the number of the layer, and the direction v and size s of its nudge.
Trace = Callable[[int, Array, "Array | float"], None]


def output_target(y: Array, error: Array) -> tuple[Array, Array]:
    """Return t_L = y_L - dLoss/dy_L and the scale m_L of its error.

    Parameters
    ----------
    y : array (B, n_L)
        Output with the auxiliary units; their target is their own activity.
    error : array (B, u_L)
        dLoss/dy_L.

    Returns
    -------
    t : array (B, n_L)
    m : array (B, 1)
        1, and 0 for a sample without error: absolute targets below it would be rounding noise.
    """
    t = y.copy()
    t[:, : error.shape[1]] -= error
    m = (error != 0).any(axis=1, keepdims=True).astype(y.dtype)
    return t, m


def keep_auxiliary(t: Array, y: Array) -> Array:
    """Return the target (B, n) of a layer with the outputs `y`, from that of its used units, `t`."""
    u = t.shape[-1]
    if u == y.shape[-1]:
        return t
    return array_module(y).concatenate([t, y[..., u:]], axis=-1)


def error_of_used(layer: Layer, y: Array, t: Array) -> Array:
    """Return y - t of the used units; the auxiliary units' is zero."""
    u = layer.used
    return y[..., :u] - t[..., :u]


def scaled(m: Array, e: Array) -> Array:
    """Return m e: m (B, 1), one scale a sample, e (B, ...)."""
    return m.reshape(len(e), *[1] * (e.ndim - 1)) * e
