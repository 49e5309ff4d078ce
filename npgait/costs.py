"""What a step must do: the operations of its matrix products, and the bytes of its optimizer.

The savings of the difference form are counted: auxiliary units are not computed, only the first u rows
of W^-1 are applied, and W W^T is symmetric (half a product). A multiplication and an addition are two
operations. Elementwise work is not counted: next to a product it ought to be nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from npgait.inverse import SolveReport
from npgait.network import Layer, Network
from npgait.optimizers import SGD, Momentum, Optimizer
from npgait.step import Recipe


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one step, by part, and the bytes that its optimizer moves."""

    forward: float
    targets: float
    updates: float
    regulariser: float
    optimizer_bytes: float

    @property
    def operations(self) -> float:
        """Operations of the whole step."""
        return self.forward + self.targets + self.updates + self.regulariser

    def floor(self, rate: float, bandwidth: float) -> float:
        """Return the seconds a step takes at `rate` operations and `bandwidth` bytes a second."""
        return self.operations / rate + self.optimizer_bytes / bandwidth


def step_cost(
    network: Network, recipe: Recipe, batch_size: int, reports: Mapping[int, SolveReport]
) -> Cost:
    """Return what one step of a recipe costs, the mean over steps with the regulariser and without.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    batch_size : int
    reports : mapping of int to SolveReport
        How the product with W^-1 of layer l was made, where a rule makes one.
    """
    layers, rule = network.layers, recipe.rule
    rows = [batch_size * prod(layer.shape_out[:-1]) for layer in layers]
    units = [layer.W.shape[1] if rule.auxiliary else layer.used for layer in layers]
    products = [2.0 * r * len(layer.W) for r, layer in zip(rows, layers, strict=True)]
    regularised = [layer for layer in layers if layer.has_inverse and recipe.ortho_strength > 0]
    return Cost(
        forward=sum(p * u for p, u in zip(products, units, strict=True)),
        targets=_targets(layers, recipe, batch_size, rows, reports),
        updates=sum(p * layer.used for p, layer in zip(products, layers, strict=True)),
        regulariser=sum(3.0 * layer.W.size * layer.W.shape[1] for layer in regularised)
        / recipe.ortho_every,
        optimizer_bytes=_passes(recipe.optimizer) * sum(p.nbytes for p in network.parameters()),
    )


def _targets(
    layers: Sequence[Layer],
    recipe: Recipe,
    batch_size: int,
    rows: Sequence[int],
    reports: Mapping[int, SolveReport],
) -> float:
    """Return the operations of what reaches each layer from the one above, or from the output."""
    rule = recipe.rule
    if rule.name == "dfa":
        return sum(2.0 * batch_size * layers[-1].used * prod(layer.shape_out) for layer in layers[:-1])
    total = 0.0
    for l, layer in enumerate(layers[1:], 1):
        n, is_conv = len(layer.W), len(layer.shape_out) == 3
        if rule.auxiliary:  # absolute targets: all units, by LU
            total += 2 / 3 * n**3 + 2.0 * (rows[l] + (n if is_conv else 0)) * n**2
            continue
        report, m = reports.get(l), layer.W.shape[1]
        if is_conv or report is None or report.method != "lu":  # d W^T, which LU does without, or d W^-1
            total += 2.0 * rows[l] * n * layer.used
        if report is not None:  # a convolution makes the first u rows of W^-1, not each patch's product
            total += _solve(report, n, m, layer.used if is_conv else batch_size)
            if is_conv and n > m and report.method != "refinement":  # (W^T W)^-1 W^T
                total += 2.0 * layer.used * n * m
    return total


def _solve(report: SolveReport, n: int, m: int, rows: int) -> float:
    """Return the operations of z = d W^-1, W (n, m), beyond those of d W^T, which LU does without."""
    if report.method == "lu":
        return 2 / 3 * n**3 + 2.0 * rows * n**2
    if report.method == "normal":
        return 2 / 3 * m**3 + 2.0 * rows * m**2
    if report.method == "qr":
        return 4.0 * m**2 * (n - m / 3) + 2.0 * rows * m**2
    if report.method == "series":
        return 2.0 * report.terms * rows * m**2
    return 4.0 * report.terms * rows * n * m


def _passes(optimizer: Optimizer) -> int:
    """Return how often the bytes of the parameters go through memory, gradients and state included."""
    if isinstance(optimizer, SGD):
        return 3
    return 5 if isinstance(optimizer, Momentum) else 7
