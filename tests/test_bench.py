"""What a step costs: counted by hand, timed in parts, printed for people and for programs."""

from __future__ import annotations

import json
import re
import types
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_limits

from npgait import models
from npgait.backend import CPU
from npgait.cli import bench_timing
from npgait.cli.bench import choose
from npgait.cli.bench_report import report
from npgait.cli.main import cli
from npgait.config import ConfigError
from npgait.costs import Cost, step_cost
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.rules import bind
from npgait.timing import (
    PARTS,
    bandwidth,
    inverse_reports,
    mean_step,
    product_rate,
    step_memory,
    time_parts,
)
from npgait.training import Recipe


def recipe(rule, strength=0.0, optimizer=None, **options):
    return Recipe(
        bind(rule), softmax_cross_entropy, optimizer or Adam(1e-4), ortho_strength=strength, **options
    )


def test_the_machine_is_measured():
    assert 1e8 < product_rate(CPU, np.dtype(np.float32), n=256, repeats=2) < 1e15
    assert 1e7 < bandwidth(CPU, size=1 << 22, repeats=2) < 1e14


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("rule", ["bp", "gait"])
def test_parts_of_a_step_are_told_apart_and_leave_it_as_it_is(rule, decoupled, rng):
    batch = rng.standard_normal((9, 30)).astype(np.float32), rng.integers(0, 4, 9)
    networks = [models.square(30, 4, depth=2) for _ in range(2)]
    recipes = [recipe(rule, 0.5, decoupled=decoupled) for _ in range(2)]
    parts = time_parts(networks[0], recipes[0], batch, steps=3)
    assert set(parts) == set(PARTS)
    assert all(seconds > 0 for part, seconds in parts.items())
    time_parts(networks[1], recipes[1], batch, steps=3)
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        np.testing.assert_array_equal(one, other)
    assert step_memory(networks[0], recipes[0], batch) > 3 * sum(
        p.nbytes for p in networks[0].parameters()
    )


def test_reports_are_of_the_layers_that_are_inverted(rng):
    batch = rng.standard_normal((9, 30)).astype(np.float32), rng.integers(0, 4, 9)
    network = models.square(30, 4, depth=3)
    assert set(inverse_reports(network, recipe("gait", 1.0), batch)) == {1, 2, 3}
    assert inverse_reports(network, recipe("bp"), batch) == {}


def test_the_mean_step_weighs_regularised_steps_by_how_often_they_come():
    assert mean_step({True: [5.0], False: [1.0, 1.0, 9.0]}, 4) == 2.0
    assert mean_step({True: [], False: [3.0]}, 1) == 3.0
    assert mean_step({True: [3.0], False: []}, 1) == 3.0


def test_every_network_on_the_bench_begins_with_backpropagation():
    names = [e.name for e in choose("digits", ["gait", "dfa"], [], {})]
    assert names[0] == "bp"
    assert {"gait", "square-dfa"} <= set(names)
    assert choose("digits", ["dfa"], [], {})[1].rule == "dfa"
    assert [e.rule for e in choose("digits", ["dfa", "tp", "dfa"], [], {})] == ["bp", "dfa", "tp"]
    only = choose("mnist-gait-2l", [], [], {})
    assert [e.rule for e in only] == ["bp", "gait"]
    faster = choose("faster", [], ["faster-cifar10-gait"], {"width": 64})  # the other has no width
    assert [(e.rule, e.width) for e in faster] == [("bp", 64), ("gait", 64)]
    beside = choose("mnist", [], ["mnist-gait-4l"], {"width": 64})
    assert [(e.name, e.width) for e in beside] == [("mnist-bp-4l", 64), ("mnist-gait-4l", 64)]
    with pytest.raises(ConfigError, match="nothing"):
        choose("digits", [], ["nothing"], {})


def test_bench_prints_tables_and_json(monkeypatch):
    smaller = partial(product_rate, n=1024)  # 2048 take a while
    monkeypatch.setattr("npgait.cli.bench_timing.product_rate", smaller)
    arguments = ["bench", "digits", "--rule", "gait", "--steps", "3", "--device", "cpu"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0, run.output
    assert "GFLOP/s float32" in run.output
    assert "where the time goes" in run.output
    arguments += ["--json", "--set", "ortho_every=2"]
    monkeypatch.setattr("sys.argv", ["npgait", *arguments])
    with threadpool_limits(1, user_api="blas"):
        run = CliRunner().invoke(cli, arguments)
    result = json.loads(run.output)
    assert result["environment"]["command"] == ["npgait", *arguments]
    assert result["environment"]["threads"] == 1
    rows = {row["name"]: row for row in result["experiments"]}
    assert rows["bp"]["ratio_to_bp"] == 1.0
    for row in rows.values():
        assert row["seconds"] > row["floor_seconds"] > 0
        assert set(row["parts_seconds"]) == {*PARTS, "loader"}
        cost, seconds, rate = row["cost"], row["seconds"], row["product_rate"]
        assert cost["operations"] == sum(
            cost[part] for part in ("forward", "targets", "updates", "regulariser")
        )
        floor = cost["operations"] / rate + cost["optimizer_bytes"] / result["bandwidth"]
        assert row["floor_seconds"] == pytest.approx(floor)
        assert row["share_of_floor"] == pytest.approx(floor / seconds)
        assert row["share_of_product_rate"] == pytest.approx(cost["operations"] / seconds / rate)
        assert row["samples_per_second"] == pytest.approx(row["batch_size"] / seconds)
        assert row["ratio_to_bp"] == pytest.approx(seconds / rows["bp"]["seconds"])
        ratio = cost["operations"] / rows["bp"]["cost"]["operations"]
        assert row["operations_to_bp"] == pytest.approx(ratio)
    assert result["product_rate"]["float32"] > 0


def timed(name="one", rule="gait", seconds=0.5, **values):
    """What the bench keeps of an experiment, made by hand."""
    kept = {
        "experiment": types.SimpleNamespace(name=name, rule=rule, dtype="float32"),
        "batch": (np.zeros((6, 2)), np.zeros(6)),
        "cost": Cost(1e9, 2e9, 3e9, 4e9, 5e8),
        "rates": [4e10, 1e10, 2e10],
        "seconds": seconds,
        "memory": 3 << 20,
        "stepper": types.SimpleNamespace(replayed=2, refused=""),
        "parts": {part: number / 1e3 for number, part in enumerate(PARTS, start=1)},
        "loader_seconds": 0.007,
    }
    return types.SimpleNamespace(**(kept | values))


def test_ratios_are_to_the_backpropagation_that_stands_above():
    rest = {"cost": Cost(2e9, 0, 0, 0, 0)}
    rows = bench_timing._rows(
        [
            timed("bp", "bp", 0.25, cost=Cost(5e9, 0, 0, 0, 0)),
            timed("gait", "gait"),
            timed("other-bp", "bp", 2.0, **rest),
            timed("other", "gait"),
        ],
        1e9,
    )
    assert [row["ratio_to_bp"] for row in rows] == [1, 2, 1, 0.25]
    assert [row["operations_to_bp"] for row in rows] == [1, 2, 1, 5]


def test_a_rate_is_the_median_of_all_that_were_measured_and_the_floor_is_by_it():
    (row,) = bench_timing._rows([timed()], 1e9)
    assert row["product_rate"] == 2e10
    assert row["floor_seconds"] == 10e9 / 2e10 + 5e8 / 1e9
    assert row["share_of_floor"] == row["floor_seconds"] / 0.5
    assert row["share_of_product_rate"] == 10e9 / 0.5 / 2e10


def test_the_tables_show_each_number_in_its_column_and_unit():
    row = {
        "name": "one",
        "seconds": 0.5,
        "samples_per_second": 12,
        "cost": {"operations": 3e9},
        "share_of_product_rate": 0.3,
        "share_of_floor": 0.4,
        "ratio_to_bp": 1.5,
        "operations_to_bp": 2.5,
        "peak_bytes": 7 << 20,
        "replay_refused": "",
        "parts_seconds": {part: n / 1e3 for n, part in enumerate((*PARTS, "loader"), start=1)},
    }
    result = {
        "product_rate": {"float32": 8e9},
        "bandwidth": 9e9,
        "environment": {"loops": "compiled", "threads": 4},
        "experiments": [row, row | {"name": "two", "replay_refused": "no room"}],
    }
    lines = report(result).splitlines()
    machine = "products 8 GFLOP/s float32; memory 9.0 GB/s; loops: compiled; threads: 4"
    assert lines[0] == f"this machine: {machine}"
    header = next(line for line in lines if line.startswith("experiment"))
    labels = ["experiment", "ms/step", "samples/s", "GFLOP", "product rate", "floor", "x BP"]
    assert re.split("  +", header) == [*labels, "GFLOP x BP", "peak memory"]
    table = [line.split() for line in lines if line.startswith(("one", "experiment"))]
    assert table[1] == ["one", "500.0", "12", "3.00", "30%", "40%", "1.50", "2.50", "7", "MiB"]
    assert table[2] == ["experiment", *PARTS, "loader"]
    assert table[3] == ["one", "1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "7.0"]
    assert [line for line in lines if "CUDA" in line] == ["two: not replayed from a CUDA graph: no room"]


def test_a_step_s_cost_is_the_mean_over_steps_with_w_w_t_at_hand_and_without():
    network = models.square(9, 3, width=8, depth=1)
    network.layers[1].W[0, 0] *= 1.01
    made = recipe("gait", 0.5, ortho_every=3)
    batch = np.ones((5, 9), np.float32), np.arange(5) % 3
    session = types.SimpleNamespace(network=network, recipe=made)
    due, plain = (
        step_cost(network, made, 5, inverse_reports(network, made, batch, step=step)) for step in (0, 1)
    )
    assert due.targets != plain.targets
    cost = bench_timing._cost(timed(session=session, batch=batch))
    assert cost.targets == pytest.approx((due.targets + 2 * plain.targets) / 3)
    assert cost.regulariser == due.regulariser


@pytest.mark.parametrize(("every", "count"), [(1, 2), (5, 5)])
def test_each_round_times_the_steps_after_the_last_round_s_from_the_weights_of_the_first(
    every, count, monkeypatch
):
    network = models.square(9, 3, width=8, depth=1)
    weights = [p.copy() for p in network.parameters()]
    seen = []

    def time_steps(stepper, batch, *, steps, first):
        seen.append((steps, first))
        for p, before in zip(network.parameters(), weights, strict=True):
            np.testing.assert_array_equal(p, before)
            p += 1
        return {True: [1.0], False: [2.0]}

    monkeypatch.setattr(bench_timing, "time_steps", time_steps)
    monkeypatch.setattr(bench_timing, "time_parts", lambda *args, **options: {"forward": 3.0})
    monkeypatch.setattr(bench_timing, "product_rate", lambda *args: 4.0)
    costs = iter(range(10))
    monkeypatch.setattr(bench_timing, "_cost", lambda t: next(costs))
    t = bench_timing.Timed(
        types.SimpleNamespace(name="one", batch_size=5, ortho_every=every, ortho_strength=0.1),
        types.SimpleNamespace(network=network, recipe=None),
        None, (), 0.0, 0, weights,
    )  # fmt: skip
    for number in range(3):
        bench_timing._time_round(t, number, 2, CPU)
    assert seen == [(count, 0), (count, count), (count, 2 * count)]
    assert t.times == {True: [1.0] * 3, False: [2.0] * 3}
    assert (t.costs, t.rates, len(t.laps)) == (list(range(6)), [4.0] * 6, 3)


def test_cost_time_and_parts_are_the_mean_and_the_medians_of_the_rounds():
    t = bench_timing.Timed(types.SimpleNamespace(ortho_every=4), None, None, (), 0.0, 0, [])
    t.costs = [Cost(n, 2 * n, 3 * n, 4 * n, 5 * n) for n in (1, 2, 6)]
    t.times = {True: [5.0, 50.0, 4.0], False: [1.0, 1.0, 9.0]}
    t.laps = [dict.fromkeys(PARTS, n) for n in (1.0, 7.0, 2.0)]
    assert t.cost == Cost(3, 6, 9, 12, 15)
    assert t.seconds == (5 + 3 * 1) / 4
    assert t.parts == dict.fromkeys(PARTS, 2.0)


def test_the_loader_s_time_is_the_median_wait_for_a_batch_after_one_that_warms_up(monkeypatch):
    clock = types.SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(bench_timing, "time", clock)
    waits = iter([100, 1, 2, 3, 40, 50])

    class Data:
        def shuffled(self, size, streams):
            for number in range(4):
                clock.now += next(waits)
                yield (number,)

    session = types.SimpleNamespace(network=types.SimpleNamespace(device=CPU), streams=None)
    assert bench_timing._time_loader(Data(), 8, session) == ((0,), 3)


def test_images_are_drawn_once_for_all_experiments_of_a_size(monkeypatch):
    drawn, taken = [], []

    def random_images(name, n, *, image_size):
        drawn.append((name, n))
        return object()

    def set_up(e, device, dataset, graphs):
        taken.append(dataset)
        return types.SimpleNamespace(experiment=e, rates=[1.0])

    monkeypatch.setattr("npgait.cli.options.random_images", random_images)
    monkeypatch.setattr(bench_timing, "_set_up", set_up)
    monkeypatch.setattr(bench_timing, "_time_round", lambda *arguments: None)
    monkeypatch.setattr(bench_timing, "_rows", lambda timed, bytes_a_second: [])
    bench_timing.measure(choose("imagenet", (), (), {"batch_size": 8}), CPU, None, 3)
    assert drawn == [("imagenet", 16)]
    assert len(taken) > 2
    assert len(set(map(id, taken))) == 1


def test_bench_says_which_experiment_diverges_with_status_1_and_without_warnings():
    arguments = ["bench", "digits", "--rule", "gait", "--steps", "3", "--device", "cpu"]
    run = CliRunner().invoke(cli, [*arguments, "--set", "learning_rate=1e30"])
    assert run.exit_code == 1
    assert "Error: experiment 'bp': the loss is not finite" in run.output
    assert run.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "nothing"], "nothing"),
        (["bench", "--rule", "gate"], "'gate' is not one of"),
        (["bench", "digits", "--steps", "1"], "--steps"),
        (["bench", "digits", "--device", "tpu"], "tpu"),
        (["bench", "digits", "--precision", "tf32", "--device", "cpu"], "needs a GPU"),
    ],
)
def test_bench_says_what_is_wrong(arguments, message):
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 2
    assert message in run.output
    assert "Traceback" not in run.output
