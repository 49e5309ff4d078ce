"""Patches on a CPU: the compiled loops that cut, add and multiply them, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npgait.kernels import patch_loops
from npgait.layers import patch_products
from npgait.layers.patch_products import multiplier, patches_transposed_times, product_adder
from npgait.layers.patches import Window, add_patches, cut_patches, geometry
from tests.support import both, needs_loops, relative

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
    terms = u * (-(-window.kernel // window.stride)) ** 2  # patches over a pixel
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


@pytest.mark.parametrize("u", [4, 24])  # by BLAS, and in tiles where there are any
def test_images_errors_and_weights_may_be_views(u, rng, loops):
    window = Window(8, 8, 24, 3)
    x = rng.standard_normal((4, 24, 8, 8)).transpose(0, 2, 3, 1)[::2]
    d = rng.standard_normal((4, u, 8, 8)).transpose(0, 2, 3, 1)[::2]
    W = rng.standard_normal((u, 216)).T
    out, images = np.empty((2, 8, 8, u)), np.empty((2, 8, 8, 24))
    multiplier(W, window)(x, out)
    product_adder(W.T[:, ::-1], window)(d, images)
    P = patches_transposed_times(x, d, window)
    x, d, W = map(np.ascontiguousarray, (x, d, W))
    patches = cut_patches(x, window)
    rows, rounding = d.reshape(-1, u), 216 * np.finfo(np.float64).eps  # values of a sum
    assert relative(out, (patches @ W).reshape(out.shape)) < rounding
    assert relative(images, add_patches(rows @ W.T[:, ::-1], window)) < rounding
    assert relative(P, patches.T @ rows) < rounding


@pytest.mark.parametrize("shape", [(2, 8, 7, 4), (1, 8, 8, 4), (2, 8, 8, 5)])
def test_what_is_to_be_filled_has_to_be_of_the_products_shape_and_in_one_piece(shape, rng, loops):
    window, W = Window(8, 8, 2, 3), rng.standard_normal((18, 4))
    x, d = rng.standard_normal((2, 8, 8, 2)), rng.standard_normal((2, 8, 8, 4))
    with pytest.raises(ValueError, match="out has shape"):
        multiplier(W, window)(x, np.empty(shape))
    with pytest.raises(ValueError, match="out has strides"):
        multiplier(W, window)(x, np.empty((2, 8, 8, 8))[..., :4])
    for other in ((2, 8, 7, 2), (3, 8, 8, 2), (2, 8, 8, 1)):
        with pytest.raises(ValueError, match="out has shape"):
            product_adder(W.T, window)(d, np.empty(other))
    with pytest.raises(ValueError, match="out has shape"):
        product_adder(W.T, window)(d[:1], np.empty((2, 8, 8, 2)))


@pytest.mark.parametrize("shape", [(2, 7, 8, 4), (2, 8, 9, 4), (2, 8, 8, 5), (2, 4, 16, 4)])
def test_errors_of_another_shape_are_refused_and_not_spread(shape, rng, loops):
    window, W = Window(8, 8, 2, 3), rng.standard_normal((18, 4))
    images = np.full((2, 8, 8, 2), 7.0)
    with pytest.raises(ValueError, match="d has shape"):
        product_adder(W.T, window)(rng.standard_normal(shape), images)
    assert (images == 7).all()


def test_patches_of_another_size_are_refused(rng, loops):
    window = Window(8, 8, 2, 3)
    with pytest.raises(ValueError, match="x has shape"):
        cut_patches(rng.standard_normal((2, 8, 7, 2)), window)
    with pytest.raises(ValueError, match="patches has shape"):
        add_patches(rng.standard_normal((64, 17)), window)
