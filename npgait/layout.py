"""How a matrix lies in memory, as BLAS is told."""

from __future__ import annotations

from npgait.backend import Array

AS_IS, TRANSPOSED = 111, 112  # of CBLAS: row after row, or column after column


def layout(A: Array) -> tuple[int, int] | None:
    """Return AS_IS or TRANSPOSED, and how many values one row or column is from the next.

    None where neither rows nor columns lie in one piece. The stride of an axis of one value says
    nothing: NumPy lets it be anything.
    """
    (n, m), (down, right), size = A.shape, A.strides, A.itemsize
    down = m * size if n == 1 else down
    if (right == size or m == 1) and down >= m * size and down % size == 0:
        return AS_IS, down // size
    if (down == size or n == 1) and right >= n * size and right % size == 0:
        return TRANSPOSED, right // size
    return None
