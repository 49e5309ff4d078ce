"""Networks in files: read back bit for bit, from a file of their own or from a run's checkpoint."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import npgait
from npgait import models
from npgait.activations import LeakyReLU, Linear
from npgait.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from npgait.cli.main import cli
from npgait.layers import Conv2D, Dense, Window
from npgait.network import Network
from npgait.rules import draw_feedback
from npgait.saving import describe, load_network, save_network

KINDS = {
    "square": lambda **o: models.square(30, 4, width=20, depth=2, **o),
    "tower": lambda **o: models.tower(30, 4, widths=(20, 9), **o),
    "linear": lambda **o: models.square(30, 4, depth=1, f_output=Linear(), **o),
    "imagenet": lambda **o: models.imagenet((33, 29, 3), 4, **o),
}


@pytest.mark.parametrize("auxiliary", [True, False, "implicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_comes_back_bit_for_bit(kind, auxiliary, dtype, tmp_path, rng):
    network = KINDS[kind](auxiliary=auxiliary, dtype=dtype)
    npgait.save_network(tmp_path / "net.h5", network)
    back = npgait.load_network(tmp_path / "net.h5")
    assert describe(back) == describe(network)
    x = rng.standard_normal((3, *network.shape_in)).astype(dtype)
    np.testing.assert_array_equal(back.output(x), network.output(x))
    for one, other in zip(back.parameters(), network.parameters(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_that_came_back_goes_on_learning(tmp_path, rng):
    network = models.square(12, 3, depth=2)
    npgait.save_network(tmp_path / "net.h5", network)
    x = rng.standard_normal((60, 12))
    rows = npgait.fit(npgait.load_network(tmp_path / "net.h5"), x, (x[:, 0] > 0).astype(int), epochs=3)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_file_is_plain_hdf5_with_names_that_a_reader_knows(tmp_path):
    network = models.square(12, 3, depth=1)
    npgait.save_network(tmp_path / "net.h5", network)
    with h5py.File(tmp_path / "net.h5") as file:
        np.testing.assert_array_equal(file["parameters/hidden1/W"][()], network.layers[0].W)


def test_the_checkpoint_of_a_run_is_a_network_too(tmp_path):
    arguments = ["run", "digits", "-e", "gait", "--set", "epochs=1", "--no-plots", "--quiet"]
    run = CliRunner().invoke(cli, [*arguments, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    network = npgait.load_network(tmp_path / "run" / "gait" / "checkpoint.h5")
    assert (network.n_classes, network.shape_in) == (10, (64,))


def layer(**changes):
    return {"kind": "dense", "name": "a", "used": 2, "slope": 0.1, "shape_in": [3], "implicit": False,
            **changes}  # fmt: skip


@pytest.mark.parametrize(
    "network",
    [
        "text",
        [],
        [1],
        [layer(kind="lstm")],
        [layer(used=5)],
        [layer(used=-1)],
        [layer(used=2.5)],
        [layer(slope=-1.0)],
        [layer(slope=float("nan"))],
        [layer(slope="0.1")],
        [layer(shape_in=[4])],
        [layer(shape_in=[1 << 62, 1 << 62])],
        [layer(name="b")],
        [layer(implicit=True, used=1)],
        [layer(kind="conv", window=[1, 1, 3, 1, 1, "SAME"]), layer(kind="conv", window=[9])],
        [layer(kind="conv", window=[4, 4, 3, 9, 1, "VALID"])],
    ],
)
def test_a_description_that_does_not_fit_is_one_clear_line(network, tmp_path):
    arrays = {"parameters": {"a/W": np.ones((3, 2), np.float32), "a/b": np.ones(2, np.float32)}}
    path = tmp_path / "net.h5"
    save_checkpoint(path, Checkpoint({"network": network}, {**arrays, "optimizer": {}, "feedback": {}}))
    with pytest.raises(CheckpointError, match=r"net\.h5") as caught:
        npgait.load_network(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "other"), [("f4", "f8"), ("f2", "f2"), ("i4", "i4")])
def test_a_file_whose_weights_are_of_no_dtype_of_a_network_is_refused(kind, other, tmp_path):
    arrays = {"parameters": {"a/W": np.ones((3, 2), kind), "a/b": np.ones(2, other)}}
    path = tmp_path / "net.h5"
    save_checkpoint(
        path, Checkpoint({"network": [layer()]}, {**arrays, "optimizer": {}, "feedback": {}})
    )
    with pytest.raises(CheckpointError, match="expected both float32 or both float64"):
        npgait.load_network(path)


def test_files_without_a_network_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        npgait.load_network(tmp_path / "nothing.h5")
    empty = {"parameters": {}, "optimizer": {}, "feedback": {}}
    save_checkpoint(tmp_path / "old.h5", Checkpoint({}, empty))
    with pytest.raises(CheckpointError, match="earlier npgait"):
        npgait.load_network(tmp_path / "old.h5")
    npgait.save_network(tmp_path / "net.h5", models.square(12, 3))
    data = bytearray((tmp_path / "net.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "net.h5").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"net\.h5"):
        npgait.load_network(tmp_path / "net.h5")


def test_layers_of_unknown_kinds_are_not_written(tmp_path):
    network = models.square(4, 2, depth=1)
    network.layers[0].f = object()
    with pytest.raises(TypeError, match="expected LeakyReLU or Linear"):
        npgait.save_network(tmp_path / "net.h5", Network(network.layers))
    assert not (tmp_path / "net.h5").exists()


def test_layers_that_share_a_name_are_numbered_and_all_of_them_saved(tmp_path, rng):
    layers = [Dense(rng.standard_normal((6, 6)), np.zeros(6)) for _ in range(2)]
    layers.append(Dense(rng.standard_normal((6, 3)), np.zeros(3), name="dense1"))
    network = Network(layers)
    assert [layer.name for layer in layers] == ["dense2", "dense3", "dense1"]
    save_network(tmp_path / "net.h5", network)
    x = rng.standard_normal((9, 6))
    np.testing.assert_array_equal(load_network(tmp_path / "net.h5").output(x), network.output(x))


def test_one_layer_cannot_stand_in_a_network_twice(rng):
    layer = Dense(rng.standard_normal((6, 6)), np.zeros(6))
    with pytest.raises(ValueError, match="stands in the network twice"):
        Network([layer, layer])


def test_a_layer_or_activation_of_ones_own_is_refused_not_saved_as_what_it_derives_from(tmp_path):
    class Sparse(Dense):
        """A layer that a file knows nothing of."""

    class Bent(LeakyReLU):
        """An activation that a file knows nothing of."""

    W, b = np.eye(4), np.zeros(4)
    for layer, kind in ((Sparse(W, b), "Sparse"), (Dense(W, b, f=Bent()), "Bent")):
        with pytest.raises(TypeError, match=kind):
            save_network(tmp_path / "network.h5", Network([layer]))
    assert not list(tmp_path.iterdir())


def test_sizes_of_numpy_are_saved_and_read_back(tmp_path):
    i, f = np.int64, np.float32
    networks = [
        models.square(i(8), i(3), width=i(6), depth=i(2), f=LeakyReLU(f(0.25))),
        models.tower(8, 3, widths=np.array([6, 5])),
        models.imagenet(np.array([32, 32, 3]), i(3)),
        Network([Dense(np.eye(4), np.zeros(4), used=i(2), shape_in=np.array([2, 2]))]),
    ]
    for network in networks:
        save_network(tmp_path / "network.h5", network)
        same = load_network(tmp_path / "network.h5")
        assert describe(same) == describe(network)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dense(np.eye(3, dtype="f4"), np.zeros(3)), "W is <f4 and b is <f8"),
        (lambda: Dense(np.eye(3, dtype="f2"), np.zeros(3, "f2")), "expected both float32"),
        (lambda: Dense(np.eye(3, dtype=">f4"), np.zeros(3, ">f4")), "expected both float32"),
        (lambda: Dense(np.eye(3, dtype=int), np.zeros(3, int)), "expected both float32"),
        (lambda: Dense(np.eye(3), np.zeros(3), used=2.0), "used is 2.0"),
        (lambda: Conv2D(np.ones((9, 2), "f4"), np.zeros(2), Window(5, 5, 1, 3)), "W is <f4"),
        (lambda: Window(5, 5.5, 1, 3), "width of a window is 5.5"),
        *(
            (lambda name=name: Network([Dense(np.eye(3), np.zeros(3), name=name)]), "is called")
            for name in ("", ".", "..", "a/b", "/", "a\0b", "a\n")
        ),
    ],
)
def test_what_no_file_could_hold_is_refused_before_it_is_trained(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_feedback_is_fixed_from_fit_to_fit_and_from_file_to_file(rule, tmp_path, rng):
    network = models.square(12, 3, width=16, depth=2, auxiliary=False)
    network.feedback = draw_feedback(rule, network, np.random.default_rng(77))
    own = {key: B.copy() for key, B in network.named_feedback().items()}
    x, labels = rng.standard_normal((20, 12)), rng.integers(0, 3, 20)
    npgait.fit(network, x, labels, rule=rule, epochs=1)
    npgait.fit(network, x, labels, rule="bp", epochs=1)
    npgait.save_network(tmp_path / "net.h5", network)
    back = npgait.load_network(tmp_path / "net.h5")
    npgait.fit(back, x, labels, rule=rule, epochs=1, seed=5)
    for kept in (network.named_feedback(), back.named_feedback()):
        assert kept.keys() == own.keys()
        for key, B in own.items():
            np.testing.assert_array_equal(kept[key], B)


def test_feedback_of_other_shapes_is_drawn_anew(rng):
    network = models.square(12, 3, width=16, depth=2, auxiliary=False)
    x, labels = rng.standard_normal((20, 12)), rng.integers(0, 3, 20)
    for rule in ("fa", "dfa"):
        npgait.fit(network, x, labels, rule=rule, epochs=1)
        drawn = draw_feedback(rule, network, np.random.default_rng(0))
        assert [np.shape(B) for B in network.feedback] == [np.shape(B) for B in drawn]


@pytest.mark.parametrize(
    ("key", "B"), [("9", np.eye(3)), ("1", np.ones(3)), ("1", np.eye(3, dtype=int))]
)
def test_a_file_whose_feedback_fits_no_layer_is_refused(key, B, tmp_path):
    network = models.square(12, 3, width=16, depth=2, dtype="float64")
    arrays = {
        "parameters": dict(network.named_parameters()),
        "optimizer": {},
        "feedback": {key: B},
    }
    save_checkpoint(tmp_path / "net.h5", Checkpoint({"network": describe(network)}, arrays))
    with pytest.raises(CheckpointError, match=f"feedback {key}"):
        load_network(tmp_path / "net.h5")
