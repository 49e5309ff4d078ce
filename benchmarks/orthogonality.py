"""What holding weights near orthogonality costs in accuracy, by every way npgait has of doing so.

    python benchmarks/orthogonality.py DIR [--epochs 8] [--seeds 3] [--images 60000]
        [--sets mnist] [--ways "BP, free" decoupled]

DIR holds MNIST and Fashion-MNIST. Network 784 -> 4 x 256 -> 10, Adam, batch 64, learning rate 3e-4.
Prints one table a data set: test accuracy (last epoch, mean and spread over seeds), the mean angle of
the hidden layers' updates to backpropagation's, largest ||I - W W^T / c^2||_2, time over the first's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from npgait import models
from npgait.cli.table import format_table
from npgait.comparison import spread
from npgait.data import array_data, scaling_of
from npgait.loaders import load
from npgait.losses import softmax_cross_entropy
from npgait.optimizers import Adam
from npgait.orthogonality import gram, residual, scale_of, spectral_norm
from npgait.rules import bind
from npgait.streams import random_streams
from npgait.training import EpochDone, Measured, Recipe, train

WAYS: dict[str, dict[str, Any]] = {
    "BP, free": {"rule": "bp"},
    "BP, published regulariser": {"rule": "bp", "ortho_strength": 100.0, "square": True},
    "GAIT, published regulariser": {"ortho_strength": 100.0},
    "implicit units": {"ortho_strength": 100.0, "implicit": True},
    "every 5 steps": {"ortho_strength": 100.0, "ortho_every": 5},
    "every 20 steps": {"ortho_strength": 100.0, "ortho_every": 20},
    "conformal": {"ortho_strength": 100.0, "regulariser": "conformal"},
    "decoupled": {"ortho_strength": 0.25, "decoupled": True},
    "decoupled, every 5 steps": {"ortho_strength": 0.5, "decoupled": True, "ortho_every": 5},
    "decoupled, every 20 steps": {"ortho_strength": 0.5, "decoupled": True, "ortho_every": 20},
    "decoupled, conformal": {"ortho_strength": 0.25, "decoupled": True, "regulariser": "conformal"},
    "decoupled, conformal, every 5 steps": {
        "ortho_strength": 0.5,
        "decoupled": True,
        "regulariser": "conformal",
        "ortho_every": 5,
    },
    "decoupled, conformal, implicit units": {
        "ortho_strength": 0.25,
        "decoupled": True,
        "regulariser": "conformal",
        "implicit": True,
    },
}


def one_run(way: dict[str, Any], dataset: Any, images: int, epochs: int, seed: int) -> dict[str, float]:
    """Return accuracy, angle, distance from orthogonality and seconds of one training run."""
    way = dict(way)
    rule, implicit = way.pop("rule", "gait"), way.pop("implicit", False)
    square = way.pop("square", rule == "gait")
    auxiliary = "implicit" if implicit else square
    streams = random_streams(seed)
    network = models.square(784, 10, width=256, depth=4, auxiliary=auxiliary, seed=streams.weights)
    scaling = scaling_of(dataset.train_x, "standard")
    train_data = array_data(dataset.train_x[:images], dataset.train_labels[:images], scaling=scaling)
    test_data = array_data(dataset.test_x, dataset.test_labels, scaling=scaling)
    recipe = Recipe(bind(rule), softmax_cross_entropy, Adam(3e-4), **way)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 64, "streams": streams}
    # A prime: measured at each distance from the last regularisation, where that comes at intervals.
    options |= {"measure_every": 97, "evaluate_train": False}
    angles: list[float] = []
    result: dict[str, float] = {}
    started = time.perf_counter()
    for event in train(network, recipe, train_data, test_data, **options):
        if isinstance(event, Measured):
            angles += [m.angle for m in event.layers[:-1] if m.angle is not None]
        elif isinstance(event, EpochDone):
            result["accuracy"] = 100 * event.row["test_top1"]
    grams = [gram(layer.W) for layer in network.layers[1:]]
    result["distance"] = max(spectral_norm(residual(G, scale_of(G))) for G in grams)
    result["angle"] = float(np.mean(angles))
    result["seconds"] = time.perf_counter() - started
    return result


def main() -> None:
    """Run every way on both data sets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--sets", nargs="+", default=["mnist", "fashion-mnist"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    options = parser.parse_args()
    for name in options.sets:
        dataset = load(name, options.data)
        rows, base = [], 1.0
        for label in options.ways:
            runs = [
                one_run(WAYS[label], dataset, options.images, options.epochs, seed)
                for seed in range(options.seeds)
            ]
            mean = {key: np.mean([run[key] for run in runs]) for key in runs[0]}
            deviation = spread([run["accuracy"] for run in runs])
            base = mean["seconds"] if label == options.ways[0] else base
            row = [label, f"{mean['accuracy']:.2f} +- {deviation:.2f}", f"{mean['angle']:.1f}"]
            row += [f"{mean['distance']:.3f}", f"{mean['seconds'] / base:.1f}"]
            rows.append(row)
            print(name, *row, flush=True)
        header = [
            "way",
            "test accuracy, %",
            "angle to BP, degrees",
            "distance",
            f"time, x {options.ways[0]}",
        ]
        print(f"\n{name}, {options.epochs} epochs, {options.seeds} seeds\n")
        print(format_table(header, rows), flush=True)


if __name__ == "__main__":
    main()
