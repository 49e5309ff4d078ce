"""Orthogonality: the regulariser's gradient, and how far from orthogonal W is.

Everything here is written with G = W W^T, which the regulariser shares with the product with W^-1
(inverse.py), and R = I - G, which is zero when W is orthogonal. Of a layer whose auxiliary units are
implicit W is tall, and W^T W stands for W W^T. For a square W either gives the same orthonormal and the
same conformal penalty. The off-diagonal penalty is not the same: it holds the columns of a tall W
orthogonal, where of a square W it holds the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from npgait import kernels
from npgait.backend import Array, array_module
from npgait.blas import gemm, lower_product, symmetric_products

TOLERANCE, MOST_LOOKS = 1e-3, 50  # of the power iteration
POWERS = 4  # products with R between two looks at the estimate; for each look the host waits for a GPU


def gram(W: Array) -> Array:
    """Return G = W W^T (n, n) of a square W, or G = W^T W (m, m) of a W with n > m."""
    return grams([W])[0]


def grams(weights: Sequence[Array | None]) -> list[Array | None]:
    """Return `gram` of each W, all made in one go; None for None."""
    rows = [W if W.shape[0] <= W.shape[1] else W.T for W in weights if W is not None]
    if rows and array_module(rows[0]) is np:
        products = symmetric_products(rows)
    else:
        products = [lower_product(A) for A in rows]
        for G in products:
            kernels.mirror(G)
    made = iter(products)
    return [None if W is None else next(made) for W in weights]


def orthonormal_gradient(
    W: Array, G: Array, strength: float = 1.0, *, add_to: Array | None = None, overwrite: bool = False
) -> Array:
    """Return 4 strength (W W^T - I) W, the gradient of ||W W^T - I||_F^2 (2023 paper).

    Parameters
    ----------
    W : array (n, n), or (n, m) with n > m
    G : array
        `gram(W)`.
    strength : float
        lambda.
    add_to : array, shape of W, optional
        What the gradient is added to, in place, and returned.
    overwrite : bool
        Whether G may be overwritten, which saves an array of its size.
    """
    return _times(4 * strength, _minus_diagonal(G, 1, overwrite), W, add_to)


def orthogonal_gradient(
    W: Array, G: Array, strength: float = 1.0, *, add_to: Array | None = None, overwrite: bool = False
) -> Array:
    """Return 4 strength offdiag(W W^T) W, of the off-diagonal part of ||W W^T||_F^2 (2020).

    Parameters: see `orthonormal_gradient`.
    """
    return _times(4 * strength, _minus_diagonal(G, G.diagonal(), overwrite), W, add_to)


def conformal_gradient(
    W: Array, G: Array, strength: float = 1.0, *, add_to: Array | None = None, overwrite: bool = False
) -> Array:
    """Return 4 strength (W W^T / c^2 - I) W, c^2 = trace(W W^T) / n: the size is left free.

    The gradient of ||W W^T / c^2 - I||_F^2 with c held, times c^2. With W W^T = c^2 I the inverse is
    W^T / c^2, so that GAIT-prop differs from backpropagation by one factor a layer.

    Parameters: see `orthonormal_gradient`.
    """
    c2 = scale_of(G)
    c2 += c2 == 0  # W = 0 has no size to be left free, and its gradient is 0
    return _times(4 * strength / c2, _minus_diagonal(G, c2, overwrite), W, add_to)


def scale_of(G: Array) -> Array:
    """Return c^2 = trace(W W^T) / n."""
    return G.trace() / len(G)  # stays on the device


def _times(factor: Array | float, M: Array, W: Array, add_to: Array | None) -> Array:
    """Return factor M W, or for a tall W factor W M; added to `add_to` where given."""
    A, B = (M, W) if len(M) == len(W) else (W, M)
    return gemm(factor, A, B, add_to, beta=1)


def _minus_diagonal(G: Array, diagonal: Array | float, overwrite: bool) -> Array:
    """Return G - diag(diagonal), in the memory of G where that may be overwritten."""
    on_diagonal = G.diagonal() - diagonal
    M = G if overwrite and G.flags.c_contiguous else G.copy()
    _diagonal(M)[...] = on_diagonal
    return M


def _diagonal(A: Array) -> Array:
    """Return the diagonal of A (n, n), which lies in one piece, as a view that can be written to."""
    return A.reshape(-1)[:: len(A) + 1]


REGULARISERS = {
    "orthonormal": orthonormal_gradient,
    "orthogonal": orthogonal_gradient,
    "conformal": conformal_gradient,
}


def residual(G: Array, c2: Array | float = 1.0) -> Array:
    """Return R = I - W W^T / c^2 (n, n)."""
    R = array_module(G).ascontiguousarray(G) * (-1 / c2)
    _diagonal(R)[...] += 1
    return R


@contextmanager
def zero_diagonal(G: Array) -> Iterator[Array]:
    """Yield G with zeros on its diagonal, in the memory of G, whose diagonal is put back afterwards.

    Of a G that is read-only, in a copy.
    """
    xp = array_module(G)
    off = xp.ascontiguousarray(G)
    if xp is np and not off.flags.writeable:
        off = off.copy()
    diagonal = _diagonal(off)
    before = diagonal.copy()
    diagonal[...] = 0
    try:
        yield off
    finally:
        diagonal[...] = before


def spectral_norm(R: Array) -> float:
    """Return ||R||_2 of a symmetric R (n, n).

    Exact (from the eigenvalues) up to n = 256. Above, by power iteration on a block of eight vectors,
    stopped when the estimate moves by less than 0.1 % from one look to the next; it approaches from
    below.
    """
    xp = array_module(R)
    n = len(R)
    if not bool(xp.isfinite(R).all()):
        return float("inf")
    if n <= 256:
        return float(xp.abs(xp.linalg.eigvalsh(R)).max())
    V = xp.asarray(np.random.default_rng(0).standard_normal((n, 8)), dtype=R.dtype)
    norm, size = 0.0, float(xp.abs(R).max())
    for _ in range(MOST_LOOKS if size else 0):
        for _ in range(POWERS):
            V = R @ V
            V /= size  # the largest value of R, so that powers neither overflow nor vanish
        V, _ = xp.linalg.qr(V)
        previous, norm = norm, float(xp.abs(xp.linalg.eigvalsh(V.T @ R @ V)).max())
        if abs(norm - previous) <= TOLERANCE * norm:
            break
    return norm
