"""What is measured: accuracy, the angle between updates, and each layer's health."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npgait.backend import Array, array_module, to_host
from npgait.inverse import SolveReport
from npgait.network import Layer, Record, Update
from npgait.orthogonality import gram, residual, spectral_norm
from npgait.rules import Rule, bp


def correct_within(y: Array, labels: Array, k: int) -> Array:
    """Return how many samples have their label among the k largest outputs (0-d int array).

    Ties and NaN count against the network: one that outputs a constant knows nothing.

    Parameters
    ----------
    y : array (B, n)
    labels : integer array (B,)
    k : int
    """
    xp = array_module(y)
    own = y[xp.arange(len(y)), labels][:, None]
    ahead = (~(y < own)).sum(axis=1) - 1
    return ((ahead < k) & xp.isfinite(own[:, 0])).sum()


def angle(u: Array, v: Array) -> float | None:
    """Return the angle between two arrays of one shape, in degrees; None where there is none.

    2 atan2(|u/|u| - v/|v||, |u/|u| + v/|v||) in float64, which resolves small angles where arccos has
    a floor of 0.03 degrees in float32. A zero or non-finite array has no angle.
    """
    xp = array_module(u)
    unit_u, unit_v = _unit(u), _unit(v)
    if unit_u is None or unit_v is None:
        return None
    difference = float(xp.linalg.norm(unit_u - unit_v))
    total = float(xp.linalg.norm(unit_u + unit_v))
    return float(np.degrees(2 * np.arctan2(difference, total)))


def _unit(u: Array) -> Array | None:
    """Return u / |u| as a float64 vector, scaled first so that no square over- or underflows."""
    xp = array_module(u)
    u = u.ravel().astype(np.float64)
    largest = float(xp.abs(u).max()) if u.size else 0.0
    if largest == 0 or not np.isfinite(largest):
        return None
    u = u / largest
    return u / xp.linalg.norm(u)


@dataclass(frozen=True)
class LayerMeasures:
    """One layer at one step; None where a measure does not apply or has no value.

    Attributes
    ----------
    layer : str
    angle : degrees between the layer's dW and backpropagation's
    norm_ratio : ||dW|| / ||dW of backpropagation||
    inverse_residual : ||z W - d|| / ||d|| of the product with W^-1
    inverse_terms : terms of the series for W^-1, or corrections; 0 where it was solved for
    orthogonality : ||I - W W^T||_2 of a layer that has an inverse (W^T W with implicit units)
    crossed : share of used units whose nudge crosses the kink
    gamma : gamma_l of the published equations, mean over the samples of the batch that have an error
    """

    layer: str
    angle: float | None
    norm_ratio: float | None
    inverse_residual: float | None
    inverse_terms: int | None
    orthogonality: float | None
    crossed: float | None
    gamma: float | None


def measure(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    updates: Sequence[Update],
    rule: Rule,
    grams: Sequence[Array | None],
) -> list[LayerMeasures]:
    """Return the measures of each layer for one step of a rule.

    One extra pass of backpropagation, and one of the rule's difference form if it inverts layers (which
    absolute targets equal up to rounding). Off the hot path.

    Parameters
    ----------
    layers, records, error
        The network, its forward pass on a batch, and dLoss/dy of the output.
    updates : sequence of (dW, db)
        What the rule made of them, without regulariser.
    rule : Rule
    grams : sequence of array or None
        W W^T of each layer, as the step had them (they decide how W^-1 was applied).
    """
    used = [
        Record(x, a[..., : layer.used], y[..., : layer.used])
        for layer, (x, a, y) in zip(layers, records, strict=True)
    ]
    bp_updates = bp(layers, used, error)
    nudges = _nudges(layers, used, error, rule, grams)
    measures = []
    for l, layer in enumerate(layers):
        dW, dW_bp = updates[l][0], bp_updates[l][0]
        norm, norm_bp = _norm(dW), _norm(dW_bp)
        measures.append(
            LayerMeasures(
                layer=layer.name,
                angle=angle(dW, dW_bp),
                norm_ratio=norm / norm_bp if norm_bp else None,
                orthogonality=_orthogonality(layer, grams[l]),
                **nudges.get(l, _NO_NUDGE),
            )
        )
    return measures


_NO_NUDGE = dict.fromkeys(("inverse_residual", "inverse_terms", "crossed", "gamma"))


def _nudges(
    layers: Sequence[Layer],
    records: Sequence[Record],
    error: Array,
    rule: Rule,
    grams: Sequence[Array | None],
) -> dict[int, dict[str, Any]]:
    """Run the difference form once and note, by number of layer, what each inversion did."""
    if rule.difference_form is None:
        return {}
    reports: list[SolveReport] = []
    solver = rule.solver.fresh(reports)
    noted: dict[int, dict[str, Any]] = {}
    above: Array | float = 1.0

    def trace(l: int, v: Array, s: Array | float) -> None:
        nonlocal above
        noted[l] = {
            "crossed": float(layers[l].f.crossed(records[l].y, v, s).mean()),
            "gamma": _mean_ratio(s, above),  # s_l = gamma_l / m_l and m_l = 1 / s_{l+1}
        }
        above = s

    rule.difference_form(layers, records, error, grams=grams, solver=solver, trace=trace)
    for l, report in zip(sorted(noted, reverse=True), reports, strict=True):
        noted[l] |= {"inverse_residual": report.residual, "inverse_terms": report.terms}
    return noted


def _mean_ratio(numerator: Array | float, denominator: Array | float) -> float | None:
    """Return the mean quotient over the samples where neither is 0: one without error has no gamma."""
    above, below = np.broadcast_arrays(to_host(numerator).ravel(), to_host(denominator).ravel())
    counts = (above != 0) & (below != 0)
    return float(np.mean(above[counts] / below[counts])) if counts.any() else None


def _orthogonality(layer: Layer, G: Array | None) -> float | None:
    if not layer.has_inverse:
        return None
    return spectral_norm(residual(gram(layer.W) if G is None else G))


def _norm(dW: Array) -> float:
    return float(array_module(dW).linalg.norm(dW.astype(np.float64)))
