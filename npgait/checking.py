"""Whether the equations hold, layer by layer, for one network and batch: what `npgait check` shows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from npgait.backend import Array, array_module
from npgait.inverse import ErrorsNotFiniteError, InverseSolver, SingularWeightsError, SolveReport
from npgait.metrics import angle
from npgait.network import Layer, Network, Update
from npgait.orthogonality import gram, residual, scale_of, spectral_norm
from npgait.rules import INVERTING, bind, bp
from npgait.series import TRUSTED
from npgait.session import Session

# Most that LU of a usable W leaves of d: ||z W - d|| / ||d||.
RESIDUAL = {"float32": 1e-4, "float64": 1e-10}
STEPS = (1e-6, 1e-8, 1e-10, 1e-12)  # of the numerical derivative: where activity is small kinks are near
NO_NUDGE = 1e-30  # gamma, of which no nudge crosses a kink
DERIVATIVE = 1e-3  # most that it may be off
ORTHOGONAL = 1e-3  # distance up to which W is orthogonal, and GAIT-prop has to be BP ...
SAME = 1.0  # ... to so many degrees
NEAR = 0.3  # distance up to which the series converges fast, and the angle is worth reporting as fine
LOST = 5.0  # degrees from difference targets, beyond which absolute ones have lost their digits


@dataclass(frozen=True)
class LayerCheck:
    """What was found of one layer; None where it does not apply.

    Attributes
    ----------
    name : str
    inverse_error : ||z W - d|| / ||d|| of the product with W^-1, d random
    gait_to_bp : degrees between GAIT-prop's update (difference form) and backpropagation's
    absolute_to_difference : degrees between the update by absolute targets and by differences
    distance : ||I - W W^T||_2; with the conformal regulariser ||I - W W^T / c^2||_2, c free
    """

    name: str
    inverse_error: float | None
    gait_to_bp: float | None
    absolute_to_difference: float | None
    distance: float | None


@dataclass(frozen=True)
class Finding:
    """One sentence; `wrong` where an equation does not hold."""

    text: str
    mark: str  # "fine", "note" or "WRONG"

    @property
    def wrong(self) -> bool:
        """Whether an equation does not hold."""
        return self.mark == "WRONG"


def check_session(session: Session, x: Array, labels: Array) -> tuple[list[LayerCheck], list[Finding]]:
    """Check the network of a session on a batch.

    Parameters
    ----------
    session : Session
    x, labels : array (B, *shape_in), integer array (B,)

    Returns
    -------
    list of LayerCheck
    list of Finding
        In words, what is fine and what is not.
    """
    network, e, solver = session.network, session.experiment, session.recipe.rule.solver
    records = network.forward(x)
    loss, error = session.recipe.loss(records[-1].y, labels)
    findings = [_finite(loss), _gradient(session, x, labels)]
    bp_updates = bp(network.layers, records, error)
    gait_updates: Sequence[Update | None] = [None] * len(network.layers)
    limit_updates = gait_updates
    absolute: Sequence[Update | None] = [None] * len(network.layers)
    if e.rule in INVERTING:
        try:
            options: dict[str, Any] = {"normalised": e.normalised, "solver": solver.fresh()}
            if e.rule == "gait":
                options["gamma"] = e.gamma
            gait_updates = bind("gait", **options)(network.layers, records, error)
            limit_updates = bind("gait", **options | {"gamma": NO_NUDGE})(network.layers, records, error)
            if not e.implicit_auxiliary:
                whole = network.forward(x, auxiliary=True)
                absolute = bind("gait", targets="absolute", **options)(network.layers, whole, error)
        except (SingularWeightsError, ErrorsNotFiniteError) as problem:
            findings.append(Finding(str(problem), "WRONG"))
    layers = [
        LayerCheck(
            name=layer.name,
            inverse_error=_inverse_error(layer, solver) if e.rule in INVERTING and l else None,
            gait_to_bp=_angle(gait_updates[l], bp_updates[l]),
            absolute_to_difference=_angle(absolute[l], gait_updates[l]),
            distance=_distance(layer, e.regulariser) if layer.has_inverse else None,
        )
        for l, layer in enumerate(network.layers)
    ]
    limit = [_angle(*pair) for pair in zip(limit_updates, bp_updates, strict=True)]
    return layers, findings + _in_words(layers, session, max((a for a in limit if a), default=0.0))


def _finite(loss: Array) -> Finding:
    if np.isfinite(float(loss.sum())):
        return Finding(f"the loss is finite: {float(loss.mean()):.4f} a sample", "fine")
    return Finding("the loss is not finite; lower the learning rate and train again", "WRONG")


def _gradient(session: Session, x: Array, labels: Array) -> Finding:
    """Compare BP's update with the numerical derivative of the loss along it, in float64."""
    twin = _in_float64(session.network)
    x = x.astype(np.float64)
    records = twin.forward(x)
    _, error = session.recipe.loss(records[-1].y, labels)
    updates = bp(twin.layers, records, error)
    directions = [d for update in updates for d in update]
    slope = sum(float((d * d).sum()) for d in directions)
    if slope == 0:
        return Finding("the error is zero: there is no gradient to compare", "note")
    for step in STEPS:
        h = step / slope**0.5
        moved = [_moved(session.network, directions, sign * h) for sign in (1, -1)]
        ends = [network.forward(x) for network in moved]
        losses = [float(session.recipe.loss(end[-1].y, labels)[0].sum()) for end in ends]
        off = abs((losses[0] - losses[1]) / (2 * h) - slope) / slope
        rounding = np.finfo(np.float64).eps * abs(losses[0]) / (h * slope)
        if rounding > DERIVATIVE:
            break
        to = f"to {off:.0e} (finite differences, float64)"
        if off < DERIVATIVE + 10 * rounding:
            return Finding(f"backpropagation is the derivative of the loss, {to}", "fine")
        pairs = zip(*ends, strict=True)
        if not any(bool(((one.a >= 0) != (other.a >= 0)).any()) for one, other in pairs):
            return Finding(f"backpropagation is not the derivative of the loss, {to}", "WRONG")
    text = "every step of a numerical derivative crosses kinks: none to compare backpropagation with"
    return Finding(text, "note")


def _moved(network: Network, directions: Sequence[Array], h: float) -> Network:
    """Return a network, in float64, with its parameters moved by h along the directions."""
    moved = _in_float64(network)
    for p, d in zip(moved.parameters(), directions, strict=True):
        p += h * d
    return moved


def _in_float64(network: Network) -> Network:
    layers: list[Layer] = []
    for layer in network.layers:
        twin = copy(layer)
        twin.W, twin.b = layer.W.astype(np.float64), layer.b.astype(np.float64)
        layers.append(twin)
    return Network(layers)


def _inverse_error(layer: Layer, solver: InverseSolver) -> float | None:
    if not layer.has_inverse:
        return None
    xp = array_module(layer.W)
    d = xp.asarray(np.random.default_rng(0).standard_normal((8, layer.used)), dtype=layer.W.dtype)
    reports: list[SolveReport] = []
    try:
        solver.fresh(reports)(d, layer.W, name=layer.name)
    except SingularWeightsError:
        return float("inf")
    return reports[0].residual


def _distance(layer: Layer, regulariser: str) -> float:
    """Return ||I - W W^T||_2, or ||I - W W^T / c^2||_2 where the size c is left free."""
    G = gram(layer.W)
    return spectral_norm(residual(G, scale_of(G) if regulariser == "conformal" else 1.0))


def _angle(one: Update | None, other: Update | None) -> float | None:
    """Return the angle between the dW of two updates, in degrees; None where one was not made."""
    return None if one is None or other is None else angle(one[0], other[0])


def _in_words(layers: Sequence[LayerCheck], session: Session, limit: float) -> list[Finding]:
    """Return what was found; `limit` is the angle from GAIT-prop to BP where no kink is crossed."""
    rule, dtype = session.experiment.rule, session.network.dtype
    if rule not in INVERTING:
        return [Finding(f"rule {rule!r} inverts nothing; there is no more to check", "note")]
    findings = []
    allowed = max(RESIDUAL[str(dtype)], TRUSTED * (session.recipe.rule.solver.tolerance or 0))
    errors = {l.name: l.inverse_error for l in layers if l.inverse_error is not None}
    worst = max(errors, key=lambda name: errors[name])
    text = f"every inverse gives back what went in, to {errors[worst]:.0e} at worst ({worst})"
    findings.append(
        Finding(text, "fine")
        if errors[worst] <= allowed
        else Finding(
            f"the inverse of {worst} is off by {errors[worst]:.0e}; allowed {allowed:.0e}", "WRONG"
        )
    )
    distances = [l.distance for l in layers[1:] if l.distance is not None]
    away, far = max(distances), [l.gait_to_bp for l in layers if l.gait_to_bp is not None]
    if away < ORTHOGONAL and far and max(far) > SAME:
        apart = f"{max(far):.1f} degrees away from BP"
        if limit > SAME:
            text, mark = f"weights are orthogonal, and GAIT-prop is still {apart}", "WRONG"
        else:
            text = f"weights are orthogonal, but nudges cross kinks: GAIT-prop is {apart}, "
            text, mark = f"{text}{limit:.2f} where none is crossed; lower gamma", "note"
        findings.append(Finding(text, mark))
    elif far and away < NEAR:
        text = f"near orthogonality ({away:.0e}) GAIT-prop is within {max(far):.2f} degrees of BP"
        findings.append(Finding(text, "fine"))
    elif far:
        text = (
            f"weights are {away:.1f} from orthogonal, GAIT-prop up to {max(far):.0f} degrees from BP; "
        )
        findings.append(Finding(text + "raise ortho_strength to bring them closer", "note"))
    angles = {l.name: l.absolute_to_difference for l in layers}
    are_made = any(a is not None for a in angles.values())
    lost = [name for name, a in angles.items() if a is None or a > LOST]  # None: of nothing, or overflow
    if are_made and lost:
        text = f"absolute targets lose the direction to rounding in {dtype}: {', '.join(lost)}; "
        findings.append(Finding(text + "difference targets, the default, do not", "note"))
    elif are_made:
        findings.append(Finding(f"absolute and difference targets agree in {dtype}", "fine"))
    return findings
