"""Fixtures shared by all tests: backends, dtypes, and the data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from npgait.backend import CPU, Device, DeviceError, select_device
from npgait.kernels.loops import library
from tests.support import with_loops, without_loops

os.environ.setdefault("MPLBACKEND", "Agg")
SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile(
    "npgait",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("npgait")


@pytest.fixture(params=["cpu", "gpu"], scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    """NumPy, and CuPy where there is a GPU."""
    if request.param == "cpu":
        return CPU
    try:
        return select_device("gpu")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


@pytest.fixture(params=["compiled", "numpy"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compiled loops, where they were built, and NumPy in their place."""
    if request.param == "numpy":
        without_loops(monkeypatch)
    elif library(np.dtype(np.float32)) is None:
        pytest.skip("npgait was installed without a C compiler, or NPGAIT_LOOPS=numpy is set")
    else:
        with_loops(monkeypatch)
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20201117)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
