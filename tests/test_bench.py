"""What a step costs: counted by hand, timed in parts, printed for people and for programs."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from npgait import models
from npgait.backend import CPU
from npgait.cli.bench import choose
from npgait.cli.main import cli
from npgait.config import ConfigError
from npgait.costs import step_cost
from npgait.inverse import SolveReport
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import SGD, Adam
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


def test_the_operations_of_backpropagation_are_those_of_its_products():
    network = models.square(7, 3, width=5, depth=2, auxiliary=False)
    cost = step_cost(network, recipe("bp"), 11, {})
    assert cost.forward == 2 * 11 * (7 * 5 + 5 * 5 + 5 * 3)
    assert cost.updates == cost.forward
    assert cost.targets == 2 * 11 * (5 * 5 + 5 * 3)
    assert cost.regulariser == 0
    assert cost.optimizer_bytes == 7 * 4 * (7 * 5 + 5 + 5 * 5 + 5 + 5 * 3 + 3)
    assert step_cost(network, recipe("bp", optimizer=SGD(0.1)), 11, {}).optimizer_bytes * 7 == (
        cost.optimizer_bytes * 3
    )


def test_the_savings_of_the_difference_form_are_counted():
    network = models.square(7, 3, width=5, depth=1)
    reports = {1: SolveReport("series", 2, 0.0)}
    cost = step_cost(network, recipe("gait", 1.0, ortho_every=2), 11, reports)
    assert cost.forward == 2 * 11 * (7 * 5 + 5 * 3)  # used units only
    assert cost.targets == 2 * 11 * 5 * 3 + 2 * (2 * 11 * 5 * 5)
    assert cost.regulariser == 3 * 5**3 / 2  # the output layer; W W^T is half a product
    lu = step_cost(network, recipe("gait"), 11, {1: SolveReport("lu", 0, 0.0)})
    assert lu.targets == pytest.approx(2 * 11 * 5 * 3 + 2 / 3 * 5**3 + 2 * 11 * 5 * 5)


def test_convolutions_are_counted_by_their_patches():
    network = models.imagenet((32, 32, 3), 4, auxiliary=False)
    first = network.layers[0]
    rows = 5 * 8 * 8
    alone = step_cost(network, recipe("bp"), 5, {}).forward
    rest = sum(2 * 5 * int(np.prod(layer.shape_out[:-1])) * layer.W.size for layer in network.layers[1:])
    assert alone - rest == 2 * rows * first.W.size == 2 * rows * 243 * 24


def test_implicit_units_cost_what_the_used_ones_cost():
    stored, implicit = (models.square(20, 3, depth=1, auxiliary=a) for a in (True, "implicit"))
    costs = [step_cost(n, recipe("gait", 1.0), 8, {}).regulariser for n in (stored, implicit)]
    assert costs == [3 * 20**3 * 2, 3 * 20**3 + 3 * 20 * 3**2]


@pytest.mark.parametrize(
    ("method", "terms", "solve"),
    [
        ("normal", 0, 2 / 3 * 4**3 + 2 * 8 * 4**2),
        ("series", 3, 3 * 2 * 8 * 4**2),
        ("qr", 0, 4 * 4**2 * (20 - 4 / 3) + 2 * 8 * 4**2),
    ],
)
def test_ways_to_the_inverse_of_a_tall_matrix_are_counted_by_hand(method, terms, solve):
    network = models.square(20, 4, depth=1, auxiliary="implicit")  # its output: 20 inputs, 4 classes
    reports = {1: SolveReport(method, terms, 0.0)}
    cost, none = (step_cost(network, recipe("gait"), 8, r).targets for r in (reports, {}))
    assert cost - none == pytest.approx(solve, rel=1e-6)


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


def test_every_network_on_the_bench_begins_with_backpropagation():
    names = [e.name for e in choose("digits", ["gait", "dfa"], [], {})]
    assert names[0] == "bp"
    assert {"gait", "square-dfa"} <= set(names)
    assert choose("digits", ["dfa"], [], {})[1].rule == "dfa"
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
    monkeypatch.setattr("npgait.cli.bench.product_rate", smaller)
    arguments = ["bench", "digits", "--rule", "gait", "--steps", "3", "--device", "cpu"]
    run = CliRunner().invoke(cli, arguments)
    assert run.exit_code == 0, run.output
    assert "GFLOP/s float32" in run.output
    assert "where the time goes" in run.output
    run = CliRunner().invoke(cli, [*arguments, "--json", "--set", "ortho_every=2"])
    result = json.loads(run.output)
    rows = {row["name"]: row for row in result["experiments"]}
    assert rows["bp"]["ratio_to_bp"] == 1.0
    for row in rows.values():
        assert row["seconds"] > row["floor_seconds"] > 0
        assert set(row["parts_seconds"]) == {*PARTS, "loader"}
    assert result["product_rate"]["float32"] > 0


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
