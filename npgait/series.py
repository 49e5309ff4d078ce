"""The product with W^-1 near orthogonality, by matrix products alone: summed, or refined.

Both come twice: once ending when what is left is small, which has to be looked at, and once for so many
terms, whatever is left, for which a GPU need not be waited for.
"""

from __future__ import annotations

import numpy as np

from npgait.backend import Array, array_module, in_float32
from npgait.blas import gemm, product
from npgait.orthogonality import minus_scale, scale_of

TRUSTED = 10  # times the tolerance: the largest residual that a z made by matrix products may leave
SAFETY = 3  # times the mean factor by which terms or residuals shrink: nearly every direction's is less
# Too slow to cost less than LU: the factor from term to term, that from residual to residual, and the
# share of a few rows that the first z leaves.
SLOW_TERMS, SLOW_RESIDUALS, SLOW_START = 0.7, 0.5, 0.3


def series(d: Array, W: Array, G: Array, tolerance: float, most: int) -> tuple[Array | None, int]:
    """Return z = d W^T / c^2 (I + R + R^2 + ...) and the number of terms; None where LU is better.

    The terms are multiplied to d one after the other (2 B n^2 operations each), never to each other.
    Where ||R||_F >= 1 convergence is not certain (a direction in which W is singular is invisible to
    the terms), so the residual is measured before z is trusted.
    """
    xp = array_module(d)
    c2 = float(scale_of(G))
    # Of a smaller c^2 the squares in ||R||_F underflow, and R passes for zero.
    if not (c2 > least_norm(W.dtype) and np.isfinite(c2)):
        return None, 0
    z = term = _first_term(d, W, 1 / c2)
    last = before = float(xp.linalg.norm(term))
    limit = tolerance * last
    with minus_scale(G, c2) as D:  # R = -D / c^2
        bound = float(xp.linalg.norm(D)) / c2
        for k in range(most + 1):
            # What a sum of k terms leaves out is at most last * r / (1 - r), r = ||R||_2. ||R||_F bounds
            # r; so does, but for a few directions, the factor between the last terms with some to spare.
            r = bound if k == 0 else min(bound, SAFETY * last / before)
            if not np.isfinite(last):
                return None, k
            if last == 0 or (r < 1 and last * r / (1 - r) <= limit):
                break
            if (k >= 1 and last >= SLOW_TERMS * before) or k == most:
                return None, k
            term = gemm(-1 / c2, term, D)  # term R
            z += term
            before, last = last, float(xp.linalg.norm(term))
    z = _last_factor(z, d, W)
    trusted = bound < 1 or relative_residual(z, d, W) <= TRUSTED * tolerance
    return (z, k) if trusted else (None, k)


def fixed_series(d: Array, W: Array, G: Array, terms: int) -> Array:
    """Return the sum of `series` after so many terms, whatever it is."""
    c2 = scale_of(G)
    z = term = _first_term(d, W, 1 / c2)
    factor = -1 / c2  # an array on a GPU
    with minus_scale(G, c2) as D:  # R = -D / c^2
        for _ in range(terms):
            term = gemm(factor, term, D)  # term R
            z += term
    return _last_factor(z, d, W)


def _first_term(d: Array, W: Array, scale: Array | float) -> Array:
    """Return d W^T / c^2, (B, n); for a tall W, whose R comes before W^T, d / c^2, (B, m)."""
    rows = d.reshape(-1, d.shape[-1])
    return rows * scale if len(W) > W.shape[1] else gemm(scale, rows, W[:, : d.shape[-1]].T)


def _last_factor(z: Array, d: Array, W: Array) -> Array:
    """Return z, or for a tall W z W^T, in the shape of d with n values a row."""
    z = product(z, W.T) if len(W) > W.shape[1] else z
    return z.reshape(*d.shape[:-1], len(W))


def fixed_refinement(d: Array, W: Array, corrections: int) -> Array:
    """Return z of `refined` after so many corrections, whatever it is."""
    rows = d.reshape(-1, d.shape[-1])
    scale = W.shape[1] / array_module(d).vdot(W, W)  # 1 / c^2
    z = _corrected(None, rows, W, scale)
    for _ in range(corrections):
        z = _corrected(z, _left(rows, z, W), W, scale)
    return z.reshape(*d.shape[:-1], len(W))


def refined(d: Array, W: Array, tolerance: float, most: int) -> tuple[Array | None, int]:
    """Return z by z <- z + r W^T / c^2, r = d - z W, and the number of corrections; None for LU.

    What is left is measured, not estimated, but for the last correction, whose effect follows from those
    before it. Eight rows tell first whether it will converge at all.
    """
    xp = array_module(d)
    rows = d.reshape(-1, d.shape[-1])
    c2 = float(xp.vdot(W, W)) / W.shape[1]
    if not (c2 > 0 and np.isfinite(c2)):
        return None, 0
    some = rows[:: max(1, len(rows) // 8)][:8]
    left = float(xp.linalg.norm(_left(some, _corrected(None, some, W, 1 / c2), W)))
    if not left <= SLOW_START * float(xp.linalg.norm(some)):
        return None, 0
    r, z = rows, None
    before = last = float(xp.linalg.norm(rows))
    if not np.isfinite(last):
        return None, 0
    limit = tolerance * last
    for k in range(most + 1):
        z = _corrected(z, r, W, 1 / c2)
        if k > 0 and SAFETY * last * (last / before) <= limit:
            return z.reshape(*d.shape[:-1], len(W)), k
        r = _left(rows, z, W)
        before, last = last, float(xp.linalg.norm(r))
        if last <= limit:
            return z.reshape(*d.shape[:-1], len(W)), k
        if not last < SLOW_RESIDUALS * before:
            break
    return None, most


def _corrected(z: Array | None, r: Array, W: Array, scale: Array | float) -> Array:
    """Return z + r W^T / c^2, scale = 1 / c^2, in the memory of z; for no z r W^T / c^2."""
    return gemm(scale, r, W[:, : r.shape[1]].T, z, beta=1)


def _left(d: Array, z: Array, W: Array) -> Array:
    """Return r = d - z W, d (B, u) filled up with zeros: (B, m)."""
    r = array_module(d).zeros((len(d), W.shape[1]), dtype=d.dtype)
    r[:, : d.shape[1]] = d
    return gemm(-1, z, W, r, beta=1)


def least_norm(dtype: np.dtype) -> float:
    """Return the norm from which on the sum of squares below the root loses no digits to underflow."""
    limits = np.finfo(dtype)
    return float(limits.tiny) ** 0.5 / float(limits.eps)


def relative_residual(z: Array, d: Array, W: Array) -> float:
    """Return ||z W - d|| / ||d||, d (..., u) filled up with zeros; 0 for d = 0."""
    xp = array_module(d)
    u, norm = d.shape[-1], float(xp.linalg.norm(d))
    with in_float32(d):  # TF32 would be taken for the residual
        r = z.reshape(-1, len(W)) @ W
    r[:, :u] -= d.reshape(-1, u)
    difference = float(xp.linalg.norm(r))
    return difference / norm if norm else difference
