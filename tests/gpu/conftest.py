"""Tests that need a CUDA device; without one they are skipped, saying why."""

from __future__ import annotations

import os
import secrets

import numpy as np
import pytest

from npgait.backend import Device, DeviceError, select_device


@pytest.fixture(scope="session")
def gpu() -> Device:
    try:
        return select_device(os.environ.get("NPGAIT_TEST_DEVICE", "gpu"))
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def rng(record_property) -> np.random.Generator:
    """Fresh numbers every time; the seed is recorded with the test."""
    seed = secrets.randbits(32)
    record_property("seed", seed)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture
def poisoned(gpu: Device):
    """Memory that the pool gives out next holds NaN, so that nothing unwritten passes for a result."""
    pool = gpu.xp.get_default_memory_pool()
    blocks = [gpu.xp.full(1 << power, np.nan, np.float32) for power in range(8, 24)]
    del blocks
    yield
    pool.free_all_blocks()
