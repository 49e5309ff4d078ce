"""Optimizers against their definitions, one number at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from npgait.optimizers import SGD, Adam, Momentum

pytestmark = pytest.mark.usefixtures("loops")  # compiled, and NumPy's

GRADIENTS = [0.5, -1.5, 0.25, 0.0, 3.0]


def after(optimizer, start=1.0):
    p = np.array([start])
    for g in GRADIENTS:
        optimizer.step([p], [np.array([g])])
    return p[0]


def test_sgd_subtracts_the_gradient_times_the_rate():
    assert after(SGD(0.1)) == pytest.approx(1.0 - 0.1 * sum(GRADIENTS))


def test_momentum_adds_up_past_gradients():
    p, v = 1.0, 0.0
    for g in GRADIENTS:
        v = 0.8 * v + g
        p -= 0.1 * v
    assert after(Momentum(0.1, 0.8)) == pytest.approx(p)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_adam_is_that_of_the_paper(bias_correction):
    p, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate(GRADIENTS, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        m_hat, v_hat = (m / (1 - 0.9**t), v / (1 - 0.99**t)) if bias_correction else (m, v)
        p -= 0.05 * m_hat / (math.sqrt(v_hat) + 1e-3)
    assert after(Adam(0.05, 0.9, 0.99, 1e-3, bias_correction)) == pytest.approx(p, rel=1e-14)


def make_all():
    return [SGD(0.1), Momentum(0.1, 0.9), Adam(0.1), Adam(0.1, bias_correction=False)]


@pytest.mark.parametrize("kind", range(4))
def test_an_optimizer_goes_on_from_its_state_as_if_never_stopped(kind, rng, dtype):
    gradients = [[rng.standard_normal(s).astype(dtype) for s in ((2, 3), (3,))] for _ in range(8)]
    straight, stopped = make_all()[kind], make_all()[kind]
    p = [np.ones((2, 3), dtype), np.ones(3, dtype)]
    q = [x.copy() for x in p]
    for g in gradients:
        straight.step(p, g)
    for g in gradients[:3]:
        stopped.step(q, g)
    again = make_all()[kind]
    again.load({key: value.copy() for key, value in stopped.state().items()})
    for g in gradients[3:]:
        again.step(q, g)
    for x, y in zip(p, q, strict=True):
        assert x.dtype == dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", range(4))
def test_parameters_change_in_place_and_gradients_do_not(kind):
    p, g = np.ones(3), np.ones(3)
    same = p
    make_all()[kind].step([p], [g])
    assert same is p
    assert (p < 1).all()
    assert (g == 1).all()


@pytest.mark.parametrize("kind", range(4))
def test_an_array_that_does_not_lie_in_one_piece_is_changed_as_any_other(kind, rng, dtype):
    whole, g = np.ones((6, 4), dtype), rng.standard_normal((3, 2)).astype(dtype)
    p = np.ones((3, 2), dtype)
    make_all()[kind].step([whole[::2, ::2]], [g])
    make_all()[kind].step([p], [g])
    np.testing.assert_array_equal(whole[::2, ::2], p)
    assert (whole[1::2] == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(0), "learning_rate is 0"),
        (lambda: SGD(float("nan")), "learning_rate is nan"),
        (lambda: Momentum(0.1, 1.0), "momentum is 1.0"),
        (lambda: Adam(0.1, beta1=-0.1), "beta1 is -0.1"),
        (lambda: Adam(0.1, beta2=1.0), "beta2 is 1.0"),
        (lambda: Adam(0.1, epsilon=0), "epsilon is 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", range(4))
def test_a_state_is_a_snapshot_that_several_optimizers_may_load(kind):
    def steps(optimizer, p, gradients):
        for g in gradients:
            optimizer.step([p], [np.full(3, g)])
        return p

    optimizer = make_all()[kind]
    p = steps(optimizer, np.zeros(3), GRADIENTS)
    state, at_state = optimizer.state(), p.copy()
    expected = steps(optimizer, p, GRADIENTS)
    for _ in range(2):
        again = make_all()[kind]
        again.load(state)
        np.testing.assert_array_equal(steps(again, at_state.copy(), GRADIENTS), expected)


def test_numbers_of_numpy_do_not_change_the_dtype_or_the_result():
    for make in (SGD, Momentum, Adam):
        p, q = np.ones(5, np.float32), np.ones(5, np.float32)
        plain, numpys = make(0.1), make(np.float64(0.1))
        for _ in range(3):
            plain.step([p], [p / 3])
            numpys.step([q], [q / 3])
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("optimizer", [Momentum(0.1), Adam(0.1)])
@pytest.mark.parametrize("other", [np.zeros((3, 5)), np.zeros((3, 4), np.float32), None])
def test_moments_of_another_network_are_refused(optimizer, other):
    optimizer = replace(optimizer)
    p = np.zeros((3, 4))
    optimizer.step([p], [np.ones_like(p)])
    others = [p, p] if other is None else [other]
    with pytest.raises(ValueError, match="moments of another network"):
        optimizer.step(others, [np.ones_like(each) for each in others])


@pytest.mark.parametrize("value", [None, "a", True, [0.1]])
def test_what_is_no_number_is_refused_by_name(value):
    for make, name in (
        (SGD, "learning_rate"),
        (lambda v: Momentum(0.1, v), "momentum"),
        (lambda v: Adam(0.1, beta1=v), "beta1"),
        (lambda v: Adam(0.1, epsilon=v), "epsilon"),
    ):
        with pytest.raises(TypeError, match=f"{name} is .*; expected a number"):
            make(value)
    assert SGD(np.float32(0.5)).learning_rate == SGD(np.array(0.5)).learning_rate == 0.5
