"""The stopwatch, by a clock that is set by hand: which part and which kind of step seconds count for."""

from __future__ import annotations

import numpy as np
import pytest

from npgait import models, timing
from npgait.backend import CPU
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.replay import Stepper
from npgait.rules import bind, draw_feedback
from npgait.step import Recipe
from npgait.timing import PARTS
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture


def test_products_of_float64_on_a_gpu_are_small_for_most_are_slow_at_them(fake_gpu, monkeypatch):  # noqa: F811
    monkeypatch.setattr(timing, "_typical", lambda work, device, repeats: 1.0)
    assert timing.product_rate(fake_gpu, np.dtype(np.float64)) == 2 * 4096**3


class Clock:
    """Stands for the module `time`; `passes` are seconds from one look to the next."""

    def __init__(self, passes=()):
        self.now, self.passes = 0.0, list(passes)

    def perf_counter(self):
        self.now += self.passes.pop(0) if self.passes else 0.0
        return self.now


def recipe(rule="bp", network=None, **options):
    feedback = draw_feedback(rule, network, np.random.default_rng(0)) if network else None
    return Recipe(bind(rule, feedback=feedback), softmax_cross_entropy, Adam(1e-4), **options)


def noise(network, size=6):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, *network.shape_in)).astype(network.dtype)
    return x, rng.integers(0, network.n_classes, size)


def test_the_machine_s_rates_are_of_the_median_repetition_after_one_that_warms_up(monkeypatch):
    starts_and_ends = [0, 100, 0, 2, 0, 8, 0, 4]
    monkeypatch.setattr(timing, "time", Clock(starts_and_ends))
    assert timing.product_rate(CPU, np.dtype("float32"), n=6, repeats=3) == 2 * 6**3 / 4
    monkeypatch.setattr(timing, "time", Clock(starts_and_ends))
    assert timing.bandwidth(CPU, size=400, repeats=3) == 3 * 400 / 4


def test_what_is_added_to_measure_memory_is_of_the_size_asked_for_and_added_whole(monkeypatch):
    added = []

    def in_threads(work, parts, x):
        for part in parts:
            work(part)
        added.append((x.nbytes, len(parts), bool((x == 1 + len(added) + 1).all())))

    monkeypatch.setattr(timing, "in_threads", in_threads)
    monkeypatch.setattr("npgait.parallel.WORTH_THREADS", 100)  # as many values as there are
    timing.bandwidth(CPU, size=400, repeats=2)
    assert added == [(400, 4, True)] * 3


def test_steps_are_timed_by_whether_the_regulariser_was_due(monkeypatch):
    network = models.square(8, 3, width=4, depth=1)
    stepper = Stepper(network, recipe(ortho_strength=0.1, ortho_every=3))
    seen = []

    def take_time(*batch, step):
        seen.append(step)
        clock.now += step

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(Stepper, "__call__", lambda self, *batch, step: take_time(*batch, step=step))
    times = timing.time_steps(stepper, noise(network), steps=5, first=2)
    assert seen == [2, 3, 4, 5, 6]
    assert times == {True: [3, 6], False: [2, 4, 5]}
    assert timing.time_steps(stepper, noise(network), steps=2) == {True: [0], False: [1]}


class Busy:
    """A device that is asked for `pending` seconds of work, which pass where it is waited for."""

    def __init__(self, monkeypatch, pending):
        self.clock, self.pending = Clock(), pending
        monkeypatch.setattr(timing, "time", self.clock)
        monkeypatch.setattr(timing, "synchronise", self.synchronise)

    def ask(self, seconds):
        self.pending += seconds

    def synchronise(self, device):
        self.clock.now, self.pending = self.clock.now + self.pending, 0


def test_a_step_s_seconds_are_those_of_the_device_and_not_of_what_it_was_asked_before(monkeypatch):
    busy = Busy(monkeypatch, pending=100)
    monkeypatch.setattr(Stepper, "__call__", lambda self, *batch, step: busy.ask(3))
    network = models.square(8, 3, width=4, depth=1)
    times = timing.time_steps(Stepper(network, recipe()), noise(network), steps=4)
    assert times == {True: [], False: [3] * 4}
    busy.ask(100)
    laps = timing.Laps(CPU)
    laps.start()
    for seconds, name in ((2, "forward"), (4, "updates")):
        busy.ask(seconds)
        laps(name)
    assert laps.seconds == {"forward": 2, "updates": 4}


def test_a_rate_is_of_the_operations_that_the_device_has_done(monkeypatch):
    busy = Busy(monkeypatch, pending=0)
    product = np.matmul
    monkeypatch.setattr(np, "matmul", lambda *args, **options: (product(*args, **options), busy.ask(2)))
    assert timing.product_rate(CPU, np.dtype("float32"), n=6, repeats=3) == 2 * 6**3 / 2


@pytest.mark.parametrize(("every", "expected"), [(1, [5, 10, 10]), (2, [3, 8, 10]), (4, [2, 7, 10])])
def test_parts_of_steps_with_the_regulariser_and_without_are_weighed(every, expected, monkeypatch):
    network = models.square(8, 3, width=4, depth=1)
    clock = Clock()

    def train_step(network, recipe, x, labels, *, step, lap):
        due = recipe.is_due(step)
        for part, seconds in [("regulariser", 2), ("targets", 10), ("regulariser", 3)]:
            clock.now += seconds if due else {"regulariser": 0.5, "targets": 6}[part]
            lap(part)
        clock.now += 10
        lap("optimizer")

    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "train_step", train_step)
    parts = timing.time_parts(
        network, recipe(ortho_strength=0.1, ortho_every=every), noise(network), steps=2
    )
    assert [parts[part] for part in ("regulariser", "targets", "optimizer")] == expected
    assert set(parts) == set(PARTS)
    assert parts["forward"] == parts["loss"] == parts["updates"] == 0


def test_a_layer_s_own_update_is_told_apart_from_what_comes_before_it(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)

    class Slow:
        used = 3

        def local_update(self, *arguments):
            clock.now += 5
            return arguments

    laps = timing.Laps(CPU)
    clock.now += 100  # before it is started
    laps.start()
    layer = timing.TimedLayer(Slow(), laps)
    for _ in range(2):
        clock.now += 1
        assert layer.local_update("x", "a", "e") == ("x", "a", "e")
    assert layer.used == 3
    assert laps.seconds == {"targets": 2, "updates": 10}


@pytest.mark.parametrize(
    ("options", "step", "at_hand"),
    [
        ({"ortho_strength": 0.5}, 0, True),
        ({"ortho_strength": 0.5}, 3, True),
        ({"ortho_strength": 0.5, "ortho_every": 2}, 4, True),
        ({"ortho_strength": 0.5, "ortho_every": 2}, 5, False),
        ({"ortho_strength": 0.5, "decoupled": True}, 0, False),
        ({}, 0, False),
    ],
)
def test_a_series_is_summed_where_the_regulariser_gives_w_w_t_and_z_refined_elsewhere(
    options, step, at_hand
):
    network = models.square(8, 3, width=8, depth=2)
    network.layers[1].W[0, 0] *= 1.1  # of the two, the one that is not orthogonal takes terms
    reports = timing.inverse_reports(network, recipe("gait", **options), noise(network), step=step)
    assert {l: r.method for l, r in reports.items()} == dict.fromkeys(
        (1, 2), "series" if at_hand else "refinement"
    )
    assert reports[1].terms > reports[2].terms


def test_absolute_targets_make_no_product_that_could_be_reported():
    network = models.square(8, 3, width=4, depth=1)
    absolute = Recipe(bind("gait", targets="absolute"), softmax_cross_entropy, Adam(1e-4))
    assert timing.inverse_reports(network, absolute, noise(network)) == {}


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_the_memory_of_a_step_is_all_that_is_held_and_what_it_takes(rule, monkeypatch):
    network = models.square(200, 10, width=200, depth=3, auxiliary=False)
    made = recipe(rule, network)
    network.feedback = draw_feedback(rule, network, np.random.default_rng(0))
    batch = noise(network, 1000)
    made.optimizer.load(  # as after a step
        {f"{letter}{i}": p for letter in "mv" for i, p in enumerate(network.parameters())}
        | {"t": np.array(1)}
    )
    taken = 3 << 20

    def train_step(*arguments):
        np.ones(taken, np.uint8)  # and given back

    monkeypatch.setattr(timing, "train_step", train_step)
    parameters = sum(p.nbytes for p in network.parameters())
    feedback = sum(B.nbytes for B in network.feedback or [] if B is not None)
    held = 3 * parameters + feedback + sum(array.nbytes for array in batch)
    assert (feedback > 0) == (rule != "bp")
    assert held + taken <= timing.step_memory(network, made, batch) < held + taken + (1 << 16)


def test_the_memory_of_a_step_on_a_gpu_is_what_the_gpu_says_it_takes(fake_gpu, monkeypatch):  # noqa: F811
    network = models.square(8, 3, width=4, depth=1, device=fake_gpu)
    made, steps = recipe(), []
    monkeypatch.setattr(timing, "train_step", lambda *arguments: steps.append(arguments))
    monkeypatch.setattr(timing, "memory_taken", lambda device, work: 1000 if work() is None else None)
    batch = tuple(map(fake_gpu.xp.asarray, noise(network)))
    held = sum(array.nbytes for array in (*network.parameters(), *batch))
    held += sum(array.nbytes for array in made.optimizer.state().values())
    assert timing.step_memory(network, made, batch) == held + 1000
    assert steps == [(network, made, *batch)]
