"""One step of training: forward, error, rule, regulariser, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from npgait.backend import Array, array_module
from npgait.metrics import LayerMeasures, measure
from npgait.network import Network, Update, first_nonfinite
from npgait.optimizers import Optimizer
from npgait.orthogonality import REGULARISERS
from npgait.orthogonality import grams as all_grams
from npgait.rules import Rule
from npgait.validation import check_real

Loss = Callable[[Array, Array], tuple[Array, Array]]
REDUCTIONS = ("sum", "mean")


class TrainingDivergedError(ArithmeticError):
    """The loss or the weights are no longer finite."""


@dataclass
class Recipe:
    """How one step is made: by which rule, loss, optimizer and regulariser.

    Parameters
    ----------
    rule : Rule
    loss : callable
        (y, labels) -> loss (B,), error (B, n); see `losses`.
    optimizer : Optimizer
    regulariser : {"orthonormal", "orthogonal", "conformal"}
    ortho_strength : float
        lambda; 0 for none. Applied to every layer that has an inverse: W is square, or implicit
        auxiliary units make it so.
    reduction : {"sum", "mean"}
        Whether updates are summed over the batch (2023) or averaged (2020).
    ortho_every : int
        The regulariser is applied at every so many steps.
    decoupled : bool
        Whether it changes the weights after the optimizer, W <- W - lambda (W W^T - I) W, as weight
        decay is decoupled in AdamW, and not through the gradient (published).

    Raises
    ------
    TypeError, ValueError
        If a value is none of these, or a decoupled regulariser is of a strength above 1.
    """

    rule: Rule
    loss: Loss
    optimizer: Optimizer
    regulariser: str = "orthonormal"
    ortho_strength: float = 0.0
    reduction: str = "sum"
    ortho_every: int = 1
    decoupled: bool = False

    def __post_init__(self) -> None:
        if self.regulariser not in REGULARISERS:
            known = ", ".join(REGULARISERS)
            raise ValueError(f"regulariser {self.regulariser!r} is unknown; use one of {known}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction {self.reduction!r} is unknown; use sum or mean")
        check_real("ortho_strength", self.ortho_strength)
        if not (self.ortho_strength >= 0 and np.isfinite(self.ortho_strength)):
            raise ValueError(f"ortho_strength is {self.ortho_strength}; expected 0 or more")
        if self.ortho_every < 1:
            raise ValueError(f"ortho_every is {self.ortho_every}; expected at least 1")
        if self.decoupled and self.ortho_strength > 1:
            raise ValueError(
                f"ortho_strength is {self.ortho_strength}; a decoupled regulariser is stable up to 1"
            )

    def is_due(self, step: int) -> bool:
        """Return whether the regulariser is applied at the step of this number."""
        return self.ortho_strength > 0 and step % self.ortho_every == 0


def _no_lap(part: str) -> None:
    """Take no time."""


def train_step(
    network: Network,
    recipe: Recipe,
    x: Array,
    labels: Array,
    *,
    step: int = 0,
    on_measure: Callable[[list[LayerMeasures]], None] | None = None,
    lap: Callable[[str], None] = _no_lap,
) -> tuple[Array, Array]:
    """Learn from one batch, in place: forward, error, rule, regulariser, optimizer.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    x : array (B, *shape_in)
    labels : integer array (B,)
    step : int
        Number of the step: the regulariser is due where `ortho_every` divides it, and messages name it.
    on_measure : callable, optional
        Where given, the layers are measured before the weights change.
    lap : callable, optional
        Called with the name of each part of the step as it is done; see `timing`.

    Returns
    -------
    loss : array (B,)
    y : array (B, n_classes)

    Raises
    ------
    ValueError
        If the loss is not one value a sample.
    TrainingDivergedError
        If the loss is not finite; the weights are then as they were. On a GPU, where looking means
        waiting, `train` looks later, at the sums over many steps.
    SingularWeightsError, ErrorsNotFiniteError
        By a rule that inverts layers; the weights are then as they were.
    """
    layers, rule = network.layers, recipe.rule
    records = network.forward(x, auxiliary=rule.auxiliary)
    lap("forward")
    y = records[-1].y[:, : network.n_classes]
    loss, error = recipe.loss(y, labels)
    if getattr(loss, "shape", None) != (len(x),):
        got = getattr(loss, "shape", type(loss).__name__)
        raise ValueError(f"the loss has shape {got}; expected {(len(x),)}, one value a sample")
    if array_module(loss) is np and not np.isfinite(loss.sum()):
        where = first_nonfinite(layers, records) or layers[-1].name
        raise TrainingDivergedError(
            f"the loss is not finite at step {step}; the first layer with values that are not is "
            f"{where}. Lower the learning rate, or raise ortho_strength"
        )
    lap("loss")
    due = recipe.is_due(step)
    regularised = [layer.W if due and layer.has_inverse else None for layer in layers]
    grams = all_grams(regularised if not recipe.decoupled else [None] * len(layers))
    lap("regulariser")
    updates = rule(layers, records, error, grams)
    lap("targets")  # and updates, which only a layer can tell apart
    if on_measure is not None:
        on_measure(measure(layers, records, error, updates, rule, grams))
    gradients = _gradients(network, recipe, updates, grams, len(x))
    lap("regulariser")
    recipe.optimizer.step(network.parameters(), gradients)
    lap("optimizer")
    if due and recipe.decoupled:
        regulariser = REGULARISERS[recipe.regulariser]
        for W, G in zip(regularised, all_grams(regularised), strict=True):
            if W is not None:
                # W <- W - lambda (W W^T - I) W, say: the gradient has a factor 4 of its own.
                W -= regulariser(W, G, recipe.ortho_strength / 4, overwrite=True)
        lap("regulariser")
    return loss, y


def _gradients(
    network: Network,
    recipe: Recipe,
    updates: Sequence[Update],
    grams: Sequence[Array | None],
    batch_size: int,
) -> list[Array]:
    """Return dW + lambda dW_ortho and db of each layer, in the order of `Network.parameters`."""
    share = 1.0 if recipe.reduction == "sum" else 1.0 / batch_size
    regulariser = REGULARISERS[recipe.regulariser]
    gradients: list[Array] = []
    for layer, (dW, db), G in zip(network.layers, updates, grams, strict=True):
        if share != 1.0:
            dW *= share
            db *= share
        if G is not None:
            regulariser(layer.W, G, recipe.ortho_strength, add_to=dW, overwrite=True)  # G's last use
        gradients += [dW, db]
    return gradients
