"""The training loop: it learns, repeats itself, goes on where it stopped, and stops where it must."""

from __future__ import annotations

import copy
import itertools
import types

import numpy as np
import pytest

import npgait
from npgait import models, rules, training
from npgait.data import array_data
from npgait.losses import softmax_cross_entropy, squared_error
from npgait.optimizers import SGD, Adam
from npgait.orthogonality import gram, orthonormal_gradient
from npgait.rules import bind, draw_feedback
from npgait.streams import random_streams
from npgait.training import (
    EpochDone,
    Measured,
    Progress,
    Recipe,
    StepDone,
    Tally,
    TrainingDivergedError,
    evaluate,
    train,
    train_step,
)
from tests.support import Foreign, batch, dense_network, relative


def clusters(rng, n=300, classes=3, n_in=12):
    """Samples around one centre a class, well apart."""
    centres = 3 * rng.standard_normal((classes, n_in))
    labels = rng.integers(0, classes, n)
    return centres[labels] + rng.standard_normal((n, n_in)), labels


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "gait"])
def test_five_lines_learn_clusters_by_every_rule(rule, rng):
    x, labels = clusters(rng)
    network = npgait.models.square(n_in=12, n_classes=3, width=24, depth=2)
    rows = npgait.fit(
        network, x, labels, rule=rule, epochs=40, learning_rate=5e-3, test=(x[:50], labels[:50])
    )
    assert rows[-1]["train_top1"] > 0.97
    assert rows[-1]["test_top1"] > 0.95
    assert (network.predict(x) == labels).mean() == pytest.approx(rows[-1]["train_top1"])
    assert [row["epoch"] for row in rows] == list(range(1, 41))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_step_is_update_plus_regulariser_through_the_optimizer(reduction, rng):
    network = dense_network(rng, away=0.1)
    x, labels = batch(rng, network, 8)
    recipe = Recipe(bind("gait"), squared_error, SGD(0.1), ortho_strength=0.7, reduction=reduction)
    records = network.forward(x)
    _, error = squared_error(records[-1].y, labels)
    updates = bind("gait")(network.layers, records, error)
    expected = []
    for layer, (dW, db) in zip(network.layers, updates, strict=True):
        share = 1 if reduction == "sum" else 1 / 8
        ortho = 0.7 * orthonormal_gradient(layer.W, gram(layer.W)) if layer.has_inverse else 0
        expected += [layer.W - 0.1 * (share * dW + ortho), layer.b - 0.1 * share * db]
    train_step(network, recipe, x, labels)
    for got, wanted in zip(network.parameters(), expected, strict=True):
        assert relative(got, wanted) < 1e-10


def test_the_regulariser_keeps_weights_near_orthogonality(rng):
    x, labels = clusters(rng)
    distances = []
    for strength in (0.0, 10.0):
        network = models.square(12, 3, depth=2)
        npgait.fit(network, x, labels, epochs=30, ortho_strength=strength)
        W = network.layers[1].W
        distances.append(np.linalg.norm(np.eye(12) - W @ W.T, 2))
    assert distances[1] < 0.25 < distances[0]


def test_a_regulariser_every_third_step_acts_on_every_third_step(rng):
    network = dense_network(rng, away=0.1)
    plain = copy.deepcopy(network)
    x, labels = batch(rng, network, 8)
    every = Recipe(bind("gait"), squared_error, SGD(0.01), ortho_strength=0.5, ortho_every=3)
    always = Recipe(bind("gait"), squared_error, SGD(0.01), ortho_strength=0.5)
    never = Recipe(bind("gait"), squared_error, SGD(0.01))
    for step in range(1, 8):
        train_step(network, every, x, labels, step=step)
        train_step(plain, always if step % 3 == 0 else never, x, labels, step=step)
        for got, expected in zip(network.parameters(), plain.parameters(), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_a_decoupled_regulariser_acts_after_the_optimizer_and_past_it(rng):
    network = dense_network(rng, away=0.1)
    plain = copy.deepcopy(network)
    x, labels = batch(rng, network, 8)
    recipe = Recipe(bind("gait"), squared_error, Adam(0.01), ortho_strength=0.25, decoupled=True)
    train_step(network, recipe, x, labels)
    train_step(plain, Recipe(bind("gait"), squared_error, Adam(0.01)), x, labels)
    for layer, other in zip(network.layers, plain.layers, strict=True):
        W = other.W
        if layer.has_inverse:
            W = W - 0.25 * (W @ W.T - np.eye(len(W))) @ W
        assert relative(layer.W, W) < 1e-9


def test_a_decoupled_regulariser_keeps_weights_near_orthogonality_whatever_the_rate(rng):
    x, labels = clusters(rng)
    for rate in (1e-3, 1e-2):
        network = models.square(12, 3, depth=2)
        data, streams = array_data(x, labels), random_streams(0)
        recipe = Recipe(
            bind("gait"), softmax_cross_entropy, Adam(rate), ortho_strength=0.5, decoupled=True
        )
        list(train(network, recipe, data, epochs=10, batch_size=20, streams=streams))
        W = network.layers[1].W
        assert np.linalg.norm(np.eye(12) - W @ W.T, 2) < 0.05


def prepared(rule="gait", dtype="float32", seed=0, **options):
    rng = np.random.default_rng(5)
    x, labels = clusters(rng, 70)
    network = models.square(12, 3, width=12, depth=2, dtype=dtype)
    network.feedback = draw_feedback(rule, network, np.random.default_rng(1))
    recipe = Recipe(bind(rule, feedback=network.feedback), softmax_cross_entropy, Adam(1e-2), **options)
    data = array_data(x, labels, dtype=dtype)
    return network, recipe, data, random_streams(seed)


@pytest.mark.parametrize("rule", rules.NAMES)
def test_a_run_that_stops_at_any_batch_and_goes_on_ends_bit_identical(rule, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(training, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))

    def run(stops):
        network, recipe, data, streams = prepared(rule, ortho_strength=0.1)
        progress, rows = Progress(), []
        while True:
            events = train(
                network, recipe, data, data, epochs=3, batch_size=16, streams=streams, progress=progress
            )
            for event in events:
                if isinstance(event, EpochDone):
                    rows.append(event.row)
                if isinstance(event, StepDone) and event.step in stops:
                    stops = stops - {event.step}
                    break
            else:
                return network, rows
            events.close()
            # What a checkpoint would carry over; all else is made anew.
            state, progress = copy.deepcopy(recipe.optimizer.state()), copy.deepcopy(progress)
            saved = [p.copy() for p in network.parameters()]
            network, recipe, data, _ = prepared(rule, ortho_strength=0.1)
            streams = random_streams(99)
            for p, q in zip(network.parameters(), saved, strict=True):
                p[...] = q
            recipe.optimizer.load(state)

    straight, rows = run(set())
    stopped, rows_stopped = run({1, 4, 5, 6, 10, 15})
    assert rows == rows_stopped
    assert [row["seconds"] for row in rows] == [5, 5, 5]  # of a step each
    for p, q in zip(straight.parameters(), stopped.parameters(), strict=True):
        np.testing.assert_array_equal(p, q)


def test_each_epoch_has_an_order_of_its_own_and_the_seed_decides_it():
    first, same, other = (random_streams(s).order for s in (0, 0, 1))
    orders = [g.permutation(50).tolist() for g in (first, first, same, other)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert orders[0] != orders[3]


def test_streams_do_not_disturb_each_other():
    one, two = random_streams(0), random_streams(0)
    one.weights.standard_normal(1000)
    assert one.order.integers(1 << 40) == two.order.integers(1 << 40)
    assert random_streams(0).weights.integers(1 << 40) != random_streams(0).feedback.integers(1 << 40)


def test_streams_are_restored_from_text_and_damaged_text_is_refused():
    streams = random_streams(3)
    state = streams.save()
    drawn = streams.order.integers(1 << 40)
    other = random_streams(4)
    other.restore(state)
    assert other.order.integers(1 << 40) == drawn
    for bad in ("", "{}", "[]", '{"weights": 1}'):
        with pytest.raises(ValueError, match="not the state"):
            other.restore(bad)


def test_events_count_steps_and_measure_at_the_interval():
    network, recipe, data, streams = prepared()
    events = list(
        train(network, recipe, data, data, epochs=2, batch_size=16, streams=streams, measure_every=3)
    )
    steps = [e for e in events if isinstance(e, StepDone)]
    assert [e.step for e in steps] == list(range(1, 11))
    assert [(e.epoch, e.batch, e.batches) for e in steps[4:6]] == [(1, 5, 5), (2, 1, 5)]
    assert [e.step for e in events if isinstance(e, Measured)] == [1, 4, 7, 10]
    row = next(e for e in events if isinstance(e, Measured)).row()
    assert [layer["layer"] for layer in row["layers"]] == ["hidden1", "hidden2", "output"]


def test_steps_are_numbered_from_one_through_all_epochs(monkeypatch):
    numbers = []

    def is_due(recipe, step):
        numbers.append(step)
        return False

    monkeypatch.setattr(Recipe, "is_due", is_due)
    network, recipe, data, streams = prepared()
    list(train(network, recipe, data, epochs=2, batch_size=16, streams=streams))
    assert list(dict.fromkeys(numbers)) == list(range(1, 11))


def test_losses_are_looked_at_every_so_many_steps_and_at_the_end_of_an_epoch(monkeypatch):
    looks = []
    monkeypatch.setattr(training, "LOOK_EVERY", 3)
    monkeypatch.setattr(training, "check_finite", lambda progress: looks.append(progress.step))
    network, recipe, data, streams = prepared()
    list(train(network, recipe, data, epochs=2, batch_size=10, streams=streams))  # of 7 batches
    assert list(dict.fromkeys(looks)) == [3, 6, 7, 9, 12, 14]


def test_measuring_does_not_change_what_is_learned():
    ends = []
    for every in (0, 1):
        network, recipe, data, streams = prepared(ortho_strength=0.1)
        list(
            train(
                network,
                recipe,
                data,
                None,
                epochs=2,
                batch_size=16,
                streams=streams,
                measure_every=every,
            )
        )
        ends.append(network.parameters())
    for p, q in zip(*ends, strict=True):
        np.testing.assert_array_equal(p, q)


def test_train_metrics_are_of_the_final_weights_or_running_means():
    for evaluate_train in (True, False):
        network, recipe, data, streams = prepared()
        events = train(
            network,
            recipe,
            data,
            None,
            epochs=1,
            batch_size=16,
            streams=streams,
            evaluate_train=evaluate_train,
        )
        losses, row = [], None
        for event in events:
            if isinstance(event, StepDone):
                losses.append(event.loss)
            elif isinstance(event, EpochDone):
                row = event.row
        tally = Tally()
        assert list(evaluate(network, data, recipe.loss, tally, batch_size=32)) == [None] * 3
        final = tally.means("train")["train_loss"]
        running = (16 * sum(losses[:4]) + 6 * losses[4]) / 70
        assert row["train_loss"] == pytest.approx(final if evaluate_train else running, rel=1e-5)
        assert "test_loss" not in row


def test_a_loss_that_is_not_finite_stops_before_the_weights_change_and_names_layer_and_step(rng):
    network, recipe, data, _ = prepared()
    network.layers[1].W[2, 3] = np.nan
    before = [p.copy() for p in network.parameters()]
    x, labels = next(data.batches(16))
    with pytest.raises(TrainingDivergedError, match=r"step 7.*hidden2"):
        train_step(network, recipe, x, labels, step=7)
    for p, q in zip(network.parameters(), before, strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
def test_weights_that_overflow_stop_the_run():
    network, recipe, data, streams = prepared("bp")
    recipe.optimizer = SGD(1e30)
    with pytest.raises(TrainingDivergedError, match="not finite"):
        list(train(network, recipe, data, None, epochs=3, batch_size=16, streams=streams))


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize(("evaluate_train", "name"), [(True, "train"), (False, "test")])
def test_a_last_step_after_which_nothing_is_finite_but_the_weights_ends_no_epoch(evaluate_train, name):
    network, recipe, data, streams = prepared("bp")
    recipe.optimizer = SGD(1e20)
    options = {"epochs": 1, "batch_size": 1000, "evaluate_train": evaluate_train}
    expected = f"the {name} loss is not finite after step 1; the first layer .* is hidden2"
    with pytest.raises(TrainingDivergedError, match=expected):
        list(train(network, recipe, data, data, streams=streams, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "gate"}, "gate"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"loss": "hinge"}, "hinge"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"ortho_strength": -1}, "ortho_strength is -1"),
        ({"labels": np.full(300, 3)}, "labels lie in 3..3; expected 0..2"),
        ({"x": np.zeros((300, 5))}, r"5 values a sample; the network takes \(12,\)"),
    ],
)
def test_fit_refuses_what_cannot_work(options, message, rng):
    x, labels = clusters(rng)
    arguments = {"x": x, "labels": labels, **options}
    with pytest.raises(ValueError, match=message):
        npgait.fit(npgait.models.square(12, 3), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": 3}, "rule is 3; expected a name"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"optimizer": Adam}, "optimizer is <class"),
        ({"learning_rate": None}, "learning_rate is None; expected a number"),
        ({"ortho_strength": "x"}, "ortho_strength is 'x'; expected a number"),
        ({"network": [1]}, "network is a list"),
    ],
)
def test_fit_names_what_is_of_a_wrong_type(options, message, rng):
    x, labels = clusters(rng)
    arguments = {"network": models.square(12, 3), "x": x, "labels": labels, **options}
    with pytest.raises(TypeError, match=message):
        npgait.fit(**arguments)


def test_other_wrong_types_are_named_too():
    for make, message in (
        (lambda: models.square(4, 3, device="cpu"), "device is 'cpu'"),
        (lambda: models.square(4, 3, f="relu"), "f is 'relu'; expected an activation"),
        (lambda: models.square(4, 3, f=np.tanh), "expected an activation"),
        (lambda: bind("gait", gamma="a"), "gamma is 'a'; expected a number"),
        (lambda: models.LeakyReLU("a"), "slope of the leaky ReLU is 'a'; expected a number"),
        (lambda: npgait.select_device(None), "device is None"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


@pytest.mark.parametrize("loss", [lambda losses: losses.mean(), list, lambda losses: losses[:3], id])
def test_a_loss_that_is_not_one_value_a_sample_is_refused(loss):
    network, recipe, _, _ = prepared("bp")

    def wrong(y, labels):
        losses, error = softmax_cross_entropy(y, labels)
        return loss(losses), error

    recipe.loss = wrong
    with pytest.raises(ValueError, match=r"the loss has shape .*; expected \(5,\), one value a sample"):
        train_step(network, recipe, np.ones((5, 12), np.float32), np.zeros(5, int))


def test_recipes_out_of_range_are_refused():
    for options in ({"regulariser": "l2"}, {"reduction": "max"}):
        with pytest.raises(ValueError, match=next(iter(options.values()))):
            Recipe(bind("bp"), squared_error, SGD(0.1), **options)
    with pytest.raises(ValueError, match="ortho_every is 0"):
        Recipe(bind("bp"), squared_error, SGD(0.1), ortho_every=0)
    with pytest.raises(ValueError, match="stable up to 1"):
        Recipe(bind("bp"), squared_error, SGD(0.1), ortho_strength=100, decoupled=True)


def test_arrays_of_any_library_with_dlpack_train_and_predict(rng):
    x, labels = clusters(rng)
    rows = []
    for wrap in (lambda array: array, Foreign):
        network = models.square(12, 3)
        rows.append(npgait.fit(network, wrap(x), wrap(labels), epochs=2, test=(wrap(x), wrap(labels))))
        np.testing.assert_array_equal(network.predict(wrap(x)), network.predict(x))
    assert rows[0][-1]["train_loss"] == rows[1][-1]["train_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"rule": None}, "rule is None"),
    ],
)
def test_fit_takes_whole_numbers_and_a_rule(options, message, rng):
    network = npgait.models.square(8, 3, width=8, depth=1)
    with pytest.raises(TypeError, match=message):
        npgait.fit(network, rng.standard_normal((6, 8)), [0, 1, 2, 0, 1, 2], **options)


def test_masked_arrays_and_batches_of_nothing_are_refused(rng):
    network = npgait.models.square(8, 3, width=8, depth=1)
    masked = np.ma.masked_array(rng.standard_normal((6, 8)), mask=True)
    with pytest.raises(TypeError, match="masked"):
        npgait.fit(network, masked, [0, 1, 2, 0, 1, 2])
    with pytest.raises(TypeError, match="masked"):
        network.predict(masked)
    with pytest.raises(ValueError, match="batch_size is -1"):
        network.predict(rng.standard_normal((6, 8)), batch_size=-1)
    with pytest.raises(TypeError, match=r"batch_size is 2\.5"):
        network.predict(rng.standard_normal((6, 8)), batch_size=2.5)


@pytest.mark.parametrize("kind", [complex, "U3", "datetime64[s]"])
def test_predict_refuses_what_are_no_real_numbers(kind):
    with pytest.raises(TypeError, match="expected real numbers"):
        models.square(3, 2).predict(np.zeros((4, 3)).astype(kind))
