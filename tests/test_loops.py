"""Compiled loops: the same bits as NumPy, nothing beyond an array, and npgait without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npgait import kernels, models
from npgait.activations import LeakyReLU
from npgait.blas import gemm
from npgait.data import Scaling
from npgait.kernels import loops as compiled
from npgait.kernels import patch_loops
from npgait.layers import patch_products
from npgait.layers.patch_products import multiplier, patches_transposed_times, product_adder
from npgait.layers.patches import Window, add_patches, cut_patches, geometry
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.rules import bind
from npgait.training import Recipe, train_step
from tests.support import relative, with_loops, without_loops

ROOT = Path(__file__).resolve().parents[1]
needs_loops = pytest.mark.skipif(
    compiled.library(np.dtype(np.float32)) is None,
    reason="npgait was installed without a C compiler, or NPGAIT_LOOPS=numpy is set",
)
most_lanes = patch_loops.register_lanes(np.dtype(np.float32))
needs_tiles = pytest.mark.skipif(
    most_lanes == 0, reason="tiles need AVX2 or AVX-512, and GCC when npgait was installed"
)


@pytest.fixture(params=[4, 8])
def lanes(request, monkeypatch):
    """Tiles of AVX2 and of AVX-512, each where the processor has it."""
    if most_lanes < request.param:
        pytest.skip(f"this processor's registers have {most_lanes} lanes")
    monkeypatch.setattr(patch_loops, "register_lanes", lambda dtype: request.param)
    return request.param


windows = st.builds(
    Window,
    height=st.integers(5, 19),
    width=st.integers(5, 33),
    channels=st.integers(1, 6),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.sampled_from(["SAME", "VALID"]),
)


def both(monkeypatch, work):
    """Return what `work` returns with compiled loops and with NumPy alone."""
    with monkeypatch.context() as patch:
        with_loops(patch)
        got = work()
        without_loops(patch)
        return got, work()


# --- the same bits ------------------------------------------------------------------------------------


@needs_loops
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 2, 3, 4), (4, 1027), (0, 4), (1030, 1030)])
@pytest.mark.parametrize("slope", [0.1, 1.0, 3.0])
def test_activations_are_numpys_to_the_bit(shape, slope, dtype, rng, monkeypatch):
    f = LeakyReLU(slope)
    a, e = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    a.reshape(-1)[::5] = 0
    b = rng.standard_normal(shape[-1]).astype(dtype)
    s = np.abs(rng.standard_normal((shape[0], *[1] * (len(shape) - 1)))).astype(dtype)
    s[1::3] = 0

    def work():
        a_ = a.copy()
        y = f.add_bias_and_activate(a_, b, out=np.full_like(a, np.nan))
        at_kinks = f.difference(f(a), e, s)
        return [
            a_,
            y,
            f.times_derivative(a, e),
            at_kinks,
            f.difference(y, e, s),
            f.difference(y, e, 1e-7),
        ]

    if shape[0]:
        assert f.crossed(f(a), e, s).any() or shape == (1, 1)
    for got, expected in zip(*both(monkeypatch, work), strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)


@needs_loops
@pytest.mark.parametrize("shapes", [[(3, 5), (5,)], [(1100, 1000), (7,)]])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_adam_is_numpys_to_the_bit(shapes, bias_correction, dtype, rng, monkeypatch):
    start = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    gradients = [[rng.standard_normal(p.shape).astype(dtype) for p in start] for _ in range(3)]

    def work():
        parameters = [p.copy() for p in start]
        adam = Adam(0.01, 0.9, 0.99, 1e-6, bias_correction)
        for g in gradients:
            adam.step(parameters, g)
        return [*parameters, *adam.m, *adam.v]

    for got, expected in zip(*both(monkeypatch, work), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 32, 33, 48, 64, 65, 300])
def test_the_lower_triangle_is_mirrored(n, dtype, rng, loops):
    G = rng.standard_normal((n, n)).astype(dtype)
    lower = np.tril(G)
    kernels.mirror(G)
    np.testing.assert_array_equal(G, lower + np.tril(lower, -1).T)


@pytest.mark.parametrize("rows", [slice(0, 9), slice(3, 60), slice(70, 300), slice(299, 300)])
def test_a_block_below_the_diagonal_is_mirrored_and_nothing_else_is_changed(rows, dtype, rng, loops):
    G = rng.standard_normal((300, 300)).astype(dtype)
    columns = slice(0, rows.start)
    expected = G.copy()
    expected[columns, rows] = G[rows, columns].T
    kernels.mirror(G, rows, columns)
    np.testing.assert_array_equal(G, expected)
    expected[rows, rows] = np.tril(G[rows, rows]) + np.tril(G[rows, rows], -1).T
    kernels.mirror(G, rows, rows)
    np.testing.assert_array_equal(G, expected)


@needs_loops
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bytes_are_normalised_as_by_numpy_to_the_bit(channels, dtype, rng, monkeypatch):
    x = rng.integers(0, 256, (9, 5, 6, channels), dtype=np.uint8)
    scaling = Scaling(rng.uniform(0, 200, channels), rng.uniform(0.01, 1, channels))
    np.testing.assert_array_equal(*both(monkeypatch, lambda: scaling.apply(x, dtype)))


@needs_loops
@settings(max_examples=150)
@given(window=windows, seed=st.integers(0, 99))
def test_patches_are_cut_and_added_as_by_numpy(window, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, window.height, window.width, window.channels))
    got, expected = both(monkeypatch, lambda: np.array(cut_patches(x, window)))
    np.testing.assert_array_equal(got, expected)
    noise = rng.standard_normal(expected.shape)
    got, expected = both(monkeypatch, lambda: np.array(add_patches(noise, window)))
    np.testing.assert_allclose(got, expected, atol=1e-13 * window.patch_size)


# --- products with patches ----------------------------------------------------------------------------


def check_products(window, u, real, seed):
    """Products with patches, against those of all patches in float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, window.height, window.width, window.channels)).astype(real)
    W = rng.standard_normal((window.patch_size, u + 2)).astype(real)[:, 1:-1]  # of a larger matrix
    d = rng.standard_normal((3, *window.positions, u)).astype(real)
    x_p, rows = cut_patches(x.astype(float), window), d.reshape(-1, u).astype(float)
    out, images = np.full_like(d, np.nan), np.full_like(x, np.nan)
    multiplier(W, window)(x, out)
    product_adder(W.T, window)(d, images)
    W, eps = W.astype(float), 2 * np.finfo(real).eps
    # Rounding of a product of n terms: at most n eps times the product of the absolute values.
    bound = len(W) * eps * (np.abs(x_p) @ np.abs(W))
    assert (np.abs(out.reshape(-1, u) - x_p @ W) <= bound).all()
    bound = len(rows) * eps * (np.abs(x_p).T @ np.abs(rows))
    assert (np.abs(patches_transposed_times(x, d, window) - x_p.T @ rows) <= bound).all()
    terms = u * window.neighbours**2
    bound = terms * eps * add_patches(np.abs(rows) @ np.abs(W.T), window)
    assert (np.abs(images - add_patches(rows @ W.T, window)) <= bound).all()


def tiles(window, u, real="float32"):
    """Which products of a convolution are made in tiles: x_p W, x_p^T d, and sums over patches."""
    where, W = geometry(window), np.zeros((window.patch_size, u), real)
    return (
        patch_loops.multiplier_in_tiles(W, where) is not None,
        patch_loops.summing_memory(W.dtype, u, where) > 0,
        patch_loops.adder_in_tiles(np.ascontiguousarray(W.T), where) is not None,
    )


@settings(max_examples=200)
@given(
    window=windows,
    u=st.integers(1, 40),
    some=st.sampled_from([1, 1000, 5000, 400 << 10]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_products_with_patches_are_those_of_all_patches(real, window, u, some, seed, loops, monkeypatch):
    """`some`: bytes of patches at a time, which may begin and end within images."""
    monkeypatch.setattr(patch_products, "SOME_BYTES", some)
    check_products(window, u, real, seed)


@needs_tiles
@settings(max_examples=100)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(5, 28),
    channels=st.one_of(st.integers(1, 7), st.integers(10, 50)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.sampled_from(["SAME", "VALID"]),
    beyond=st.integers(0, 5),
    u=st.integers(10, 70),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_products_in_tiles_are_those_of_all_patches(
    real, lanes, rows, columns, channels, kernel, stride, padding, beyond, u, seed
):
    """`beyond`: pixels after the last patch of a VALID window, or that a SAME one lacks."""
    beyond %= stride
    size = [n * stride - beyond if padding == "SAME" else (n - 1) * stride + kernel + beyond
            for n in (rows, columns)]  # fmt: skip
    window = Window(*size, channels, kernel, stride, padding)
    assert window.positions == (rows, columns)
    assume(any(tiles(window, u, real)))
    check_products(window, u, real, seed)


@needs_tiles
@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("u", [16, 24, 40, 64])
@pytest.mark.parametrize("columns", [6, 9, 14])
@pytest.mark.parametrize("channels", [4, 9, 16, 27])
def test_tiles_of_every_size_keep_to_their_memory(real, u, columns, channels, lanes, rng, monkeypatch):
    """Odd channels too; of images with no padding, so that what is read beyond them is not zeros."""
    window = Window(11, columns + 2, channels, 3, padding="VALID")
    where, lent = geometry(window), []

    def guarded(n, dtype, x):
        lent.append((np.full(n + 64, 7, dtype), n))
        return lent[-1][0][:n]

    monkeypatch.setattr(patch_loops, "scratch", guarded)
    x = rng.standard_normal((2, 11, columns + 2, channels)).astype(real)
    d = rng.standard_normal((2, 9, columns, u)).astype(real)
    W = rng.standard_normal((window.patch_size, u)).astype(real)
    out, images, P = (np.full(n.size + 64, 7, real) for n in (d, x, W))
    by_patches, by_sums, added = tiles(window, u, real)
    assert by_patches and by_sums
    patch_loops.multiplier_in_tiles(W, where)(x, out)
    if added:
        patch_loops.adder_in_tiles(np.ascontiguousarray(W.T), where)(d, images)
    memory = guarded(patch_loops.summing_memory(W.dtype, u, where), W.dtype, x)
    patch_loops.times_patches_in_tiles(d, x, P, memory, where)
    assert (out[d.size :] == 7).all() and (images[x.size :] == 7).all() and (P[W.size :] == 7).all()
    assert len(lent) == 2 + added and all((memory[n:] == 7).all() for memory, n in lent)
    check_products(window, u, real, 0)


@needs_tiles
@pytest.mark.parametrize("u", [16, 24, 32, 48, 192])
def test_convolutions_are_made_in_tiles_where_most_of_each_is_of_use(u, monkeypatch):
    monkeypatch.setattr(patch_loops, "register_lanes", lambda dtype: 8)
    assert tiles(Window(28, 28, 24, 3, 2), u) == (True, True, True)
    assert tiles(Window(224, 224, 3, 9, 4), u) == (True, True, False)  # sums of 3 channels
    assert tiles(Window(28, 28, 24, 3, 2), 9) == (False, False, True)  # 9 channels of 16
    assert tiles(Window(3, 1, 24, 9, 1), u)[0] is False  # 3 positions, tiles of 6
    assert tiles(Window(28, 28, 1, 3, 1), u)[1] is False  # a row of a patch of 3 values
    assert tiles(Window(4, 4, 24, 3, 1), 192)[1] is False  # sums over 16 positions


@pytest.mark.parametrize("wrong", ["x", "d"])
def test_an_array_of_another_size_is_refused_and_never_read_beyond(wrong, rng, loops):
    window = Window(8, 8, 2, 3)
    x, d = rng.standard_normal((2, 8, 8, 2)), rng.standard_normal((2, 8, 8, 4))
    W = rng.standard_normal((18, 4))
    if wrong == "x":
        x = x[:, :7]
        with pytest.raises(ValueError, match=r"x has shape \(2, 7, 8, 2\); expected \(2, 8, 8, 2\)"):
            multiplier(W, window)(x, np.empty((2, 8, 8, 4)))
    else:
        d = d[:, :7]
    with pytest.raises(ValueError, match=rf"{wrong} has shape \(2, 7, 8"):
        patches_transposed_times(x, d, window)


@needs_loops
def test_kernels_refuse_arrays_of_other_shapes(rng, monkeypatch):
    with_loops(monkeypatch)
    f = LeakyReLU()
    a, short = rng.standard_normal((4, 5)), rng.standard_normal((3, 5))
    with pytest.raises(ValueError, match="equal shapes"):
        f.times_derivative(a, short)
    with pytest.raises(ValueError, match="equal shapes"):
        f.add_bias_and_activate(a, np.zeros(4))
    with pytest.raises(ValueError, match="equal shapes"):
        f.difference(a, a, np.ones((3, 1)))
    with pytest.raises(ValueError, match="equal shapes"):
        Adam(0.1).step([a], [short])


def test_patches_of_another_size_are_refused(rng, loops):
    window = Window(8, 8, 2, 3)
    with pytest.raises(ValueError, match="x has shape"):
        cut_patches(rng.standard_normal((2, 8, 7, 2)), window)
    with pytest.raises(ValueError, match="patches has shape"):
        add_patches(rng.standard_normal((64, 17)), window)


@needs_loops
def test_bytes_of_other_channels_are_refused(rng):
    x = rng.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    for shift, scale in ((np.ones(3), np.ones(3)), (np.ones(1), np.ones(4))):
        with pytest.raises(ValueError, match="equal shapes"):
            kernels.normalise(x, shift, scale, np.dtype(float))


@needs_loops
def test_a_single_row_is_never_divided_among_threads(rng, monkeypatch):
    a, b = rng.standard_normal((2, 1 << 20))
    np.testing.assert_array_equal(
        *both(monkeypatch, lambda: LeakyReLU().add_bias_and_activate(a.copy(), b))
    )


@pytest.mark.parametrize("rule", ["bp", "tp", "gait"])
def test_whole_steps_end_where_numpys_do(rule, rng, monkeypatch):
    x = rng.standard_normal((5, 64, 64, 3))

    def work():
        network = models.imagenet((64, 64, 3), 6, dtype="float64", auxiliary="implicit", seed=1)
        recipe = Recipe(bind(rule), softmax_cross_entropy, Adam(1e-3), ortho_strength=0.3)
        for _ in range(3):
            train_step(network, recipe, x, np.arange(5))
        return network.parameters()

    for got, expected in zip(*both(monkeypatch, work), strict=True):
        assert relative(got, expected) < 1e-7


# --- with and without ---------------------------------------------------------------------------------


def describe(**environment):
    code = """
import numpy
from npgait import blas
from npgait.kernels import loops
found = [find("gemm", numpy.dtype(float)) is not None for find in (blas.address, blas.function)]
print(loops.in_use(), *found)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, **environment},
        text=True,
    )
    return run.stdout.split()


def test_an_environment_variable_turns_loops_off():
    assert describe(NPGAIT_LOOPS="numpy") == ["numpy", "False", "False"]


def test_another_word_in_the_environment_variable_is_refused(monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "nump")
    with pytest.raises(compiled.SwitchError, match=r"NPGAIT_LOOPS is 'nump'; expected numpy"):
        compiled.switched_off()
    for word, off in (("numpy", True), ("compiled", False), ("", False)):
        monkeypatch.setenv(compiled.SWITCH, word)
        assert compiled.switched_off() == off


@needs_loops
def test_loops_find_the_product_that_numpy_uses():
    assert describe() == ["compiled", "True", "True"]


@needs_loops
def test_a_library_that_cannot_be_loaded_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "loops.py"))
    load = compiled.library.__wrapped__
    assert load(np.dtype(np.float32)) is None
    for suffix in compiled.EXTENSION_SUFFIXES:
        (tmp_path / f"_loops_float32{suffix}").write_bytes(b"\x7fELF but not much of it")
    assert load(np.dtype(np.float32)) is None


def test_npgait_is_built_without_a_compiler(tmp_path):
    pytest.importorskip("setuptools")
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *folders],
        cwd=ROOT,
        env={**os.environ, "CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not list((tmp_path / "lib").rglob("_loops*"))


def test_the_names_of_kernels_and_loops_are_the_same():
    loops_c = (Path(kernels.__file__).parent / "loops.c").read_text(encoding="utf-8")
    for name in ("bias_activation", "times_derivative", "difference", "adam", "normalise", "mirror"):
        assert f" {name}(" in loops_c
        assert f" {name}(" in kernels.source("elementwise.cu")
    for name in ("cut_patches", "add_patches"):
        assert f" {name}(" in loops_c
        assert f" {name}(" in kernels.source("patches.cu")


@pytest.mark.parametrize("work", ["adam", "bias", "mirror", "gemm"])
def test_arrays_that_are_read_only_are_refused_and_left_as_they_are(work, dtype, loops):
    A = np.eye(256, dtype=dtype)
    before = A.copy()
    A.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        if work == "adam":
            Adam(0.1).step([A], [np.ones_like(A)])
        elif work == "bias":
            LeakyReLU().add_bias_and_activate(A, np.ones(256, dtype))
        elif work == "mirror":
            kernels.mirror(A)
        else:
            gemm(1.0, before, before, A)
    np.testing.assert_array_equal(A, before)
