"""How BLAS is told that a matrix lies: by rows, by columns, or not at all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from npgait.layout import AS_IS, TRANSPOSED, layout

A = np.zeros((6, 4), np.float32)
SIZE = A.itemsize


def at(shape, strides):
    return as_strided(np.zeros(100, np.float32), shape, strides)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (A, (AS_IS, 4)),
        (A[:, 1:3], (AS_IS, 4)),
        (A[::2], (AS_IS, 8)),
        (A.T, (TRANSPOSED, 4)),
        (A[:, 1:3].T, (TRANSPOSED, 4)),
        (A[:1, ::2], (TRANSPOSED, 2)),  # a row of values that lie apart
        (A[::2, :1], (AS_IS, 8)),
        (A[:1, :1], (AS_IS, 1)),
        (at((1, 4), (3, SIZE)), (AS_IS, 4)),  # the stride of one row says nothing,
        (at((4, 1), (2 * SIZE, 3)), (AS_IS, 2)),  # nor that of one column
        (at((1, 4), (3, 2 * SIZE)), (TRANSPOSED, 2)),
        (at((4, 1), (SIZE, 0)), (AS_IS, 1)),
    ],
)
def test_rows_or_columns_in_one_piece_are_told_by_what_lies_between_them(matrix, expected):
    assert layout(matrix) == expected


@pytest.mark.parametrize(
    "matrix",
    [
        A[:, ::2],
        A[::-1],
        A.T[::-1],
        np.broadcast_to(A[0], (6, 4)),
        np.broadcast_to(A[:1].T, (4, 6)),
        at((3, 4), (SIZE, SIZE)),  # rows that overlap
        at((3, 4), (4 * SIZE + 2, SIZE)),  # no whole number of values apart
        at((4, 3), (SIZE, 4 * SIZE + 2)),
    ],
)
def test_a_matrix_of_neither_is_none_that_blas_can_be_told_of(matrix):
    assert layout(matrix) is None
