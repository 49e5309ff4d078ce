"""Implicit auxiliary units: the same updates as stored ones, without the weights that carry no error."""

from __future__ import annotations

import numpy as np
import pytest

import npgait
from npgait import models
from npgait.layers import Conv2D, Dense, Window
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.rules import bind
from tests.support import relative


def network_of_both_kinds(rng, implicit):
    """conv 3x3 of 4 channels, conv 3x3 of 5, dense 7: all auxiliary units implicit, or all stored."""
    layers = []
    below, channels = (8, 8), 3
    for used in (4, 5):
        window = Window(*below, channels, 3, 2, "SAME")
        W = random_tall(rng, window.patch_size, used)
        layers.append((window, W))
        below, channels = window.positions, used
    n = below[0] * below[1] * channels
    built = []
    for number, (window, W) in enumerate(layers):
        hidden = number > 0
        stored = completed(W) if hidden and not implicit else W
        b = np.zeros(stored.shape[1])
        conv = Conv2D(stored, b, window, W.shape[1], name=f"conv{number}", implicit=implicit and hidden)
        built.append(conv)
    W = random_tall(rng, n, 7)
    stored = W if implicit else completed(W)
    shape = (*below, channels)
    built.append(
        Dense(stored, np.zeros(stored.shape[1]), 7, name="out", shape_in=shape, implicit=implicit)
    )
    return Network(built)


def random_tall(rng, n, m):
    return rng.standard_normal((n, m)) / np.sqrt(n)


def completed(W):
    m = W.shape[1]
    return np.hstack([W, np.linalg.qr(W, mode="complete")[0][:, m:]])


@pytest.mark.parametrize("rule", ["tp", "itp", "gait"])
@pytest.mark.parametrize("normalised", [True, False])
def test_updates_are_those_of_stored_auxiliary_units(rule, normalised):
    x = np.random.default_rng(1).standard_normal((6, 8, 8, 3))
    labels = np.arange(6)
    updates = []
    for implicit in (True, False):
        network = network_of_both_kinds(np.random.default_rng(0), implicit)
        records = network.forward(x)
        _, error = softmax_cross_entropy(records[-1].y, labels)
        updates.append(bind(rule, normalised=normalised, gamma=1e-3)(network.layers, records, error))
    for layer, (dW, db), (dW_stored, db_stored) in zip(network.layers, *updates, strict=True):
        assert relative(dW, dW_stored[:, : layer.used]) < 1e-9
        assert relative(db, db_stored[: layer.used]) < 1e-9
        assert not dW_stored[:, layer.used :].any()


def test_counted_units_are_those_of_the_completed_layer():
    implicit, stored = (network_of_both_kinds(np.random.default_rng(0), i) for i in (True, False))
    assert [l.n_units for l in implicit.layers] == [l.n_units for l in stored.layers]
    assert [l.has_inverse for l in implicit.layers] == [False, True, True]


@pytest.mark.parametrize("name", ["square", "tower", "cifar10", "imagenet"])
def test_every_model_is_built_with_implicit_units_and_smaller(name):
    sizes = {"square": {"n_in": 20}, "tower": {"n_in": 20, "widths": (12, 9)}}
    options = sizes.get(name, {})
    if name == "cifar10":
        options = {"n_in": 48, "width": 30, "depth": 2}
    if name == "imagenet":
        options = {"shape_in": (32, 32, 3)}
    stored = models.MODELS[name](n_classes=5, auxiliary=True, **options)
    implicit = models.MODELS[name](n_classes=5, auxiliary="implicit", **options)
    assert all(layer.has_inverse for layer in implicit.layers[1:])
    for one, other in zip(implicit.layers[1:], stored.layers[1:], strict=True):
        assert (one.used, one.shape_in, one.n_units) == (other.used, other.shape_in, other.n_units)
    assert sum(p.size for p in implicit.parameters()) < sum(p.size for p in stored.parameters())
    x = np.random.default_rng(0).standard_normal((9, *implicit.shape_in))
    rows = npgait.fit(implicit, x, np.arange(9) % 5, epochs=60, batch_size=9, learning_rate=3e-3)
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]


def test_absolute_targets_refuse_implicit_units():
    network = models.square(12, 3, auxiliary="implicit", dtype="float64")
    records = network.forward(np.ones((2, 12)), auxiliary=True)
    _, error = softmax_cross_entropy(records[-1].y, np.zeros(2, int))
    with pytest.raises(ValueError, match="output: its auxiliary units are implicit"):
        bind("gait", targets="absolute")(network.layers, records, error)


def test_layers_that_cannot_be_completed_are_refused():
    with pytest.raises(ValueError, match="no more than the inputs"):
        Dense(np.ones((3, 5)), np.ones(5), implicit=True)
    with pytest.raises(ValueError, match="all outputs are used"):
        Dense(np.ones((5, 3)), np.ones(3), used=2, implicit=True)
    with pytest.raises(ValueError, match="auxiliary is 'virtual'"):
        models.square(4, 2, auxiliary="virtual")
