"""`npgait bench`: what a step costs, beside what its matrix products must cost on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from npgait.cli.bench_report import report
from npgait.cli.bench_timing import measure
from npgait.cli.completion import complete_presets
from npgait.cli.options import choose_device, data_option, device_option, graphs_option, precision_option
from npgait.config import ConfigError, Experiment, resolved
from npgait.experiments import find_experiments, parse_override
from npgait.rules import INVERTING, NAMES


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
        absent = [rule for rule in dict.fromkeys(rules) if rule not in present]
        missing = [_with_rule(chosen, rule, overrides) for rule in absent]
        chosen = [e for e in chosen if e.rule in rules] + missing
    ordered: list[Experiment] = []
    for network in dict.fromkeys(map(_network, chosen)):
        own = [e for e in chosen if _network(e) == network]
        bp = [e for e in (*own, *baselines) if _network(e) == network and e.rule == "bp"]
        ordered += (bp or [_with_rule(own, "bp", overrides)])[:1]
        ordered += [e for e in own if e not in ordered]
    return ordered


def _network(e: Experiment) -> tuple[Any, ...]:
    """Return what has to be equal for two experiments to be compared."""
    return e.data, e.image_size, e.network, e.width, e.depth, e.widths, e.batch_size


def _with_rule(experiments: Sequence[Experiment], rule: str, overrides: Mapping[str, Any]) -> Experiment:
    """Return the nearest of the experiments with another rule, as that rule is published."""
    inverts = rule in INVERTING
    like = next((e for e in experiments if (e.rule in INVERTING) == inverts), experiments[0])
    values: dict[str, Any] = {"rule": rule, "gamma": None, "auxiliary": None, "inverse_tolerance": None}
    if not inverts:
        values |= {"ortho_strength": 0.0, "targets": "difference", "dtype": "float32"}
    elif like.rule not in INVERTING and "ortho_strength" not in overrides:
        values["ortho_strength"] = like.ortho_strength or 1.0  # a step takes as long at any but 0
    return resolved(replace(like, name=f"{like.network}-{rule}", **values))
