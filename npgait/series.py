"""The product with W^-1 near orthogonality, by matrix products alone: summed, or refined.

Both come twice: once ending when what is left is small, which has to be looked at, and once for so many
terms, whatever is left, for which a GPU need not be waited for.
"""

from __future__ import annotations

import numpy as np

from npgait.backend import Array, array_module, in_float32, to_host
from npgait.blas import gemm, product
from npgait.orthogonality import zero_diagonal
from npgait.sums import squared_norms

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
    shortest = _shortest(D)
    if shortest is None:
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
            # The factor from term to term hardly falls: with this one the last will still be too large.
            factor = last / before if k else 0.0
            if k == most or factor >= SLOW_TERMS or last * factor ** (most - k + 1) > limit:
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


def refined(d: Array, W: Array, tolerance: float, most: int) -> tuple[Array | None, int]:
    """Return z by z <- z + r W^T D^-1, r = d - z W, and the number of corrections; None for LU.

    D is that of `series`, made without G. What is left is measured before each correction; what the last
    one leaves follows from how it shrank. Eight rows tell first whether it will shrink at all.
    """
    rows, D = d.reshape(-1, d.shape[-1]), _squares(W)
    if _shortest(D) is None:
        return None, 0
    some = rows[:: max(1, len(rows) // 8)][:8]
    _, share = _measured_correction(some, _correction(some, W, D), W, D)
    if not share <= SLOW_START:
        return None, 0
    z, before = _correction(rows, W, D), 1.0
    for k in range(1, most + 1):
        correction, share = _measured_correction(rows, z, W, D)
        z += correction
        if SAFETY * share * (share / before) <= tolerance:
            return z.reshape(*d.shape[:-1], len(W)), k
        if not share < SLOW_RESIDUALS * before:
            break
        before = share
    return None, most


def fixed_refinement(d: Array, W: Array, corrections: int) -> Array:
    """Return z of `refined` after so many corrections, whatever it is."""
    rows, D = d.reshape(-1, d.shape[-1]), _squares(W)
    z = _correction(rows, W, D)
    for _ in range(corrections):
        z += _correction(_left(rows, z, W), W, D)
    return z.reshape(*d.shape[:-1], len(W))


def _correction(r: Array, W: Array, D: Array) -> Array:
    """Return r W^T D^-1, r (B, u); for a tall W r D^-1 W^T."""
    return _last_factor(_first_term(r, W, D), r, W)


def _measured_correction(d: Array, z: Array, W: Array, D: Array) -> tuple[Array, float]:
    """Return the correction c of z, and the share that is left: ||r|| / ||d|| or ||c|| / ||z||.

    The larger of the two: where rows differ in length r hardly shows errors of z along the short ones,
    and c does not show what no row reaches, where W is singular.
    """
    xp = array_module(d)
    r = _left(d, z, W)
    c = _correction(r, W, D)
    left = xp.stack([xp.linalg.norm(r), xp.linalg.norm(c)])
    of = xp.stack([xp.linalg.norm(d), xp.linalg.norm(z)])
    return c, float((left / xp.where(of > 0, of, 1)).max())  # one wait for a GPU


def _squares(W: Array) -> Array:
    """Return the squares of the lengths of W's rows, (n,); for a tall W those of its columns, (m,)."""
    return squared_norms(W if len(W) <= W.shape[1] else W.T)


def _shortest(D: Array) -> float | None:
    """Return the least of D; None where squares in R would underflow, and R pass for 0, or overflow."""
    least, largest = to_host(array_module(D).stack((D.min(), D.max()))).tolist()  # one wait for a GPU
    return least if least > least_norm(D.dtype) and np.isfinite(largest) else None


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
    with in_float32(d):  # TF32 would be taken for the residual
        r = _left(d.reshape(-1, d.shape[-1]), z.reshape(-1, len(W)), W)
    left, norm = float(xp.linalg.norm(r)), float(xp.linalg.norm(d))
    return left / norm if norm else left
