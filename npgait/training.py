"""The training loop: batches in, updates by any rule, regulariser, optimizer, metrics out.

`train` is a generator of events. At each event all state is consistent, so whoever drives it can write a
checkpoint, draw a progress bar, or stop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from npgait.backend import Array, array_module
from npgait.data import Source
from npgait.events import EpochDone, Event, Measured, Progress, StepDone, Tally
from npgait.metrics import LayerMeasures, measure
from npgait.network import Network, Update, first_nonfinite
from npgait.optimizers import Optimizer
from npgait.orthogonality import REGULARISERS
from npgait.orthogonality import grams as all_grams
from npgait.rules import Rule
from npgait.streams import Streams

Loss = Callable[[Array, Array], tuple[Array, Array]]
REDUCTIONS = ("sum", "mean")
LOOK_EVERY = 50  # steps from one look at the losses of a GPU to the next


class TrainingDivergedError(ArithmeticError):
    """The loss or the weights are no longer finite."""


@dataclass
class Recipe:
    """How one step is made: what of loss, rule, regulariser and optimizer.

    Parameters
    ----------
    rule : Rule
    loss : callable
        (y, labels) -> loss (B,), error (B, n); see `losses`.
    optimizer : Optimizer
    regulariser : {"orthonormal", "orthogonal", "conformal"}
    ortho_strength : float
        lambda; 0 for none. Applied to every layer whose W is square.
    reduction : {"sum", "mean"}
        Whether updates are summed over the batch (2023) or averaged (2020).
    ortho_every : int
        The regulariser is applied at every so many steps.
    decoupled : bool
        Whether it changes the weights after the optimizer, W <- W - lambda (W W^T - I) W, as weight
        decay is decoupled in AdamW, and not through the gradient (published).
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
        if not (self.ortho_strength >= 0 and np.isfinite(self.ortho_strength)):
            raise ValueError(f"ortho_strength is {self.ortho_strength}; expected 0 or more")
        if self.ortho_every < 1:
            raise ValueError(f"ortho_every is {self.ortho_every}; expected at least 1")
        if self.decoupled and self.ortho_strength > 1:
            raise ValueError(
                f"ortho_strength is {self.ortho_strength}; a decoupled regulariser is stable up to 1"
            )


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
        Number of the step, for messages.
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
    TrainingDivergedError
        If the loss is not finite; the weights are then as they were. On a GPU, where looking means
        waiting, `train` looks later, at the sums over many steps.
    """
    layers, rule = network.layers, recipe.rule
    records = network.forward(x, auxiliary=rule.auxiliary)
    lap("forward")
    y = records[-1].y[:, : network.n_classes]
    loss, error = recipe.loss(y, labels)
    if array_module(loss) is np and not np.isfinite(loss.sum()):
        where = first_nonfinite(layers, records) or layers[-1].name
        raise TrainingDivergedError(
            f"the loss is not finite at step {step}; the first layer with values that are not is "
            f"{where}. Lower the learning rate, or raise ortho_strength"
        )
    lap("loss")
    due = recipe.ortho_strength > 0 and step % recipe.ortho_every == 0
    square = [layer.W if due and layer.has_inverse else None for layer in layers]
    grams = all_grams(square if not recipe.decoupled else [None] * len(layers))
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
        for W, G in zip(square, all_grams(square), strict=True):
            if W is not None:
                W -= REGULARISERS[recipe.regulariser](W, G, recipe.ortho_strength / 4)
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
            dW += regulariser(layer.W, G, recipe.ortho_strength)
        gradients += [dW, db]
    return gradients


def evaluate(network: Network, data: Source, loss: Loss, *, batch_size: int = 1024) -> Tally:
    """Return the tally of loss, top-1 and top-5 over a data set."""
    tally = Tally()
    for x, labels in data.batches(batch_size):
        y = network.output(x)
        tally.add(loss(y, labels)[0], y, labels)
    return tally


def train(
    network: Network,
    recipe: Recipe,
    train_data: Source,
    test_data: Source | None = None,
    *,
    epochs: int,
    batch_size: int,
    streams: Streams,
    progress: Progress | None = None,
    measure_every: int = 0,
    evaluate_train: bool = True,
) -> Iterator[Event]:
    """Train in place, yielding an event after each batch, measurement and epoch.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    train_data, test_data : Source
    epochs : int
        Epochs in all, those before a resumption included.
    batch_size : int
    streams : Streams
        `order` and `augmentation` decide each epoch's batches.
    progress : Progress, optional
        Where to go on from; updated in place before every event.
    measure_every : int
        Steps between two measurements of the layers; 0 for none.
    evaluate_train : bool
        Whether train loss and accuracy are those of the weights at the end of the epoch (one more
        forward pass over the training set), or the running means of the epoch's batches.

    Raises
    ------
    TrainingDivergedError
        If the loss or a weight is no longer finite.
    """
    progress = Progress() if progress is None else progress
    batches = -(-len(train_data) // batch_size)
    while progress.epoch < epochs:
        epoch = progress.epoch + 1
        if progress.batch == 0:
            progress.streams = streams.save()
        else:
            streams.restore(progress.streams)  # an epoch that goes on has the order it began with
        for x, labels in train_data.shuffled(batch_size, streams, start=progress.batch):
            started = time.perf_counter()
            measured: list[LayerMeasures] = []
            due = measure_every > 0 and progress.step % measure_every == 0
            loss, y = train_step(
                network,
                recipe,
                x,
                labels,
                step=progress.step + 1,
                on_measure=measured.extend if due else None,
            )
            progress.tally.add(loss, y, labels)
            progress.batch += 1
            progress.step += 1
            progress.seconds += time.perf_counter() - started
            if progress.step % LOOK_EVERY == 0:
                check_finite(progress)
            if measured:
                yield Measured(progress.step, epoch, measured)
            yield StepDone(progress.step, epoch, progress.batch, batches, _late_mean(loss))
        yield _finish_epoch(network, recipe, train_data, test_data, progress, evaluate_train)


def _late_mean(loss: Array) -> float | Array:
    """Return the mean as a number, or on a GPU as an array that is not waited for."""
    return float(loss.mean()) if array_module(loss) is np else loss.mean()


def check_finite(progress: Progress) -> None:
    """Raise a TrainingDivergedError where the losses of the epoch under way are not finite."""
    progress.tally.fetch()
    if not np.isfinite(progress.tally.loss):
        raise TrainingDivergedError(
            f"the loss is not finite at step {progress.step} or up to {LOOK_EVERY} steps before; "
            "lower the learning rate, or raise ortho_strength"
        )


def _finish_epoch(
    network: Network,
    recipe: Recipe,
    train_data: Source,
    test_data: Source | None,
    progress: Progress,
    evaluate_train: bool,
) -> EpochDone:
    """Check the weights, evaluate, and move `progress` to the next epoch."""
    check_finite(progress)
    for name, parameter in network.named_parameters():
        if not np.isfinite(float(abs(parameter).max())):
            raise TrainingDivergedError(
                f"the weights of {name} are not finite after step {progress.step}; lower the learning "
                "rate, or raise ortho_strength"
            )
    tally = evaluate(network, train_data, recipe.loss) if evaluate_train else progress.tally
    row = {"epoch": progress.epoch + 1, "step": progress.step, **tally.means("train")}
    if test_data is not None:
        row |= evaluate(network, test_data, recipe.loss).means("test")
    row["seconds"] = round(progress.seconds, 3)
    progress.epoch += 1
    progress.batch, progress.seconds, progress.tally = 0, 0.0, Tally()
    return EpochDone(row)
