"""The angle between GAIT-prop's update and backpropagation's, layer by layer, in each arithmetic.

    python benchmarks/angles.py [--width 1024] [--batch 256]

The seven-layer CIFAR-10 network, orthogonal weights, Gaussian inputs: there the two should be equal.
"""

from __future__ import annotations

import argparse

import numpy as np

from npgait.losses import softmax_cross_entropy
from npgait.metrics import angle
from npgait.models import cifar10
from npgait.rules import bind

FORMS = {
    "absolute, gamma 1e-3, float64 (vanilla)": ("absolute", False, 1e-3, "float64"),
    "absolute, normalised 1e-7, float64": ("absolute", True, 1e-7, "float64"),
    "absolute, normalised 1e-7, float32": ("absolute", True, 1e-7, "float32"),
    "difference, gamma 1e-3, float32": ("difference", False, 1e-3, "float32"),
    "difference, normalised 1e-7, float32": ("difference", True, 1e-7, "float32"),
}


def angles(width: int, batch: int, form: tuple[str, bool, float, str]) -> list[float | None]:
    """Return the angle of each layer, in degrees."""
    targets, normalised, gamma, dtype = form
    network = cifar10(width=width, dtype=dtype)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, 3072)).astype(dtype)
    labels = rng.integers(0, 10, batch)
    rule = bind("gait", targets=targets, normalised=normalised, gamma=gamma)
    updates = []
    for r in (rule, bind("bp")):
        records = network.forward(x, auxiliary=r.auxiliary)
        _, error = softmax_cross_entropy(records[-1].y[:, :10], labels)
        updates.append(r(network.layers, records, error))
    return [angle(dW, dW_bp) for (dW, _), (dW_bp, _) in zip(*updates, strict=True)]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    print("| arithmetic | " + " | ".join(f"layer {l}" for l in range(1, 8)) + " |")
    print("|---" * 8 + "|")
    for name, form in FORMS.items():
        found = angles(options.width, options.batch, form)
        cells = ["-" if a is None else f"{a:.2g}" for a in found]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
