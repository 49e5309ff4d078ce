"""Initial weights: orthogonal (the presets' choice, see docs/deviations.md) and Glorot normal.

Drawn on the host with NumPy, in float64, so that NumPy and CuPy runs of any dtype start equal.
"""

from __future__ import annotations

import numpy as np

from npgait.backend import Array


def orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> Array:
    """Return W (n_in, n_out) with orthonormal rows or columns, whichever are fewer; float64.

    The Q of a QR decomposition of a Gaussian matrix, with the signs of R's diagonal multiplied in:
    without them Q is not uniformly distributed over the orthogonal matrices (Mezzadri 2007, "How to
    generate random matrices from the classical compact groups", section 5).
    """
    tall = (max(n_in, n_out), min(n_in, n_out))
    Q, R = np.linalg.qr(rng.standard_normal(tall))
    Q *= np.where(np.diagonal(R) < 0, -1.0, 1.0)
    return np.ascontiguousarray(Q if n_in >= n_out else Q.T)


def glorot_normal(rng: np.random.Generator, n_in: int, n_out: int) -> Array:
    """Return W (n_in, n_out) from a normal distribution of variance 2 / (n_in + n_out); float64.

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural
    networks", equation 12.
    """
    return rng.standard_normal((n_in, n_out)) * np.sqrt(2.0 / (n_in + n_out))


INITIALISATIONS = {"orthogonal": orthogonal, "glorot_normal": glorot_normal}
