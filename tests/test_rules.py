"""What the paper claims of its rules, and what the difference form claims of the paper's."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgait import models, rules
from npgait.activations import Linear
from npgait.inverse import InverseSolver
from npgait.layers import Dense
from npgait.losses import softmax_cross_entropy, squared_error
from npgait.metrics import angle
from npgait.models import cifar10
from npgait.network import Network
from npgait.orthogonality import gram
from npgait.rules import bind, draw_feedback
from tests.support import batch, dense_network, relative, worst

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

LU = InverseSolver(method="lu")
EPS = {"float32": np.finfo(np.float32).eps, "float64": np.finfo(np.float64).eps}


def updates_of(network, rule, x, labels, loss=softmax_cross_entropy):
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = loss(records[-1].y[:, : network.n_classes], labels)
    return rule(network.layers, records, error)


def bound(name, network, **options):
    feedback = draw_feedback(name, network, np.random.default_rng(3))
    return bind(name, feedback=feedback, **options)


def test_a_rule_without_the_form_that_is_asked_for_is_refused():
    for forms, auxiliary in (((None, rules.itp), True), ((None, None), False)):
        with pytest.raises(ValueError, match="rule 'mine' has no form for a"):
            rules.Rule("mine", *forms, InverseSolver(), auxiliary=auxiliary)
    assert rules.Rule("mine", None, rules.itp, InverseSolver()).difference_form is rules.itp


# --- (i) GAIT-prop is backpropagation when W is orthogonal ------------------------------------------


@pytest.mark.parametrize("method", ["lu", "auto", "series"])
@pytest.mark.parametrize("normalised", [True, False])
def test_gait_is_backpropagation_to_rounding_when_weights_are_orthogonal(dtype, normalised, method, rng):
    network = dense_network(rng, width=48, depth=6, used=32, dtype=dtype)
    x, labels = batch(rng, network, 16)
    solver = InverseSolver(method=method)
    gait = updates_of(network, bind("gait", normalised=normalised, gamma=1e-7, solver=solver), x, labels)
    bp = updates_of(network, bind("bp"), x, labels)
    # Seven layers of products over 48 terms, each good to a few times sqrt(48) eps.
    assert worst(gait, bp) < 100 * EPS[str(dtype)] * np.sqrt(48)


@settings(max_examples=30)
@given(
    width=st.integers(3, 20),
    depth=st.integers(1, 5),
    used=st.integers(2, 20),
    n_in=st.integers(1, 20),
    size=st.integers(1, 8),
    slope=st.sampled_from([0.01, 0.1, 0.7, 1.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_gait_is_backpropagation_for_any_shape(width, depth, used, n_in, size, slope, seed):
    rng = np.random.default_rng(seed)
    used = min(used, width, n_in)
    network = dense_network(
        rng, n_in=n_in, width=n_in, depth=depth, n_classes=used, used=used, slope=slope
    )
    x, labels = batch(rng, network, size)
    gait = updates_of(network, bind("gait", gamma=1e-12, solver=LU), x, labels)
    bp = updates_of(network, bind("bp"), x, labels)
    assert worst(gait, bp) < 1e-9


# --- (ii) absolute and difference targets agree -----------------------------------------------------


@settings(max_examples=40)
@given(
    rule=st.sampled_from(["tp", "itp", "gait", "normalised"]),
    gamma=st.sampled_from([0.5, 0.1, 1e-3]),
    width=st.integers(3, 16),
    depth=st.integers(1, 3),
    size=st.integers(1, 6),
    slope=st.sampled_from([0.1, 0.5, 1.5]),
    away=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 1000),
)
def test_absolute_and_difference_targets_agree(rule, gamma, width, depth, size, slope, away, seed):
    rng = np.random.default_rng(seed)
    network = dense_network(
        rng, width=width, depth=depth, n_classes=3, used=max(3, width - 2), slope=slope, away=away
    )
    x, labels = batch(rng, network, size)
    name = "gait" if rule == "normalised" else rule
    options = {"gamma": gamma, "normalised": rule == "normalised", "solver": LU}
    absolute = updates_of(network, bind(name, targets="absolute", **options), x, labels)
    difference = updates_of(network, bind(name, **options), x, labels)
    # Rounding of absolute targets: eps / gamma a layer, more where slopes and inverses magnify it.
    lost = gamma ** -(depth if rule in ("itp", "gait") else 1) / min(slope, 1.0) ** (2 * depth)
    condition = max(np.linalg.cond(layer.W) for layer in network.layers[1:]) ** depth
    assert worst(difference, absolute) < 1e3 * EPS["float64"] * lost * condition


@pytest.mark.parametrize("form", ["itp", "vanilla", "normalised"])
@pytest.mark.parametrize("gamma", [0.5, 1e-3])
def test_absolute_and_difference_targets_agree_where_kinks_are_crossed(gamma, form, rng):
    network = dense_network(rng, width=24, depth=3, used=20, shrink=4, away=0.05)
    x, labels = batch(rng, network, 64)
    for l, layer in enumerate(network.layers):  # the first sample's units lie within 1e-7 of the kink
        if l < 3:
            a = network.forward(x, auxiliary=True)[l].a[0]
            layer.b -= a - 1e-7 * rng.standard_normal(len(a))
    crossed = []

    def count(l, v, s):
        crossed.append(int(network.layers[l].f.crossed(records[l].y, v, s).sum()))

    name, options = "gait", {"gamma": gamma, "normalised": form == "normalised"}
    if form == "itp":
        name, options = "itp", {"gamma": gamma}
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    difference = getattr(rules, name)(
        network.layers, records, error, **options, solver=LU, grams=[None] * 4, trace=count
    )
    absolute = updates_of(network, bind(name, targets="absolute", **options), x, labels)
    assert sum(crossed) > 0
    assert worst(difference, absolute) < (1e-11 if gamma == 0.5 or form == "normalised" else 1e-4)


# --- (iii) absolute targets fail where the paper says -----------------------------------------------


def angles_to_bp(network, rule, x, labels):
    bp = updates_of(network, bind("bp"), x, labels)
    return [
        angle(dW, dW_bp)
        for (dW, _), (dW_bp, _) in zip(updates_of(network, rule, x, labels), bp, strict=True)
    ]


def test_vanilla_absolute_targets_fail_on_the_seven_layer_network_as_the_paper_reports(rng):
    network = cifar10(256, 10, width=256, dtype="float64")
    x, labels = rng.standard_normal((64, 256)), rng.integers(0, 10, 64)
    failing = bind("gait", targets="absolute", normalised=False, gamma=1e-3)
    fixed = bind("gait", targets="absolute", normalised=True, gamma=1e-7)
    assert angles_to_bp(network, failing, x, labels)[0] > 60
    assert max(angles_to_bp(network, fixed, x, labels)) < 1
    assert max(angles_to_bp(network, bind("gait", normalised=False), x, labels)) < 1e-4


def test_the_difference_form_needs_no_double_precision(rng):
    network = cifar10(256, 10, width=256, dtype="float32")
    x = rng.standard_normal((64, 256)).astype(np.float32)
    labels = rng.integers(0, 10, 64)
    assert max(angles_to_bp(network, bind("gait"), x, labels)) < 0.01
    failing = bind("gait", targets="absolute", normalised=True)
    assert angles_to_bp(network, failing, x, labels)[0] > 30


# --- (iv) BP is the derivative of the loss ----------------------------------------------------------


@pytest.mark.parametrize("loss", [softmax_cross_entropy, squared_error])
def test_backpropagation_is_the_numerical_derivative_of_the_loss(loss, rng):
    network = dense_network(rng, n_in=5, width=6, depth=2, n_classes=3, used=5, away=0.3)
    x, labels = batch(rng, network, 4)
    updates = updates_of(network, bind("bp"), x, labels, loss)
    h = 1e-6
    for layer, pair in zip(network.layers, updates, strict=True):
        for parameter, gradient in zip((layer.W, layer.b), pair, strict=True):
            for index in np.ndindex(parameter.shape):
                kept = parameter[index]
                values = []
                for step in (h, -h):
                    parameter[index] = kept + step
                    values.append(float(loss(network.output(x), labels)[0].sum()))
                parameter[index] = kept
                numerical = (values[0] - values[1]) / (2 * h)
                assert gradient[index] == pytest.approx(numerical, rel=1e-5, abs=1e-7)


# --- the other rules, against their definitions -----------------------------------------------------


def test_feedback_alignment_with_the_weights_as_feedback_is_backpropagation(rng):
    network = dense_network(rng, used=12, away=0.2)
    x, labels = batch(rng, network)
    feedback = [layer.W[:, : layer.used] for layer in network.layers]
    fa = updates_of(network, bind("fa", feedback=feedback), x, labels)
    assert worst(fa, updates_of(network, bind("bp"), x, labels)) < 1e-13


def test_direct_feedback_sends_the_output_error_to_every_layer(rng):
    network = dense_network(rng, depth=2, used=12)
    x, labels = batch(rng, network)
    rule = bound("dfa", network)
    feedback = draw_feedback("dfa", network, np.random.default_rng(3))
    assert [None if B is None else B.shape for B in feedback] == [(5, 12), (5, 12), None]
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    for l, (dW, db) in enumerate(rule(network.layers, records, error)):
        e = error if l == 2 else error @ feedback[l]
        delta = network.layers[l].f.derivative(records[l].a) * e
        assert relative(dW[:, : network.layers[l].used], records[l].x.T @ delta) < 1e-13
        assert relative(db[: network.layers[l].used], delta.sum(axis=0)) < 1e-13


@pytest.mark.parametrize("name", ["fa", "dfa"])
@pytest.mark.parametrize("change", ["short", "none", "transposed"])
def test_feedback_that_does_not_fit_the_layers_is_refused(name, change, rng):
    network = dense_network(rng, depth=2, used=12)
    feedback = draw_feedback(name, network, rng)
    if change == "short":
        feedback = feedback[:-1]
    else:  # without weights FA would be backpropagation
        feedback[1] = None if change == "none" else feedback[1][:, ::-1].T[:3]
    with pytest.raises(ValueError, match=f"feedback weights of '{name}' are .*; expected"):
        updates_of(network, bind(name, feedback=feedback), *batch(rng, network))


def test_target_propagation_sends_the_difference_of_inverses_down(rng):
    network = dense_network(rng, depth=1, away=0.1)
    x, labels = batch(rng, network)
    (dW, _), _ = updates_of(network, bind("tp", solver=LU), x, labels)
    records = network.forward(x, auxiliary=True)
    _, error = softmax_cross_entropy(records[-1].y[:, :5], labels)
    target = records[-1].y.copy()
    target[:, :5] -= error
    e = records[-1].x - network.layers[1].inverse(target)
    expected = records[0].x.T @ (network.layers[0].f.derivative(records[0].a) * e)
    assert relative(dW, expected) < 1e-10


def test_incremental_targets_without_a_kink_are_target_propagation(rng):
    network = dense_network(rng, slope=1.0, away=0.1)
    x, labels = batch(rng, network)
    tp = updates_of(network, bind("tp", solver=LU), x, labels)
    assert worst(updates_of(network, bind("itp", gamma=0.01, solver=LU), x, labels), tp) < 1e-12


def test_itp_with_gamma_one_is_tp(rng):
    network = dense_network(rng, away=0.1)
    x, labels = batch(rng, network)
    tp = updates_of(network, bind("tp", solver=LU), x, labels)
    assert worst(updates_of(network, bind("itp", gamma=1.0, solver=LU), x, labels), tp) < 1e-12


def test_gait_is_itp_when_the_activation_is_linear(rng):
    network = dense_network(rng, slope=1.0, away=0.1)
    x, labels = batch(rng, network)
    itp = updates_of(network, bind("itp", gamma=0.1, solver=LU), x, labels)
    gait = updates_of(network, bind("gait", gamma=0.1, normalised=False, solver=LU), x, labels)
    assert worst(gait, itp) < 1e-12


def test_auxiliary_units_change_nothing_in_the_difference_form(rng):
    network = dense_network(rng, width=16, used=10, away=0.1)
    x, labels = batch(rng, network)
    rule = bind("gait", gamma=0.1, normalised=True, solver=LU)
    with_them = network.forward(x, auxiliary=True)
    without = network.forward(x)
    _, error = softmax_cross_entropy(without[-1].y, labels)
    cut = [
        type(r)(r.x, r.a[:, : layer.used], r.y[:, : layer.used])
        for layer, r in zip(network.layers, with_them, strict=True)
    ]
    assert worst(rule(network.layers, cut, error), rule(network.layers, without, error)) < 1e-12


# --- (vi) zero error, (vii) locality ----------------------------------------------------------------


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", rules.NAMES)
def test_zero_error_gives_zero_update(name, normalised, targets, dtype, rng):
    network = dense_network(rng, used=10, dtype=dtype, away=0.1)
    x, _ = batch(rng, network)
    rule = bound(name, network, normalised=normalised, targets=targets)
    records = network.forward(x, auxiliary=rule.auxiliary)
    updates = rule(network.layers, records, np.zeros((len(x), 5), dtype))
    for pair in updates:
        for gradient in pair:
            assert gradient.dtype == dtype
            assert not gradient.any()


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_sample_without_error_does_not_disturb_the_others(normalised, targets, rng):
    network = dense_network(rng, used=10, away=0.1)
    x, labels = batch(rng, network, 6)
    rule = bind("gait", gamma=0.1, normalised=normalised, targets=targets, solver=LU)
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, :5], labels)
    error[2:4] = 0
    keep = [0, 1, 4, 5]
    part = network.forward(x[keep], auxiliary=rule.auxiliary)
    assert worst(rule(network.layers, records, error), rule(network.layers, part, error[keep])) < 1e-11


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1e12])
@pytest.mark.parametrize("normalised", [True, False])
def test_tiny_and_huge_errors_give_finite_updates(scale, normalised, rng):
    network = dense_network(rng, dtype="float32", depth=5)
    x, labels = batch(rng, network)
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    error = (error * scale).astype(np.float32)
    for pair in bind("gait", normalised=normalised)(network.layers, records, error):
        assert all(np.isfinite(gradient).all() for gradient in pair)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-70, 2.0**50])
def test_normalised_updates_are_in_proportion_to_the_error(scale, rng):
    """Where kinks are crossed too: squares of float32 would underflow, and the nudge be 0."""
    network = dense_network(rng, dtype="float32", depth=5, away=0.1, linear_output=False)
    x, labels = batch(rng, network)
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    rule = bind("gait", gamma=0.5, solver=LU)
    expected = rule(network.layers, records, error)
    got = rule(network.layers, records, error * np.float32(scale))
    back = [(dW / np.float32(scale), db / np.float32(scale)) for dW, db in got]
    assert worst(back, expected) < 1e-4


@pytest.mark.parametrize("targets", rules.TARGETS)
@pytest.mark.parametrize("name", rules.NAMES)
def test_in_a_network_of_one_layer_every_rule_is_backpropagation(name, targets, rng):
    network = Network([Dense(rng.standard_normal((12, 5)), rng.standard_normal(5))])
    x, labels = batch(rng, network)
    rule = bind(name, targets=targets, feedback=draw_feedback(name, network, rng))
    expected = updates_of(network, bind("bp"), x, labels)
    assert worst(updates_of(network, rule, x, labels), expected) < 1e-12
    np.testing.assert_array_equal(network.predict(x), network.output(x).argmax(axis=1))


def test_gamma_is_the_published_one_unless_another_is_given(rng):
    network = dense_network(rng, depth=2, away=0.1)
    x, labels = batch(rng, network)
    for options, gamma in (({}, 1e-7), ({"normalised": False}, 1e-3)):
        expected = updates_of(network, bind("gait", gamma=gamma, **options), x, labels)
        got = updates_of(network, bind("gait", **options), x, labels)
        assert worst(got, expected) == 0
        assert rules.default_gamma("gait", options.get("normalised", True)) == gamma
    assert rules.default_gamma("itp", True) == rules.default_gamma("itp", False) == 1e-3


@pytest.mark.parametrize("name", rules.INVERTING)
def test_a_gram_at_hand_is_what_the_product_with_the_inverse_is_made_of(name, rng):
    network = dense_network(rng, away=1e-3, dtype="float32")
    x, labels = batch(rng, network)
    records, reports = network.forward(x), []
    _, error = softmax_cross_entropy(records[-1].y, labels)
    rule = bind(name, solver=InverseSolver(reports=reports))
    rule(network.layers, records, error, [None, *(gram(layer.W) for layer in network.layers[1:])])
    assert [report.method for report in reports] == ["series"] * 3


@pytest.mark.parametrize("name", rules.NAMES)
def test_the_update_of_a_layer_does_not_depend_on_the_weights_below(name, rng):
    network = dense_network(rng, used=10, away=0.1)
    x, labels = batch(rng, network)
    rule = bound(name, network)
    records = network.forward(x)
    _, error = softmax_cross_entropy(records[-1].y, labels)
    before = rule(network.layers, records, error)
    network.layers[0].W[...] += 1.0  # the activities stay as recorded
    after = rule(network.layers, records, error)
    for pair, other in zip(before, after, strict=True):
        for gradient, same in zip(pair, other, strict=True):
            np.testing.assert_array_equal(gradient, same)


class Spy:
    """Passes every call on to a layer, and notes what arrays it was given."""

    def __init__(self, layer):
        self.layer, self.given = layer, []

    def __getattr__(self, name):
        attribute = getattr(self.layer, name)
        if not inspect.ismethod(attribute):
            return attribute

        def call(*args, **kwargs):
            self.given += [v for v in (*args, *kwargs.values()) if isinstance(v, np.ndarray)]
            return attribute(*args, **kwargs)

        return call


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("name", rules.NAMES)
def test_a_rule_hands_a_layer_no_other_layers_activity_or_weights(name, targets, rng):
    network = dense_network(rng, n_in=11, depth=3, width=16, used=10)
    x, labels = batch(rng, network)
    rule = bound(name, network, targets=targets)
    records = network.forward(x, auxiliary=rule.auxiliary)
    _, error = softmax_cross_entropy(records[-1].y[:, :5], labels)
    spies = [Spy(layer) for layer in network.layers]
    rule(spies, records, error)
    for l, spy in enumerate(spies):
        others = [
            array
            for k, (layer, record) in enumerate(zip(network.layers, records, strict=True))
            if k != l
            for array in (layer.W, layer.b, record.a, record.y)
        ]
        for array in spy.given:
            shares = [np.shares_memory(array, other) for other in others]
            # A layer's input is the output of the layer below, nothing else is shared.
            allowed = np.shares_memory(array, records[l].x)
            assert allowed or not any(shares)


# --- use --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rules.INVERTING)
def test_a_rule_that_inverts_refuses_a_layer_that_is_not_square(name, rng):
    network = Network([*dense_network(rng, depth=1).layers])
    network.layers[1].W = network.layers[1].W[:, :5]
    network.layers[1].b = network.layers[1].b[:5]
    x, labels = batch(rng, network)
    with pytest.raises(ValueError, match=r"layer1 has shape \(16, 5\).*auxiliary"):
        updates_of(network, bind(name), x, labels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gate", {}, "gate.*bp, fa"),
        ("gait", {"gamma": 0}, "gamma is 0"),
        ("gait", {"gamma": 1.5}, "gamma is 1.5"),
        ("gait", {"targets": "relative"}, "relative.*difference or absolute"),
        ("fa", {}, "feedback"),
    ],
)
def test_settings_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        bind(name, **options)


def test_errors_and_outputs_that_a_rule_does_not_take_are_named(rng):
    network = models.square(20, 4, width=20, depth=2, auxiliary=True, seed=1)
    x = rng.standard_normal((5, 20)).astype(np.float32)
    records = network.forward(x, auxiliary=True)
    with pytest.raises(ValueError, match=r"\(5, 20\); expected \(5, 4\).*n_classes"):
        bind("gait")(network.layers, records, records[-1].y)
    error = records[-1].y[:, :4]
    with pytest.raises(ValueError, match=r"auxiliary=True"):
        bind("gait", targets="absolute")(network.layers, network.forward(x), error)
    bind("gait", targets="absolute")(network.layers, records, error)


@pytest.mark.parametrize("name", rules.NAMES)
def test_the_rules_that_invert_layers_are_those_that_say_so(name):
    assert (bind(name, feedback=[]).difference_form is not None) == (name in rules.INVERTING)


@pytest.mark.parametrize("name", rules.NAMES)
@pytest.mark.parametrize("shape", [(12,), (32, 32, 1)])
def test_an_empty_batch_gives_updates_of_zeros(name, shape):
    make = models.square if len(shape) == 1 else models.imagenet
    network = make(shape if len(shape) == 3 else 12, 3, auxiliary="implicit", dtype="float64")
    rule = bind(name, feedback=draw_feedback(name, network, np.random.default_rng(0)))
    records = network.forward(np.zeros((0, *shape)))
    updates = rule(network.layers, records, np.zeros((0, 3)))
    for layer, (dW, db) in zip(network.layers, updates, strict=True):
        assert dW.shape == layer.W.shape and db.shape == layer.b.shape
        assert not dW.any() and not db.any()


@pytest.mark.parametrize("name", rules.NAMES)
def test_auxiliary_units_in_a_forward_pass_are_refused_where_the_rule_takes_none(name, rng):
    network = dense_network(rng, n_classes=1)
    x, _ = batch(rng, network)
    error = rng.standard_normal((len(x), 1))
    with pytest.raises(ValueError, match=r"auxiliary units among them.* use network.forward\(x\)"):
        bound(name, network)(network.layers, network.forward(x, auxiliary=True), error)


@pytest.mark.parametrize("name", rules.NAMES)
def test_an_error_of_whole_numbers_is_an_error_too(name, rng):
    network = dense_network(rng, slope=1.0)
    x, _ = batch(rng, network)
    records, error = network.forward(x), rng.integers(-3, 4, (len(x), 5))
    got, expected = (bound(name, network)(network.layers, records, e) for e in (error, error * 1.0))
    assert worst(got, expected) == 0


@pytest.mark.parametrize("targets", ["difference", "absolute"])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_gamma_of_numpy_is_a_number_like_another(normalised, targets, rng):
    network = dense_network(rng, dtype="float32")
    x, labels = batch(rng, network)
    got, expected = (
        updates_of(network, bind("gait", gamma=gamma, normalised=normalised, targets=targets), x, labels)
        for gamma in (np.float64(1e-3), 1e-3)
    )
    assert worst(got, expected) == 0
    assert all(dW.dtype == np.float32 for dW, _ in got)


@pytest.mark.parametrize("name", rules.NAMES)
@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_an_error_of_another_precision_gives_updates_of_the_weights_own(kind, name, rng):
    network = dense_network(rng, dtype="float32")
    network.layers[0].f = Linear()
    x, _ = batch(rng, network)
    records, error = network.forward(x), rng.standard_normal((len(x), 5)).astype(kind)
    rule = bound(name, network)
    got = rule(network.layers, records, error)
    assert {array.dtype for update in got for array in update} == {np.dtype("float32")}
    assert worst(got, rule(network.layers, records, error.astype("float32"))) == 0


@pytest.mark.parametrize(
    ("rule", "options", "sizes"),
    [
        (rules.tp, {}, [1, 1, 1]),
        (rules.itp, {"gamma": 0.1}, [0.1, 0.1**2, 0.1**3]),
        (rules.gait, {"gamma": 0.1, "normalised": False}, [0.1, 0.1**2, 0.1**3]),
    ],
)
def test_each_layer_is_given_its_own_gram_and_traced_by_its_number_and_nudge(rule, options, sizes, rng):
    network = dense_network(rng, away=0.1)
    x, labels = batch(rng, network)
    records = network.forward(x)
    _, error = squared_error(records[-1].y, labels)
    grams = [gram(layer.W) for layer in network.layers]
    given, traced = [], []

    class Solver(InverseSolver):
        def __call__(self, d, W, G=None, *, name="W"):
            given.append((name, next(l for l, own in enumerate(grams) if own is G)))
            return super().__call__(d, W, G, name=name)

    rule(
        network.layers, records, error, **options, solver=Solver(), grams=grams,
        trace=lambda l, v, s: traced.append((l, float(s))),
    )  # fmt: skip
    assert given == [(f"layer{l}", l) for l in (3, 2, 1)]
    assert traced == [(l, pytest.approx(s)) for l, s in zip((3, 2, 1), sizes, strict=True)]
