"""Accuracy, angles, and the measures of a layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgait.events import Tally
from npgait.inverse import InverseSolver
from npgait.losses import softmax_cross_entropy
from npgait.metrics import angle, correct_within, measure
from npgait.orthogonality import gram
from npgait.rules import bind, bp
from tests.support import batch, dense_network


@given(degrees=st.floats(1e-6, 180), scale=st.sampled_from([1e-300, 1e-20, 1.0, 1e200]))
def test_angle_resolves_small_angles_at_any_scale(degrees, scale):
    u = np.array([1.0, 0.0]) * scale
    v = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    assert angle(u, v) == pytest.approx(degrees, rel=1e-7)


def test_angle_of_parallel_arrays_is_zero_in_single_precision(rng):
    u = rng.standard_normal((30, 20)).astype(np.float32)
    assert angle(u, 4 * u) == 0
    assert angle(u, -u) == pytest.approx(180)


def test_small_angles_between_arrays_in_single_precision_are_those_of_their_values(rng):
    u = rng.standard_normal((30, 20)).astype(np.float32)
    v = (u + 1e-6 * rng.standard_normal(u.shape)).astype(np.float32)
    assert angle(u, v) == pytest.approx(angle(u.astype(np.float64), v.astype(np.float64)), rel=1e-9)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_array_without_direction_has_no_angle(bad):
    assert angle(np.full(3, bad), np.ones(3)) is None
    assert angle(np.ones(3), np.full(3, bad)) is None
    assert angle(np.zeros(0), np.zeros(0)) is None


def test_top_k_counts_labels_among_the_largest_outputs():
    y = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0]])
    labels = np.array([0, 0, 2])
    assert [int(correct_within(y, labels, k)) for k in (1, 2, 3, 4)] == [1, 2, 2, 3]


def test_ties_and_nan_count_against_the_network():
    labels = np.array([0, 1])
    assert correct_within(np.zeros((2, 10)), labels, 5) == 0
    assert correct_within(np.full((2, 10), np.nan), labels, 5) == 0
    assert correct_within(np.array([[1.0, np.nan], [np.nan, 1.0]]), labels, 1) == 0


def test_a_tally_counts_the_label_among_the_largest_and_the_five_largest_of_all_batches():
    tally, y = Tally(), np.tile(np.arange(8.0), (3, 1))
    tally.add(np.array([1.0, 2.0, 4.0]), y, np.array([7, 3, 2]))  # the 1st, 5th and 6th largest
    tally.add(np.array([5.0]), y[:1], np.array([7]))
    assert tally.means("test") == {"test_loss": 3.0, "test_top1": 0.5, "test_top5": 0.75}
    tally = Tally()
    tally.add(np.array([2.0]), y[:1], np.array([7]))
    assert tally.means("one") == {"one_loss": 2.0, "one_top1": 1.0, "one_top5": 1.0}
    assert Tally().means("x") == {"x_loss": 0, "x_top1": 0, "x_top5": 0}


def measures_of(network, rule, x, labels, grams=None):
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, : network.n_classes], labels)
    grams = grams or [None] * len(network.layers)
    updates = rule(network.layers, records, error, grams)
    return measure(network.layers, records, error, updates, rule, grams)


@pytest.mark.parametrize("targets", ["difference", "absolute"])
def test_layers_are_measured_against_backpropagation(targets, rng):
    network = dense_network(rng, width=16, used=12, depth=2, away=0.1)
    x, labels = batch(rng, network)
    rule = bind("gait", normalised=True, gamma=1e-7, targets=targets, solver=InverseSolver(method="lu"))
    measured = measures_of(network, rule, x, labels)
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    expected = bp(network.layers, records, error)
    gait = bind("gait")(network.layers, records, error)
    for l, m in enumerate(measured):
        norms = [np.linalg.norm(updates[l][0]) for updates in (gait, expected)]
        assert m.layer == f"layer{l}"
        assert m.angle == pytest.approx(angle(gait[l][0], expected[l][0]), abs=1e-4)
        assert m.norm_ratio == pytest.approx(norms[0] / norms[1], rel=1e-5)
    assert measured[0].orthogonality is None  # 12 x 16: not square
    assert measured[0].inverse_residual is None
    W = network.layers[1].W
    assert measured[1].orthogonality == pytest.approx(np.linalg.norm(np.eye(12) - W @ W.T, 2))
    assert measured[1].inverse_residual < 1e-12
    assert measured[1].inverse_terms == 0
    assert 0 <= measured[1].crossed <= 1


def test_the_kinks_that_are_crossed_are_those_between_activity_and_target(rng):
    network = dense_network(rng, width=16, n_classes=16, linear_output=False)
    x, labels = batch(rng, network, 40)
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    target = records[-1].y - 3 * error  # of target propagation, whose nudge is the whole error
    shares = []
    for layer, record in zip(network.layers[:0:-1], records[:0:-1], strict=True):
        shares.insert(0, np.mean((record.y >= 0) != (target >= 0)))
        inverted = np.where(target >= 0, target, 10 * target) - layer.b
        target = np.linalg.solve(layer.W.T, inverted.T).T
    rule, grams = bind("tp"), [None] * 4
    updates = rule(network.layers, records, 3 * error, grams)
    measured = measure(network.layers, records, 3 * error, updates, rule, grams)
    assert [m.crossed for m in measured[1:]] == pytest.approx(shares)
    assert min(shares) > 0


def test_the_gamma_that_is_measured_is_the_published_one(rng):
    network = dense_network(rng, depth=3)
    x, labels = batch(rng, network)
    vanilla = measures_of(network, bind("gait", gamma=0.01, normalised=False), x, labels)
    assert [m.gamma for m in vanilla[1:]] == pytest.approx([0.01] * 3)
    one = x[:1]
    _, error = softmax_cross_entropy(network.output(one), labels[:1])
    normalised = measures_of(network, bind("gait", gamma=1e-3), one, labels[:1])
    assert normalised[-1].gamma == pytest.approx(1e-3 * np.sqrt(16) / np.linalg.norm(error))


@pytest.mark.parametrize("normalised", [True, False])
def test_samples_without_error_do_not_count_in_the_gamma_that_is_measured(normalised, rng):
    network = dense_network(rng, depth=3)
    x, _ = batch(rng, network, 2)
    records = network.forward(x)
    error = rng.standard_normal((2, 5))
    rule, grams, measured = bind("gait", gamma=1e-3, normalised=normalised), [None] * 4, []
    for e in (error, np.zeros_like(error)):
        pair = np.stack([error[0], e[1]])
        updates = rule(network.layers, records, pair)
        measured.append(measure(network.layers, records, pair, updates, rule, grams)[-1].gamma)
    one = 1e-3 * 4 / np.linalg.norm(error, axis=1) if normalised else [1e-3] * 2
    assert measured == pytest.approx([np.mean(one), one[0]])


def test_the_way_the_inverse_was_applied_is_the_step_s_own(rng):
    network = dense_network(rng, width=64, depth=1, n_in=64)
    x, labels = batch(rng, network, 4)
    network.layers[1].W += 1e-4 * rng.standard_normal((64, 64))
    grams = [None, gram(network.layers[1].W)]
    assert measures_of(network, bind("gait"), x, labels, grams)[1].inverse_terms > 0
    lu = bind("gait", solver=InverseSolver(method="lu"))
    assert measures_of(network, lu, x, labels, grams)[1].inverse_terms == 0


def test_backpropagation_measures_no_inverse(rng):
    network = dense_network(rng)
    x, labels = batch(rng, network)
    for m in measures_of(network, bind("bp"), x, labels):
        assert m.angle == 0
        assert m.norm_ratio == 1
        assert (m.inverse_residual, m.inverse_terms, m.crossed, m.gamma) == (None,) * 4
