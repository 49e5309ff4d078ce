"""One experiment from configuration to checkpoint: built, trained, saved, taken up again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from npgait import models
from npgait.activations import LeakyReLU, Linear
from npgait.backend import CPU, Array, Device, array_module
from npgait.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from npgait.config import ConfigError, Experiment
from npgait.data import Source
from npgait.events import progress_of
from npgait.inverse import InverseSolver
from npgait.losses import LOSSES
from npgait.network import Network
from npgait.optimizers import SGD, Adam, Momentum, Optimizer, check_state
from npgait.rules import bind, draw_feedback
from npgait.run_folder import CHECKPOINT, checked_rows, write_metrics
from npgait.saving import describe
from npgait.streams import Streams, random_streams
from npgait.training import (
    EpochDone,
    Event,
    Measured,
    Progress,
    Recipe,
    StepDone,
    check_finite,
    check_weights,
    train,
)

MAY_CHANGE = ("epochs", "checkpoint_minutes", "description")  # between a run and its resumption


@dataclass
class Session:
    """An experiment under way."""

    experiment: Experiment
    network: Network
    recipe: Recipe
    streams: Streams
    progress: Progress = field(default_factory=Progress)
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics so far, as written to disk


def build_session(
    experiment: Experiment, shape_in: tuple[int, ...], n_classes: int, device: Device = CPU
) -> Session:
    """Return a session with fresh weights.

    Parameters
    ----------
    experiment : Experiment
    shape_in : tuple of int
        Of one sample of the data set: (H, W, C), or (n,).
    n_classes : int
    device : Device

    Raises
    ------
    ConfigError
        If the experiment cannot be built for such data (more classes than units, say), or its weights
        do not fit into memory.
    """
    streams = random_streams(experiment.seed)
    try:
        network = _build_network(experiment, shape_in, n_classes, streams, device)
    except ValueError as error:
        raise ConfigError(f"experiment {experiment.name!r}: {error}") from error
    except MemoryError as error:
        keys = {"tower": "widths", "imagenet": "image_size"}.get(experiment.network, "width or depth")
        raise ConfigError(
            f"experiment {experiment.name!r}: its weights do not fit into memory; lower {keys} "
            f"({str(error) or type(error).__name__})"
        ) from error
    network.feedback = draw_feedback(experiment.rule, network, streams.feedback)
    rule = bind(
        experiment.rule,
        gamma=experiment.gamma,
        normalised=experiment.normalised,
        targets=experiment.targets,
        feedback=network.feedback,
        solver=InverseSolver(experiment.inverse_tolerance, experiment.inverse_method),
    )
    recipe = Recipe(
        rule,
        LOSSES[experiment.loss],
        _build_optimizer(experiment),
        experiment.regulariser,
        experiment.ortho_strength,
        experiment.reduction,
        experiment.ortho_every,
        experiment.ortho_decoupled,
    )
    return Session(experiment, network, recipe, streams)


def _build_network(
    e: Experiment, shape_in: tuple[int, ...], n_classes: int, streams: Streams, device: Device
) -> Network:
    sizes = {key: getattr(e, key) for key in ("width", "depth", "widths", "patch_bytes")}
    options: dict[str, Any] = {key: value for key, value in sizes.items() if value is not None}
    f = Linear() if e.slope == 1 else LeakyReLU(e.slope)
    if e.output_activation == "linear":
        options["f_output"] = Linear()
    return models.MODELS[e.network](
        shape_in if e.network in models.TAKES_IMAGES else math.prod(shape_in),
        n_classes,
        f=f,
        auxiliary="implicit" if e.auxiliary and e.implicit_auxiliary else bool(e.auxiliary),
        initialisation=e.initialisation,
        seed=streams.weights,
        dtype=e.dtype,
        device=device,
        **options,
    )


def _build_optimizer(e: Experiment) -> Optimizer:
    if e.optimizer == "sgd":
        return SGD(e.learning_rate)
    if e.optimizer == "momentum":
        return Momentum(e.learning_rate, e.momentum)
    return Adam(e.learning_rate, e.beta1, e.beta2, e.epsilon, e.bias_correction)


# --- checkpoints ----------------------------------------------------------------------------------


def save_session(path: Path, session: Session, data_digest: str) -> None:
    """Write a session to a checkpoint; a TrainingDivergedError where loss or weights are not finite."""
    # Nothing that diverged replaces a good checkpoint: a loss is that of the weights before the step.
    check_finite(session.progress)
    check_weights(session.network, session.progress)
    arrays: dict[str, dict[str, Array]] = {
        "parameters": dict(session.network.named_parameters()),
        "optimizer": session.recipe.optimizer.state(),
        "feedback": session.network.named_feedback(),
    }
    meta = {
        "experiment": asdict(session.experiment),
        "progress": asdict(session.progress),
        "streams": session.streams.save(),
        "rows": session.rows,
        "network": describe(session.network),
        "data": data_digest,
    }
    save_checkpoint(path, Checkpoint(meta, arrays))


def restore_session(path: Path, session: Session, data_digest: str) -> None:
    """Take up in `session`, freshly built, what a checkpoint holds.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another experiment or other data.
    """
    checkpoint = load_checkpoint(path)
    try:
        _check_same_run(path, checkpoint.meta, session.experiment, data_digest)
        _take_up(path, checkpoint, session)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not hold a whole run ({error})") from error


def read_progress(
    path: Path, experiment: Experiment, data_digest: str | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Return how many epochs of an experiment are done by its checkpoint, and its metrics.

    Needs no data; with their digest it is checked too that they are those of the checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another experiment or other data.
    """
    meta = load_checkpoint(path).meta
    try:
        _check_same_run(path, meta, experiment, data_digest)
        return progress_of(meta["progress"]).epoch, checked_rows(meta["rows"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not hold a whole run ({error})") from error


def _check_same_run(
    path: Path, meta: dict[str, Any], experiment: Experiment, data_digest: str | None
) -> None:
    if data_digest is not None and meta["data"] != data_digest:
        raise CheckpointError(
            f"{path}: was trained on other data than are given now; name the first run's by --data"
        )
    own = json.loads(json.dumps(asdict(experiment)))  # tuples as JSON has them
    theirs = {**meta["experiment"], **{key: own[key] for key in MAY_CHANGE}}
    changed = sorted(key for key in own if theirs.get(key) != own[key])
    if changed:
        raise CheckpointError(
            f"{path}: was written by an experiment with another {', '.join(changed)}; restore "
            "config.toml, or start a new run"
        )


def _take_up(path: Path, checkpoint: Checkpoint, session: Session) -> None:
    """Copy everything a checkpoint holds into a session of the same experiment."""
    meta, arrays, network = checkpoint.meta, checkpoint.arrays, session.network
    _copy_all(path, "parameters", arrays["parameters"], dict(network.named_parameters()))
    _copy_all(path, "feedback", arrays["feedback"], network.named_feedback())
    check_state(arrays["optimizer"], network.parameters())
    xp = network.device.xp
    session.recipe.optimizer.load(
        {key: xp.asarray(v) if v.ndim else v for key, v in arrays["optimizer"].items()}
    )
    session.streams.restore(meta["streams"])
    session.progress = progress_of(meta["progress"])
    session.rows = checked_rows(meta["rows"])


def _copy_all(path: Path, group: str, source: dict[str, Any], target: dict[str, Array]) -> None:
    if set(source) != set(target):
        raise CheckpointError(f"{path}: its {group} are not those of this network")
    for name, array in target.items():
        if source[name].shape != array.shape or source[name].dtype != array.dtype:
            raise CheckpointError(
                f"{path}: {group} {name} is {source[name].dtype} {source[name].shape}; expected "
                f"{array.dtype} {array.shape}"
            )
        array[...] = array_module(array).asarray(source[name])


# --- training with a folder -----------------------------------------------------------------------


def run_session(
    session: Session,
    train_data: Source,
    test_data: Source | None,
    folder: Path,
    data_digest: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    graphs: bool = True,
) -> Iterator[Event]:
    """Train to the end, keeping `folder` complete: a checkpoint and metrics after every epoch.

    Within an epoch a checkpoint is written every `checkpoint_minutes` of the experiment. When `stop()`
    becomes true the batch under way is finished, learned from or evaluated, a checkpoint written, and
    the generator ends. Without `graphs` a GPU makes every step kernel by kernel. Yields every event of
    `training.train`.

    Raises
    ------
    TrainingDivergedError, SingularWeightsError, ErrorsNotFiniteError
        The last checkpoint is then the last good one.
    OSError
        If the folder cannot be written.
    """
    e = session.experiment
    folder.mkdir(parents=True, exist_ok=True)
    events = train(
        session.network,
        session.recipe,
        train_data,
        test_data,
        epochs=e.epochs,
        batch_size=e.batch_size,
        streams=session.streams,
        progress=session.progress,
        measure_every=e.measure_every,
        evaluate_train=e.evaluate_train,
        graphs=graphs,
    )
    saved = time.monotonic()
    for event in events:
        if isinstance(event, Measured):
            session.rows.append({"kind": "layers", **event.row()})
        elif isinstance(event, EpochDone):
            session.rows.append({"kind": "epoch", **event.row})
        batch_done = isinstance(event, StepDone)
        stopping = not isinstance(event, Measured) and stop()
        overdue = time.monotonic() - saved >= 60 * e.checkpoint_minutes
        if isinstance(event, EpochDone) or stopping or (batch_done and overdue):
            save_session(folder / CHECKPOINT, session, data_digest)
            write_metrics(folder, session.rows)
            saved = time.monotonic()
        yield event  # only now: who listens may fail, on a closed pipe or a terminal that is gone
        if stopping:
            return
