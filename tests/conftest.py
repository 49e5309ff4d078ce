"""Fixtures shared by all tests: backends, dtypes, and the data beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from npgait.backend import CPU, Device, DeviceError, select_device

os.environ.setdefault("MPLBACKEND", "Agg")
SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile(
    "npgait", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20201117)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
