"""The vectors that the two published codes computed, dense layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from npgait.activations import LeakyReLU, Linear
from npgait.inverse import InverseSolver
from npgait.layers import Dense
from npgait.losses import softmax_cross_entropy, squared_error
from npgait.network import Network
from npgait.optimizers import Adam
from npgait.orthogonality import gram, orthonormal_gradient
from npgait.rules import bind
from tests.support import relative

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
DENSE_2023 = ["dense_orthogonal", "dense_perturbed"]
DENSE_2020 = ["square2020", "square2020_linear", "tower2020"]
LU = InverseSolver(method="lu")


def load(name: str) -> Mapping[str, np.ndarray]:
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no vectors of the published code at {path}")
    with np.load(path) as file:
        return dict(file)


def carried(layers_above: int) -> float:
    """What gamma = 1e-3 leaves of the published float64: three digits lost a layer, three by W^-1."""
    return max(1e-10, 1e-16 * 1e3**layers_above * 1e3)


def layers_2023(z: Mapping, *, fa: bool = False) -> list[Dense]:
    prefix, used = "fa_" if fa else "", [int(u) for u in z["used"]]
    last = len(used) - 1
    return [
        Dense(
            z[f"{prefix}W{i}"],
            z[f"{prefix}b{i}"],
            used[i],
            Linear() if i == last else LeakyReLU(0.1),
            f"layer{i}",
        )
        for i in range(len(used))
    ]


def input_2023(z: Mapping) -> tuple[np.ndarray, np.ndarray]:
    return z["x"].reshape(len(z["x"]), -1), z["onehot"].argmax(axis=1)


@pytest.mark.parametrize("name", DENSE_2023)
def test_forward_loss_and_backpropagation_are_those_of_the_2023_code(name):
    z = load(name)
    network = Network(layers_2023(z))
    x, labels = input_2023(z)
    records = network.forward(x, auxiliary=True)
    for i, record in enumerate(records):
        assert relative(record.y, z[f"y{i}"]) < 1e-13
    loss, error = softmax_cross_entropy(network.output(x), labels)
    assert loss.sum() == pytest.approx(float(z["loss"]), rel=1e-13)
    for i, (dW, db) in enumerate(bind("bp")(network.layers, network.forward(x), error)):
        assert relative(dW, z[f"bp_dW{i}"]) < 1e-12
        assert relative(db, z[f"bp_db{i}"]) < 1e-12


@pytest.mark.parametrize("name", DENSE_2023)
def test_feedback_alignment_is_that_of_the_2023_code(name):
    z = load(name)
    network = Network(layers_2023(z, fa=True))
    x, labels = input_2023(z)
    _, error = softmax_cross_entropy(network.output(x), labels)
    rule = bind("fa", feedback=[z[f"fa_feedback{i}"] for i in range(len(network.layers))])
    for i, (dW, db) in enumerate(rule(network.layers, network.forward(x), error)):
        assert relative(dW, z[f"fa_dW{i}"]) < 1e-12
        assert relative(db, z[f"fa_db{i}"]) < 1e-12


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("mode", ["vanilla", "normalised", "vanilla_big", "normalised_big"])
@pytest.mark.parametrize("name", DENSE_2023)
def test_gait_prop_is_that_of_the_2023_code(name, mode, targets):
    z = load(name)
    network = Network(layers_2023(z))
    x, labels = input_2023(z)
    rule = bind(
        "gait",
        gamma=float(z[f"{mode}_gamma"]),
        normalised=mode.startswith("normalised"),
        targets=targets,
        solver=LU,
    )
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, : network.n_classes], labels)
    # The published target error is half the gradient, the published local loss a squared error.
    updates = rule(network.layers, records, error / 2)
    last = len(updates) - 1
    for i, (dW, db) in enumerate(updates):
        published = {
            "vanilla": carried(last - i),
            "normalised": 1e-7 if i < last else 1e-10,
            "vanilla_big": 1e-10,
            "normalised_big": 1e-10,
        }
        tolerance = published[mode]
        if tolerance < 0.1:
            assert relative(2 * dW, z[f"{mode}_dW{i}"]) < tolerance
            assert relative(2 * db, z[f"{mode}_db{i}"]) < tolerance


@pytest.mark.parametrize("name", DENSE_2023)
def test_regulariser_gradient_is_that_of_the_2023_code(name):
    z = load(name)
    for layer, key in [(layer, f"ortho{i}") for i, layer in enumerate(layers_2023(z)) if i]:
        W = layer.W
        # The orthogonal file's gradient is rounding noise around zero: compare on the scale of 4 W.
        error = np.linalg.norm(orthonormal_gradient(W, gram(W)) - z[key])
        assert error < 1e-13 * np.linalg.norm(4 * W)


def network_2020(z: Mapping) -> Network:
    count = len(z["used"])
    n_classes = z["onehot"].shape[-1]
    used = [*(z[f"W{i}"].shape[0] for i in range(1, count)), n_classes]
    f = Linear() if z["linear"] else LeakyReLU(0.1)
    return Network(
        [Dense(z[f"W{i}"].copy(), z[f"b{i}"].copy(), used[i], f, f"layer{i}") for i in range(count)]
    )


RULES_2020 = {
    "bp": {"name": "bp"},
    "tp": {"name": "tp"},
    "gait": {"name": "gait", "gamma": 1e-3, "normalised": False},
    "gait_big": {"name": "gait", "gamma": 0.3, "normalised": False},
}


def mean_updates(network: Network, rule, x, onehot) -> list[np.ndarray]:
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = squared_error(records[-1].y[:, : network.n_classes], onehot.argmax(axis=1))
    updates = rule(network.layers, records, error)
    return [gradient / len(x) for pair in updates for gradient in pair]


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("rule_name", RULES_2020)
@pytest.mark.parametrize("name", DENSE_2020)
def test_updates_are_those_of_the_2020_code(name, rule_name, targets):
    z = load(name)
    network = network_2020(z)
    rule = bind(**RULES_2020[rule_name], targets=targets, solver=LU)
    gradients = mean_updates(network, rule, z["x"][0], z["onehot"][0])
    last = len(network.layers) - 1
    for i in range(last + 1):
        tolerance = carried(last - i) if rule_name == "gait" else 1e-10
        assert relative(-gradients[2 * i], z[f"{rule_name}_W{i}"]) < tolerance
        assert relative(-gradients[2 * i + 1], z[f"{rule_name}_b{i}"]) < tolerance


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("rule_name", RULES_2020)
@pytest.mark.parametrize("name", DENSE_2020)
def test_twenty_steps_of_adam_are_those_of_the_2020_code(name, rule_name, targets):
    z = load(name)
    network = network_2020(z)
    rule = bind(**RULES_2020[rule_name], targets=targets, solver=LU)
    adam = Adam(1e-3, 0.9, 0.99, 1e-8, bias_correction=False)
    for x, onehot in zip(z["x"], z["onehot"], strict=True):
        adam.step(network.parameters(), mean_updates(network, rule, x, onehot))
    # The lowest layer's rounding reaches all others through the next step's forward pass.
    tolerance = carried(len(network.layers) - 1) if rule_name == "gait" else 1e-10
    for i, layer in enumerate(network.layers):
        assert relative(layer.W, z[f"{rule_name}_after20_W{i}"]) < tolerance
        assert relative(layer.b, z[f"{rule_name}_after20_b{i}"]) < tolerance
