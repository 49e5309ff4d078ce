"""The convolution against a direct loop, and what GAIT-prop claims of it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npgait import models
from npgait.activations import LeakyReLU, Linear
from npgait.backend import to_host
from npgait.initialisation import orthogonal
from npgait.inverse import InverseSolver
from npgait.layers import Conv2D, Dense, Window, conv
from npgait.layers.patch_products import multiplied_in_loops, product_adder
from npgait.layers.patches import add_patches, count_patches, cut_patches
from npgait.losses import softmax_cross_entropy
from npgait.metrics import measure
from npgait.network import Network
from npgait.orthogonality import gram
from npgait.rules import NAMES, bind, draw_feedback
from tests.support import relative, worst

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

LU = InverseSolver(method="lu")

windows = st.builds(
    Window,
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    padding=st.just("SAME"),
) | st.tuples(
    st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)
).map(lambda t: Window(t[0] + t[3], t[1] + t[3], t[2], t[3], t[4], "VALID"))


def same_as_tensorflow(size: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """Positions, padding before and after, as TensorFlow documents SAME."""
    positions = -(-size // stride)
    total = max(kernel - (size % stride or stride), 0)
    return positions, total // 2, total - total // 2


def direct(x: np.ndarray, W: np.ndarray, window: Window) -> np.ndarray:
    """The convolution, one product at a time."""
    k, s, c = window.kernel, window.stride, window.channels
    if window.padding == "SAME":
        rows, top, bottom = same_as_tensorflow(window.height, k, s)
        columns, left, right = same_as_tensorflow(window.width, k, s)
        x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    else:
        rows, columns = ((n - k) // s + 1 for n in (window.height, window.width))
    kernel = W.reshape(k, k, c, -1)
    a = np.zeros((len(x), rows, columns, W.shape[1]))
    for r in range(rows):
        for q in range(columns):
            for i in range(k):
                for j in range(k):
                    a[:, r, q] += x[:, r * s + i, q * s + j] @ kernel[i, j]
    return a


def layer_of(window, rng, *, square=True, used=None, away=0.0, f=None, dtype="float64", **options):
    n = window.patch_size
    W = orthogonal(rng, n, n if square else 4)
    W = (W + away * rng.standard_normal(W.shape) / np.sqrt(n)).astype(dtype)
    b = (0.1 * rng.standard_normal(W.shape[1])).astype(dtype)
    used = used or W.shape[1]
    return Conv2D(W, b, window, used, f or LeakyReLU(0.1), "conv", **options)


def images(window, rng, size=2, dtype="float64"):
    return rng.standard_normal((size, window.height, window.width, window.channels)).astype(dtype)


# --- patches ------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(window=windows, seed=st.integers(0, 99))
def test_forward_is_the_direct_loop_for_any_window(window, seed):
    rng = np.random.default_rng(seed)
    layer = layer_of(window, rng, square=False)
    x = images(window, rng)
    a, y = layer.forward(x)
    expected = direct(x, layer.W, window) + layer.b
    np.testing.assert_allclose(a, expected, atol=1e-12)
    np.testing.assert_allclose(y, np.where(expected > 0, expected, 0.1 * expected), atol=1e-12)
    assert layer.shape_out == a.shape[1:]


@settings(max_examples=150)
@given(window=windows, seed=st.integers(0, 99))
def test_adding_patches_is_the_adjoint_of_cutting_them(window, seed):
    rng = np.random.default_rng(seed)
    x = images(window, rng)
    patches = cut_patches(x, window)
    other = rng.standard_normal(patches.shape)
    assert np.vdot(patches, other) == pytest.approx(np.vdot(x, add_patches(other, window)), abs=1e-9)


@settings(max_examples=150)
@given(window=windows, seed=st.integers(0, 99))
def test_products_are_added_where_their_patches_would_be(window, seed):
    rng = np.random.default_rng(seed)
    rows, columns = window.positions
    d, M = rng.standard_normal((2, rows, columns, 4)), rng.standard_normal((4, window.patch_size))
    expected = add_patches(d.reshape(-1, 4) @ M, window)
    got = np.full_like(expected, np.nan)
    product_adder(M, window)(d, got)
    np.testing.assert_allclose(got, expected, atol=1e-12 * window.patch_size)


@given(window=windows)
def test_pixels_are_counted_as_often_as_patches_cover_them(window):
    counts = count_patches(window, np, np.dtype(float))
    x = np.ones((1, window.height, window.width, window.channels))
    np.testing.assert_array_equal(counts, add_patches(cut_patches(x, window), window))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_same_padding_is_tensorflows_with_the_odd_pixel_at_the_bottom_and_right(size, kernel, stride):
    window = Window(size, size + 1, 1, kernel, stride)
    rows, top, bottom = same_as_tensorflow(size, kernel, stride)
    columns, left, right = same_as_tensorflow(size + 1, kernel, stride)
    assert window.positions == (rows, columns)
    assert window.pads == ((top, bottom), (left, right))
    assert 0 <= bottom - top <= 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 4, 1, 5, 1, "VALID"), "does not fit an image of 4 x 4"),
        ((4, 9, 1, 5, 1, "VALID"), "does not fit an image of 4 x 9"),
        ((9, 4, 1, 5, 1, "VALID"), "does not fit an image of 9 x 4"),
        ((0, 4, 1, 3, 1, "SAME"), "at least 1"),
        ((4, 4, 1, 3, 0, "SAME"), "at least 1"),
        ((4, 4, 1, 3, 1, "FULL"), "use SAME or VALID"),
    ],
)
def test_windows_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Window(*sizes)


# --- the five equations -------------------------------------------------------------------------------


@settings(max_examples=40)
@given(window=windows, seed=st.integers(0, 99), linear=st.booleans())
def test_transpose_and_update_are_the_derivatives_of_forward(window, seed, linear):
    """<delta, d forward> equals <gradients, d parameters>, along a random direction."""
    rng = np.random.default_rng(seed)
    layer = layer_of(window, rng, square=False, used=3, f=Linear() if linear else LeakyReLU(0.3))
    x = images(window, rng)
    a, _ = layer.forward(x)
    assume(np.abs(a).min() > 1e-4)  # away from the kink
    error = rng.standard_normal(a.shape)
    dx = layer.transpose(layer.f.derivative(a) * error)
    dW, db = layer.local_update(x, a, error)
    h = 1e-6
    for parameter, gradient in ((x, dx), (layer.W, dW), (layer.b, db)):
        direction = rng.standard_normal(parameter.shape)
        kept = parameter.copy()
        values = []
        for step in (h, -h):
            parameter[...] = kept + step * direction
            values.append(np.vdot(error, layer.forward(x)[1]))
        parameter[...] = kept
        assert np.vdot(gradient, direction) == pytest.approx(
            (values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-6
        )


def test_auxiliary_channels_have_no_update(rng):
    window = Window(6, 6, 2, 3, 2)
    layer = layer_of(window, rng, used=5)
    x = images(window, rng)
    a, _ = layer.forward(x, auxiliary=True)
    assert a.shape == (2, 3, 3, 18)
    dW, db = layer.local_update(x, a, rng.standard_normal((2, 3, 3, 5)))
    assert dW.shape == layer.W.shape
    assert not dW[:, 5:].any()
    assert not db[5:].any()


@given(window=windows, used=st.integers(1, 30), s=st.floats(0.01, 2.0), seed=st.integers(0, 99))
def test_difference_inverse_is_the_difference_of_two_inverses(window, used, s, seed):
    rng = np.random.default_rng(seed)
    used = min(used, window.patch_size)
    layer = layer_of(window, rng, used=used, away=0.1)
    x = images(window, rng)
    _, y = layer.forward(x, auxiliary=True)
    v = rng.standard_normal((*y.shape[:-1], used))
    nudged = y.copy()
    nudged[..., :used] -= s * v
    expected = (layer.inverse(y, x) - layer.inverse(nudged, x)) / s
    got = layer.difference_inverse(y[..., :used], v, s, solver=LU)
    assert relative(got, expected) < 1e-8


@given(window=windows, seed=st.integers(0, 99))
def test_inverse_undoes_forward_wherever_fields_overlap_or_leave_gaps(window, seed):
    rng = np.random.default_rng(seed)
    layer = layer_of(window, rng, away=0.1)
    x = images(window, rng)
    _, y = layer.forward(x, auxiliary=True)
    assert relative(layer.inverse(y, x), x) < 1e-9


@given(size=st.integers(1, 7), patch_bytes=st.sampled_from([1, 5000, 20000, 1 << 28]))
def test_slices_of_the_batch_change_nothing_and_bound_the_patches(size, patch_bytes):
    rng = np.random.default_rng(0)
    window = Window(7, 7, 2, 3, 2)
    whole = layer_of(window, np.random.default_rng(1), used=6, away=0.1)
    sliced = layer_of(window, np.random.default_rng(1), used=6, away=0.1, patch_bytes=patch_bytes)
    x = images(window, rng, size)
    a, y = whole.forward(x)
    e = rng.standard_normal(y.shape)
    for one, other in (
        (whole.forward(x), sliced.forward(x)),
        (whole.local_update(x, a, e), sliced.local_update(x, a, e)),
        ((whole.transpose(e),), (sliced.transpose(e),)),
        (
            (whole.difference_inverse(y, e, 0.1, solver=LU),),
            (sliced.difference_inverse(y, e, 0.1, solver=LU),),
        ),
    ):
        for p, q in zip(one, other, strict=True):
            np.testing.assert_allclose(p, q, atol=1e-12)
    for part in sliced._slices(x):
        samples = len(x[part])  # compiled loops cut a few patches at a time, whatever the slice
        bounded = samples == 1 or samples * 16 * window.patch_size * 8 <= patch_bytes
        assert bounded or multiplied_in_loops(x, sliced.W)


@pytest.mark.parametrize(
    ("window", "used", "threads", "shares"),
    [
        (Window(28, 28, 24, 5, 2), 48, 2, 4),
        (Window(28, 28, 24, 5, 2), 48, 16, 16),
        (Window(28, 28, 24, 5), 48, 16, 16),
        (Window(56, 56, 24, 5), 48, 16, 32),
        (Window(7, 7, 48, 3), 96, 2, 2),
        (Window(4, 4, 8, 3), 8, 2, 2),
        (Window(4, 4, 8, 3), 8, 16, 2),
    ],
)
def test_a_batch_is_shared_out_in_fewer_parts_where_there_is_little_to_do(
    window, used, threads, shares, monkeypatch
):
    monkeypatch.setattr(conv, "thread_count", lambda: threads)
    W = np.zeros((window.patch_size, used), np.float32)
    layer = Conv2D(W, np.zeros(used, np.float32), window)
    x = np.zeros((64, *layer.shape_in), np.float32)
    if not multiplied_in_loops(x, W):
        pytest.skip("compiled loops are not here")
    assert [len(x[part]) for part in layer._slices(x)] == [64 // shares] * shares


@pytest.mark.parametrize(
    "method", ["forward", "inverse", "difference_inverse", "transpose", "local_update"]
)
def test_a_convolution_has_the_arguments_of_a_dense_layer(method):
    """Locality is tested on the dense layer; what holds of its arguments holds here."""
    own, dense = (list(inspect.signature(getattr(kind, method)).parameters) for kind in (Conv2D, Dense))
    assert own == dense


@pytest.mark.parametrize(
    ("W", "b", "options", "message"),
    [
        ((17, 4), (4,), {}, r"W \(17, 4\); expected \(18"),
        ((18, 4), (3,), {}, r"b \(3,\); expected \(4,\)"),
        ((18, 0), (0,), {}, r"W \(18, 0\); expected \(18"),
        ((18, 4), (4,), {"used": 5}, "used is 5"),
        ((18, 4), (4,), {"patch_bytes": 0}, "patch_bytes is 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(W, b, options, message):
    with pytest.raises(ValueError, match=message):
        Conv2D(np.zeros(W), np.zeros(b), Window(4, 4, 2, 3), **options)


def test_what_is_no_activation_is_refused():
    with pytest.raises(TypeError, match="expected an activation"):
        Conv2D(np.zeros((18, 4)), np.zeros(4), Window(4, 4, 2, 3), f="relu")


# --- networks -----------------------------------------------------------------------------------------


def conv_network(
    rng, *, kernel=3, strides=(2, 1), size=8, away=0.0, dtype="float64", aux=True, slope=0.1
):
    """Two convolutions and a dense layer, square above the first."""
    f = LeakyReLU(slope)
    window = Window(size, size, 2, kernel, strides[0])
    W0 = orthogonal(rng, window.patch_size, 3)
    layers = [Conv2D(W0.astype(dtype), np.full(3, 0.05, dtype), window, 3, f, "conv1")]
    window = Window(*layers[0].shape_out, kernel, strides[1])
    n = window.patch_size
    W1 = orthogonal(rng, n, n) + away * rng.standard_normal((n, n)) / np.sqrt(n)
    c_out = n if aux else 5
    layers.append(
        Conv2D(W1[:, :c_out].astype(dtype), np.full(c_out, -0.05, dtype), window, 5, f, "conv2")
    )
    shape = layers[1].shape_out
    n = int(np.prod(shape))
    W2 = orthogonal(rng, n, n) + away * rng.standard_normal((n, n)) / np.sqrt(n)
    n_out = n if aux else 4
    layers.append(
        Dense(W2[:, :n_out].astype(dtype), np.zeros(n_out, dtype), 4, Linear(), "output", shape)
    )
    return Network(layers)


def conv_batch(rng, network, size=5):
    x = rng.standard_normal((size, *network.shape_in)).astype(network.dtype)
    return x, rng.integers(0, network.n_classes, size)


def updates_of(network, rule, x, labels):
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, : network.n_classes], labels)
    return rule(network.layers, records, error)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gait_is_backpropagation_with_overlapping_fields_when_w_is_orthogonal(
    kernel, strides, dtype, rng
):
    network = conv_network(rng, kernel=kernel, strides=strides, dtype=dtype)
    x, labels = conv_batch(rng, network)
    bp = updates_of(network, bind("bp"), x, labels)
    for normalised in (True, False):
        rule = bind("gait", gamma=1e-9, normalised=normalised, solver=LU)
        assert worst(updates_of(network, rule, x, labels), bp) < 1e4 * np.finfo(dtype).eps


@settings(max_examples=25)
@given(
    rule=st.sampled_from(["tp", "itp", "gait", "normalised"]),
    gamma=st.sampled_from([0.5, 0.1]),
    kernel=st.integers(1, 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    size=st.integers(4, 9),
    slope=st.sampled_from([0.3, 1.5]),
    seed=st.integers(0, 1000),
)
def test_absolute_and_difference_targets_agree(rule, gamma, kernel, strides, size, slope, seed):
    rng = np.random.default_rng(seed)
    assume(2 * kernel**2 >= 3 and 3 * kernel**2 >= 5)
    network = conv_network(rng, kernel=kernel, strides=strides, size=size, away=0.1, slope=slope)
    x, labels = conv_batch(rng, network)
    name = "gait" if rule == "normalised" else rule
    options = {"gamma": gamma, "normalised": rule == "normalised", "solver": LU}
    absolute = updates_of(network, bind(name, targets="absolute", **options), x, labels)
    assert worst(updates_of(network, bind(name, **options), x, labels), absolute) < 1e-8


@pytest.mark.parametrize("name", ["bp", "fa", "dfa"])
def test_square_layers_change_nothing_for_rules_that_invert_nothing(name):
    wide, narrow = (conv_network(np.random.default_rng(0), aux=aux) for aux in (True, False))
    x, labels = conv_batch(np.random.default_rng(1), wide)
    updates = []
    for network in (wide, narrow):
        feedback = draw_feedback(name, network, np.random.default_rng(2))
        updates.append(updates_of(network, bind(name, feedback=feedback), x, labels))
    for (dW, db), (dW_narrow, db_narrow) in zip(*updates, strict=True):
        u = dW_narrow.shape[1]
        assert relative(dW[:, :u], dW_narrow) < 1e-12
        assert relative(db[:u], db_narrow) < 1e-12


def test_only_the_needed_rows_of_the_inverse_are_applied_and_they_are_the_inverse(rng):
    window = Window(5, 5, 2, 3, 1)
    layer = layer_of(window, rng, used=4, away=0.1, f=Linear())
    seen = []

    def solver(d, W, G, name):
        seen.append(d.shape)
        return LU(d, W, G, name=name)

    e = rng.standard_normal((2, 5, 5, 4))
    got = layer.difference_inverse(e, e, 1.0, solver=solver)
    assert seen == [(4, 4)]
    padded = np.zeros((50, 18))
    padded[:, :4] = e.reshape(50, 4)
    full = add_patches(padded @ np.linalg.inv(layer.W), window)
    assert relative(got, full) < 1e-11


@pytest.mark.parametrize("normalised", [True, False])
def test_auxiliary_channels_change_nothing_in_the_difference_form(normalised, rng):
    network = conv_network(rng, away=0.1)
    x, labels = conv_batch(rng, network)
    rule = bind("gait", gamma=0.2, normalised=normalised, solver=LU)
    without = network.forward(x)
    assert [r.y.shape[-1] for r in without] == [3, 5, 4]
    _, error = softmax_cross_entropy(without[-1].y, labels)
    cut = [
        type(r)(r.x, r.a[..., : layer.used], r.y[..., : layer.used])
        for layer, r in zip(network.layers, network.forward(x, auxiliary=True), strict=True)
    ]
    expected = rule(network.layers, cut, error)
    assert worst(rule(network.layers, without, error), expected) < 1e-12


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_zero_error_gives_zero_update(name, normalised, targets, dtype, rng):
    network = conv_network(rng, dtype=dtype, away=0.05)
    x, _ = conv_batch(rng, network)
    feedback = draw_feedback(name, network, rng)
    rule = bind(name, normalised=normalised, targets=targets, feedback=feedback)
    records = network.forward(x, auxiliary=rule.auxiliary)
    for pair in rule(network.layers, records, np.zeros((5, 4), dtype)):
        for gradient in pair:
            assert gradient.dtype == dtype
            assert not gradient.any()


def test_convolutions_are_measured_like_dense_layers(rng):
    network = conv_network(rng, away=0.05)
    x, labels = conv_batch(rng, network)
    rule = bind("gait")
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    grams = [gram(layer.W) if layer.has_inverse else None for layer in network.layers]
    updates = rule(network.layers, records, error, grams)
    measured = measure(network.layers, records, error, updates, rule, grams)
    assert [m.layer for m in measured] == ["conv1", "conv2", "output"]
    assert measured[2].angle == 0
    assert 0 < measured[0].angle < 40
    assert measured[1].inverse_residual < 1e-10
    assert measured[1].gamma > 0


def test_cpu_and_gpu_agree(device, rng):
    network = conv_network(np.random.default_rng(0), away=0.05)
    x, labels = conv_batch(rng, network)
    moved = [
        type(layer)(
            **{**layer.__dict__, "W": device.xp.asarray(layer.W), "b": device.xp.asarray(layer.b)}
        )
        for layer in network.layers
    ]
    expected = updates_of(network, bind("gait"), x, labels)
    got = updates_of(Network(moved), bind("gait"), device.xp.asarray(x), device.xp.asarray(labels))
    assert worst([[to_host(g) for g in pair] for pair in got], expected) < 1e-11


# --- the imagenet network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "top"), [(224, (4, 4, 192)), (160, (3, 3, 192)), (64, (1, 1, 192)), (97, (2, 2, 192))]
)
def test_every_map_of_the_imagenet_network_follows_from_the_size_of_the_image(size, top):
    network = models.imagenet((size, size, 3), 100, auxiliary=False)
    assert network.layers[-2].shape_out == top
    assert network.layers[-1].shape_in == top
    x = np.zeros((1, size, size, 3), np.float32)
    assert network.output(x).shape == (1, 100)


def test_the_imagenet_network_is_that_of_the_2023_paper():
    layers = models.imagenet((64, 64, 3), 100).layers
    convolutions = [(l.window.kernel, l.window.stride, l.used) for l in layers[:-1]]
    assert convolutions == [
        (9, 4, 24), (3, 2, 24), (5, 2, 48), (3, 2, 48), (3, 1, 96), (3, 2, 96), (3, 1, 192)
    ]  # fmt: skip
    assert [l.W.shape for l in layers[:3]] == [(243, 24), (216, 216), (600, 600)]
    assert all(l.has_inverse for l in layers[1:])
    assert layers[-1].f == Linear()


def test_greyscale_images_and_images_that_are_not_square_work(rng):
    network = models.imagenet((60, 100, 1), 10)
    x, labels = conv_batch(rng, network, 2)
    for pair in updates_of(network, bind("gait"), x, labels):
        assert all(np.isfinite(gradient).all() for gradient in pair)


def test_images_that_the_network_cannot_take_are_an_error_that_names_the_layer():
    with pytest.raises(ValueError, match="output: 1000 classes do not fit a square layer of 192"):
        models.imagenet((64, 64, 3), 1000)
    models.imagenet((64, 64, 3), 1000, auxiliary=False)
    with pytest.raises(ValueError, match=r"images \(H, W, C\); got shape \(784,\)"):
        models.imagenet((784,), 10)


def test_a_convolution_cannot_be_the_last_layer_and_maps_have_to_fit(rng):
    window = Window(4, 4, 2, 3)
    with pytest.raises(ValueError, match="conv gives images; the last layer has to be dense"):
        Network([layer_of(window, rng)])
    with pytest.raises(ValueError, match=r"dense takes inputs \(32,\), but conv gives \(4, 4, 2\)"):
        Network([layer_of(window, rng, used=2), Dense(np.ones((32, 3)), np.ones(3))])
    with pytest.raises(ValueError, match="does not flatten to 32"):
        Dense(np.ones((32, 3)), np.ones(3), shape_in=(4, 4, 3))


@pytest.mark.parametrize("lies", ["upside down", "one row again and again", "every other", "by columns"])
def test_weights_may_lie_in_memory_as_they_will(lies, dtype, rng):
    whole = rng.standard_normal((36, 10)).astype(dtype)
    W = {
        "upside down": whole[17::-1, :5],
        "one row again and again": np.broadcast_to(whole[0, :5], (18, 5)),
        "every other": whole[::2, ::2],
        "by columns": np.asfortranarray(whole[:18, :5]),
    }[lies]
    x = rng.standard_normal((2, 8, 8, 2)).astype(dtype)
    b, window = np.zeros(5, dtype), Window(8, 8, 2, 3, 1, "SAME")
    a, _ = Conv2D(W, b, window).forward(x)
    expected, _ = Conv2D(np.ascontiguousarray(W), b, window).forward(x)
    assert relative(a, expected) < 100 * np.finfo(dtype).eps


def test_images_of_bytes_are_taken_as_a_dense_layer_takes_them(rng):
    x = rng.integers(0, 256, (2, 6, 6, 1), dtype=np.uint8)
    layer = Conv2D(rng.standard_normal((9, 4)), np.zeros(4), Window(6, 6, 1, 3))
    np.testing.assert_allclose(layer.forward(x)[0], layer.forward(x.astype(np.float64))[0], rtol=1e-12)


@pytest.mark.parametrize("view", [lambda w: w[None], lambda w: w[None][::-1], lambda w: w[None].copy()])
@pytest.mark.parametrize("u", [4, 40])
def test_one_row_of_weights_may_have_any_stride(view, u, dtype, rng):
    """NumPy takes an axis of one value for contiguous whatever its stride, and BLAS reads the stride."""
    w, x = rng.standard_normal(u).astype(dtype), rng.standard_normal((3, 8, 7, 1)).astype(dtype)
    layer = Conv2D(view(w), np.zeros(u, dtype), Window(8, 7, 1, 1), f=Linear())
    a, _ = layer.forward(x)
    np.testing.assert_array_equal(a, x * w)
    d, few = rng.standard_normal((3, 8, 7, u)).astype(dtype), 100 * np.finfo(dtype).eps
    assert relative(layer.transpose(d)[..., 0], d @ w) < few
    dW, _ = layer.local_update(x, a, d)
    assert relative(dW, np.tensordot(x, d, ((0, 1, 2),) * 2)) < few


def test_maps_of_one_column_may_have_any_stride(rng):
    window = Window(10, 1, 3, 1)
    layer = Conv2D(rng.standard_normal((3, 5)), np.zeros(5), window, f=Linear())
    x = rng.standard_normal((4, 10, 3))
    for images in (x[:, :, None, :], x[:1, :, None, :], x[:, ::-1, None, :]):
        a, _ = layer.forward(images)
        np.testing.assert_allclose(a, images @ layer.W, rtol=1e-13, atol=1e-14)


def test_whole_numbers_are_errors_too(rng):
    layer = Conv2D(rng.standard_normal((12, 3)), np.zeros(3), Window(6, 6, 3, 2), f=Linear())
    d = rng.integers(-5, 5, (2, 6, 6, 3))
    np.testing.assert_array_equal(layer.transpose(d), layer.transpose(d.astype(np.float64)))
