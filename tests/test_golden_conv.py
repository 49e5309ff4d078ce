"""The vectors that the 2023 code computed, convolutions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from npgait.activations import LeakyReLU, Linear
from npgait.inverse import InverseSolver
from npgait.layers import Conv2D, Dense, Window
from npgait.layers.patches import count_patches
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.orthogonality import gram, orthonormal_gradient
from npgait.rules import bind
from tests.support import relative
from tests.test_golden_dense import carried, load

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

NAMES = ["conv_orthogonal", "conv_perturbed"]


def nhwc_rows(shape: tuple[int, int, int]) -> np.ndarray:
    """Where each value of a map flattened as (H, W, C) stands in the map flattened as (C, H, W)."""
    height, width, channels = shape
    return (
        np.arange(channels * height * width).reshape(channels, height, width).transpose(1, 2, 0).ravel()
    )


def build(z: Mapping, prefix: str = "") -> Network:
    used = [int(u) for u in z["used"]]
    shape = (*z["x"].shape[2:], z["x"].shape[1])
    layers = []
    for i, u in enumerate(used):
        W, b = z[f"{prefix}W{i}"], z[f"{prefix}b{i}"]
        if W.ndim == 4:
            window = Window(*shape, W.shape[0], int(z[f"stride{i}"]))
            layers.append(Conv2D(W.reshape(-1, W.shape[-1]), b, window, u, LeakyReLU(0.1), f"conv{i}"))
            shape = layers[-1].shape_out
        else:
            layers.append(Dense(W[nhwc_rows(shape)], b, u, Linear(), "output", shape))
    return Network(layers)


def as_published(layer, dW: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return dW with the rows of the published code."""
    if isinstance(layer, Conv2D):
        return dW.reshape(shape)
    published = np.empty_like(dW)
    published[nhwc_rows(layer.shape_in)] = dW
    return published


def to_nhwc(y: np.ndarray) -> np.ndarray:
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def batch(z: Mapping) -> tuple[np.ndarray, np.ndarray]:
    return to_nhwc(z["x"]), z["onehot"].argmax(axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_forward_loss_and_backpropagation_are_those_of_the_2023_code(name):
    z = load(name)
    network = build(z)
    x, labels = batch(z)
    for i, record in enumerate(network.forward(x, auxiliary=True)):
        assert relative(record.y, to_nhwc(z[f"y{i}"])) < 1e-12
    loss, error = softmax_cross_entropy(network.output(x), labels)
    assert loss.sum() == pytest.approx(float(z["loss"]), rel=1e-12)
    for i, (dW, db) in enumerate(bind("bp")(network.layers, network.forward(x), error)):
        shape = z[f"bp_dW{i}"].shape
        assert relative(as_published(network.layers[i], dW, shape), z[f"bp_dW{i}"]) < 1e-11
        assert relative(db, z[f"bp_db{i}"]) < 1e-11


@pytest.mark.parametrize("name", NAMES)
def test_feedback_kernels_give_the_feedback_alignment_of_the_2023_code(name):
    z = load(name)
    network = build(z, "fa_")
    x, labels = batch(z)
    _, error = softmax_cross_entropy(network.output(x), labels)
    feedback = []
    for i, layer in enumerate(network.layers):
        B = z[f"fa_feedback{i}"]
        flat = B.reshape(-1, B.shape[-1])
        feedback.append(flat if isinstance(layer, Conv2D) else flat[nhwc_rows(layer.shape_in)])
    updates = bind("fa", feedback=feedback)(network.layers, network.forward(x), error)
    for i, (dW, db) in enumerate(updates):
        shape = z[f"fa_dW{i}"].shape
        assert relative(as_published(network.layers[i], dW, shape), z[f"fa_dW{i}"]) < 1e-11
        assert relative(db, z[f"fa_db{i}"]) < 1e-11


@pytest.mark.parametrize("method", ["lu", "auto"])
@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("mode", ["vanilla", "normalised", "vanilla_big", "normalised_big"])
@pytest.mark.parametrize("name", NAMES)
def test_gait_prop_is_that_of_the_2023_code(name, mode, targets, method):
    z = load(name)
    network = build(z)
    x, labels = batch(z)
    rule = bind(
        "gait",
        gamma=float(z[f"{mode}_gamma"]),
        normalised=mode.startswith("normalised"),
        targets=targets,
        solver=InverseSolver(method=method),
    )
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, : network.n_classes], labels)
    grams = [gram(layer.W) if layer.has_inverse else None for layer in network.layers]
    # The published target error is half the gradient, the published local loss a squared error.
    updates = rule(network.layers, records, error / 2, grams)
    last = len(updates) - 1
    for i, (dW, db) in enumerate(updates):
        # Overlapping fields add their rounding up: one digit less than a dense layer leaves.
        published = {
            "vanilla": carried(last - i) * (10 if last - i > 1 else 1),
            "normalised": 1e-6 if i < last else 1e-10,
        }
        tolerance = published.get(mode, 1e-10)
        shape = z[f"{mode}_dW{i}"].shape
        assert relative(as_published(network.layers[i], 2 * dW, shape), z[f"{mode}_dW{i}"]) < tolerance
        assert relative(2 * db, z[f"{mode}_db{i}"]) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_regulariser_and_reconstruction_correction_are_those_of_the_2023_code(name):
    z = load(name)
    for i, layer in enumerate(build(z).layers):
        if i and isinstance(layer, Conv2D):
            got = orthonormal_gradient(layer.W, gram(layer.W))
            expected = z[f"ortho{i}"].reshape(got.shape)
            assert np.linalg.norm(got - expected) < 1e-13 * np.linalg.norm(4 * layer.W)
            counts = count_patches(layer.window, np, np.dtype(float))
            np.testing.assert_allclose(counts, to_nhwc(z[f"correction{i}"]), rtol=1e-14)
