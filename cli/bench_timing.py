"""Experiments timed in turns, beside this machine's matrix products, for `npgait bench`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from npgait.backend import Array, Device, synchronise
from npgait.cli.execute import AnyDataset, batches_of, naming, shape_in
from npgait.cli.options import loader_or_noise
from npgait.cli.threads import blas_threads, keep_memory
from npgait.config import Experiment
from npgait.costs import Cost, step_cost
from npgait.data import Source
from npgait.replay import Stepper
from npgait.run_folder import describe_environment
from npgait.session import Session, build_session
from npgait.timing import (
    PARTS,
    Batch,
    bandwidth,
    inverse_reports,
    mean_step,
    product_rate,
    step_memory,
    time_parts,
    time_steps,
)

ROUNDS = 3  # in which experiments take turns, so that drift of the machine meets all alike
LOADER_BATCHES = 6  # waited for, of which the first warms up
WARM_UP = 3  # steps before any is timed
WARM_UP_GPU = 20  # so that there is a recording of them, where there will be


@dataclass
class Timed:
    """One experiment on the bench."""

    experiment: Experiment
    session: Session
    stepper: Stepper
    batch: Batch
    loader_seconds: float
    memory: int
    weights: list[Array]  # each round begins with them: a batch learned by heart is no training
    costs: list[Cost] = field(default_factory=list)  # before and after the steps of each round
    times: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    laps: list[dict[str, float]] = field(default_factory=list)  # seconds of each part, by round
    rates: list[float] = field(default_factory=list)  # of products, before and after each round's steps

    @property
    def cost(self) -> Cost:
        """Cost of a step, the mean over the rounds."""
        return Cost(*(fmean(values) for values in zip(*map(astuple, self.costs), strict=True)))

    @property
    def seconds(self) -> float:
        """Seconds of a step, without the loader."""
        return mean_step(self.times, self.experiment.ortho_every)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part of a step, the median of the rounds."""
        return {part: median(lap[part] for lap in self.laps) for part in PARTS}


def measure(
    experiments: Sequence[Experiment],
    device: Device,
    data_dir: Path | None,
    steps: int,
    *,
    graphs: bool = True,
) -> dict[str, Any]:
    """Return all that is reported, as plain values."""
    keep_memory()
    timed = []
    load = loader_or_noise(data_dir)
    for e in experiments:
        with naming(e):
            timed.append(_set_up(e, device, load(e, 2 * e.batch_size), graphs))
    bandwidths: list[float] = []
    for number in range(ROUNDS):
        bandwidths.append(bandwidth(device))
        for t in timed:
            _time_round(t, number, -(-steps // ROUNDS), device)
    rates: dict[str, list[float]] = {}
    for t in timed:
        rates.setdefault(t.experiment.dtype, []).extend(t.rates)
    return {
        "environment": describe_environment(device, sys.argv),
        "product_rate": {dtype: median(values) for dtype, values in rates.items()},
        "bandwidth": median(bandwidths),
        "experiments": _rows(timed, median(bandwidths)),
    }


def _set_up(e: Experiment, device: Device, dataset: AnyDataset, graphs: bool) -> Timed:
    """Return an experiment warmed up, with one batch that all its steps learn from."""
    session = build_session(e, shape_in(dataset, e), len(dataset.classes), device)
    network, recipe = session.network, session.recipe
    data, _ = batches_of(dataset, session)
    batch, loader_seconds = _time_loader(data, e.batch_size, session)
    with blas_threads(network, e.batch_size):
        stepper = Stepper(network, recipe, graphs)
        time_steps(stepper, batch, steps=WARM_UP_GPU if device.is_gpu else WARM_UP)
        memory = step_memory(network, recipe, batch)
    weights = [p.copy() for p in network.parameters()]
    return Timed(e, session, stepper, batch, loader_seconds, memory, weights)


def _time_round(t: Timed, number: int, steps: int, device: Device) -> None:
    """Time so many steps of an experiment, or all from one regularisation to the next."""
    e, network, recipe = t.experiment, t.session.network, t.session.recipe
    for p, before in zip(network.parameters(), t.weights, strict=True):
        p[...] = before
    t.rates.append(product_rate(device, network.dtype))
    with naming(e), blas_threads(network, e.batch_size):
        count = max(steps, e.ortho_every if e.ortho_every > 1 and e.ortho_strength else 0)
        t.costs.append(_cost(t))
        times = time_steps(t.stepper, t.batch, steps=count, first=number * count)
        t.costs.append(_cost(t))
        t.laps.append(time_parts(network, recipe, t.batch, steps=2))
        for regularised, seconds in times.items():
            t.times[regularised] += seconds
    t.rates.append(product_rate(device, network.dtype))


def _cost(t: Timed) -> Cost:
    """Return what a step costs with the weights of this moment, which decide the terms for W^-1."""
    network, recipe, every = t.session.network, t.session.recipe, t.session.recipe.ortho_every
    due, *plain = [
        step_cost(network, recipe, len(t.batch[0]), inverse_reports(network, recipe, t.batch, step=step))
        for step in range(min(every, 2))  # 1 is without the regulariser's W W^T
    ]
    targets = mean_step({True: [due.targets], False: [cost.targets for cost in plain]}, every)
    return replace(due, targets=targets)


def _time_loader(data: Source, batch_size: int, session: Session) -> tuple[Batch, float]:
    """Return a batch, and the median seconds that the loop waits for one."""
    waits: list[float] = []
    first: Batch | None = None
    while len(waits) < LOADER_BATCHES:
        batches = data.shuffled(batch_size, session.streams)
        started = time.perf_counter()
        for batch in batches:
            synchronise(session.network.device)
            waits.append(time.perf_counter() - started)
            first = first or batch
            if len(waits) >= LOADER_BATCHES:
                break
            started = time.perf_counter()
    assert first is not None
    return first, median(waits[1:])


def _rows(timed: Sequence[Timed], bytes_a_second: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    base = timed[0]
    for t in timed:
        if t.experiment.rule == "bp":
            base = t
        rate = median(t.rates)
        floor = t.cost.floor(rate, bytes_a_second)
        rows.append(
            {
                "name": t.experiment.name,
                "rule": t.experiment.rule,
                "dtype": t.experiment.dtype,
                "batch_size": len(t.batch[0]),
                "seconds": t.seconds,
                "samples_per_second": len(t.batch[0]) / t.seconds,
                "cost": {**asdict(t.cost), "operations": t.cost.operations},
                "product_rate": rate,
                "floor_seconds": floor,
                "share_of_floor": floor / t.seconds,
                "share_of_product_rate": t.cost.operations / t.seconds / rate,
                "ratio_to_bp": t.seconds / base.seconds,
                "operations_to_bp": t.cost.operations / base.cost.operations,
                "peak_bytes": t.memory,
                "replayed_steps": t.stepper.replayed,
                "replay_refused": t.stepper.refused,
                "parts_seconds": {**t.parts, "loader": t.loader_seconds},
            }
        )
    return rows
