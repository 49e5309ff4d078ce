"""What the library does for a GPU, with a stand-in for CuPy: no mixing, no waiting, the same numbers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from npgait import models, training
from npgait.backend import to_host
from npgait.data import array_data, scaling_of
from npgait.fitting import fit
from npgait.gpu import Uploader
from npgait.inverse import InverseSolver
from npgait.layers import Dense
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.optimizers import SGD, Adam
from npgait.orthogonality import REGULARISERS
from npgait.rules import NAMES, bind, draw_feedback
from npgait.saving import load_network, save_network
from npgait.streams import random_streams
from npgait.training import EpochDone, Recipe, TrainingDivergedError, train, train_step
from tests.fake_cupy import Counter, FakeArray, current, fake_gpu  # noqa: F401 - a fixture
from tests.support import relative


def network_on(device, kind, rule, dtype="float64"):
    auxiliary = {"gait": True, "tp": "implicit", "itp": True}.get(rule, False)
    if kind == "dense":
        network = models.square(
            30, 5, width=24, depth=2, auxiliary=auxiliary, seed=3, dtype=dtype, device=device
        )
    else:
        network = models.imagenet(
            (32, 32, 3), 5, auxiliary=auxiliary, seed=3, dtype=dtype, device=device
        )
    network.feedback = draw_feedback(rule, network, np.random.default_rng(0))
    return network


def recipe_for(network, rule, **options):
    return Recipe(
        bind(rule, feedback=network.feedback), softmax_cross_entropy, Adam(1e-6, epsilon=1e-4), **options
    )


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("rule", NAMES)
def test_steps_on_a_device_end_where_numpys_do_and_hardly_wait(rule, kind, fake_gpu, rng):  # noqa: F811
    from npgait.backend import CPU

    strength = 0.3 if rule in ("tp", "itp", "gait") else 0.0
    ends = []
    for device in (CPU, fake_gpu):
        network = network_on(device, kind, rule)
        recipe = recipe_for(network, rule, ortho_strength=strength)
        generator = np.random.default_rng(1)
        x = generator.standard_normal((6, *network.shape_in))
        labels = generator.integers(0, 5, 6)
        x, labels = device.xp.asarray(x), device.xp.asarray(labels)
        waited = 0
        for step in range(1, 13):
            Counter.waits = 0
            train_step(network, recipe, x, labels, step=step)
            waited += Counter.waits > 0
        ends.append([to_host(p) for p in network.parameters()])
    # Rules that invert look at 1, 2, 4 and 8, where nothing changes; the others never.
    assert waited <= (6 if strength else 0)
    for got, expected in zip(ends[1], ends[0], strict=True):
        assert relative(got, expected) < 1e-8


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_regularisers_do_not_wait_for_the_device(regulariser, decoupled, fake_gpu, rng):  # noqa: F811
    network = network_on(fake_gpu, "dense", "gait", "float32")
    options = {"regulariser": regulariser, "ortho_strength": 0.25, "decoupled": decoupled}
    recipe = recipe_for(network, "gait", ortho_every=2, **options)
    x = fake_gpu.xp.asarray(rng.standard_normal((6, 30)).astype(np.float32))
    labels = fake_gpu.xp.asarray(rng.integers(0, 5, 6))
    waited = []
    for step in range(40):
        Counter.waits = 0
        train_step(network, recipe, x, labels, step=step)
        waited.append(Counter.waits > 0)
    assert sum(waited) <= 14  # two ways to make the product take turns, each looked at ever more seldom
    assert sum(waited[:20]) > sum(waited[20:])
    assert all(type(p) is FakeArray for p in network.parameters())


def test_training_from_bytes_in_host_memory_is_numpys_and_waits_seldom(fake_gpu, rng):  # noqa: F811
    from npgait.backend import CPU

    x = rng.integers(0, 256, (640, 30), dtype=np.uint8)
    labels = rng.integers(0, 5, 640)
    rows, waits = [], 0
    for device in (CPU, fake_gpu):
        network = network_on(device, "dense", "gait", "float32")
        data = array_data(x, labels, scaling=scaling_of(x, "standard"), device=device)
        Counter.waits = 0
        recipe = recipe_for(network, "gait", ortho_strength=1.0)
        options = {"epochs": 2, "batch_size": 16, "streams": random_streams(0), "evaluate_train": False}
        for event in train(network, recipe, data, data, **options):
            if isinstance(event, EpochDone):
                rows.append(event.row)
        waits = Counter.waits
    for cpu, gpu in zip(rows[:2], rows[2:], strict=True):
        assert gpu["train_loss"] == pytest.approx(cpu["train_loss"], rel=1e-4)
        assert abs(gpu["test_top1"] - cpu["test_top1"]) < 0.01
        assert isinstance(gpu["train_loss"], float)
    # In 80 steps and two evaluations; a look at one product is several, and so is trust in a recording.
    assert waits < 150


@pytest.mark.parametrize("on_device", [True, False])
def test_labels_live_where_the_samples_do(on_device, fake_gpu, rng):  # noqa: F811
    """The index that chooses a batch is of one library, and NumPy's arrays take none of CuPy's."""
    x, labels = rng.standard_normal((20, 30)), rng.integers(0, 5, 20)
    pairs = [(fake_gpu.xp.asarray(x), labels), (x, fake_gpu.xp.asarray(labels))]
    data = array_data(*pairs[0 if on_device else 1], device=fake_gpu)
    assert type(data.x) is type(data.labels) is (FakeArray if on_device else np.ndarray)
    for batch, own in data.batches(8, rng.permutation(20)):
        assert type(batch) is type(own) is FakeArray


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "<f4", "u1"])
def test_samples_of_either_byte_order_arrive_as_they_are(dtype, fake_gpu, rng):  # noqa: F811
    x, labels = rng.integers(0, 100, (20, 30)).astype(dtype), rng.integers(0, 5, 20)
    ((batch, _),) = array_data(x, labels, device=fake_gpu).batches(20)
    np.testing.assert_array_equal(to_host(batch), x)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_a_thread_computes_on_the_gpu_of_its_network(kind, fake_gpu, tmp_path, rng):  # noqa: F811
    """Each thread begins on the first GPU, and this is the second."""
    network = network_on(fake_gpu, kind, "gait", "float32")
    x, labels = rng.standard_normal((20, *network.shape_in)), rng.integers(0, 5, 20)
    save_network(tmp_path / "network.h5", network)
    uses = {
        "fit": lambda: fit(network, x, labels, epochs=2),
        "predict": lambda: network.predict(x),
        "forward": lambda: network.forward(fake_gpu.xp.asarray(x.astype(np.float32))),
        "build": lambda: (network_on(fake_gpu, kind, "fa"), current.index),
        "load": lambda: (load_network(tmp_path / "network.h5", device=fake_gpu), current.index),
    }
    for name, use in uses.items():
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(use).result()
        assert name not in ("build", "load") or result[1] == fake_gpu.index


def test_a_network_is_trained_on_its_gpu_whatever_happens_between_steps(fake_gpu, rng):  # noqa: F811
    network = network_on(fake_gpu, "dense", "gait", "float32")
    data = array_data(
        rng.standard_normal((64, 30)), rng.integers(0, 5, 64), device=fake_gpu, dtype="float32"
    )
    options = {"epochs": 2, "batch_size": 16, "streams": random_streams(0), "measure_every": 3}
    for _ in train(network, recipe_for(network, "gait", ortho_strength=0.5), data, data, **options):
        current.index = 0  # another network is trained there, say


def test_threads_do_not_take_each_others_batches(fake_gpu):  # noqa: F811
    upload, begun, overtaken = Uploader(fake_gpu), threading.Event(), threading.Event()

    def slowly(device):
        begun.set()
        overtaken.wait(0.3)  # if it could be
        return device.copy()

    def overtake():
        begun.wait()
        for value in (2, 3):
            upload(np.full((4, 3), value, np.uint8), lambda device: device.copy())
        overtaken.set()

    other = threading.Thread(target=overtake)
    other.start()
    got = upload(np.full((4, 3), 1, np.uint8), slowly)
    other.join()
    assert (to_host(got) == 1).all()


@pytest.mark.parametrize(("look_every", "step"), [(3, 3), (50, 4)])
def test_a_loss_that_is_not_finite_is_seen_on_a_device_too(
    look_every,
    step,
    fake_gpu,  # noqa: F811
    rng,
    monkeypatch,
):
    monkeypatch.setattr(training, "LOOK_EVERY", look_every)
    network = network_on(fake_gpu, "dense", "bp", "float32")
    network.layers[1].W[:] = np.inf
    data = array_data(
        rng.standard_normal((64, 30)), rng.integers(0, 5, 64), device=fake_gpu, dtype="float32"
    )
    options = {"epochs": 1, "batch_size": 16, "streams": random_streams(0)}
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingDivergedError, match=f"the loss is not finite at step {step} or up to"),
    ):
        list(train(network, recipe_for(network, "bp"), data, **options))


def test_the_solver_looks_again_after_a_while(fake_gpu, rng):  # noqa: F811
    W = np.linalg.qr(rng.standard_normal((40, 40)))[0] + 0.001 * rng.standard_normal((40, 40))
    W_, solver = fake_gpu.xp.asarray(W), InverseSolver()
    looks = 0
    for _ in range(200):
        d = rng.standard_normal((3, 40))
        Counter.waits = 0
        z = solver(fake_gpu.xp.asarray(d), W_)
        looks += Counter.waits > 0
        assert relative(to_host(z) @ W, d) < 1e-10
    assert looks == 9  # at 1, 2, 4, 8, 16, 32, 64, 128, 192: ever more seldom


def test_a_rule_that_trained_one_network_looks_anew_at_the_weights_of_another(fake_gpu, rng):  # noqa: F811
    x = fake_gpu.xp.asarray(rng.standard_normal((8, 20)))
    labels = fake_gpu.xp.asarray(rng.integers(0, 5, 8))
    rule = bind("gait")
    sizes = {"width": 64, "depth": 3, "device": fake_gpu}
    first = models.square(20, 5, **sizes)
    recipe = Recipe(rule, softmax_cross_entropy, SGD(1e-4))
    for step in range(1, 100):
        train_step(first, recipe, x, labels, step=step)
    far = models.square(20, 5, initialisation="glorot_normal", **sizes)  # no terms of a series do for it
    records = far.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    expected = bind("gait")(far.layers, records, error)
    for (dW, _), (right, _) in zip(rule(far.layers, records, error), expected, strict=True):
        assert relative(to_host(dW), to_host(right)) < 1e-4


def test_adam_changes_weights_that_lie_by_columns_as_numpy_does(fake_gpu, rng):  # noqa: F811
    W, x = rng.standard_normal((6, 4)), rng.standard_normal((5, 6))
    labels = rng.integers(0, 4, 5)
    ends = []
    for asarray in (np.asarray, fake_gpu.xp.asarray):
        layer = Dense(asarray(np.asfortranarray(W)), asarray(np.zeros(4)))
        recipe = Recipe(bind("bp"), softmax_cross_entropy, Adam(1e-3))
        for step in range(1, 4):
            train_step(Network([layer]), recipe, asarray(x), asarray(labels), step=step)
        ends.append([to_host(layer.W), to_host(layer.b)])
    for got, expected in zip(ends[1], ends[0], strict=True):
        assert relative(got, expected) < 1e-12
