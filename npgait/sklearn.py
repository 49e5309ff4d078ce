"""GAIT-prop as a scikit-learn classifier; needs the extra `npgait[sklearn]`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "npgait.sklearn needs scikit-learn 1.6 or newer: pip install 'npgait[sklearn]'"
    ) from error

from npgait import models
from npgait.activations import LeakyReLU, Linear
from npgait.backend import select_device, to_host
from npgait.data import ArrayData, array_data
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.optimizers import Adam
from npgait.rules import INVERTING, bind, draw_feedback
from npgait.streams import random_streams
from npgait.training import EpochDone, Recipe, train
from npgait.validation import whole


class GAITClassifier(ClassifierMixin, BaseEstimator):
    """A deep network trained by GAIT-prop, or by another of npgait's rules.

    Features of the order of 1 learn best: put a `StandardScaler` before it. Auxiliary units are implicit
    and the regulariser is decoupled from Adam; see `npgait.training.Recipe`.

    Parameters
    ----------
    hidden_width : int, optional
        Units of a hidden layer. Default: 64, or as many as there are classes if those are more.
    depth : int
        Number of hidden layers.
    rule : {"gait", "bp", "fa", "dfa", "tp", "itp"}
        Learning rule.
    learning_rate : float
        Of Adam.
    max_iter : int
        Epochs of `fit`.
    batch_size : int
    ortho_strength : float
        Share of the way to orthogonality that weights are moved after each step, 0 to 1; rules that
        invert nothing are not regularised.
    regulariser : {"conformal", "orthonormal", "orthogonal"}
    slope : float
        Of the leaky ReLU.
    dtype : {"float32", "float64"}
    device : str
        "cpu", "gpu", "gpu:N" or "auto".
    random_state : int, RandomState or None
        Decides weights, feedback and order of samples.

    Attributes
    ----------
    classes_ : array (n_classes,)
    network_ : npgait.network.Network
    n_features_in_ : int
    n_iter_ : int
        Epochs trained.
    loss_curve_ : list of float
        Mean training loss of each epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from npgait.sklearn import GAITClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), GAITClassifier(random_state=0)).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        hidden_width: int | None = None,
        depth: int = 2,
        *,
        rule: str = "gait",
        learning_rate: float = 3e-3,
        max_iter: int = 60,
        batch_size: int = 32,
        ortho_strength: float = 0.25,
        regulariser: str = "conformal",
        slope: float = 0.1,
        dtype: str = "float32",
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.hidden_width = hidden_width
        self.depth = depth
        self.rule = rule
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.ortho_strength = ortho_strength
        self.regulariser = regulariser
        self.slope = slope
        self.dtype = dtype
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> GAITClassifier:
        """Train a fresh network. Where that fails all is as before: what was learned earlier, too.

        Parameters
        ----------
        X : array (n_samples, n_features)
        y : array (n_samples,)
            Class labels of any kind.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If data or parameters cannot be used.
        npgait.training.TrainingDivergedError
            If the loss is no longer finite.
        npgait.inverse.SingularWeightsError, npgait.inverse.ErrorsNotFiniteError
            By a rule that inverts layers: if weights have no inverse, or errors are not finite.
        npgait.backend.DeviceError
            If there is no such device.
        """
        with self._as_before_on_failure():
            epochs = whole("max_iter", self.max_iter)
            X, y = validate_data(self, X, y, dtype=self.dtype)
            check_classification_targets(y)
            self._start(unique_labels(y))
            self._train(X, y, epochs)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> GAITClassifier:
        """Train for one epoch on a part of the data, going on from where training stands.

        Parameters
        ----------
        X : array (n_samples, n_features)
        y : array (n_samples,)
        classes : array, optional
            Every class that will ever come. Needed at the first call, unless `y` holds them all.

        Returns
        -------
        self

        Raises
        ------
        As `fit`; ValueError also if a class is none of the first call's.
        """
        with self._as_before_on_failure():
            fresh = not hasattr(self, "network_")
            X, y = validate_data(self, X, y, dtype=self.dtype, reset=fresh)
            check_classification_targets(y)
            given = None if classes is None else np.unique(classes)
            known = (unique_labels(y) if given is None else given) if fresh else self.classes_
            if given is not None and not np.array_equal(given, known):
                raise ValueError(f"classes are {given}; the first call had {known}")
            unknown = np.setdiff1d(y, known)
            if unknown.size:
                raise ValueError(f"y holds classes {unknown}; the first call of partial_fit had {known}")
            if fresh:
                self._start(known)
            self._train(X, y, 1)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the outputs of the network (logits).

        Returns
        -------
        array (n_samples, n_classes), or (n_samples,) of two classes: the second's less the first's
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, (n_samples, n_classes), in the order of `classes_`."""
        logits = self._logits(X).astype(np.float64)
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most likely class of each sample, (n_samples,)."""
        chosen = self._logits(X).argmax(axis=1)
        return self.classes_[chosen]

    # --- inside -------------------------------------------------------------------------------------

    @contextmanager
    def _as_before_on_failure(self) -> Iterator[None]:
        """Put attributes back where the block fails: a fresh network gives way to the one before."""
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _start(self, classes: np.ndarray) -> None:
        """Draw a fresh network for these classes."""
        if len(classes) < 2:
            raise ValueError(f"there is only one class, {classes.tolist()[0]!r}; expected at least two")
        self.classes_ = classes
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._streams = random_streams(seed)
        self.network_ = self._build()
        self.network_.feedback = draw_feedback(self.rule, self.network_, self._streams.feedback)
        self._recipe = Recipe(
            bind(self.rule, feedback=self.network_.feedback),
            softmax_cross_entropy,
            Adam(self.learning_rate),
            self.regulariser,
            self.ortho_strength if self.rule in INVERTING else 0.0,
            decoupled=True,
        )
        self.loss_curve_: list[float] = []
        self.n_iter_ = 0

    def _build(self) -> Network:
        n_classes = len(self.classes_)
        width = max(64, n_classes) if self.hidden_width is None else self.hidden_width
        return models.square(
            self.n_features_in_,
            n_classes,
            width=width,
            depth=self.depth,
            f=LeakyReLU(self.slope),
            f_output=Linear(),
            auxiliary="implicit" if self.rule in INVERTING else False,
            seed=self._streams.weights,
            dtype=self.dtype,
            device=select_device(self.device),
        )

    def _train(self, X: np.ndarray, y: np.ndarray, epochs: int) -> None:
        labels = np.searchsorted(self.classes_, y)
        events = train(
            self.network_,
            self._recipe,
            self._data(X, labels),
            epochs=epochs,
            batch_size=whole("batch_size", self.batch_size),
            streams=self._streams,
            evaluate_train=False,
        )
        rows = [event.row for event in events if isinstance(event, EpochDone)]
        self.loss_curve_ += [row["train_loss"] for row in rows]
        self.n_iter_ += epochs

    def _data(self, X: np.ndarray, labels: np.ndarray) -> ArrayData:
        return array_data(X, labels, dtype=self.dtype, device=self.network_.device)

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "network_")
        X = validate_data(self, X, dtype=self.dtype, reset=False)
        data = self._data(X, np.zeros(len(X), np.int64))
        logits = np.concatenate([to_host(self.network_.output(x)) for x, _ in data.batches(1024)])
        if not np.isfinite(logits).all():
            raise ValueError("outputs of the network are not finite, which is no class; scale X down")
        return logits

    def __sklearn_tags__(self) -> Any:
        """Say that results depend on chance."""
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.random_state is None
        return tags
