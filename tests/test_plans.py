"""When a GPU is waited for: how long a product with W^-1 is made as it was last, without a look."""

from __future__ import annotations

import pytest

from npgait.plans import MOST, follow, note, steps_to_look

PRODUCT, OTHER = (1, False), (2, False)  # of weights with these ids


def made(outcomes, products):
    """Make a product so often; return the numbers of those looked at, their plans, and all plans."""
    plans, looks, taken = {}, [], []
    for number in range(1, products + 1):
        if follow(plans, PRODUCT) is None:
            note(plans, PRODUCT, *outcomes(number))
            looks.append(number)
        taken.append((plans[PRODUCT].method, plans[PRODUCT].terms))
    return looks, taken, plans


def test_looks_that_find_nothing_new_come_ever_more_seldom_but_every_64_products_at_least():
    looks, _, plans = made(lambda number: ("series", 1), 400)
    assert looks == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384]
    assert plans[PRODUCT].made == 400


@pytest.mark.parametrize("found", [("series", 9), ("refinement", 1)])
def test_a_look_that_finds_more_terms_or_another_method_is_followed_by_others_soon(found):
    looks, taken, _ = made(lambda number: found if number >= 16 else ("series", 1), 40)
    assert looks == [1, 2, 4, 8, 16, 17, 18, 20, 24, 32]
    assert taken[14] == ("series", 4)
    assert taken[15] == (found[0], max(found[1] + 2, 4))


@pytest.mark.parametrize("method", ["lu", "qr", "normal"])
def test_a_product_that_is_solved_for_is_always_looked_at(method):
    looks, _, plans = made(lambda number: (method, 0), 9)
    assert looks == [*range(1, 10)]
    assert steps_to_look(plans, [PRODUCT]) == 0


@pytest.mark.parametrize(
    ("terms", "planned"),
    [
        ([0], [4]),  # of fresh weights
        ([3], [5]),
        ([3, 3], [5, 5]),  # it did: no more terms than those
        ([3, 3, 1], [5, 5, 5]),
        ([9, 2], [11, 6]),  # fewer, with terms to spare
        ([9, 2, 6], [11, 6, 8]),  # of the six planned none was to spare
    ],
)
def test_terms_are_planned_with_some_to_spare(terms, planned):
    plans, found = {}, []
    for each in terms:
        note(plans, PRODUCT, "series", each)
        found.append(plans[PRODUCT].terms)
    assert found == planned


def test_steps_can_be_made_until_the_first_of_their_products_is_looked_at():
    plans = {}
    for product, products in ((PRODUCT, 8), (OTHER, 16)):
        while plans.get(product) is None or plans[product].made < products:
            if follow(plans, product) is None:
                note(plans, product, "series", 1)
    assert [steps_to_look(plans, [p]) for p in (PRODUCT, OTHER)] == [7, 15]
    assert steps_to_look(plans, [OTHER, PRODUCT]) == 7
    assert steps_to_look(plans, [PRODUCT, (3, False)]) == 0
    assert steps_to_look(plans, []) == 0


def test_plans_of_weights_that_come_and_go_do_not_pile_up():
    plans = {}
    for number in range(2 * MOST + 5):
        note(plans, (number, True), "series", 1)
        assert len(plans) <= MOST
    assert follow(plans, (number, True)) is None  # of a product made once
    assert (number, True) in plans
