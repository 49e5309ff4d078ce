"""Products with patches on a CPU: tiles beside BLAS, as shares of the rate of a product of 1024 by 1024.

    OPENBLAS_NUM_THREADS=1 python benchmarks/convolutions.py [--images 32] [--rounds 15]
    OPENBLAS_CORETYPE=Haswell OPENBLAS_NUM_THREADS=1 python benchmarks/convolutions.py --lanes 4

The second as on a processor with AVX2 and no AVX-512. Each is timed just after such a product, so that
a processor that changes its speed changes both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from npgait.cli.threads import keep_memory
from npgait.kernels import patch_loops
from npgait.layers.patch_products import multiplier, patches_transposed_times, product_adder
from npgait.layers.patches import Window

SHAPES = [  # of the image, kernel and stride, and channels of the result
    (Window(56, 56, 64, 3), 64),
    (Window(28, 28, 128, 3), 128),
    (Window(14, 14, 256, 3), 256),
    (Window(7, 7, 512, 3), 512),
    (Window(224, 224, 3, 9, 4), 24),  # those of the ImageNet network
    (Window(56, 56, 24, 3, 2), 24),
    (Window(28, 28, 24, 5, 2), 48),
    (Window(14, 14, 48, 3, 2), 48),
    (Window(7, 7, 48, 3), 96),
    (Window(7, 7, 96, 3, 2), 96),
    (Window(4, 4, 96, 3), 192),
]
LARGE = 1024
NO_TILES = 2.0  # a share that no tile can be of use for


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shares(window: Window, u: int, images: int, rounds: int) -> list[float]:
    """Return the shares of x_p W, x_p^T d and the sum over patches of d W^T."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, window.height, window.width, window.channels), np.float32)
    d = rng.standard_normal((images, *window.positions, u), np.float32)
    W = rng.standard_normal((window.patch_size, u), np.float32)
    A, B, C = (rng.standard_normal((LARGE, LARGE), np.float32) for _ in range(3))
    out, image = np.empty_like(d), np.empty_like(x)
    multiply, add = multiplier(W, window), product_adder(W.T, window)
    found = []
    for work in (
        lambda: multiply(x, out),
        lambda: patches_transposed_times(x, d, window),
        lambda: add(d, image),
    ):
        work()
        ratios = [seconds(lambda: np.matmul(A, B, out=C)) / seconds(work) for _ in range(rounds)]
        found.append(d.size * len(W) / LARGE**3 * median(ratios))
    return found


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lanes", type=int, choices=(4, 8), help="of the registers that tiles use")
    options = parser.parse_args()
    if options.lanes:
        patch_loops.register_lanes = lambda dtype: options.lanes
    keep_memory()
    print("| image, channels to channels | kernel, stride | x_p W | x_p^T d | sum over patches |")
    print("|---" * 5 + "|")
    pays = patch_loops.PAYS
    for window, u in SHAPES:
        found = []
        for share in (pays, NO_TILES):
            patch_loops.PAYS = share
            found.append(shares(window, u, options.images, options.rounds))
        cells = [f"{tiles:.0%} and {blas:.0%}" for tiles, blas in zip(*found, strict=True)]
        image = f"{window.height} x {window.width}, {window.channels} to {u}"
        print(f"| {image} | {window.kernel}, {window.stride} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
