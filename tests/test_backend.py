"""Devices, dtypes and arrays from elsewhere."""

from __future__ import annotations

import sys
import types
import warnings

import numpy as np
import pytest

from npgait import backend
from npgait.backend import CPU, DeviceError, array_module, as_array, parse_dtype, select_device, to_host
from tests.fake_cupy import fake_gpu  # noqa: F401 - a fixture


def test_the_cpu_is_always_there():
    assert select_device("cpu") is CPU
    assert not CPU.is_gpu


def test_auto_is_silent_and_finds_something(recwarn):
    assert select_device("auto").name in ("cpu", "gpu:0")
    assert not recwarn.list


def test_asking_for_a_gpu_that_is_not_there_is_one_clear_line():
    with pytest.raises(DeviceError) as caught:
        select_device("gpu:99")
    assert "gpu:99" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_without_cublas_is_one_clear_line_and_auto_takes_the_cpu(monkeypatch):
    """CuPy 14 without the CUDA libraries: it imports, counts GPUs, and fails at the first product."""
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: 1))
    cupy.ndarray = type("ndarray", (), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cublas", None)
    with pytest.raises(DeviceError, match=r"finds no cuBLAS.*pip install") as caught:
        select_device("gpu")
    assert "\n" not in str(caught.value)
    assert select_device("auto") is CPU


@pytest.mark.parametrize("spec", ["tpu", "gpu:x", "gpu:-1", "cuda", "", "cpu:0"])
def test_unknown_devices_are_refused(spec):
    with pytest.raises(DeviceError, match="use cpu, gpu, gpu:N or auto"):
        select_device(spec)


class Exported:
    """An array of another library, known by DLPack alone."""

    def __init__(self, array, device=None):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()


def test_dlpack_arrays_go_in_without_a_copy():
    source = np.arange(6.0).reshape(2, 3)
    taken = as_array(Exported(source))
    assert np.shares_memory(taken, source)


def test_a_dlpack_device_that_neither_library_reads_is_refused():
    with pytest.raises(TypeError, match="device type 7"):
        as_array(Exported(np.zeros(2), (7, 0)))


def test_sequences_become_arrays_and_arrays_stay_what_they_are(device):
    assert as_array([[1, 2]]).shape == (1, 2)
    x = device.xp.ones(3)
    assert as_array(x) is x
    assert array_module(x) is device.xp
    assert isinstance(to_host(x), np.ndarray)


def test_dtypes_are_single_and_double_precision():
    assert parse_dtype("float32") == np.float32
    assert parse_dtype(np.float64) == np.float64
    for bad in ("float16", "int32", "nonsense"):
        with pytest.raises(ValueError, match="use float32 or float64"):
            parse_dtype(bad)


@pytest.fixture
def cupys_products(fake_gpu, monkeypatch):  # noqa: F811
    """CuPy's module that decides how products are made, with what npgait asks of it."""
    module = types.ModuleType("cupy._core._routines_linalg")
    module.COMPUTE_TYPE_FP32, module.COMPUTE_TYPE_TF32, module.chosen = 4, 7, 1
    module.get_compute_type = lambda dtype: module.chosen

    def set_compute_type(dtype, kind):
        module.chosen = kind

    module.set_compute_type = set_compute_type
    core = types.ModuleType("cupy._core")
    core._routines_linalg = module
    sys.modules["cupy"].__path__ = []
    monkeypatch.setitem(sys.modules, "cupy._core", core)
    monkeypatch.setitem(sys.modules, "cupy._core._routines_linalg", module)
    return module


def test_tf32_is_chosen_seen_and_left_for_what_is_measured(cupys_products, fake_gpu):  # noqa: F811
    x = fake_gpu.xp.asarray(np.ones(3, np.float32))
    assert backend.precision_of(x) == "float32"  # CuPy's default
    backend.set_precision("tf32")
    assert backend.precision_of(x) == "tf32"
    assert backend.precision_of(x.astype(np.float64)) == "float64"
    assert backend.precision_of(np.ones(3, np.float32)) == "float32"
    with backend.in_float32(x):
        assert backend.precision_of(x) == "float32"
    with backend.in_float32(np.ones(3, np.float32)):  # which is none of CuPy's business
        assert backend.precision_of(x) == "tf32"
    assert backend.precision_of(x) == "tf32"
    with pytest.raises(KeyError), backend.in_float32(x):
        raise KeyError
    assert backend.precision_of(x) == "tf32"
    backend.set_precision("float32")
    assert backend.precision_of(x) == "float32"
    assert cupys_products.chosen == 4


def test_tf32_on_a_gpu_that_has_none_is_an_error(cupys_products, fake_gpu, monkeypatch):  # noqa: F811
    def set_compute_type(dtype, kind):
        warnings.warn("COMPUTE_TYPE_DEFAULT will be used instead.", stacklevel=2)
        cupys_products.chosen = 0

    monkeypatch.setattr(cupys_products, "set_compute_type", set_compute_type)
    with pytest.raises(backend.DeviceError, match="needs a GPU of compute capability 8"):
        backend.set_precision("tf32")
    backend.set_precision("float32")  # which a default is


def test_a_precision_that_is_unknown_or_cannot_be_chosen_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="precision 'half' is unknown; use one of float32, tf32"):
        backend.set_precision("half")
    monkeypatch.setitem(sys.modules, "cupy._core", None)
    with pytest.raises(backend.DeviceError, match="cannot be set"):
        backend.set_precision("tf32")
