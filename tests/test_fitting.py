"""The whole library in one call: what `fit` hands on to the training loop."""

from __future__ import annotations

import numpy as np
import pytest

from npgait import fitting, models
from npgait.losses import LOSSES
from npgait.optimizers import SGD, Adam
from npgait.rules import bind
from npgait.streams import random_streams
from npgait.training import EpochDone
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture


@pytest.fixture
def handed_on(monkeypatch):
    """What the training loop was given; it trains nothing, and ends one epoch."""
    seen = {}

    def train(network, recipe, train_data, test_data, **options):
        seen.update(options, recipe=recipe, train=train_data, test=test_data)
        yield EpochDone({"epoch": 1})

    monkeypatch.setattr(fitting, "train", train)
    return seen


def fit(**options):
    x, labels = np.arange(48.0).reshape(6, 8), [0, 1, 2, 0, 1, 2]
    return fitting.fit(models.square(8, 3, width=4, depth=1), x, labels, **options)


@pytest.mark.parametrize(
    ("rule", "strength"),
    [("bp", 0), ("fa", 0), ("dfa", 0), ("tp", 3), ("itp", 3), ("gait", 3), (bind("bp"), 3)],
)
def test_a_rule_by_name_is_regularised_where_it_inverts_and_a_bound_one_as_asked(
    rule, strength, handed_on
):
    fit(rule=rule, ortho_strength=3)
    recipe = handed_on["recipe"]
    assert recipe.ortho_strength == strength
    assert recipe.rule is rule or recipe.rule.name == rule


def test_each_option_reaches_the_training_loop(handed_on):
    optimizer = SGD(0.5)
    rows = fit(
        epochs=7, batch_size=5, optimizer=optimizer, loss="squared_error", seed=3, graphs=False,
        test=(np.ones((2, 8)), [0, 1]),
    )  # fmt: skip
    assert rows == [{"epoch": 1}]
    assert (handed_on["epochs"], handed_on["batch_size"], handed_on["graphs"]) == (7, 5, False)
    assert handed_on["recipe"].optimizer is optimizer
    assert handed_on["recipe"].loss is LOSSES["squared_error"]
    assert (len(handed_on["train"]), len(handed_on["test"])) == (6, 2)
    order, expected = (s.order.integers(0, 99, 9) for s in (handed_on["streams"], random_streams(3)))
    np.testing.assert_array_equal(order, expected)


def test_adam_at_the_rate_asked_for_and_cross_entropy_are_the_defaults(handed_on):
    fit(learning_rate=0.125)
    recipe = handed_on["recipe"]
    assert (type(recipe.optimizer), recipe.optimizer.learning_rate) == (Adam, 0.125)
    assert recipe.loss is LOSSES["cross_entropy"] and recipe.rule.name == "gait"
    assert handed_on["graphs"] is True and handed_on["test"] is None


def test_batches_are_checked_against_the_network_and_of_its_dtype_and_device(handed_on, fake_gpu):  # noqa: F811
    network = models.square(8, 3, width=4, depth=1, dtype="float64", device=fake_gpu)
    x, labels = np.ones((6, 8)), [0, 1, 2, 0, 1, 2]
    fitting.fit(network, x, labels, rule="bp", test=(x, labels))
    for name in ("train", "test"):
        ((batch, own),) = handed_on[name].batches(9)
        assert (type(batch), batch.shape, batch.dtype) == (fake_gpu.xp.ndarray, (6, 8), "float64")
        assert type(own) is fake_gpu.xp.ndarray
    with pytest.raises(ValueError, match=r"labels lie in 0\.\.3; expected 0\.\.2"):
        fitting.fit(network, x, labels, rule="bp", test=(x, [0, 1, 2, 3, 1, 2]))


@pytest.mark.parametrize(
    "wrong", [{"loss": ["cross_entropy"]}, {"loss": "mse"}, {"seed": -1}, {"seed": "a"}]
)
def test_a_loss_or_a_seed_that_is_none_is_refused_by_its_name(wrong, handed_on):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        fit(**wrong)


@pytest.mark.parametrize("test", [np.ones((6, 8)), (np.ones((6, 8)),), (np.ones((6, 8)), [0] * 6, 1)])
def test_a_test_set_is_a_pair(test, handed_on):
    with pytest.raises(TypeError, match="expected a pair"):
        fit(test=test)
