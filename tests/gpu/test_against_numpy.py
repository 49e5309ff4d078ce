"""CuPy against NumPy in float64: layers, rules, solver, optimizer, steps, on fresh random inputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from npgait import models
from npgait.backend import DeviceError, set_precision, to_host
from npgait.data import Preparation, Scaling
from npgait.gpu import Uploader
from npgait.inverse import InverseSolver
from npgait.layers.patches import Window, add_patches, cut_patches
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.optimizers import Adam
from npgait.orthogonality import REGULARISERS, gram
from npgait.plans import CHECK_EVERY
from npgait.replay import Stepper
from npgait.rules import NAMES, bind, draw_feedback
from npgait.training import Recipe, train_step
from tests.support import near_orthogonal, relative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("poisoned"),
    # CuPy's own are no errors of npgait: of a library that it does without, of a NumPy newer than it.
    pytest.mark.filterwarnings("default"),
]
CLOSE = {"float32": 2e-5, "float64": 1e-10}


def on_gpu(network: Network, gpu) -> Network:
    twin = copy.deepcopy(network)
    for layer in twin.layers:
        layer.W, layer.b = gpu.xp.asarray(layer.W), gpu.xp.asarray(layer.b)
    twin.feedback = [None if B is None else gpu.xp.asarray(B) for B in network.feedback or []] or None
    return twin


def networks(kind, auxiliary, dtype, seed):
    if kind == "dense":
        return models.square(40, 7, width=48, depth=3, auxiliary=auxiliary, dtype=dtype, seed=seed)
    return models.imagenet((40, 40, 3), 9, auxiliary=auxiliary, dtype=dtype, seed=seed)


@pytest.mark.parametrize(("kernel", "stride"), [(9, 4), (3, 2), (5, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_patches_are_numpys_and_repeat_bit_for_bit(kernel, stride, padding, dtype, gpu, rng):
    window = Window(23, 19, 5, kernel, stride, padding)
    x = rng.standard_normal((3, 23, 19, 5)).astype(dtype)
    expected = cut_patches(x, window)
    np.testing.assert_array_equal(to_host(cut_patches(gpu.xp.asarray(x), window)), expected)
    noise = rng.standard_normal(expected.shape).astype(dtype)
    first = to_host(add_patches(gpu.xp.asarray(noise), window))
    assert relative(first, np.array(add_patches(noise, window))) < CLOSE[str(dtype)]
    for _ in range(5):
        np.testing.assert_array_equal(to_host(add_patches(gpu.xp.asarray(noise), window)), first)


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("auxiliary", [True, "implicit"])
def test_every_rule_makes_the_updates_that_numpy_makes_in_float64(name, kind, auxiliary, gpu, rng):
    network = networks(kind, auxiliary, "float64", int(rng.integers(1 << 30)))
    network.feedback = draw_feedback(name, network, rng)
    twin = on_gpu(network, gpu)
    x = rng.standard_normal((6, *network.shape_in))
    labels = rng.integers(0, network.n_classes, 6)
    results = []
    for net, xp in ((network, np), (twin, gpu.xp)):
        records = net.forward(xp.asarray(x))
        loss, error = softmax_cross_entropy(records[-1].y[:, : net.n_classes], xp.asarray(labels))
        updates = bind(name, feedback=net.feedback)(net.layers, records, error)
        results.append([loss, *(array for update in updates for array in update)])
    for got, expected in zip(results[1], results[0], strict=True):
        assert relative(to_host(got), expected) < CLOSE["float64"]


@pytest.mark.parametrize("shape", [(90, 90), (90, 30)])
@pytest.mark.parametrize("away", [0.01, 1.0])
def test_the_product_with_the_inverse_holds_between_two_looks(shape, away, dtype, gpu, rng):
    W = near_orthogonal(rng, 90, away, dtype)[:, : shape[1]]
    solver = InverseSolver()
    W_gpu = gpu.xp.asarray(np.ascontiguousarray(W))
    for G in (gram(W_gpu), None):
        for _ in range(CHECK_EVERY + 3):
            d = rng.standard_normal((4, shape[1])).astype(dtype)
            z = to_host(solver(gpu.xp.asarray(d), W_gpu, G, name=str(G is None)))
            assert relative(z @ W, d) < (3e-4 if dtype == np.float32 else 1e-8)


@pytest.mark.parametrize("regulariser", list(REGULARISERS))
def test_regularisers_take_the_symmetric_product_of_cublas(regulariser, dtype, gpu, rng):
    for shape in ((70, 70), (70, 33)):
        W = rng.standard_normal(shape).astype(dtype)
        W_gpu = gpu.xp.asarray(W)
        assert relative(to_host(gram(W_gpu)), gram(W)) < CLOSE[str(dtype)]
        got = REGULARISERS[regulariser](W_gpu, gram(W_gpu))
        assert relative(to_host(got), REGULARISERS[regulariser](W, gram(W))) < 10 * CLOSE[str(dtype)]


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("name", ["bp", "gait"])
def test_whole_steps_end_where_numpys_do(name, kind, gpu, rng):
    network = networks(kind, True, "float64", int(rng.integers(1 << 30)))
    twin = on_gpu(network, gpu)
    x = rng.standard_normal((6, *network.shape_in))
    labels = rng.integers(0, network.n_classes, 6)
    for net, xp in ((network, np), (twin, gpu.xp)):
        recipe = Recipe(bind(name), softmax_cross_entropy, Adam(1e-5, epsilon=1e-4), ortho_strength=0.5)
        for step in range(5):
            train_step(net, recipe, xp.asarray(x), xp.asarray(labels), step=step)
    for got, expected in zip(twin.parameters(), network.parameters(), strict=True):
        assert relative(to_host(got), expected) < 1e-7


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("auxiliary", "options"), [(True, {}), ("implicit", {"regulariser": "conformal", "decoupled": True})]
)
def test_steps_replayed_from_a_graph_end_where_those_made_one_by_one_do(
    name, kind, auxiliary, options, dtype, gpu, rng, record_property
):
    """The steps between two looks; from step to step other memory is asked for and kept."""
    network = on_gpu(networks(kind, auxiliary, dtype, int(rng.integers(1 << 30))), gpu)
    network.feedback = draw_feedback(name, network, rng)
    twin = copy.deepcopy(network)
    strength = 0.25 if options else 0.5
    steppers = [
        Stepper(
            net,
            Recipe(
                bind(name, feedback=net.feedback),
                softmax_cross_entropy,
                Adam(1e-5, epsilon=1e-4),
                ortho_strength=strength,
                **options,
            ),
            graphs,
        )
        for net, graphs in ((network, False), (twin, True))
    ]
    kept = []
    for step in range(40):
        x = gpu.xp.asarray(rng.standard_normal((6, *network.shape_in)).astype(dtype))
        labels = gpu.xp.asarray(rng.integers(0, network.n_classes, 6))
        expected, got = (stepper(x, labels, step=step)[0] for stepper in steppers)
        kept.append((got, expected, gpu.xp.full(1 << 20, np.nan)))  # memory asked for in between
    close = 5e-3 if dtype == np.float32 else 1e-9  # Adam enlarges rounding; a step is 2.5e-2
    for got, expected, _ in kept:
        assert relative(to_host(got), to_host(expected)) < close
    for got, expected in zip(twin.parameters(), network.parameters(), strict=True):
        assert relative(to_host(got), to_host(expected)) < close
    record_property("replayed", steppers[1].replayed)
    assert not steppers[1].refused
    assert steppers[1].replayed > 10


@pytest.mark.parametrize("name", ["bp", "gait"])
def test_tf32_steps_are_replayed_too_and_leave_lu_alone(name, gpu, rng):
    network = on_gpu(networks("dense", True, "float32", int(rng.integers(1 << 30))), gpu)
    recipe = Recipe(bind(name), softmax_cross_entropy, Adam(1e-5, epsilon=1e-4), ortho_strength=0.5)
    stepper = Stepper(network, recipe)
    try:
        set_precision("tf32")
    except DeviceError as error:
        pytest.skip(str(error))
    try:
        for step in range(40):
            x = gpu.xp.asarray(rng.standard_normal((6, *network.shape_in)).astype(np.float32))
            stepper(x, gpu.xp.asarray(rng.integers(0, network.n_classes, 6)), step=step)
    finally:
        set_precision("float32")
    assert not stepper.refused
    assert stepper.replayed > 10
    assert {plan.method for plan in recipe.rule.solver.plans.values()} <= {"series", "refinement"}


def test_uploaded_batches_are_those_that_were_given(gpu, rng):
    upload = Uploader(gpu)
    prepare = Preparation(Scaling(100.0, 0.01), np.dtype(np.float32), gpu, (3072,))
    batches = [rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (64, 64, 17, 200, 64) * 4]
    got = [upload(x, lambda x: prepare.scaling.apply(x, prepare.dtype)) for x in batches]
    for one, x in zip(got, batches, strict=True):
        np.testing.assert_allclose(to_host(one), (x - 100.0) * 0.01, rtol=1e-6, atol=1e-6)
