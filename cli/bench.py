"""`npgait bench`: what a step costs, beside what its matrix products must cost on this machine."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click

from npgait.backend import Array, Device, synchronise
from npgait.cli.bench_report import report
from npgait.cli.completion import complete_presets
from npgait.cli.execute import AnyDataset, batches_of, naming, shape_in
from npgait.cli.options import (
    choose_device,
    data_option,
    device_option,
    graphs_option,
    loader,
    precision_option,
)
from npgait.cli.threads import blas_threads, keep_memory
from npgait.config import ConfigError, Experiment, resolved
from npgait.costs import Cost, step_cost
from npgait.data import Source
from npgait.experiments import find_experiments, parse_override
from npgait.loaders.synthetic import SHAPES, random_images
from npgait.replay import Stepper
from npgait.rules import INVERTING, NAMES
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


@click.command(short_help="Time training steps against the cost of their products.")
@click.argument("preset", default="cifar10", shell_complete=complete_presets)
@click.option(
    "--rule",
    "-r",
    "rules",
    multiple=True,
    type=click.Choice(NAMES),
    help="Time this rule only, beside BP (repeatable).",
)
@click.option(
    "--experiment", "-e", "only", multiple=True, help="Time this experiment only (repeatable)."
)
@data_option
@device_option
@precision_option()
@graphs_option
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of every experiment that is timed, such as batch_size=64 (repeatable).",
)
@click.option(
    "--steps",
    default=15,
    show_default=True,
    type=click.IntRange(3, 10_000),
    help="Steps timed of each experiment, in three rounds that take turns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(
    preset: str,
    rules: Sequence[str],
    only: Sequence[str],
    data_dir: Path | None,
    device: str,
    precision: str | None,
    graphs: bool,
    overrides: Sequence[str],
    steps: int,
    as_json: bool,
) -> None:
    """Time training steps of PRESET (default: cifar10) against the cost of their matrix products.

    Counts the operations that a step must do, measures this machine's matrix products and memory in the
    same run, and says for each experiment how near it comes, how it compares with backpropagation, and
    where the time goes. Without --data, images are noise of the right size. Ratios within one run are
    the result; absolute times drift.

    \b
    npgait bench cifar10 --rule gait
    npgait bench imagenet --set batch_size=64 --device gpu
    """  # noqa: D301 - click wants the control character
    chosen = choose_device(device, precision)
    experiments = choose(preset, rules, only, dict(map(parse_override, overrides)))
    result = measure(experiments, chosen, data_dir, steps, graphs=graphs)
    click.echo(json.dumps(result, indent=2) if as_json else report(result))


def choose(
    preset: str, rules: Sequence[str], only: Sequence[str], overrides: dict[str, Any]
) -> list[Experiment]:
    """Return the experiments to be timed, each network's beginning with backpropagation."""
    chosen = find_experiments(preset, overrides, only)
    baselines = list(chosen)
    for e in find_experiments(preset) if only else []:
        if e.rule == "bp":
            with suppress(ConfigError):  # overrides need not fit what was not chosen
                baselines += find_experiments(preset, overrides, [e.name])
    if rules:
        present = {e.rule for e in chosen}
        missing = [_with_rule(chosen, rule) for rule in dict.fromkeys(rules) if rule not in present]
        chosen = [e for e in chosen if e.rule in rules] + missing
    ordered: list[Experiment] = []
    for network in dict.fromkeys(map(_network, chosen)):
        own = [e for e in chosen if _network(e) == network]
        bp = [e for e in (*own, *baselines) if _network(e) == network and e.rule == "bp"]
        ordered += (bp or [_with_rule(own, "bp")])[:1]
        ordered += [e for e in own if e not in ordered]
    return ordered


def _network(e: Experiment) -> tuple[Any, ...]:
    """Return what has to be equal for two experiments to be compared."""
    return e.data, e.image_size, e.network, e.width, e.depth, e.widths, e.batch_size


def _with_rule(experiments: Sequence[Experiment], rule: str) -> Experiment:
    """Return the nearest of the experiments with another rule, as that rule is published."""
    inverts = rule in INVERTING
    like = next((e for e in experiments if (e.rule in INVERTING) == inverts), experiments[0])
    values: dict[str, Any] = {"rule": rule, "gamma": None, "auxiliary": None, "inverse_tolerance": None}
    if not inverts:
        values |= {"ortho_strength": 0.0, "targets": "difference", "dtype": "float32"}
    return resolved(replace(like, name=f"{like.network}-{rule}", **values))


# --- measuring ------------------------------------------------------------------------------------


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
    # Images are read, or drawn, once for all: thousands of large ones take seconds.
    load, noise = loader(data_dir), functools.cache(random_images)
    for e in experiments:
        with naming(e):
            made_up = data_dir is None and e.data in SHAPES
            dataset = noise(e.data, 2 * e.batch_size, image_size=e.image_size) if made_up else load(e)
            timed.append(_set_up(e, device, dataset, graphs))
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


# --- reporting ------------------------------------------------------------------------------------


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
