"""`npgait check`: it sees that the equations hold, and it sees when they do not."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from npgait import checking
from npgait.checking import check_session
from npgait.cli import options
from npgait.cli.main import cli
from npgait.experiments import find_experiments
from npgait.layers import Dense
from npgait.loaders import load
from npgait.session import build_session


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def session_of(name, **overrides):
    (experiment,) = find_experiments(name, {"width": 24, "depth": 3, **overrides})
    session = build_session(experiment, (8, 8, 1), 10)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 64)).astype(session.network.dtype)
    return session, x, rng.integers(0, 10, 16)


def marks(findings):
    return [finding.mark for finding in findings]


def test_fresh_weights_are_orthogonal_and_gait_is_backpropagation():
    layers, findings = check_session(*session_of("gait"))
    assert "WRONG" not in marks(findings)
    assert all(layer.gait_to_bp < 0.01 for layer in layers)
    assert all(layer.distance < 1e-5 for layer in layers[1:])
    assert layers[0].distance is None  # it is not inverted
    assert all(layer.inverse_error < 1e-5 for layer in layers[1:])


@pytest.mark.parametrize("depth", [18, 30])
def test_equations_of_deep_networks_hold_though_steps_and_nudges_cross_kinks(depth):
    _, findings = check_session(*session_of("gait", depth=depth, gamma=1e-7))
    assert "WRONG" not in marks(findings)
    crossed = [finding.text for finding in findings if "nudges cross kinks" in finding.text]
    assert bool(crossed) == (depth == 30)


@pytest.mark.parametrize(
    ("rule", "gamma", "crossed"), [("gait", 1e-7, False), ("gait", 0.9, True), ("itp", 0.9, False)]
)
def test_nudges_are_those_of_the_experiment_where_its_rule_is_gait(rule, gamma, crossed):
    layers, findings = check_session(*session_of("gait", rule=rule, gamma=gamma))
    assert (layers[0].gait_to_bp > 1) == crossed
    assert any("nudges cross kinks" in finding.text for finding in findings) == crossed
    assert "WRONG" not in marks(findings)


def test_of_activity_next_to_nothing_no_derivative_is_claimed():
    _, findings = check_session(*session_of("bp", depth=80))
    (derivative,) = (finding for finding in findings if "derivative" in finding.text)
    assert derivative.mark == "note"


def test_absolute_targets_are_seen_to_lose_the_direction_in_float32_and_not_in_float64():
    (lost, lost_words), (kept, kept_words) = (
        check_session(*session_of("gait", dtype=d, gamma=1e-6)) for d in ("float32", "float64")
    )
    assert lost[0].absolute_to_difference > 5
    assert kept[0].absolute_to_difference < 1
    assert ["absolute" in f.text for f in lost_words if f.mark == "note"] == [True]
    assert [f.mark for f in kept_words if "absolute and difference targets agree" in f.text] == ["fine"]


def test_of_implicit_units_absolute_targets_are_not_made():
    layers, findings = check_session(*session_of("gait", implicit_auxiliary=True))
    assert "WRONG" not in marks(findings)
    assert all(layer.absolute_to_difference is None for layer in layers)
    assert not any("absolute" in finding.text for finding in findings)


def test_layers_of_which_absolute_targets_leave_no_update_are_named_among_the_lost():
    with np.errstate(over="ignore", invalid="ignore"):
        layers, findings = check_session(*session_of("gait", gamma=1e-30))
    assert layers[0].absolute_to_difference is None
    (lost,) = (f for f in findings if "lose the direction" in f.text)
    assert "hidden1, hidden2, hidden3" in lost.text
    assert "output" not in lost.text


@pytest.mark.parametrize(
    ("away", "mark", "words"), [(0.005, "fine", "near orthogonality"), (0.15, "note", "from orthogonal")]
)
def test_weights_near_orthogonality_are_fine_and_those_away_from_it_a_note_and_no_error(
    away, mark, words
):
    session, x, labels = session_of("gait")
    rng = np.random.default_rng(1)
    for layer in session.network.layers[1:]:
        layer.W += away * rng.standard_normal(layer.W.shape).astype(np.float32)
    _, findings = check_session(session, x, labels)
    assert "WRONG" not in marks(findings)
    assert [finding.mark for finding in findings if words in finding.text] == [mark]


def test_where_the_error_is_zero_there_is_no_gradient_to_compare():
    session, x, labels = session_of("gait")
    session.network.layers[-1].b[3] = 1e6  # so sure that nothing is left to learn
    _, findings = check_session(session, x, np.full_like(labels, 3))
    assert [finding.mark for finding in findings if "the error is zero" in finding.text] == ["note"]


@pytest.mark.parametrize(("regulariser", "distance"), [("orthonormal", 3.0), ("conformal", 0.0)])
def test_the_size_of_weights_counts_for_the_distance_unless_the_regulariser_leaves_it_free(
    regulariser, distance
):
    session, x, labels = session_of("gait", regulariser=regulariser)
    for layer in session.network.layers[1:]:
        layer.W *= 2
    layers, _ = check_session(session, x, labels)
    assert [layer.distance for layer in layers[1:]] == pytest.approx([distance] * 3, abs=1e-5)


def test_singular_weights_are_wrong_and_named():
    session, x, labels = session_of("gait")
    session.network.layers[2].W[:, 3] = session.network.layers[2].W[:, 5]
    _, findings = check_session(session, x, labels)
    assert any(finding.wrong and "hidden3" in finding.text for finding in findings)


@pytest.mark.parametrize("where", ["W", "b"])
def test_weights_that_are_not_finite_are_wrong_and_the_check_goes_on(where):
    session, x, labels = session_of("gait")
    getattr(session.network.layers[1], where)[..., 3] = np.nan
    layers, findings = check_session(session, x, labels)
    assert [layer.name for layer in layers] == ["hidden1", "hidden2", "hidden3", "output"]
    wrong = [finding.text for finding in findings if finding.wrong]
    assert any("the loss is not finite" in text for text in wrong)
    assert any("errors that reach output are not finite" in text for text in wrong)


@pytest.mark.parametrize("method", ["transpose", "local_update"])
def test_a_wrong_equation_is_seen(method, monkeypatch):
    original = getattr(Dense, method)

    def wrong(self, *arguments):
        result = original(self, *arguments)
        return 1.3 * result if method == "transpose" else (-result[0], result[1])

    monkeypatch.setattr(Dense, method, wrong)
    _, findings = check_session(*session_of("gait"))
    assert any(finding.wrong and "derivative" in finding.text for finding in findings)


def test_a_wrong_inverse_is_seen(monkeypatch):
    solve = checking.InverseSolver.__call__

    def wrong(self, d, W, *rest, **options):
        z = solve(self, d, W, *rest, **options)
        for report in self.reports or []:
            report.residual += 0.1
        return z

    monkeypatch.setattr(checking.InverseSolver, "__call__", wrong)
    _, findings = check_session(*session_of("gait"))
    assert any(finding.wrong and "inverse" in finding.text for finding in findings)


@pytest.mark.parametrize("preset", [["digits"], []], ids=["named", "the default"])
def test_check_of_a_preset_prints_a_table_and_a_verdict(preset):
    run = invoke("check", *preset, "-e", "gait", "-e", "bp", "--device", "cpu")
    assert run.exit_code == 0, run.output
    table = ("gait (float32, 64 samples)", "GAIT to BP", "||I - W W^T||")
    for words in (*table, "fine", "inverts nothing", "every equation holds"):
        assert words in run.output


def test_check_of_convolutions_takes_noise_of_the_right_size():
    run = invoke("check", "imagenet-bp", "--device", "cpu")
    assert run.exit_code == 0, run.output
    assert "conv7" in run.output


def test_check_of_a_run_takes_its_trained_weights(tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(
        "npgait.cli.check.check_session", lambda s, *batch: checked.append(s) or check_session(s, *batch)
    )
    common = ["--set", "epochs=2", "--device", "cpu", "--no-plots", "--quiet"]
    assert invoke("run", "digits", "-e", "gait", "--out", tmp_path / "run", *common).exit_code == 0
    run = invoke("check", tmp_path / "run", "--device", "cpu")
    assert run.exit_code == 0, run.output
    assert [session.progress.epoch for session in checked] == [2]


def test_a_preset_is_checked_where_a_folder_has_its_name_and_the_folder_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    run = invoke("check", "mnist", "-e", "mnist-bp-1l", "--device", "cpu")
    assert run.exit_code == 0, run.output
    for name in ("./mnist", "."):
        run = invoke("check", name, "--device", "cpu")
        assert run.exit_code == 2
        assert "is not the folder of a run" in run.output


def test_a_name_of_no_preset_is_an_error_with_the_nearest_one():
    run = invoke("check", "digts")
    assert run.exit_code == 2
    assert "preset 'digts' is unknown; nearest: 'digits'" in run.output


def test_data_are_read_once_for_all_experiments(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(options, "load", lambda *a, **o: read.append(a) or load(*a, **o))
    run = invoke("check", "digits", "-e", "bp", "-e", "gait", "--data", tmp_path, "--device", "cpu")
    assert run.exit_code == 0, run.output
    assert len(read) == 1


def test_noise_does_not_stand_in_for_data_that_were_asked_for(tmp_path):
    run = invoke("check", "mnist-gait-1l", "--data", tmp_path, "--device", "cpu")
    assert run.exit_code == 2
    assert "train-images" in run.output


def test_an_equation_that_does_not_hold_ends_with_status_1(monkeypatch):
    monkeypatch.setattr(
        Dense, "transpose", lambda self, delta, B=None: -(delta @ self.W[:, : self.used].T)
    )
    run = invoke("check", "digits", "-e", "bp", "--device", "cpu")
    assert run.exit_code == 1
    assert "does not hold in bp" in run.output


def test_inverses_are_checked_as_the_session_makes_them():
    session, x, labels = session_of("gait", inverse_tolerance=0.1, inverse_method="series")
    rng = np.random.default_rng(1)
    for layer in session.network.layers[1:]:
        layer.W += 0.02 * rng.standard_normal(layer.W.shape).astype(np.float32)
    layers, findings = check_session(session, x, labels)
    assert max(layer.inverse_error for layer in layers[1:]) > 1e-3
    assert "WRONG" not in marks(findings)
