"""Small helpers of the tests: networks away from orthogonality, distances, angles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from npgait import blas, kernels
from npgait.activations import LeakyReLU, Linear
from npgait.initialisation import orthogonal
from npgait.kernels import loops, patch_loops
from npgait.layers import Dense
from npgait.network import Network

needs_loops = pytest.mark.skipif(
    loops.library(np.dtype(np.float32)) is None,
    reason="npgait was installed without a C compiler, or NPGAIT_LOOPS=numpy is set",
)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """||got - expected|| / ||expected|| in float64; the plain norm where expected is zero."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(got - expected) / (norm or 1.0))


def worst(got: Iterable[Sequence], expected: Iterable[Sequence]) -> float:
    """The largest `relative` over all dW and db of two lists of updates."""
    return max(
        relative(g, e)
        for pair_got, pair_expected in zip(got, expected, strict=True)
        for g, e in zip(pair_got, pair_expected, strict=True)
    )


def dense_network(
    rng: np.random.Generator,
    *,
    n_in: int = 12,
    width: int = 16,
    depth: int = 3,
    n_classes: int = 5,
    used: int | None = None,
    shrink: int = 0,
    slope: float = 0.1,
    away: float = 0.0,
    dtype: str | np.dtype = "float64",
    linear_output: bool = True,
) -> Network:
    """Square layers above the first; `away` from orthogonality, `used` of `width` units feed on,
    and `shrink` fewer each layer up, as in a tower.
    """
    used = width if used is None else used
    layers = []
    below = n_in
    for l in range(depth + 1):
        last = l == depth
        n_out = width if l == 0 else below
        W = orthogonal(rng, below, n_out)
        W = W + away * rng.standard_normal(W.shape) / np.sqrt(below)
        b = 0.1 * rng.standard_normal(n_out)
        u = n_classes if last else min(used - l * shrink, n_out)
        f = Linear() if last and linear_output else LeakyReLU(slope)
        layers.append(Dense(W.astype(dtype), b.astype(dtype), u, f, f"layer{l}"))
        below = u
    return Network(layers)


def batch(rng: np.random.Generator, network: Network, size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A random batch for a network: x and integer labels."""
    x = rng.standard_normal((size, network.layers[0].n_in)).astype(network.dtype)
    return x, rng.integers(0, network.n_classes, size)


def near_orthogonal(
    rng: np.random.Generator, n: int, away: float, dtype: str | np.dtype = "float64"
) -> np.ndarray:
    """W (n, n) with ||I - W W^T||_2 of about 2 `away`."""
    E = rng.standard_normal((n, n))
    return (orthogonal(rng, n, n) + away * E / np.linalg.norm(E, 2)).astype(dtype)


class Foreign:
    """An array of another library, known by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def with_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiled loops and BLAS, where there are any, do what they can, however little it is."""
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(blas, "SMALL", 0)


def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NumPy compute what compiled loops and calls of BLAS would."""
    monkeypatch.setattr(kernels, "library", lambda dtype: None)
    monkeypatch.setattr(patch_loops, "library", lambda dtype: None)
    monkeypatch.setattr(blas, "function", lambda name, dtype: None)


def both(monkeypatch, work):
    """Return what `work` returns with compiled loops and with NumPy alone."""
    with monkeypatch.context() as patch:
        with_loops(patch)
        got = work()
        without_loops(patch)
        return got, work()
