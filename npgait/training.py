"""The training loop: batches in, updates by any rule, regulariser, optimizer, metrics out.

`train` is a generator of events. At each event all state is consistent, so whoever drives it can write a
checkpoint, draw a progress bar, or stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from npgait.backend import Array, array_module
from npgait.data import Source
from npgait.events import EpochDone, Evaluating, Event, Measured, Progress, StepDone, Tally
from npgait.metrics import LayerMeasures
from npgait.network import Network, first_nonfinite
from npgait.replay import Stepper
from npgait.step import Loss, Recipe, TrainingDivergedError, train_step
from npgait.streams import Streams

__all__ = [
    "EpochDone",
    "Evaluating",
    "Event",
    "Measured",
    "Progress",
    "Recipe",
    "StepDone",
    "Tally",
    "TrainingDivergedError",
    "check_finite",
    "check_weights",
    "evaluate",
    "train",
    "train_step",
]


LOOK_EVERY = 50  # steps from one look at the losses of a GPU to the next


def evaluate(
    network: Network, data: Source, loss: Loss, tally: Tally, *, batch_size: int = 1024
) -> Iterator[None]:
    """Count loss, top-1 and top-5 over a data set into `tally`, yielding before each batch."""
    for x, labels in data.batches(batch_size):
        yield
        y = network.output(x)
        tally.add(loss(y, labels)[0], y, labels)


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
    graphs: bool = True,
) -> Iterator[Event]:
    """Train in place, yielding an event after each batch, measurement and epoch.

    Of the evaluations at the end of an epoch there is an event before each batch.

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
    graphs : bool
        Whether a GPU may replay steps from CUDA graphs; see `replay`.

    Raises
    ------
    TrainingDivergedError
        If the loss or a weight is no longer finite.
    SingularWeightsError, ErrorsNotFiniteError
        If a product with W^-1 cannot be made; see `InverseSolver`.
    """
    progress = Progress() if progress is None else progress
    batches = -(-len(train_data) // batch_size)
    make_step = Stepper(network, recipe, graphs)
    while progress.epoch < epochs:
        epoch = progress.epoch + 1
        if progress.batch == 0:
            progress.streams = streams.save()
        else:
            streams.restore(progress.streams)  # an epoch that goes on has the order it began with
        started = time.perf_counter()
        for x, labels in train_data.shuffled(batch_size, streams, start=progress.batch):
            # A GPU's loader waits for the steps before, which is time of training.
            if not network.device.is_gpu:
                started = time.perf_counter()
            measured: list[LayerMeasures] = []
            due = measure_every > 0 and progress.step % measure_every == 0
            loss, y = make_step(
                x, labels, step=progress.step + 1, on_measure=measured.extend if due else None
            )
            progress.tally.add(loss, y, labels)
            progress.batch += 1
            progress.step += 1
            if progress.step % LOOK_EVERY == 0 or progress.batch == batches:
                check_finite(progress)
            # On a GPU with all that was done meanwhile: who looks at a loss waits for steps.
            now = time.perf_counter()
            progress.seconds += now - started
            started = now
            if measured:
                yield Measured(progress.step, epoch, measured)
            yield StepDone(progress.step, epoch, progress.batch, batches, _late_mean(loss))
        yield from _finish_epoch(network, recipe, train_data, test_data, progress, evaluate_train)


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


def check_weights(network: Network, progress: Progress) -> None:
    """Raise a TrainingDivergedError where the weights are not finite."""
    network.device.use()
    for name, parameter in network.named_parameters():
        if not np.isfinite(float(abs(parameter).max())):
            raise TrainingDivergedError(
                f"the weights of {name} are not finite after step {progress.step}; lower the learning "
                "rate, or raise ortho_strength"
            )


def _finish_epoch(
    network: Network,
    recipe: Recipe,
    train_data: Source,
    test_data: Source | None,
    progress: Progress,
    evaluate_train: bool,
) -> Iterator[Event]:
    """Check the weights, evaluate, and move `progress` to the next epoch.

    Until it moves, who stops and goes on comes here again: no batch is left to learn from.
    """
    check_finite(progress)
    check_weights(network, progress)
    parts = {"train": train_data} if test_data is None else {"train": train_data, "test": test_data}
    row: dict[str, float] = {"epoch": progress.epoch + 1, "step": progress.step}
    for name, data in parts.items():
        tally = progress.tally
        if name != "train" or evaluate_train:
            tally = Tally()
            for _ in evaluate(network, data, recipe.loss, tally):
                yield Evaluating(progress.step, progress.epoch + 1)
        row |= tally.means(name)
        if not np.isfinite(row[f"{name}_loss"]):  # of weights that are finite, and too large
            raise TrainingDivergedError(
                f"the {name} loss is not finite after step {progress.step}; the first layer with values "
                f"that are not is {_first_nonfinite(network, data)}. Lower the learning rate, or raise "
                "ortho_strength"
            )
    row["seconds"] = round(progress.seconds, 3)
    progress.epoch += 1
    progress.batch, progress.seconds, progress.tally = 0, 0.0, Tally()
    yield EpochDone(row)


def _first_nonfinite(network: Network, data: Source) -> str:
    """Return the name of the lowest layer that is not finite on some batch, or of the output."""
    for x, _ in data.batches(64):
        where = first_nonfinite(network.layers, network.forward(x))
        if where is not None:
            return where
    return network.layers[-1].name
