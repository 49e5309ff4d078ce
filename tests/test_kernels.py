"""The CUDA sources: they compile for the GPUs of today, and compute what the NumPy code computes."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgait import kernels, models
from npgait.activations import LeakyReLU
from npgait.data import Scaling
from npgait.layers.patches import Window, add_patches, cut_patches
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.rules import bind
from npgait.training import Recipe, train_step
from tests.emulation import emulated  # noqa: F401 - a fixture
from tests.support import relative, without_loops

SOURCES = sorted(path.name for path in Path(kernels.__file__).parent.glob("*.cu"))


# --- compiled -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def nvrtc():
    """NVIDIA's runtime compiler; it needs no GPU."""
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    if spec is None:
        pytest.skip("NVRTC is not installed (pip install '.[test-gpu-compile]')")
    (path,) = glob.glob(str(Path(spec.submodule_search_locations[0]) / "lib/libnvrtc.so.*"))
    return ctypes.CDLL(path)


@pytest.mark.parametrize("file", SOURCES)
@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_cuda_source_compiles_without_a_warning(file, real, architecture, nvrtc):
    program = ctypes.c_void_p()
    source = kernels.source(file).encode()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, file.encode(), 0, None, None) == 0
    options = [f"--gpu-architecture={architecture}", f"-DREAL={real}"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert b"warning" not in log.value, log.value.decode()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    assert size.value > 0


def test_there_are_sources_to_compile():
    assert SOURCES == ["elementwise.cu", "patches.cu"]


@pytest.fixture(autouse=True)
def expected_by_numpy(monkeypatch):
    """Until a test asks for `emulated`."""
    without_loops(monkeypatch)


# --- computed: the sources as C++ ---------------------------------------------------------------------


@pytest.fixture
def tolerance(dtype):
    return 8 * np.finfo(dtype).eps


@settings(max_examples=60)
@given(
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    channels=st.integers(1, 3),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.sampled_from(["SAME", "VALID"]),
)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_patches_are_cut_and_added_as_numpy_does(
    height, width, channels, kernel, stride, padding, real, request
):
    if padding == "VALID" and kernel > min(height, width):
        return
    window = Window(height, width, channels, kernel, stride, padding)
    rng = np.random.default_rng(height * 100 + width)
    x = rng.standard_normal((2, height, width, channels)).astype(real)
    patches = cut_patches(x, window)
    noise = rng.standard_normal(patches.shape).astype(real)
    added = np.array(add_patches(noise, window))
    request.getfixturevalue("emulated")
    own = kernels.source
    for small in ("1LL << 30", "0"):  # indices of 32 bits, and of 64
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "source", lambda file, at=small: own(file).replace("1LL << 30", at))
            poisoned = np.full(patches.size + 3, np.nan, real)
            np.testing.assert_array_equal(cut_patches(x, window, poisoned), patches)
            got = add_patches(noise, window)
        assert relative(got, added) < 20 * np.finfo(real).eps


def test_patches_are_indexed_by_as_many_bits_as_they_need():
    assert kernels.source("patches.cu").count("1LL << 30") == 1


@pytest.mark.parametrize("slope", [0.1, 1.0, 3.0])
def test_activation_kernels_are_the_equations_of_the_activation(slope, dtype, rng, tolerance, request):
    f = LeakyReLU(slope)
    a, e, v = (rng.standard_normal((5, 7)).astype(dtype) for _ in range(3))
    a[0, :3] = 0
    b = rng.standard_normal(7).astype(dtype)
    y = f(a)
    s = np.abs(rng.standard_normal((5, 1))).astype(dtype)
    s[2] = 0
    a_expected = a.copy()
    expected = [
        f.add_bias_and_activate(a_expected, b),
        f.times_derivative(a, e),
        f.times_derivative(a, e, power=2),
    ]
    expected += [f.difference(y, v, s), f.difference(y, v, 0.3)]
    assert f.crossed(y, v, s).any()
    request.getfixturevalue("emulated")
    a_got = a.copy()
    got = [
        f.add_bias_and_activate(a_got, b),
        f.times_derivative(a, e),
        f.times_derivative(a, e, power=2),
    ]
    got += [f.difference(y, v, s), f.difference(y, v, 0.3)]
    for one, other in zip([a_got, *got], [a_expected, *expected], strict=True):
        assert one.dtype == dtype
        assert relative(one, other) < tolerance


def test_the_adam_kernel_is_adam(dtype, rng, tolerance, request):
    parameters = [rng.standard_normal((6, 5)).astype(dtype), rng.standard_normal(5).astype(dtype)]
    copies = [p.copy() for p in parameters]
    gradients = [[rng.standard_normal(p.shape).astype(dtype) for p in parameters] for _ in range(4)]
    expected, got = Adam(0.1, 0.8, 0.9, 1e-3), Adam(0.1, 0.8, 0.9, 1e-3)
    for g in gradients:
        expected.step(parameters, g)
    request.getfixturevalue("emulated")
    for g in gradients:
        got.step(copies, g)
    for one, other in zip(copies, parameters, strict=True):
        assert relative(one, other) < 4 * tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_are_normalised_on_the_device_as_on_the_host(channels, dtype, rng, tolerance, request):
    x = rng.integers(0, 256, (4, 5, 6, channels), dtype=np.uint8)
    shift, scale = rng.uniform(0, 200, channels), rng.uniform(0.01, 1, channels)
    scalings = Scaling(shift, scale), Scaling(3.0, 0.5)
    all_expected = [scaling.apply(x, dtype) for scaling in scalings]
    request.getfixturevalue("emulated")
    for scaling, expected in zip(scalings, all_expected, strict=True):
        got = scaling.apply(x, dtype)
        assert got.shape == x.shape
        assert relative(got, expected) < tolerance


def test_the_mirror_kernel_fills_the_upper_triangle(dtype, rng, request):
    A = rng.standard_normal((9, 4)).astype(dtype)
    G = A @ A.T
    lower = np.tril(G)
    lower[np.triu_indices(9, 1)] = np.nan
    by_blocks = lower.copy()
    request.getfixturevalue("emulated")
    kernels.mirror(lower)
    np.testing.assert_array_equal(lower, np.tril(G) + np.tril(G, -1).T)
    first, second = slice(0, 4), slice(4, 9)
    for rows, columns in ((first, first), (second, first), (second, second)):
        kernels.mirror(by_blocks, rows, columns)
    np.testing.assert_array_equal(by_blocks, lower)


@pytest.mark.parametrize("rule", ["bp", "tp", "itp", "gait"])
def test_whole_steps_through_the_kernels_end_where_numpys_do(rule, rng, request):
    x = rng.standard_normal((4, 20, 20, 3))
    labels = np.arange(4)
    networks = [
        models.imagenet((20, 20, 3), 6, dtype="float64", auxiliary="implicit", seed=1) for _ in range(2)
    ]
    recipes = [
        Recipe(bind(rule), softmax_cross_entropy, Adam(1e-3), ortho_strength=0.3) for _ in range(2)
    ]
    for _ in range(3):
        train_step(networks[0], recipes[0], x, labels)
    request.getfixturevalue("emulated")
    for _ in range(3):
        train_step(networks[1], recipes[1], x, labels)
    for one, other in zip(networks[1].parameters(), networks[0].parameters(), strict=True):
        assert relative(one, other) < 1e-7
