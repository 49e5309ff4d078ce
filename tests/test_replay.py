"""Steps replayed from a graph, with a stand-in for CuPy: they end where steps made one by one do."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pytest

from npgait import gpu, replay
from npgait.backend import CPU, to_host
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import SGD, Adam, Momentum
from npgait.replay import MOST, MOST_SEEN, Recording, Stepper
from npgait.rules import NAMES, bind
from npgait.step import Recipe, train_step
from tests.fake_cupy import Counter, fake_gpu  # noqa: F401 - a fixture
from tests.support import relative
from tests.test_gpu_path import network_on, recipe_for

STRENGTH = {"tp": 0.3, "itp": 0.3, "gait": 0.3}


def batches(network, sizes, seed=1):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((n, *network.shape_in)), rng.integers(0, 5, n)) for n in sizes]


def both(fake, kind, make_recipe, sizes, rule="gait", between=lambda step, recipe: None):
    """Learn from the same batches on the CPU and on a device; return both, the stepper, waits a step."""
    cpu, gpu = (network_on(device, kind, rule) for device in (CPU, fake))
    recipes = [make_recipe(network) for network in (cpu, gpu)]
    stepper, waits = Stepper(gpu, recipes[1]), []
    for step, (x, labels) in enumerate(batches(cpu, sizes), start=1):
        for recipe in recipes:
            between(step, recipe)
        loss, _ = train_step(cpu, recipes[0], x, labels, step=step)
        x, labels = fake.xp.asarray(x), fake.xp.asarray(labels)
        Counter.waits = 0
        got, y = stepper(x, labels, step=step)
        waits.append(Counter.waits)
        np.testing.assert_allclose(to_host(got), loss, rtol=1e-6)
        assert y.shape == (len(x), 5)
    return cpu, gpu, stepper, waits


def assert_equal(cpu, gpu, tolerance=1e-8):
    for got, expected in zip(gpu.parameters(), cpu.parameters(), strict=True):
        assert relative(to_host(got), expected) < tolerance


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("rule", NAMES)
def test_replayed_steps_end_where_steps_made_one_by_one_do(rule, kind, fake_gpu):  # noqa: F811
    strength = STRENGTH.get(rule, 0.0)
    cpu, gpu, stepper, waits = both(
        fake_gpu, kind, lambda net: recipe_for(net, rule, ortho_strength=strength), [6] * 20, rule
    )
    assert stepper.refused == ""
    assert stepper.replayed >= 8
    assert sum(w > 0 for w in waits) <= 20 - stepper.replayed
    assert_equal(cpu, gpu)


@pytest.mark.parametrize("options", [{"ortho_every": 2}, {"decoupled": True}, {"reduction": "mean"}])
@pytest.mark.parametrize("regulariser", ["orthonormal", "orthogonal", "conformal"])
def test_every_kind_of_regulariser_is_replayed(regulariser, options, fake_gpu):  # noqa: F811
    cpu, gpu, stepper, _ = both(
        fake_gpu,
        "dense",
        lambda net: recipe_for(net, "gait", ortho_strength=0.25, regulariser=regulariser, **options),
        [6] * 60,
    )
    assert stepper.refused == ""
    assert stepper.replayed > 20
    assert_equal(cpu, gpu)


@pytest.mark.parametrize(
    "optimizer", [lambda: SGD(1e-3), lambda: Momentum(1e-3), lambda: Adam(1e-3, bias_correction=False)]
)
def test_every_optimizer_is_replayed(optimizer, fake_gpu):  # noqa: F811
    cpu, gpu, stepper, _ = both(
        fake_gpu,
        "dense",
        lambda net: replace(recipe_for(net, "bp"), optimizer=optimizer()),
        [6] * 9,
        "bp",
    )
    assert stepper.replayed >= 5
    assert_equal(cpu, gpu)


def test_a_recording_is_for_one_size_of_batch_and_one_learning_rate(fake_gpu):  # noqa: F811
    def slower(step, recipe):
        recipe.optimizer.learning_rate = 1e-3 if step < 10 else 1e-4

    sizes = [6, 6, 6, 6, 2, 6, 6, 6, 6, 6, 6, 6, 6, 2, 2, 2, 2]
    cpu, gpu, stepper, _ = both(
        fake_gpu, "dense", lambda net: recipe_for(net, "bp"), sizes, "bp", between=slower
    )
    assert stepper.replayed >= 6
    assert len(stepper.recordings) == 3
    assert_equal(cpu, gpu)


@pytest.mark.parametrize("kind", [float, np.float32, int])
def test_a_learning_rate_counts_whatever_kind_of_number_it_is(kind, fake_gpu):  # noqa: F811
    def growing(step, recipe):
        recipe.optimizer.learning_rate = kind(1 if step < 7 else 2)

    def recipe(network):
        return replace(recipe_for(network, "bp"), optimizer=SGD(1.0), reduction="mean")

    cpu, gpu, stepper, _ = both(fake_gpu, "dense", recipe, [6] * 12, "bp", between=growing)
    assert stepper.replayed >= 6
    assert_equal(cpu, gpu)


def test_steps_that_count_on_the_host_are_not_recorded(fake_gpu):  # noqa: F811
    """Adam's kernels take weights in rows; with others its rate is a number, which changes with t."""
    ends = []
    for device in (CPU, fake_gpu):
        network = network_on(device, "dense", "bp")
        for layer in network.layers:
            layer.W = device.xp.asarray(np.asfortranarray(to_host(layer.W)))
        stepper = Stepper(network, replace(recipe_for(network, "bp"), optimizer=Adam(1e-3)))
        for step, (x, labels) in enumerate(batches(network, [6] * 80)):
            stepper(device.xp.asarray(x), device.xp.asarray(labels), step=step)
        ends.append(network)
        assert stepper.replayed == 0
    assert len(stepper._seen) <= MOST_SEEN
    assert_equal(*ends)


def test_recordings_are_bounded(fake_gpu):  # noqa: F811
    sizes = [size for size in range(1, 2 * MOST) for _ in range(4)]
    cpu, gpu, stepper, _ = both(fake_gpu, "dense", lambda net: recipe_for(net, "bp"), sizes, "bp")
    assert len(stepper.recordings) == MOST
    assert_equal(cpu, gpu)


def test_adam_counts_its_steps_through_replays_and_checkpoints(fake_gpu):  # noqa: F811
    def reload(step, recipe):
        if step == 8:
            recipe.optimizer.load(recipe.optimizer.state())

    cpu, gpu, stepper, _ = both(
        fake_gpu, "dense", lambda net: recipe_for(net, "bp"), [6] * 14, "bp", between=reload
    )
    assert stepper.replayed >= 6
    assert int(stepper.recipe.optimizer.state()["t"]) == 14
    assert_equal(cpu, gpu)


def test_replays_count_towards_the_next_look_at_what_w_inverse_leaves_as_steps_do(fake_gpu):  # noqa: F811
    plans = []
    for graphs in (True, False):
        network = network_on(fake_gpu, "dense", "gait")
        stepper = Stepper(network, recipe_for(network, "gait", ortho_strength=0.3), graphs)
        for step, (x, labels) in enumerate(batches(network, [6] * 24)):
            stepper(fake_gpu.xp.asarray(x), fake_gpu.xp.asarray(labels), step=step)
        assert (stepper.replayed > 8) == graphs
        plans.append([*stepper.recipe.rule.solver.plans.values()])
    assert plans[0] == plans[1]
    assert {plan.made for plan in plans[0]} == {24}


def test_what_cannot_be_recorded_is_made_step_by_step_and_said(fake_gpu, monkeypatch):  # noqa: F811
    def looking_loss(y, labels):
        loss, error = softmax_cross_entropy(y, labels)
        return loss, error * (1.0 if float(loss.sum()) > 0 else 2.0)

    def looking(network):
        return replace(recipe_for(network, "bp"), loss=looking_loss)

    cpu, gpu, stepper, _ = both(fake_gpu, "dense", looking, [6] * 8, "bp")
    assert "RuntimeError: the current stream is capturing" in stepper.refused
    assert stepper.replayed == 0
    assert stepper.recipe.optimizer.t == 8
    assert_equal(cpu, gpu)


def test_a_replay_that_ends_elsewhere_is_not_trusted(fake_gpu, monkeypatch):  # noqa: F811
    class Biased(SGD):
        """One whose steps depend on what only the host knows, small though they are beside weights."""

        steps = 0

        def step(self, parameters, gradients):
            Biased.steps += 1
            for p, g in zip(parameters, gradients, strict=True):
                p -= self.learning_rate * (1 + Biased.steps if p.ndim == 2 else 1) * g

    network = network_on(fake_gpu, "dense", "bp")
    recipe = replace(recipe_for(network, "bp"), optimizer=Biased(1e-4))
    stepper = Stepper(network, recipe)
    x, labels = map(fake_gpu.xp.asarray, batches(network, [6])[0])
    for _ in range(5):
        stepper(x, labels)
    assert stepper.refused == "a replayed step did not end where the step itself had"
    assert stepper.replayed == 0


def test_a_recording_that_cannot_be_launched_is_not_kept_and_nothing_is_lost(
    fake_gpu, monkeypatch  # noqa: F811
):  # fmt: skip
    def launch(recording, x, labels):
        recording.changed[0][...] = np.nan
        raise MemoryError("no place for the graph")

    monkeypatch.setattr(Recording, "launch", launch)
    cpu, gpu, stepper, _ = both(fake_gpu, "dense", lambda net: recipe_for(net, "bp"), [6] * 6, "bp")
    assert stepper.refused == "MemoryError: no place for the graph"
    assert (stepper.replayed, stepper.recordings) == (0, {})
    assert stepper.recipe.optimizer.t == 6
    assert_equal(cpu, gpu)


def test_memory_is_given_back_once_no_recording_is_left_that_uses_it(fake_gpu, monkeypatch):  # noqa: F811
    def refused(*arguments):
        raise MemoryError("no place to record")

    def steps(stepper, number=4):
        x, labels = map(fake_gpu.xp.asarray, batches(stepper.network, [6])[0])
        for _ in range(number):
            stepper(x, labels)

    first, second = (network_on(fake_gpu, "dense", "bp") for _ in range(2))
    stepper = Stepper(first, recipe_for(first, "bp"))
    steps(stepper)
    assert stepper.recordings
    pool = gpu.recorder(fake_gpu).pool
    other = Stepper(second, recipe_for(second, "bp"))
    assert pool.given_back == 0  # the first is still replayed
    del stepper
    Stepper(second, recipe_for(second, "bp"))
    assert pool.given_back == 1

    monkeypatch.setattr(gpu.Recorder, "__call__", refused)
    steps(other)
    assert other.refused == "MemoryError: no place to record"
    assert pool.given_back == 2


def test_a_graph_waits_for_the_one_before_on_whatever_stream_that_is(fake_gpu):  # noqa: F811
    """Graphs share memory, and threads may have streams of their own."""
    said = []

    def stream(name):
        return types.SimpleNamespace(name=name, wait_event=lambda event: said.append(f"{name} waits"))

    streams = [stream("first"), stream("second")]
    cuda = types.SimpleNamespace(**vars(fake_gpu.xp.cuda))
    cuda.get_current_stream = lambda: streams[0]
    recorder = gpu.Recorder(fake_gpu)
    recorder.cuda = cuda
    recorder.done = types.SimpleNamespace(record=lambda stream: said.append(f"{stream.name} done"))
    graph = gpu.Graph(types.SimpleNamespace(launch=lambda: said.append("launched")), recorder)
    graph.launch()
    streams.reverse()
    graph.launch()
    assert said == [
        "first waits", "launched", "first done", "second waits", "launched", "second done",
    ]  # fmt: skip


def test_a_recording_is_for_one_precision(fake_gpu, monkeypatch):  # noqa: F811
    network = network_on(fake_gpu, "dense", "bp", "float32")
    stepper = Stepper(network, recipe_for(network, "bp"))
    x, labels = batches(network, [6])[0]
    x, labels = fake_gpu.xp.asarray(x.astype(np.float32)), fake_gpu.xp.asarray(labels)
    for precision in ("float32", "tf32"):
        monkeypatch.setattr(replay, "precision_of", lambda x, chosen=precision: chosen)
        for _ in range(4):
            stepper(x, labels)
    assert len(stepper.recordings) == 2


def test_memory_that_is_not_there_is_an_error_at_which_cupy_frees_nothing():
    class CUDARuntimeError(RuntimeError):
        pass

    def no_memory(size):
        raise CUDARuntimeError("cudaErrorMemoryAllocation")

    cuda = types.SimpleNamespace(
        Memory=no_memory,
        MemoryPointer=lambda memory, at: (memory, at),
        runtime=types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
    )
    with pytest.raises(MemoryError, match="no 512 bytes are left"):
        gpu._memory(cuda, 512)
    cuda.Memory = lambda size: f"{size} bytes"
    assert gpu._memory(cuda, 512) == ("512 bytes", 0)


def test_absolute_targets_measured_steps_and_the_cpu_are_never_recorded(fake_gpu):  # noqa: F811
    network = network_on(fake_gpu, "dense", "gait")
    recipe = Recipe(bind("gait", targets="absolute"), softmax_cross_entropy, Adam(1e-6))
    x, labels = batches(network, [6])[0]
    on_device = fake_gpu.xp.asarray(x), fake_gpu.xp.asarray(labels)
    absolute = Stepper(network, recipe)
    measured = Stepper(network, recipe_for(network, "bp"))
    forbidden = Stepper(network, recipe_for(network, "bp"), graphs=False)
    cpu = network_on(CPU, "dense", "bp")
    host = Stepper(cpu, recipe_for(cpu, "bp"))
    seen = []
    for step in range(6):
        absolute(*on_device, step=step)
        measured(*on_device, step=step, on_measure=seen.extend)
        forbidden(*on_device, step=step)
        host(x, labels, step=step)
    assert seen
    for stepper in (absolute, measured, forbidden, host):
        assert (stepper.replayed, stepper.recordings, stepper.refused) == (0, {}, "")
