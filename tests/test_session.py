"""Sessions: what an experiment says reaches what it is about, and a run is saved whole."""

from __future__ import annotations

import types

import numpy as np
import pytest

import npgait.session as module
from npgait.activations import LeakyReLU, Linear
from npgait.checkpoint import CheckpointError
from npgait.config import make_experiment
from npgait.data import array_data
from npgait.events import EpochDone, Evaluating, Measured, StepDone
from npgait.layers import Conv2D
from npgait.losses import softmax_cross_entropy, squared_error
from npgait.optimizers import SGD, Adam, Momentum
from npgait.run_folder import CHECKPOINT, read_metrics
from npgait.session import build_session, read_progress, restore_session, run_session, save_session
from npgait.training import TrainingDivergedError


def experiment(**values):
    return make_experiment({"name": "x", "width": 8, "depth": 2, "batch_size": 5, **values}, "test")


def session(**values):
    return build_session(experiment(**values), (6,), 3)


@pytest.fixture
def data(rng):
    return array_data(rng.standard_normal((20, 6)), np.arange(20) % 3)


@pytest.mark.parametrize("gamma", [0.01, 0.02])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_settings_of_a_rule_reach_it(gamma, normalised):
    rule = session(
        gamma=gamma, normalised=normalised, inverse_method="lu", inverse_tolerance=0.25
    ).recipe.rule
    assert rule.difference_form.keywords == {"gamma": gamma, "normalised": normalised}
    assert (rule.solver.method, rule.solver.tolerance) == ("lu", 0.25)
    assert not rule.auxiliary
    assert session(targets="absolute").recipe.rule.auxiliary


@pytest.mark.parametrize(
    ("values", "optimizer"),
    [
        ({"optimizer": "sgd"}, SGD(0.5)),
        ({"optimizer": "momentum", "momentum": 0.25}, Momentum(0.5, 0.25)),
        ({"beta1": 0.5, "beta2": 0.75, "epsilon": 0.125}, Adam(0.5, 0.5, 0.75, 0.125)),
        ({"bias_correction": False}, Adam(0.5, bias_correction=False)),
    ],
)
def test_the_settings_of_an_optimizer_reach_it(values, optimizer):
    assert session(learning_rate=0.5, **values).recipe.optimizer == optimizer


def test_the_settings_of_a_step_reach_it():
    recipe = session().recipe
    assert (recipe.loss, recipe.regulariser, recipe.ortho_strength) == (
        softmax_cross_entropy,
        "orthonormal",
        0,
    )
    assert (recipe.reduction, recipe.ortho_every, recipe.decoupled) == ("sum", 1, False)
    recipe = session(
        loss="squared_error", regulariser="conformal", ortho_strength=0.5, reduction="mean",
        ortho_every=3, ortho_decoupled=True,
    ).recipe  # fmt: skip
    assert (recipe.loss, recipe.regulariser, recipe.ortho_strength) == (squared_error, "conformal", 0.5)
    assert (recipe.reduction, recipe.ortho_every, recipe.decoupled) == ("mean", 3, True)


def test_the_settings_of_a_network_reach_it():
    network = session(slope=0.5, dtype="float64").network
    assert [layer.f for layer in network.layers] == [LeakyReLU(0.5)] * 3
    assert network.dtype == np.float64
    np.testing.assert_allclose(network.layers[1].W @ network.layers[1].W.T, np.eye(8), atol=1e-12)
    assert [layer.f for layer in session(slope=1).network.layers] == [Linear()] * 3
    assert session(output_activation="linear").network.layers[-1].f == Linear()
    W = session(initialisation="glorot_normal").network.layers[1].W
    assert np.abs(W @ W.T - np.eye(8)).max() > 0.1
    assert (session(seed=1).network.layers[1].W != session(seed=2).network.layers[1].W).any()
    for auxiliary, implicit, shape in (
        (False, False, (8, 3)), (True, False, (8, 8)), (True, True, (8, 3)),
    ):  # fmt: skip
        values = {"auxiliary": auxiliary, "implicit_auxiliary": implicit, "rule": "bp"}
        assert session(**values).network.layers[-1].W.shape == shape
        assert session(**values).network.layers[-1].implicit == implicit
    images = make_experiment(
        {"name": "x", "network": "imagenet", "patch_bytes": 999, "rule": "bp"}, "test"
    )
    layers = build_session(images, (32, 32, 3), 3).network.layers
    assert {layer.patch_bytes for layer in layers if isinstance(layer, Conv2D)} == {999}


@pytest.mark.parametrize("values", [{}, {"rule": "fa"}, {"rule": "dfa"}, {"optimizer": "momentum"}])
def test_a_session_that_is_taken_up_again_learns_on_as_if_never_stopped(values, data, tmp_path):
    straight, stopped = session(epochs=2, **values), session(epochs=2, **values)
    list(run_session(straight, data, data, tmp_path / "one", "digest"))
    steps = []
    events = run_session(stopped, data, data, tmp_path / "two", "digest", stop=lambda: len(steps) == 5)
    for event in events:
        steps += [event] * isinstance(event, StepDone)
    assert len(steps) == 6  # of four an epoch
    assert read_progress(tmp_path / "two" / CHECKPOINT, stopped.experiment, "digest")[0] == 1
    again = session(epochs=2, **values)
    restore_session(tmp_path / "two" / CHECKPOINT, again, "digest")
    list(run_session(again, data, data, tmp_path / "two", "digest"))
    for one, other in zip(straight.network.parameters(), again.network.parameters(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["epoch"] for row in read_metrics(tmp_path / "two") if row["kind"] == "epoch"] == [1, 2]


@pytest.mark.parametrize("evaluate_train", [True, False])
def test_an_evaluation_that_is_stopped_is_saved_before_and_the_run_ends_as_if_never_stopped(
    evaluate_train, data, tmp_path, monkeypatch
):
    values = {"epochs": 2, "evaluate_train": evaluate_train, "checkpoint_minutes": 0, "measure_every": 0}
    straight, stopped, again = (session(**values) for _ in range(3))
    list(run_session(straight, data, data, tmp_path / "one", "digest"))
    seen, saved = [], []
    monkeypatch.setattr(module, "save_session", lambda *a: saved.append(len(seen)) or save_session(*a))
    events = run_session(
        stopped, data, data, tmp_path / "two", "digest", stop=lambda: seen.count(Evaluating) == 1
    )
    for event in events:
        seen.append(type(event))
    # Two data sets of a batch each, or one.
    assert seen == [StepDone] * 4 + [Evaluating, Evaluating if evaluate_train else EpochDone]
    assert saved == [0, 1, 2, 3, 5]  # always overdue, and yet none but the last for an evaluation
    epochs, _ = read_progress(tmp_path / "two" / CHECKPOINT, stopped.experiment, "digest")
    assert epochs == (not evaluate_train)
    restore_session(tmp_path / "two" / CHECKPOINT, again, "digest")
    list(run_session(again, data, data, tmp_path / "two", "digest"))
    for one, other in zip(straight.network.parameters(), again.network.parameters(), strict=True):
        np.testing.assert_array_equal(one, other)
    ends = [[{**row, "seconds": 0} for row in s.rows] for s in (straight, again)]
    assert ends[0] == ends[1]


def test_a_run_goes_on_to_its_last_epoch_and_measures_on_the_way(data, tmp_path):
    kinds = [type(e) for e in run_session(session(epochs=3, measure_every=4), data, data, tmp_path, "d")]
    assert [kinds.count(kind) for kind in (EpochDone, Measured, StepDone)] == [3, 3, 12]
    epochs, rows = read_progress(tmp_path / CHECKPOINT, experiment(epochs=3, measure_every=4))
    assert (epochs, [row["kind"] for row in rows]) == (3, ["layers", "epoch"] * 3)


@pytest.mark.parametrize(
    ("minutes", "seconds", "saved_at"),
    [(0, 0, [1, 2, 3, 4, 4]), (0.5, 10, [3, 4]), (0.5, 9, [4, 4]), (10, 60, [4])],
)
def test_checkpoints_within_an_epoch_are_as_far_apart_as_asked_by_whatever_clock(
    minutes, seconds, saved_at, data, tmp_path, monkeypatch
):
    """A step takes so many seconds; less than a clock tells apart is none."""
    clock, saved = types.SimpleNamespace(now=0.0), []
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(module, "save_session", lambda path, s, digest: saved.append(s.progress.step))
    run = session(epochs=1, checkpoint_minutes=minutes, measure_every=0)
    step = run.recipe.optimizer.step

    def take_time(*arguments):
        clock.now += seconds
        step(*arguments)

    monkeypatch.setattr(run.recipe.optimizer, "step", take_time)
    list(run_session(run, data, None, tmp_path, "d"))
    assert saved == saved_at


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_weights_that_overflow_within_an_epoch_replace_no_good_checkpoint(rng, tmp_path):
    data = array_data(100 * rng.standard_normal((20, 6)), np.arange(20) % 3)
    good = session(rule="bp", optimizer="sgd")
    save_session(tmp_path / CHECKPOINT, good, "data")
    before = (tmp_path / CHECKPOINT).read_bytes()
    e = experiment(rule="bp", optimizer="sgd", learning_rate=3e38, checkpoint_minutes=0)
    with pytest.raises(TrainingDivergedError, match="weights of hidden1/W are not finite after step 1"):
        list(run_session(build_session(e, (6,), 3), data, None, tmp_path, "data"))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_of_other_data_or_another_experiment_is_not_read(tmp_path):
    path = tmp_path / "c.h5"
    save_session(path, session(), "digest")
    assert read_progress(path, experiment(epochs=77, description="longer"), "digest") == (0, [])
    with pytest.raises(CheckpointError, match="trained on other data"):
        read_progress(path, experiment(), "other")
    with pytest.raises(CheckpointError, match="with another batch_size, seed;"):
        read_progress(path, experiment(batch_size=6, seed=3), "digest")
