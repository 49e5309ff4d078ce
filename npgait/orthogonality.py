"""Orthogonality: the regulariser's gradient, and the distance from it.

Everything here is written with G = W W^T, which the regulariser shares with the product with W^-1
(inverse.py), and R = I - G, which is zero when W is orthogonal. Of a layer whose auxiliary units are
implicit W is tall, and W^T W stands for W W^T: both penalties are equal where both can be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module, symmetric_product
from npgait.parallel import in_threads

BLOCK = 256  # rows of W W^T that a thread makes at a time


def gram(W: Array) -> Array:
    """Return G = W W^T (n, n) of a square W, or G = W^T W (m, m) of a W with n > m."""
    rows = W if W.shape[0] <= W.shape[1] else W.T
    if array_module(W) is np:
        return _symmetric_products([rows])[0]
    G = symmetric_product(array_module(W).ascontiguousarray(rows))
    kernels.mirror(G)
    return G


def grams(weights: Sequence[Array | None]) -> list[Array | None]:
    """Return W W^T of each W (None of None)."""
    present = [W for W in weights if W is not None]
    if present and array_module(present[0]) is np:
        made = iter(_symmetric_products([W if W.shape[0] <= W.shape[1] else W.T for W in present]))
    else:
        made = iter([gram(W) for W in present])
    return [None if W is None else next(made) for W in weights]


def _symmetric_products(matrices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the product of each matrix with its transpose, half of it mirrored from the other half.

    A thread takes some rows of one at a time. NumPy halves a product with a transpose by itself, at half
    of the rate of a product of two matrices: only the blocks on the diagonal are made by that.
    """
    products = [np.empty((len(rows), len(rows)), rows.dtype) for rows in matrices]

    def work(part: tuple[np.ndarray, np.ndarray, int]) -> None:
        rows, G, first = part
        here, before = slice(first, first + BLOCK), slice(0, first)
        np.matmul(rows[here], rows[here].T, out=G[here, here])
        if first:
            np.matmul(rows[here], rows[before].T, out=G[here, before])
            G[before, here] = G[here, before].T

    parts = [(r, G, i) for r, G in zip(matrices, products, strict=True) for i in range(0, len(r), BLOCK)]
    parts.sort(key=lambda part: -part[2] * part[0].shape[1])  # the longest first
    in_threads(work, parts, matrices[0])
    return products


def orthonormal_gradient(W: Array, G: Array, strength: float = 1.0, *, overwrite: bool = False) -> Array:
    """Return 4 strength (W W^T - I) W, the gradient of ||W W^T - I||_F^2 (2023 paper).

    Parameters
    ----------
    W : array (n, n), or (n, m) with n > m
    G : array
        `gram(W)`.
    strength : float
        lambda.
    overwrite : bool
        Whether G may be overwritten, which saves an array of its size.
    """
    return _times(_minus_diagonal(G, 1, 4 * strength, overwrite), W)


def orthogonal_gradient(W: Array, G: Array, strength: float = 1.0, *, overwrite: bool = False) -> Array:
    """Return 4 strength offdiag(W W^T) W, of the off-diagonal part of ||W W^T||_F^2 (2020).

    Parameters: see `orthonormal_gradient`.
    """
    return _times(_minus_diagonal(G, G.diagonal(), 4 * strength, overwrite), W)


def conformal_gradient(W: Array, G: Array, strength: float = 1.0, *, overwrite: bool = False) -> Array:
    """Return 4 strength (W W^T / c^2 - I) W, c^2 = trace(W W^T) / n: the size is left free.

    The gradient of ||W W^T / c^2 - I||_F^2 with c held, times c^2. With W W^T = c^2 I the inverse is
    W^T / c^2, so that GAIT-prop differs from backpropagation by one factor a layer.

    Parameters: see `orthonormal_gradient`.
    """
    c2 = scale_of(G)
    return _times(_minus_diagonal(G, c2, 4 * strength / c2, overwrite), W)


def scale_of(G: Array) -> Array:
    """Return c^2 = trace(W W^T) / n."""
    return G.trace() / len(G)  # stays on the device


def _times(difference: Array, W: Array) -> Array:
    """Return the product with W, on the side that `gram` took."""
    return difference @ W if len(difference) == len(W) else W @ difference


def _minus_diagonal(G: Array, diagonal: Array | float, factor: Array | float, overwrite: bool) -> Array:
    """Return factor (G - diag(diagonal)), in the memory of G where that may be overwritten."""
    on_diagonal = factor * (G.diagonal() - diagonal)
    difference = array_module(G).multiply(G, factor, out=G if overwrite else None)
    difference.reshape(-1)[:: len(G) + 1] = on_diagonal
    return difference


REGULARISERS = {
    "orthonormal": orthonormal_gradient,
    "orthogonal": orthogonal_gradient,
    "conformal": conformal_gradient,
}


def residual(G: Array, c2: Array | float = 1.0) -> Array:
    """Return R = I - W W^T / c^2 (n, n)."""
    R = G * (-1 / c2)
    R.reshape(-1)[:: len(R) + 1] += 1  # the diagonal
    return R


def spectral_norm(R: Array, *, tolerance: float = 1e-3, max_iterations: int = 200) -> float:
    """Return ||R||_2 of a symmetric R (n, n).

    Exact (from the eigenvalues) up to n = 256. Above, by power iteration on a block of eight vectors,
    stopped when the estimate moves by less than `tolerance` (relative); it approaches from below.
    """
    xp = array_module(R)
    n = len(R)
    if not bool(xp.isfinite(R).all()):
        return float("inf")
    if n <= 256:
        return float(xp.abs(xp.linalg.eigvalsh(R)).max())
    V = xp.asarray(np.random.default_rng(0).standard_normal((n, 8)), dtype=R.dtype)
    norm = 0.0
    for _ in range(max_iterations):
        V, _ = xp.linalg.qr(R @ V)
        previous, norm = norm, float(xp.abs(xp.linalg.eigvalsh(V.T @ R @ V)).max())
        if abs(norm - previous) <= tolerance * norm:
            break
    return norm
