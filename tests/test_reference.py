"""Whole steps against the equations written once more: loops over positions, inverses, float64."""

from __future__ import annotations

import numpy as np
import pytest

from npgait.activations import LeakyReLU
from npgait.layers import Conv2D, Dense, Window
from npgait.losses import squared_error
from npgait.network import Network
from npgait.optimizers import SGD
from npgait.rules import INVERTING, bind
from npgait.step import Recipe, train_step
from tests.support import relative

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's
RULES = {"bp": {}, "fa": {}, "dfa": {}, "tp": {}, "itp": {"gamma": 0.3}}
RULES |= {"gait": {"gamma": 0.5}, "gait-vanilla": {"gamma": 0.4, "normalised": False}}
MATRIX = {
    "orthonormal": lambda G: G - np.eye(len(G)),
    "orthogonal": lambda G: G - np.diag(np.diag(G)),
    "conformal": lambda G: G * len(G) / np.trace(G) - np.eye(len(G)),
}


def layers_and_places(rng, implicit):
    """Return two convolutions and two dense layers, and which inputs each sees at each position."""
    shape, layers, places = (5, 4, 2), [], []
    for kernel, stride, used in ((2, 2, 3), (2, 1, 4), (0, 1, 7), (0, 1, 3)):
        cells = np.arange(np.prod(shape)).reshape(shape)
        if kernel:  # SAME: here at most one pixel is missing, which goes to the bottom and the right
            padded = np.pad(cells, ((0, 1), (0, 1), (0, 0)), constant_values=-1)
            tops = [(i, j) for i in range(0, shape[0], stride) for j in range(0, shape[1], stride)]
            places.append([padded[i : i + kernel, j : j + kernel].ravel() for i, j in tops])
        else:
            places.append([cells.ravel()])
        n, first, f = len(places[-1][0]), not layers, LeakyReLU(0.2)
        n_out, completed = used if first or implicit else n, implicit and not first
        W, b = rng.standard_normal((2, n, n_out)) * 0.1
        W, b = W + np.linalg.qr(rng.standard_normal((n, n)))[0][:, :n_out], b[0]
        if kernel:
            layers.append(Conv2D(W, b, Window(*shape, kernel, stride), used, f, implicit=completed))
        else:
            layers.append(Dense(W, b, used, f, shape_in=shape, implicit=completed))
        shape = layers[-1].shape_out
    return layers, places


def updates_of(layers, places, x, labels, rule, gamma=1.0, normalised=True, feedback=None):
    """Return (dW, db) of each layer; images are (B, positions, channels)."""
    seen = []
    for layer, at in zip(layers, places, strict=True):
        flat = np.c_[x.reshape(len(x), -1), np.zeros(len(x))]  # the last value is the padding's
        a = np.stack([flat[:, cells] @ layer.W + layer.b for cells in at], axis=1)[..., : layer.used]
        seen.append((flat, a, np.where(a >= 0, 1.0, 0.2)))
        x = a * seen[-1][2]
    error = e = x - np.eye(3)[labels][:, None]
    updates, s = [], 1.0
    for l in reversed(range(len(layers))):
        (flat, a, slope), u, W, at = seen[l], layers[l].used, layers[l].W, places[l]
        if rule == "dfa" and feedback[l] is not None:
            e = (error[:, 0] @ feedback[l]).reshape(a.shape)
        dW, db = np.zeros_like(W), np.zeros_like(layers[l].b)
        for p, cells in enumerate(at):
            dW[:, :u] += flat[:, cells].T @ (slope * e)[:, p]
        db[:u] = (slope * e).sum(axis=(0, 1))
        updates.insert(0, (dW, db))
        if rule in INVERTING:
            v, s = slope**2 * e if rule == "gait" else e, gamma * s
            if rule == "gait" and normalised:
                s = gamma * np.sqrt(len(at) * len(W)) / np.linalg.norm(e, axis=(1, 2), keepdims=True)
            y = a * slope - s * v
            # Of a square W the pseudo-inverse is the inverse.
            sent, M = (a - np.where(y >= 0, y, y / 0.2)) / s, np.linalg.pinv(W)[:u]
        else:
            sent, M = slope * e, (feedback[l] if rule == "fa" and l else W[:, :u]).T
        below = np.zeros_like(flat)
        for p, cells in enumerate(at):
            np.add.at(below.T, cells, (sent[:, p] @ M).T)
        e = below[:, :-1].reshape(seen[l - 1][1].shape) if l else None
    return updates


@pytest.mark.parametrize("regulariser", MATRIX)
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_a_step_is_that_of_the_equations_written_out(name, implicit, decoupled, regulariser, rng):
    layers, places = layers_and_places(rng, implicit)
    x, labels = rng.standard_normal((6, 5, 4, 2)), rng.integers(0, 3, 6)
    rule, options = name.split("-")[0], dict(RULES[name])
    if rule in ("fa", "dfa"):
        outputs = [(3, int(np.prod(layer.shape_out))) for layer in layers[:-1]]
        shapes = {"fa": [None, *((len(l.W), l.used) for l in layers[1:])], "dfa": [*outputs, None]}[rule]
        options["feedback"] = [None if shape is None else rng.standard_normal(shape) for shape in shapes]
    expected = []
    for l, (dW, db) in enumerate(updates_of(layers, places, x, labels, rule, **options)):
        W = layers[l].W - 0.01 * dW / len(x)
        V, strength = (W, 0.3) if decoupled else (layers[l].W, 0.01 * 4 * 0.3)
        tall = V.shape[0] > V.shape[1]
        M = MATRIX[regulariser](V.T @ V if tall else V @ V.T)
        expected += [
            W - (strength if l else 0) * (V @ M if tall else M @ V),
            layers[l].b - 0.01 * db / len(x),
        ]
    bound = bind(rule, **options)
    recipe = Recipe(bound, squared_error, SGD(0.01), regulariser, 0.3, "mean", decoupled=decoupled)
    network = Network(layers)
    train_step(network, recipe, x, labels)
    for got, wanted in zip(network.parameters(), expected, strict=True):
        assert relative(got, wanted) < 1e-12
