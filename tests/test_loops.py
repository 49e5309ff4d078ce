"""Compiled loops: the same bits as NumPy, nothing beyond an array, and npgait without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npgait import kernels, models
from npgait.activations import LeakyReLU
from npgait.blas import gemm
from npgait.data import Scaling
from npgait.kernels import loops as compiled
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.rules import bind
from npgait.training import Recipe, train_step
from tests.support import both, needs_loops, relative, with_loops

ROOT = Path(__file__).resolve().parents[1]

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


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f4", "<f8"])
def test_values_of_either_byte_order_are_read_as_what_they_are(kind, loops):
    p = np.ones(1 << 16, kind)
    Adam(0.1).step([p], [np.ones_like(p)])
    np.testing.assert_allclose(p, 0.9, rtol=1e-6)
    product = LeakyReLU().times_derivative(p, -p)
    np.testing.assert_array_equal(product, -p)
