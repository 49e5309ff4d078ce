"""Steps replayed from a CUDA graph: what a step asks of a GPU is recorded once, and then only launched.

A step is some hundred kernels, and a GPU is often done with them before the host has asked for them one
by one. A recorded step reads a batch from one place and writes loss and outputs to another; all else it
changes in place. It holds what the host decided while recording, so steps are recorded where the host
has nothing to decide, each kind (batch size, regulariser due or not, terms of each W^-1) for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

import numpy as np

from npgait.backend import Array, array_module, precision_of
from npgait.gpu import give_back_memory, recorder
from npgait.metrics import LayerMeasures
from npgait.network import Network
from npgait.plans import Product, steps_to_look
from npgait.step import Recipe, train_step

PAYS = 4  # steps to come without a look, from which on a recording pays
MOST = 4  # recordings kept
MOST_SEEN = 64  # kinds of steps that are remembered


@dataclass(frozen=True)
class Recording:
    """A recorded step: its graph, the batch that it reads, what it writes, and what it changes."""

    graph: Any
    x: Array
    labels: Array
    results: tuple[Array, Array]
    changed: list[Array]  # held, so that no other array takes their places

    def launch(self, x: Array, labels: Array) -> tuple[Array, Array]:
        """Make the step on a batch; return its loss and outputs."""
        self.x[...] = x
        self.labels[...] = labels
        self.graph.launch()
        loss, y = self.results
        return loss.copy(), y.copy()


@dataclass(eq=False)
class Stepper:
    """`train_step` of one network and recipe, on a GPU replayed where nothing has to be looked at.

    A recording is trusted once its first replay has ended where the step itself did, from the same
    weights. Where CuPy or the driver refuses to record, or a replay ends elsewhere, every step is made
    as on the CPU, and `refused` says why.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    graphs : bool
        Whether steps may be recorded at all.
    """

    network: Network
    recipe: Recipe
    graphs: bool = True
    refused: str = ""
    replayed: int = 0  # steps so far
    recordings: dict[Hashable, Recording] = field(default_factory=dict, repr=False)
    _seen: set[Hashable] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.network.device.is_gpu:
            self.network.device.use()
            self.recipe.rule.solver.plans.clear()  # of networks that were trained before,
            give_back_memory(self.network.device)  # which hold memory

    def __call__(
        self,
        x: Array,
        labels: Array,
        *,
        step: int = 0,
        on_measure: Callable[[list[LayerMeasures]], None] | None = None,
    ) -> tuple[Array, Array]:
        """Learn from one batch, in place; see `step.train_step`.

        Returns
        -------
        loss : array (B,)
        y : array (B, n_classes)
        """
        self.network.device.use()
        if on_measure is None and self.graphs and not self.refused and array_module(x) is not np:
            key = self._key(x, labels, step)
            if key in self.recordings and self._steps_to_look(step) > 0:
                return self._replay(self.recordings[key], x, labels, step)
            if key in self._seen and self._steps_to_look(step) >= PAYS:
                return self._record(key, x, labels, step)
            if len(self._seen) == MOST_SEEN:  # numbers that change at every step make new kinds
                self._seen.clear()
            self._seen.add(key)  # kernels are compiled and moments made before any is recorded
        return train_step(self.network, self.recipe, x, labels, step=step, on_measure=on_measure)

    # --- what a step is -----------------------------------------------------------------------------

    def _key(self, x: Array, labels: Array, step: int) -> Hashable:
        """Return all that a recording of this step would hold fixed."""
        solver = self.recipe.rule.solver
        plans = [solver.plans.get(product) for product in self._products(step)]
        settings = vars(self.recipe) | vars(self.recipe.optimizer)
        if settings.get("clock") is not None:  # which counts on where a step is replayed
            del settings["t"]
        return (
            (x.shape, x.dtype, labels.shape, labels.dtype, self.recipe.is_due(step), precision_of(x)),
            tuple((plan.method, plan.terms) for plan in plans if plan),
            tuple(value for value in settings.values() if isinstance(value, Number | str)),
            tuple(map(id, (self.recipe.rule, self.recipe.loss, *self._changed()))),
        )

    def _products(self, step: int) -> list[Product]:
        """Return the products with W^-1 that a step makes, as the solver knows them."""
        rule = self.recipe.rule
        if not rule.uses_solver:
            return []
        coupled = self.recipe.is_due(step) and not self.recipe.decoupled
        return [(id(layer.W), not (coupled and layer.has_inverse)) for layer in self.network.layers[1:]]

    def _steps_to_look(self, step: int) -> int:
        """Return for how many steps like this the host need not wait."""
        rule = self.recipe.rule
        if rule.auxiliary:  # absolute targets solve, and look whether W was singular
            return 0
        products = self._products(step)
        return steps_to_look(rule.solver.plans, products) if products else PAYS

    def _changed(self) -> list[Array]:
        """Return the arrays that a step changes in place: parameters, and those of the optimizer."""
        held = [
            array
            for value in vars(self.recipe.optimizer).values()
            for array in (value if isinstance(value, list) else [value])
        ]
        xp = array_module(self.network.layers[0].W)
        return [*self.network.parameters(), *(array for array in held if isinstance(array, xp.ndarray))]

    # --- recorded and replayed ------------------------------------------------------------------------

    def _replay(self, recording: Recording, x: Array, labels: Array, step: int) -> tuple[Array, Array]:
        """Make a recorded step, and count it where the host counts."""
        t, made = self._counts(step)
        self._set_counts(step, (t + 1, [products + 1 for products in made]))
        self.replayed += 1
        return recording.launch(x, labels)

    def _record(self, key: Hashable, x: Array, labels: Array, step: int) -> tuple[Array, Array]:
        """Make a step and record it too; keep the recording if its replay ends where the step did."""
        counts = self._counts(step)
        before, recording = [], None
        try:
            before = [array.copy() for array in self._changed()]
            recording = self._recording(x, labels, step)
        except Exception as error:  # CuPy and the driver have many ways to refuse
            self._refuse(error)
        if recording is None:
            self._give_back()
        self._set_counts(step, counts)
        loss, y = train_step(self.network, self.recipe, x, labels, step=step)
        if recording is not None and self._ends_as(before, recording, x, labels):
            if len(self.recordings) == MOST:
                del self.recordings[next(iter(self.recordings))]
            self.recordings[key] = recording
        elif recording is not None:
            del recording
            self._give_back()
        return loss, y

    def _recording(self, x: Array, labels: Array, step: int) -> Recording:
        """Return a recorded step, which is counted but not made."""
        network, x, labels = self.network, x.copy(), labels.copy()
        graph, results = recorder(network.device)(
            lambda: train_step(network, self.recipe, x, labels, step=step)
        )
        return Recording(graph, x, labels, results, self._changed())

    def _give_back(self) -> None:
        """Give up what was recorded: there will be no more of it, and steps have need of its memory."""
        self.recordings.clear()
        give_back_memory(self.network.device)

    def _ends_as(self, before: list[Array], recording: Recording, x: Array, labels: Array) -> bool:
        """Return whether a replay ends where the step just made did, both from `before`."""
        after: list[Array] = []
        try:
            after = [array.copy() for array in recording.changed]
            _restore(recording.changed, before)
            recording.launch(x, labels)
            if all(map(_close, recording.changed, after, before)):
                return True
            self.refused = "a replayed step did not end where the step itself had"
        except Exception as error:  # no memory left, say
            self._refuse(error)
        if after:
            _restore(recording.changed, after)
        return False

    def _refuse(self, error: Exception) -> None:
        """Make every step one by one from here on, and keep the reason."""
        self.refused = f"{type(error).__name__}: {error}".splitlines()[0]

    def _counts(self, step: int) -> tuple[int, list[int]]:
        """Return what the host counts of steps: Adam's t, and how often each product was made."""
        plans = self.recipe.rule.solver.plans
        return getattr(self.recipe.optimizer, "t", 0), [plans[p].made for p in self._products(step)]

    def _set_counts(self, step: int, counts: tuple[int, list[int]]) -> None:
        """Set what `_counts` returns."""
        t, made = counts
        if hasattr(self.recipe.optimizer, "t"):
            self.recipe.optimizer.t = t
        for product, products in zip(self._products(step), made, strict=True):
            self.recipe.rule.solver.plans[product].made = products


def _restore(arrays: list[Array], values: list[Array]) -> None:
    for array, value in zip(arrays, values, strict=True):
        array[...] = value


def _close(got: Array, expected: Array, start: Array) -> bool:
    """Return whether `got` is `expected` up to a hundredth of the way there from `start`."""
    norm = array_module(got).linalg.norm
    rounding = 10 * float(np.finfo(got.dtype).eps) * float(norm(expected))
    return float(norm(got - expected)) <= 0.01 * float(norm(expected - start)) + rounding
