"""Peak memory of training steps of the imagenet network, by rule, batch and bound on patches.

    python benchmarks/memory.py [--size 224] [--batch 256] [--steps 2]

Each row is a process of its own; the peak is what the operating system counted for it, interpreter and
NumPy included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np


def measure(rule_name: str, size: int, batch: int, patch_bytes: int, steps: int) -> None:
    """Train `steps` steps on random images; print peak memory and the time of the last step."""
    from npgait.losses import softmax_cross_entropy
    from npgait.models import imagenet
    from npgait.optimizers import Adam
    from npgait.rules import bind, draw_feedback
    from npgait.training import Recipe, train_step

    inverts = rule_name == "gait"
    n_classes = 1000 if size > 64 else 100
    network = imagenet((size, size, 3), n_classes, auxiliary=inverts, patch_bytes=patch_bytes)
    feedback = draw_feedback(rule_name, network, np.random.default_rng(0))
    recipe = Recipe(
        bind(rule_name, feedback=feedback),
        softmax_cross_entropy,
        Adam(4.9e-5, 0.9, 0.99),
        ortho_strength=1.0 if inverts else 0.0,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, 3), dtype=np.float32)
    labels = rng.integers(0, n_classes, batch)
    seconds = 0.0
    for _ in range(steps):
        started = time.perf_counter()
        train_step(network, recipe, x, labels)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {rule_name} | {batch} | {patch_bytes >> 20} MiB | {peak:.2f} GiB | {seconds:.1f} s |")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        rule_name, patch_bytes = options.row
        measure(rule_name, options.size, options.batch, int(patch_bytes), options.steps)
        return
    print("| rule | batch | patches | peak memory | last step |")
    print("|---|---|---|---|---|", flush=True)
    same = [f"--size={options.size}", f"--batch={options.batch}", f"--steps={options.steps}"]
    for rule_name, mebibytes in (("bp", 256), ("fa", 256), ("gait", 256), ("gait", 32)):
        row = ["--row", rule_name, str(mebibytes << 20)]
        subprocess.run([sys.executable, __file__, *same, *row], check=True)


if __name__ == "__main__":
    main()
