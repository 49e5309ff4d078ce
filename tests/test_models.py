"""The networks of the papers, and what a network refuses."""

from __future__ import annotations

import numpy as np
import pytest

from npgait import models
from npgait.activations import LeakyReLU, Linear
from npgait.layers import Dense
from npgait.network import Network


def shapes(network):
    return [(*layer.W.shape, layer.used) for layer in network.layers]


def test_the_square_network_of_2020_is_as_wide_as_its_input():
    assert shapes(models.square(784, 10, depth=2)) == [(784, 784, 784)] * 2 + [(784, 784, 10)]


def test_the_tower_of_2020_is_784_784_500_200_10():
    network = models.tower(784, 10)
    assert shapes(network) == [(784, 784, 500), (500, 500, 200), (200, 200, 10), (10, 10, 10)]
    records = network.forward(np.ones((1, 784), np.float32), auxiliary=True)
    assert [records[0].x.shape[1], *(r.y.shape[1] for r in records)] == [784, 784, 500, 200, 10]


def test_the_cifar_networks_of_2023_are_1024_wide_with_a_linear_output():
    deep, shallow = models.cifar10(), models.cifar10_shallow()
    assert shapes(deep) == [(3072, 1024, 1024)] + [(1024, 1024, 1024)] * 5 + [(1024, 1024, 10)]
    assert len(shallow.layers) == 4
    for network in (deep, shallow):
        assert network.layers[-1].f == Linear()
        assert all(layer.f == LeakyReLU(0.1) for layer in network.layers[:-1])


def test_without_auxiliary_units_the_output_layer_has_one_unit_a_class():
    assert shapes(models.cifar10(auxiliary=False, width=32))[-1] == (32, 10, 10)
    assert shapes(models.tower(20, 4, widths=(10, 6), auxiliary=False)) == [
        (20, 10, 10),
        (10, 6, 6),
        (6, 4, 4),
        (4, 4, 4),
    ]


def test_weights_are_orthogonal_biases_zero_and_the_seed_decides(dtype):
    one, same, other = (models.square(8, 3, seed=s, dtype=dtype) for s in (1, 1, 2))
    for a, b, c in zip(one.layers, same.layers, other.layers, strict=True):
        assert a.W.dtype == a.b.dtype == dtype
        np.testing.assert_array_equal(a.W, b.W)
        assert (a.W != c.W).any()
        assert not a.b.any()
        np.testing.assert_allclose(a.W @ a.W.T, np.eye(8), atol=1e-6)


def test_no_two_layers_start_equal():
    """The 2020 code gave the last hidden and the output layer one seed."""
    layers = models.square(8, 3, depth=3).layers
    for l, layer in enumerate(layers):
        assert all((layer.W != other.W).any() for other in layers[:l])


def test_single_and_double_precision_start_from_the_same_numbers():
    single, double = (models.square(8, 3, dtype=d).layers[0].W for d in ("float32", "float64"))
    np.testing.assert_array_equal(single, double.astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.square(8, 10), "10 classes do not fit"),
        (lambda: models.square(8, 2, depth=0), "depth is 0"),
        (lambda: models.square(0, 2), "n_in is 0"),
        (lambda: models.square(8, 2, initialisation="zeros"), "zeros.*orthogonal"),
        (lambda: models.square(8, 2, dtype="float16"), "float16"),
        (lambda: models.square(8, 2, width=3.5), "width is 3.5; expected a whole number"),
        (lambda: models.tower(8, 2, widths=(4, 5)), "grows"),
        (lambda: models.tower(8, 2, widths=(5.5, 4)), "width is 5.5"),
        (lambda: models.tower(8, 2, widths=()), "widths is empty"),
        (lambda: models.imagenet((64, 0, 3), 2), "width is 0"),
        (lambda: models.imagenet((64, 64), 2), r"\(H, W, C\)"),
        (lambda: models.imagenet((64, 64, 3), -1), "n_classes is -1"),
        (lambda: Dense(np.ones((0, 4)), np.ones(4)), "of one unit or more"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_layers_of_two_dtypes_are_no_network():
    a, b = (Dense(np.eye(3, dtype=t), np.zeros(3, t), name=t) for t in ("float32", "float64"))
    with pytest.raises(ValueError, match="float64 is float64, but float32 is float32"):
        Network([a, b])


def test_layers_that_do_not_fit_each_other_are_refused():
    layers = [Dense(np.ones((3, 4)), np.ones(4), name="a"), Dense(np.ones((3, 2)), np.ones(2), name="b")]
    with pytest.raises(ValueError, match=r"b takes inputs \(3,\), but a gives \(4,\)"):
        Network(layers)
    with pytest.raises(ValueError, match="at least one layer"):
        Network([])


def test_predictions_are_the_largest_output_in_batches_of_any_size(rng):
    network = models.square(12, 4, depth=1)
    x = rng.standard_normal((23, 3, 4))
    expected = network.output(x.reshape(23, 12).astype(np.float32)).argmax(axis=1)
    for size in (1, 7, 23, 100):
        np.testing.assert_array_equal(network.predict(x, batch_size=size), expected)
    assert network.predict(x[:0]).shape == (0,)
    with pytest.raises(ValueError, match=r"expected \(N, 12\)"):
        network.predict(rng.standard_normal((5, 11)))


def test_an_output_that_is_not_a_number_is_no_class(rng):
    network = models.square(12, 4, depth=1)
    x = rng.standard_normal((10, 12))
    x[7, 3] = np.nan
    with pytest.raises(ValueError, match="samples 5 to 9 are not numbers"):
        network.predict(x, batch_size=5)
    assert network.predict(x[:7]).shape == (7,)
