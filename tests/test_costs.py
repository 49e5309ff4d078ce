"""What a step must do, counted by hand from the equations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from npgait import models
from npgait.costs import Cost, step_cost
from npgait.inverse import SolveReport
from npgait.layers import Conv2D, Dense, Window
from npgait.losses import softmax_cross_entropy
from npgait.network import Network
from npgait.optimizers import SGD, Adam, Momentum
from npgait.rules import bind, draw_feedback
from npgait.step import Recipe

B = 7
# Rows (samples times positions), values of a row, used and all units of each layer.
FIRST, SECOND, OUTPUT = (B * 6 * 5, 18, 4, 4), (B * 3 * 3, 16, 3, 16), (B, 27, 4, 27)


def weights(n, m):
    return np.zeros((n, m), np.float32), np.zeros(m, np.float32)


@pytest.fixture
def network():
    return Network(
        [
            Conv2D(*weights(18, 4), Window(6, 5, 2, kernel=3), name="first"),
            Conv2D(*weights(16, 16), Window(6, 5, 4, kernel=2, stride=2), used=3, name="second"),
            Dense(*weights(27, 27), used=4, shape_in=(3, 3, 3), name="output"),
        ]
    )


def cost_of(network, name, reports=None, *, targets="difference", **options):
    feedback = draw_feedback(name, network, np.random.default_rng(0))
    rule = bind(name, targets=targets, feedback=feedback)
    recipe = Recipe(rule, softmax_cross_entropy, Adam(1e-3), **options)
    return step_cost(network, recipe, B, reports or {})


def used(*layers):
    return sum(2 * rows * n * u for rows, n, u, _ in layers)


@pytest.mark.parametrize(
    ("rule", "targets"),
    [
        ("bp", used(SECOND, OUTPUT)),
        ("fa", used(SECOND, OUTPUT)),
        ("dfa", 2 * B * 4 * (6 * 5 * 4 + 3 * 3 * 3)),  # the output error to every unit below
    ],
)
def test_each_product_of_rows_with_used_units_is_counted(rule, targets, network):
    cost = cost_of(network, rule)
    assert cost.forward == cost.updates == used(FIRST, SECOND, OUTPUT)
    assert cost.targets == targets
    assert cost.regulariser == 0
    assert cost.operations == 2 * cost.forward + targets


@pytest.mark.parametrize(
    ("method", "terms", "second", "output"),
    [
        ("series", 3, 3 * 2 * 3 * 16**2, used(OUTPUT) + 3 * 2 * B * 27**2),
        ("refinement", 2, 2 * 4 * 3 * 16**2, used(OUTPUT) + 2 * 4 * B * 27**2),
        ("lu", 0, 2 / 3 * 16**3 + 2 * 3 * 16**2, 2 / 3 * 27**3 + 2 * B * 27**2),
    ],
)
@pytest.mark.parametrize("rule", ["tp", "itp", "gait"])
def test_a_convolution_makes_the_used_rows_of_its_inverse_and_a_dense_layer_a_product_a_sample(
    rule, method, terms, second, output, network
):
    reports = {l: SolveReport(method, terms, 0.0) for l in (1, 2)}
    cost = cost_of(network, rule, reports)
    assert cost.forward == cost.updates == used(FIRST, SECOND, OUTPUT)
    # What a convolution spreads are the products of its patches with those rows.
    assert cost.targets == pytest.approx(used(SECOND) + second + output, rel=1e-12)


def test_absolute_targets_compute_all_units_and_solve_for_them_by_lu(network):
    cost = cost_of(network, "gait", targets="absolute")
    everything = [(rows, n, n_out, n_out) for rows, n, _, n_out in (FIRST, SECOND, OUTPUT)]
    assert cost.forward == used(*everything)
    assert cost.updates == used(FIRST, SECOND, OUTPUT)
    inverse_of_second = 2 / 3 * 16**3 + 2 * 16**3
    by_lu = inverse_of_second + 2 * SECOND[0] * 16**2 + 2 / 3 * 27**3 + 2 * B * 27**2
    assert cost.targets == pytest.approx(by_lu, rel=1e-12)


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("decoupled", [False, True])
def test_the_regulariser_is_half_a_product_and_a_whole_one_of_each_square_layer(
    decoupled, every, network
):
    cost = cost_of(network, "bp", ortho_strength=0.5, ortho_every=every, decoupled=decoupled)
    assert cost.regulariser == 3 * (16**3 + 27**3) / every


@pytest.mark.parametrize(("optimizer", "passes"), [(SGD, 3), (Momentum, 5), (Adam, 7)])
def test_an_optimizer_reads_and_writes_what_its_equations_say(optimizer, passes, network):
    recipe = Recipe(bind("bp"), softmax_cross_entropy, optimizer(1e-3))
    values = 18 * 4 + 4 + 16 * 16 + 16 + 27 * 27 + 27
    assert step_cost(network, recipe, B, {}).optimizer_bytes == passes * 4 * values


def test_the_floor_is_the_time_of_the_operations_and_that_of_the_bytes():
    cost = Cost(forward=1, targets=2, updates=3, regulariser=4, optimizer_bytes=50)
    assert cost.operations == 10
    assert cost.floor(rate=5, bandwidth=10) == 10 / 5 + 50 / 10
    assert replace(cost, regulariser=0).operations == 6


# --- of the published networks --------------------------------------------------------------------


def recipe(rule, strength=0.0, optimizer=None, **options):
    return Recipe(
        bind(rule), softmax_cross_entropy, optimizer or Adam(1e-4), ortho_strength=strength, **options
    )


def test_the_operations_of_backpropagation_are_those_of_its_products():
    network = models.square(7, 3, width=5, depth=2, auxiliary=False)
    cost = step_cost(network, recipe("bp"), 11, {})
    assert cost.forward == 2 * 11 * (7 * 5 + 5 * 5 + 5 * 3)
    assert cost.updates == cost.forward
    assert cost.targets == 2 * 11 * (5 * 5 + 5 * 3)
    assert cost.regulariser == 0
    assert cost.optimizer_bytes == 7 * 4 * (7 * 5 + 5 + 5 * 5 + 5 + 5 * 3 + 3)
    assert step_cost(network, recipe("bp", optimizer=SGD(0.1)), 11, {}).optimizer_bytes * 7 == (
        cost.optimizer_bytes * 3
    )


def test_the_savings_of_the_difference_form_are_counted():
    network = models.square(7, 3, width=5, depth=1)
    reports = {1: SolveReport("series", 2, 0.0)}
    cost = step_cost(network, recipe("gait", 1.0, ortho_every=2), 11, reports)
    assert cost.forward == 2 * 11 * (7 * 5 + 5 * 3)  # used units only
    assert cost.targets == 2 * 11 * 5 * 3 + 2 * (2 * 11 * 5 * 5)
    assert cost.regulariser == 3 * 5**3 / 2  # the output layer; W W^T is half a product
    lu = step_cost(network, recipe("gait"), 11, {1: SolveReport("lu", 0, 0.0)})
    assert lu.targets == pytest.approx(2 / 3 * 5**3 + 2 * 11 * 5 * 5)


def test_convolutions_are_counted_by_their_patches():
    network = models.imagenet((32, 32, 3), 4, auxiliary=False)
    first = network.layers[0]
    rows = 5 * 8 * 8
    alone = step_cost(network, recipe("bp"), 5, {}).forward
    rest = sum(2 * 5 * int(np.prod(layer.shape_out[:-1])) * layer.W.size for layer in network.layers[1:])
    assert alone - rest == 2 * rows * first.W.size == 2 * rows * 243 * 24


def test_implicit_units_cost_what_the_used_ones_cost():
    stored, implicit = (models.square(20, 3, depth=1, auxiliary=a) for a in (True, "implicit"))
    costs = [step_cost(n, recipe("gait", 1.0), 8, {}).regulariser for n in (stored, implicit)]
    assert costs == [3 * 20**3 * 2, 3 * 20**3 + 3 * 20 * 3**2]


@pytest.mark.parametrize(
    ("method", "terms", "solve"),
    [
        ("normal", 0, 2 / 3 * 4**3 + 2 * 8 * 4**2),
        ("series", 3, 3 * 2 * 8 * 4**2),
        ("refinement", 3, 3 * 4 * 8 * 20 * 4),
        ("qr", 0, 4 * 4**2 * (20 - 4 / 3) + 2 * 8 * 4**2),
    ],
)
def test_ways_to_the_inverse_of_a_tall_matrix_are_counted_by_hand(method, terms, solve):
    network = models.square(20, 4, depth=1, auxiliary="implicit")  # its output: 20 inputs, 4 classes
    reports = {1: SolveReport(method, terms, 0.0)}
    cost, none = (step_cost(network, recipe("gait"), 8, r).targets for r in (reports, {}))
    assert cost - none == pytest.approx(solve, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "terms", "solve"),
    [
        ("normal", 0, 2 / 3 * 6**3 + 2 * 6 * 6**2 + 2 * 6 * 16 * 6),
        ("series", 3, 3 * 2 * 6 * 6**2 + 2 * 6 * 16 * 6),
        ("refinement", 3, 3 * 4 * 6 * 16 * 6),
        ("qr", 0, 4 * 6**2 * (16 - 6 / 3) + 2 * 6 * 6**2 + 2 * 6 * 16 * 6),
    ],
)
def test_a_convolution_of_a_tall_matrix_makes_the_rows_of_the_pseudo_inverse(method, terms, solve):
    window = Window(6, 5, 4, kernel=2, stride=2)
    layer = Conv2D(*weights(16, 6), window, implicit=True)
    below = Conv2D(*weights(18, 4), Window(6, 5, 2, kernel=3))
    network = Network([below, layer, Dense(*weights(54, 4), shape_in=(3, 3, 6), implicit=True)])
    reports = {1: SolveReport(method, terms, 0.0)}
    cost, none = (cost_of(network, "gait", r).targets for r in (reports, {}))
    assert cost - none == pytest.approx(solve, rel=1e-6)
