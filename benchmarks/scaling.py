"""Cost as the work grows: step time against width, depth and batch, beside the count of operations.

    python benchmarks/scaling.py [--out docs/scaling.svg]

Networks 784 -> depth x width -> 10 in float32; TP, ITP and GAIT-prop with the published regulariser.
Dashed: what the operations of the step take at the rate of this machine's matrix products.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import numpy as np

from npgait import models
from npgait.backend import CPU
from npgait.cli.threads import keep_memory
from npgait.costs import step_cost
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.replay import Stepper
from npgait.rules import INVERTING, NAMES, bind, draw_feedback
from npgait.timing import inverse_reports, product_rate, time_steps
from npgait.training import Recipe

BASE = {"width": 1024, "depth": 4, "batch": 256}
SWEEPS = {
    "width": (128, 256, 512, 1024, 2048),
    "depth": (1, 2, 4, 8, 16),
    "batch": (16, 64, 256, 1024, 4096),
}


def step_time(rule: str, width: int, depth: int, batch: int) -> tuple[float, float]:
    """Return the median seconds of a step, and of its operations at the rate of that moment."""
    inverts = rule in INVERTING
    network = models.square(784, 10, width=width, depth=depth, auxiliary=inverts)
    network.feedback = draw_feedback(rule, network, np.random.default_rng(0))
    recipe = Recipe(
        bind(rule, feedback=network.feedback),
        softmax_cross_entropy,
        Adam(1e-5),
        ortho_strength=100.0 if inverts else 0.0,
    )
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((batch, 784)).astype(np.float32), rng.integers(0, 10, batch)
    stepper = Stepper(network, recipe)
    time_steps(stepper, samples, steps=2)
    before = product_rate(CPU, network.dtype, repeats=2)
    times = time_steps(stepper, samples, steps=7)
    rate = (before + product_rate(CPU, network.dtype, repeats=2)) / 2
    cost = step_cost(network, recipe, batch, inverse_reports(network, recipe, samples))
    return median(times[True] or times[False]), cost.operations / rate


def main() -> None:
    """Time every sweep, print the numbers, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/scaling.svg"))
    options = parser.parse_args()
    keep_memory()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, SWEEPS.items(), strict=True):
        for number, rule in enumerate(NAMES):
            points = [step_time(rule, **{**BASE, name: value}) for value in values]
            measured, floor = (1e3 * np.array(column) for column in zip(*points, strict=True))
            axis.loglog(values, measured, "o-", color=f"C{number}", label=rule)
            axis.loglog(values, floor, "--", color=f"C{number}", linewidth=1)
            text = ", ".join(
                f"{v}: {m:.1f}/{f:.1f}" for v, m, f in zip(values, measured, floor, strict=True)
            )
            print(f"{name:5} {rule:4} ms measured/floor: {text}", flush=True)
        fixed = ", ".join(f"{k} {v}" for k, v in BASE.items() if k != name)
        axis.set(xlabel=f"{name} ({fixed})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms a step")
    axes[0].legend()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
