"""The product with W^-1 near orthogonality, by matrix products alone: summed, or refined.

Both come twice: once ending when what is left is small, which has to be looked at, and once for so many
terms, whatever is left, for which a GPU need not be waited for.
"""

from __future__ import annotations

import numpy as np

from npgait.backend import Array, array_module, in_float32, to_host
from npgait.blas import gemm, product
from npgait.orthogonality import zero_diagonal

TRUSTED = 10  # times the tolerance: the largest residual that a z made by matrix products may leave
SAFETY = 3  # times the mean factor by which terms or residuals shrink: nearly every direction's is less
# Too slow to cost less than LU: the factor from term to term, that from residual to residual, and the
# share of a few rows that the first z leaves.
SLOW_TERMS, SLOW_RESIDUALS, SLOW_START = 0.7, 0.5, 0.3


def series(d: Array, W: Array, G: Array, tolerance: float, most: int) -> tuple[Array | None, int]:
    """Return z = d W^T D^-1 (I + R + R^2 + ...) and the number of terms; None where LU is better.

    D holds the squares of the lengths of W's rows, R = I - G D^-1: for R to be small the rows need not
    be of one length, which the regularisers "orthogonal" and "conformal" leave free. The terms are
    multiplied to d one after the other (2 B n^2 operations each), never to each other. Where ||R||_F may
    be 1 or more, convergence is not certain (a direction in which W is singular is invisible to the
    terms), so the residual is measured before z is trusted.
    """
    xp = array_module(d)
    D = G.diagonal().copy()
    shortest, longest = to_host(xp.stack((D.min(), D.max()))).tolist()  # one wait for a GPU
    # Of shorter rows the squares in ||R||_F underflow, and R passes for zero.
    if not (shortest > least_norm(W.dtype) and np.isfinite(longest)):
        return None, 0
    z = term = _first_term(d, W, D)
    last = before = _size(term, W, D)
    limit = tolerance * last
    with zero_diagonal(G) as off:  # R = -off D^-1
        bound = float(xp.linalg.norm(off)) / shortest  # at least ||R||_F
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
            term = _times_R(term, off, D)
            z += term
            before, last = last, _size(term, W, D)
    z = _last_factor(z, d, W)
    trusted = bound < 1 or relative_residual(z, d, W) <= TRUSTED * tolerance
    return (z, k) if trusted else (None, k)


def fixed_series(d: Array, W: Array, G: Array, terms: int) -> Array:
    """Return the sum of `series` after so many terms, whatever it is."""
    D = G.diagonal().copy()
    z = term = _first_term(d, W, D)
    with zero_diagonal(G) as off:
        for _ in range(terms):
            term = _times_R(term, off, D)
            z += term
    return _last_factor(z, d, W)


def _first_term(d: Array, W: Array, D: Array) -> Array:
    """Return d W^T D^-1, (B, n); for a tall W, whose R comes before W^T, d D^-1, (B, m)."""
    rows = d.reshape(-1, d.shape[-1])
    if len(W) > W.shape[1]:
        return rows / D
    term = product(rows, W[:, : d.shape[-1]].T)
    term /= D
    return term


def _times_R(term: Array, off: Array, D: Array) -> Array:
    """Return term R, R = -off D^-1."""
    term = gemm(-1, term, off)
    term /= D
    return term


def _size(term: Array, W: Array, D: Array) -> float:
    """Return the norm of a term, or for a tall W that of term W^T where W's columns are orthogonal."""
    xp = array_module(term)
    return float(xp.linalg.norm(term * xp.sqrt(D) if len(W) > W.shape[1] else term))


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
