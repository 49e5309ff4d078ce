"""What a replayed step hands out, and what is given up where steps are replayed no more."""

from __future__ import annotations

import numpy as np

from npgait import gpu
from npgait.backend import to_host
from npgait.replay import Stepper
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture
from tests.test_gpu_path import network_on, recipe_for
from tests.test_replay import batches


def on_device(fake, network, sizes):
    return [(fake.xp.asarray(x), fake.xp.asarray(labels)) for x, labels in batches(network, sizes)]


def test_loss_and_outputs_of_a_replay_are_not_overwritten_by_the_next(fake_gpu):  # noqa: F811
    network = network_on(fake_gpu, "dense", "bp")
    stepper = Stepper(network, recipe_for(network, "bp"))
    kept = []
    for x, labels in on_device(fake_gpu, network, [6] * 6):
        results = stepper(x, labels)
        kept.append([(result, to_host(result).copy()) for result in results])
    assert stepper.replayed >= 3
    for results in kept:
        for result, then in results:
            np.testing.assert_array_equal(to_host(result), then)


def test_where_one_kind_of_step_cannot_be_recorded_no_recording_is_kept(fake_gpu, monkeypatch):  # noqa: F811
    def refused(*arguments):
        raise MemoryError("no place to record")

    network = network_on(fake_gpu, "dense", "bp")
    stepper = Stepper(network, recipe_for(network, "bp"))
    for x, labels in on_device(fake_gpu, network, [6] * 4):
        stepper(x, labels)
    assert stepper.recordings
    pool = gpu.recorder(fake_gpu).pool
    monkeypatch.setattr(gpu.Recorder, "__call__", refused)
    replayed, given_back = stepper.replayed, pool.given_back
    for x, labels in on_device(fake_gpu, network, [5, 5, 6]):
        stepper(x, labels)
    assert (stepper.recordings, stepper.replayed) == ({}, replayed)
    assert pool.given_back == given_back + 1
