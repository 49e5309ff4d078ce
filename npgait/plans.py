"""When a GPU is waited for: products with W^-1 are made as they were last, for a while, without a look.

To see how small what is left has become, the host has to wait for the device. Weights change little
from step to step, so that the method and the terms of one step do for the next, with terms to spare.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from npgait.backend import Array

DIRECT = ("lu", "qr", "normal")  # which solve, and see whether W was singular: always looked at
CHECK_EVERY = 64  # most products from one that is looked at to the next
SPARE = 2  # terms more than the last look took
MOST = 1 << 12  # plans kept: each holds its W
FEWEST = 4  # terms: fresh weights are orthogonal and need none, and a few steps later they are not

Product = tuple[int, bool]  # id of the weights, and whether W W^T is not at hand


@dataclass
class Plan:
    """How a product is made, and how often without looking at the result."""

    method: str
    terms: int
    interval: int  # one of so many products is looked at; doubled where a look finds nothing new
    made: int  # products so far
    W: Array | None = field(default=None, compare=False, repr=False)  # held: no other gets its id

    @property
    def left(self) -> int:
        """Products from here to the next that is looked at. Looks at several layers fall together."""
        return 0 if self.method in DIRECT else self.interval - 1 - self.made % self.interval


Plans = dict[Product, Plan]


def follow(plans: Plans, product: Product) -> Plan | None:
    """Return the plan that a product is made by, and count it; None where it is time to look."""
    plan = plans.get(product)
    if plan is None or plan.left == 0:
        return None
    plan.made += 1
    return plan


def note(plans: Plans, product: Product, method: str, terms: int, *, W: Array | None = None) -> None:
    """Note how a product with W^-1 that was looked at was made, and for how long that will do."""
    if len(plans) >= MOST and product not in plans:
        plans.clear()
    before, planned, interval, made = plans.get(product), max(terms + SPARE, FEWEST), 1, 1
    if before is not None:
        made = before.made + 1
        if before.method == method and terms < before.terms:  # it did, with a term to spare
            planned = min(before.terms, terms + 2 * SPARE)
            interval = min(2 * before.interval, CHECK_EVERY)
    plans[product] = Plan(method, planned, interval, made, W)


def steps_to_look(plans: Plans, products: Iterable[Product]) -> int:
    """Return how many steps can be made before one of their products is looked at."""
    found = [plans.get(product) for product in products]
    return min((plan.left if plan else 0 for plan in found), default=0)
