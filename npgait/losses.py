"""Losses: the loss of each sample and its derivative, the error of the output layer.

Both take the used outputs y (B, n) and integer labels (B,), and return the loss per sample (B,) and
dLoss/dy per sample (B, n). Sum or mean over the batch is the caller's choice, made on the updates.
"""

from __future__ import annotations

from npgait.backend import Array, array_module
from npgait.validation import check_labels


def softmax_cross_entropy(y: Array, labels: Array) -> tuple[Array, Array]:
    """Return -log softmax(y)[label] and softmax(y) - onehot (2023 paper).

    Parameters
    ----------
    y : array (B, n)
        Outputs (logits).
    labels : integer array (B,)

    Returns
    -------
    loss : array (B,)
    error : array (B, n)

    Raises
    ------
    ValueError
        If labels are not one class a sample; on a GPU their values are not looked at.
    """
    check_labels(labels, y)
    xp = array_module(y)
    rows = xp.arange(len(y))
    shifted = y - y.max(axis=1, keepdims=True)
    exp = xp.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    loss = xp.log(total[:, 0]) - shifted[rows, labels]
    error = exp / total
    error[rows, labels] -= 1
    return loss, error


def squared_error(y: Array, labels: Array) -> tuple[Array, Array]:
    """Return 1/2 ||y - onehot||^2 and y - onehot (2020 code).

    Parameters
    ----------
    y : array (B, n)
    labels : integer array (B,)

    Returns
    -------
    loss : array (B,)
    error : array (B, n)

    Raises
    ------
    ValueError
        If labels are not one class a sample; on a GPU their values are not looked at.
    """
    check_labels(labels, y)
    xp = array_module(y)
    error = y.copy()
    error[xp.arange(len(y)), labels] -= 1
    loss = 0.5 * (error * error).sum(axis=1)
    return loss, error


LOSSES = {"cross_entropy": softmax_cross_entropy, "squared_error": squared_error}
