"""The whole library in one call, for arrays that a user already has."""

from __future__ import annotations

from typing import Any

from npgait.data import ArrayData, array_data
from npgait.losses import LOSSES
from npgait.network import Network
from npgait.optimizers import Adam, Optimizer
from npgait.rules import Rule, bind, feedback_of
from npgait.streams import random_streams
from npgait.training import EpochDone, Recipe, train
from npgait.validation import whole


def fit(
    network: Network,
    x: Any,
    labels: Any,
    *,
    rule: str | Rule = "gait",
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    ortho_strength: float = 1.0,
    loss: str = "cross_entropy",
    optimizer: Optimizer | None = None,
    test: tuple[Any, Any] | None = None,
    seed: int = 0,
    graphs: bool = True,
) -> list[dict[str, Any]]:
    """Train a network on arrays, in place: the whole library in one call.

    Parameters
    ----------
    network : Network
        From `models`, or built from layers.
    x : array (N, *shape_in), or (N, ...) with as many values a sample
        NumPy, CuPy or any DLPack array; values of the order of 1 learn best.
    labels : integer array (N,)
        Classes, counted from 0.
    rule : str or Rule
        One of "bp", "fa", "dfa", "tp", "itp", "gait", or a rule from `rules.bind`.
    epochs, batch_size : int
    learning_rate : float
        Of Adam, the default optimizer.
    ortho_strength : float
        lambda of the orthogonality regulariser; not applied by BP, FA and DFA given by name.
    loss : {"cross_entropy", "squared_error"}
    optimizer : Optimizer, optional
        Goes on from the moments that it holds; each network needs one of its own.
    test : (x, labels), optional
        Evaluated after each epoch.
    seed : int
        Of the order of samples, and of random feedback where the network has none that the rule can use.
    graphs : bool
        Whether a GPU may replay steps from CUDA graphs; see `replay`.

    Returns
    -------
    list of dict
        One row an epoch: epoch, step, train_loss, train_top1, train_top5, test_..., seconds.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of those above, arrays do not fit the network or hold NaN or infinity, or
        the rule inverts a layer that was not made to have an inverse.
    TrainingDivergedError, SingularWeightsError, ErrorsNotFiniteError
        If training came to an end so; the network holds the last weights.

    Examples
    --------
    >>> import npgait
    >>> network = npgait.models.square(n_in=64, n_classes=10, width=128, depth=3)
    >>> rows = npgait.fit(network, x, labels, rule="gait", epochs=20)  # doctest: +SKIP
    """
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss {loss!r} is unknown; use one of {', '.join(LOSSES)}")
    epochs, batch_size = whole("epochs", epochs), whole("batch_size", batch_size)
    if not isinstance(rule, str | Rule):
        raise TypeError(f"rule is {rule!r}; expected a name such as 'gait', or a rule of rules.bind")
    if not isinstance(network, Network):
        raise TypeError(f"network is a {type(network).__name__}; expected a Network, of models, say")
    if optimizer is not None and not (hasattr(optimizer, "step") and not isinstance(optimizer, type)):
        raise TypeError(f"optimizer is {optimizer!r}; expected one of optimizers, Adam(1e-3), say")
    if test is not None and not (isinstance(test, tuple | list) and len(test) == 2):
        raise TypeError(f"test is a {type(test).__name__}; expected a pair (x, labels)")
    streams = random_streams(whole("seed", seed, 0))
    network.device.use()
    if isinstance(rule, str):
        network.feedback = feedback_of(rule, network, streams.feedback)
        rule = bind(rule, feedback=network.feedback)
        ortho_strength = ortho_strength if rule.difference_form is not None else 0.0
    recipe = Recipe(
        rule,
        LOSSES[loss],
        optimizer or Adam(learning_rate),
        ortho_strength=ortho_strength,
    )
    events = train(
        network,
        recipe,
        _as_data(network, x, labels),
        None if test is None else _as_data(network, *test),
        epochs=epochs,
        batch_size=batch_size,
        streams=streams,
        graphs=graphs,
    )
    return [event.row for event in events if isinstance(event, EpochDone)]


def _as_data(network: Network, x: Any, labels: Any) -> ArrayData:
    """Return arrays as batches of the network's own dtype and device, checked against it."""
    return array_data(
        x,
        labels,
        n_classes=network.n_classes,
        shape=network.shape_in,
        dtype=network.dtype,
        device=network.device,
    )
