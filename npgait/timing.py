"""How long a step takes, where the time goes, and what the machine could do."""

from __future__ import annotations

import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np

from npgait.backend import Array, Device, memory_taken, synchronise
from npgait.inverse import SolveReport
from npgait.network import Layer, Network
from npgait.orthogonality import gram
from npgait.parallel import in_threads, stretches
from npgait.replay import Stepper
from npgait.step import Recipe, train_step

PARTS = ("forward", "loss", "targets", "updates", "regulariser", "optimizer")
Batch = tuple[Array, Array]  # x (B, *shape_in), labels (B,)


# --- the machine ----------------------------------------------------------------------------------


def product_rate(device: Device, dtype: np.dtype, *, n: int | None = None, repeats: int = 5) -> float:
    """Return the operations a second of a matrix product (n, n) (n, n), the median of `repeats`.

    The median, as of steps: a processor holds its highest frequency for moments only. By default n is
    2048, on a GPU 8192, in float64 4096: most have hardly any rate in that, and would take seconds.
    """
    xp, n = device.xp, n or ((8192 if dtype == np.float32 else 4096) if device.is_gpu else 2048)
    rows, columns = xp.asarray(np.random.default_rng(0).standard_normal((2, n)), dtype=dtype)
    A = xp.outer(rows, columns)
    B, C = A.copy(), xp.empty_like(A)
    return 2 * n**3 / _typical(lambda: xp.matmul(A, B, out=C), device, repeats)


def bandwidth(device: Device, *, size: int | None = None, repeats: int = 5) -> float:
    """Return the bytes a second of a <- a + b, arrays of `size` bytes, the median of `repeats`.

    In place, as optimizers work: two arrays are read and one is written. `size` is 64 MiB, on a GPU
    512 MiB by default, beyond what its cache holds.
    """
    xp, size = device.xp, size or (1 << 29 if device.is_gpu else 1 << 26)
    n = size // 4
    a, b = xp.ones(n, np.float32), xp.ones(n, np.float32)
    parts = stretches(a)

    def add(part: slice) -> None:
        xp.add(a[part], b[part], out=a[part])

    return 3 * size / _typical(lambda: in_threads(add, parts, a), device, repeats)


def _typical(work: Callable[[], Any], device: Device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
    return median(times[1:])


# --- a step ---------------------------------------------------------------------------------------


def time_steps(stepper: Stepper, batch: Batch, *, steps: int, first: int = 0) -> dict[bool, list[float]]:
    """Return the seconds of each step, of those with the regulariser (True) and those without.

    Parameters
    ----------
    stepper : Stepper
        Its network is trained on, in place.
    batch : (x, labels)
    steps : int
    first : int
        Number of the first step, which decides where `ortho_every` falls.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    device = stepper.network.device
    for step in range(first, first + steps):
        synchronise(device)
        started = time.perf_counter()
        stepper(*batch, step=step)
        synchronise(device)
        times[stepper.recipe.is_due(step)].append(time.perf_counter() - started)
    return times


def mean_step(values: Mapping[bool, Sequence[float]], every: int) -> float:
    """Return the mean of a step, in seconds, say, from the medians with and without the regulariser."""
    if not values[True]:
        return median(values[False])
    if not values[False]:
        return median(values[True])
    return (median(values[True]) + (every - 1) * median(values[False])) / every


@dataclass
class Laps:
    """A stopwatch: what passes between two laps counts for the name of the second."""

    device: Device
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    last: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        synchronise(self.device)
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Count what passed since the last lap for `name`."""
        synchronise(self.device)
        now = time.perf_counter()
        self.seconds[name] += now - self.last
        self.last = now


class TimedLayer:
    """A layer whose local updates are told apart from what comes between them."""

    def __init__(self, layer: Layer, laps: Laps) -> None:
        self._layer, self._laps = layer, laps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def local_update(self, *arguments: Array) -> tuple[Array, Array]:
        """Return the layer's local update, counted for "updates"."""
        self._laps("targets")
        update = self._layer.local_update(*arguments)
        self._laps("updates")
        return update


def time_parts(network: Network, recipe: Recipe, batch: Batch, *, steps: int) -> dict[str, float]:
    """Return the mean seconds a step spends in each of `PARTS`.

    From the medians of `steps` steps with the regulariser, and of as many without. Each part waits for
    the device, so that on a GPU their sum exceeds a step's time.
    """
    every = recipe.ortho_every

    def laps(step: int) -> list[dict[str, float]]:
        return [_laps(network, recipe, batch, step).seconds for _ in range(steps)]

    due, plain = laps(0), laps(1) if every > 1 else []
    return {
        part: mean_step({True: [s[part] for s in due], False: [s[part] for s in plain]}, every)
        for part in PARTS
    }


def _laps(network: Network, recipe: Recipe, batch: Batch, step: int) -> Laps:
    """Return the laps of one step."""
    laps = Laps(network.device)
    # All that a step asks of a layer it finds in the proxy; parameters stay the network's own.
    timed: list[Any] = [TimedLayer(layer, laps) for layer in network.layers]
    copy = Network(timed, network.feedback)
    laps.start()
    train_step(copy, recipe, *batch, step=step, lap=laps)
    return laps


def inverse_reports(
    network: Network, recipe: Recipe, batch: Batch, *, step: int = 0
) -> dict[int, SolveReport]:
    """Return how the step of that number makes the product with W^-1 of each layer, by layer."""
    rule = recipe.rule
    if not rule.uses_solver:
        return {}
    reports: list[SolveReport] = []
    solver = rule.solver.fresh(reports)
    coupled = recipe.is_due(step) and not recipe.decoupled
    grams = [gram(layer.W) if coupled and layer.has_inverse else None for layer in network.layers]
    records = network.forward(batch[0])
    _, error = recipe.loss(records[-1].y, batch[1])
    replace(rule, solver=solver)(network.layers, records, error, grams)
    return dict(zip(reversed(range(1, len(network.layers))), reports, strict=True))


def step_memory(network: Network, recipe: Recipe, batch: Batch) -> int:
    """Return the most bytes that parameters, feedback, optimizer, batch and one step take together."""
    device = network.device
    state, feedback = recipe.optimizer.state().values(), network.named_feedback().values()
    held = sum(array.nbytes for array in (*network.parameters(), *feedback, *state, *batch))
    if device.is_gpu:
        return held + memory_taken(device, lambda: train_step(network, recipe, *batch))
    tracemalloc.start()
    try:
        train_step(network, recipe, *batch)
        return held + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
