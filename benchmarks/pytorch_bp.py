"""Backpropagation's step with Adam: npgait beside PyTorch (eager, float32), in turns in one run.

    pip install torch && python benchmarks/pytorch_bp.py [--rounds 8]

PyTorch is a peer here and nothing that npgait needs. Same networks, batches and threads; medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

from npgait import models  # first: it sets how long threads of OpenBLAS wait, before NumPy is loaded

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from npgait.cli.threads import keep_memory
from npgait.losses import softmax_cross_entropy
from npgait.models import IMAGENET
from npgait.optimizers import Adam
from npgait.rules import bind
from npgait.training import Recipe, train_step


class SameConv(nn.Module):
    """A convolution with TensorFlow's SAME padding."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv, self.kernel, self.stride = nn.Conv2d(c_in, c_out, kernel, stride), kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = (max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[-2:])
        return F.leaky_relu(self.conv(F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))), 0.1)


def torch_network(name: str) -> nn.Module:
    """Return the network of the same shapes."""
    if name == "cifar10":
        hidden = [m for n in (3072, *[1024] * 5) for m in (nn.Linear(n, 1024), nn.LeakyReLU(0.1))]
        return nn.Sequential(*hidden, nn.Linear(1024, 10))
    layers: list[nn.Module] = []
    channels = 3
    for kernel, stride, used in IMAGENET:
        layers.append(SameConv(channels, used, kernel, stride))
        channels = used
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3072, 1000))


def torch_step(name: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Return one step of PyTorch."""
    network = torch_network(name)
    tensor = torch.from_numpy(x if x.ndim == 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    target = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(tensor), target, reduction="sum").backward()
        optimizer.step()

    return step


def npgait_step(name: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """Return one step of npgait."""
    network = models.MODELS[name](auxiliary=False)
    recipe = Recipe(bind("bp"), softmax_cross_entropy, Adam(1e-5))

    def step() -> None:
        train_step(network, recipe, x, labels)

    return step


def main() -> None:
    """Time both in turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    keep_memory()
    rng = np.random.default_rng(0)
    for name, shape, classes in (("cifar10", (256, 3072), 10), ("imagenet", (64, 224, 224, 3), 1000)):
        x, labels = rng.standard_normal(shape).astype(np.float32), rng.integers(0, classes, shape[0])
        steps = {"npgait": npgait_step(name, x, labels), "torch": torch_step(name, x, labels)}
        times: dict[str, list[float]] = {key: [] for key in steps}
        for _ in range(rounds):
            for key, step in steps.items():
                step()
                time.sleep(0.1)  # threads of the other library go to sleep
                step()
                for _ in range(3):
                    started = time.perf_counter()
                    step()
                    times[key].append(time.perf_counter() - started)
        ms = {key: 1e3 * median(values) for key, values in times.items()}
        ratio = ms["npgait"] / ms["torch"]
        print(f"{name}: npgait {ms['npgait']:.1f} ms, PyTorch {ms['torch']:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
