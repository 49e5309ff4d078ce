"""Everything that has to be known of a GPU, in one command under nine minutes.

    python benchmarks/gpu.py [--device gpu] [--out gpu]

Runs the numerical tests of tests/gpu, then times a step of every network at batch 256 to 4096, in
float32 and TF32, beside its floor, and writes OUT.md (one table) and OUT.json, anew after each case:
what was measured stays, whatever becomes of the rest. OUT-tests.xml tells of each test. Where OUT is
a folder, the files are OUT/gpu.md and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npgait.backend import PRECISIONS, Device, DeviceError, select_device, set_precision
from npgait.cli.bench import choose
from npgait.cli.bench_timing import measure
from npgait.cli.table import format_table
from npgait.config import Experiment
from npgait.files import write_text

TESTS = Path(__file__).parents[1] / "tests" / "gpu"
LIMIT = 500.0  # seconds, by which the last case has to be done: what would not be is left out, and said
TESTS_LIMIT = 240.0  # seconds
TEST_LIMIT = 100  # seconds of one test, after which it is shown where it stands
NO_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
MOST_WORDS = 80  # characters, of an error in the table
STEPS = 15  # timed, of each experiment of a case
# A network's presets; backpropagation through it is timed with them.
CASES = {
    "mnist, 4 x 784": ("mnist-gait-4l",),
    "cifar10, 3 x 1024": ("cifar10-shallow-gait",),
    "cifar10, 6 x 1024": ("cifar10-gait", "faster-cifar10-gait"),
    "imagenet": ("imagenet-gait", "imagenet-gait-stored", "faster-imagenet-gait"),
}
BATCHES = (256, 1024, 4096)
HEADER = [
    "network",
    "experiment",
    "precision",
    "batch",
    "ms/step",
    "samples/s",
    "product rate",
    "floor",
    "x BP",
    "MiB",
    "graph",
]


@dataclass
class Report:
    """What was measured, and where it is written."""

    title: str
    out: Path
    rows: list[list[str]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: str, precision: str, batch: int, result: dict[str, Any] | str) -> None:
        """Take in a case, or why there is nothing of it, and write both files anew."""
        self.results.append({"case": case, "precision": precision, "batch": batch, "result": result})
        if isinstance(result, str):
            why = result[:MOST_WORDS]  # OUT.json has all; a table pads every row to the longest
            self.rows.append([case, "", precision, str(batch), why, *[""] * (len(HEADER) - 5)])
        else:
            self.rows += [[case, *_row(precision, row)] for row in result["experiments"]]
        self.write()

    def write(self) -> None:
        """Write both files anew."""
        for suffix, text in ((".md", str(self)), (".json", self._json())):
            write_text(self.out.with_name(self.out.name + suffix), text)

    def __str__(self) -> str:
        return f"{self.title}\n\n```\n{format_table(HEADER, self.rows, left=3)}\n```\n"

    def _json(self) -> str:
        return json.dumps({"card": self.title, "results": self.results}, indent=1)


def main() -> int:
    """Test, time, write; status 1 where tests or cases fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="gpu", help="gpu or gpu:N")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu"), help="files, less .md and .json, or a folder"
    )
    options = parser.parse_args()
    started = time.monotonic()
    try:
        device = select_device(options.device)
        if not device.is_gpu:
            raise DeviceError(f"{options.device} is none")
    except DeviceError as error:
        print(f"there is no GPU to measure: {error}", file=sys.stderr)
        return 2
    report = Report(_card(device), options.out / "gpu" if options.out.is_dir() else options.out)
    try:
        report.out.parent.mkdir(parents=True, exist_ok=True)
        report.write()  # what cannot be written is said now, and not after minutes
    except OSError as error:
        print(f"{report.out}.md cannot be written: {error}", file=sys.stderr)
        return 2
    passed = run_tests(device, report.out)
    report.title += f"; tests {'passed' if passed else 'FAILED'}"
    report.write()
    try:
        passed &= time_cases(report, device, CASES, BATCHES, lambda: time.monotonic() - started)
    finally:
        print(report)  # where the disk is full, too
    return int(not passed)


def run_tests(device: Device, out: Path) -> bool:
    """Return whether the tests of tests/gpu pass on the device, and in time."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", str(TESTS)]
    command += ["-o", f"faulthandler_timeout={TEST_LIMIT}", f"--junitxml={out}-tests.xml"]
    environment = {**os.environ, "NPGAIT_TEST_DEVICE": device.name}
    try:
        return subprocess.run(command, env=environment, timeout=TESTS_LIMIT, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"the tests were not done after {TESTS_LIMIT:.0f} s", file=sys.stderr)
        return False


def time_cases(
    report: Report,
    device: Device,
    cases: dict[str, tuple[str, ...]],
    batches: Sequence[int],
    elapsed: Callable[[], float],
) -> bool:
    """Time every case; return whether none failed. `elapsed` tells the seconds since the beginning."""
    good = True
    took: dict[str, tuple[float, int]] = {}  # seconds and batch of a case, when it last ran
    broken = ""
    for batch in batches:
        for precision in PRECISIONS:
            refused = ""
            try:
                set_precision(precision)
            except DeviceError as error:
                refused = str(error)
            for case, presets in cases.items():
                began = elapsed()
                if broken or refused or began + _expected(took.get(case), batch) > LIMIT:
                    report.add(case, precision, batch, broken or refused or "no time left")
                    continue
                result: dict[str, Any] | str
                try:
                    result = measure(_of(presets, batch), device, None, STEPS)
                except Exception as error:  # whatever it is, the other cases go on
                    result = f"{type(error).__name__}: {error}".splitlines()[0]
                    # CuPy's is a MemoryError where it is for arrays, CUDA's own for graphs, say.
                    no_memory = isinstance(error, MemoryError) or any(
                        name in result for name in NO_MEMORY
                    )
                    good &= no_memory
                    if type(error).__name__ in ("CUDARuntimeError", "CUDADriverError") and not no_memory:
                        broken = "not run: the device had failed"  # nothing runs any more
                report.add(case, precision, batch, result)
                if not broken:
                    device.xp.get_default_memory_pool().free_all_blocks()
                took[case] = elapsed() - began, batch
                print(f"{case}, {precision}, batch {batch}: {elapsed() - began:.0f} s", flush=True)
    return good


def _expected(last: tuple[float, int] | None, batch: int) -> float:
    """Return the seconds that a case will take: of large images nearly all grows with the batch."""
    seconds, before = last or (0.0, batch)
    return seconds * batch / before


def _of(presets: tuple[str, ...], batch: int) -> list[Experiment]:
    """Return the experiments of one network, backpropagation first and once."""
    chosen: dict[str, Experiment] = {}
    for preset in presets:
        for experiment in choose(preset, (), (), {"batch_size": batch}):
            chosen.setdefault(experiment.name, experiment)
    return list(chosen.values())


def _row(precision: str, row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        precision,
        str(row["batch_size"]),
        f"{1e3 * row['seconds']:.2f}",
        f"{row['samples_per_second']:.0f}",
        f"{row['share_of_product_rate']:.0%}",
        f"{row['share_of_floor']:.0%}",
        f"{row['ratio_to_bp']:.2f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
        "refused" if row["replay_refused"] else "yes" if row["replayed_steps"] else "no",
    ]


def _card(device: Device) -> str:
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    return f"{properties['name'].decode()}, CuPy {device.xp.__version__}"


if __name__ == "__main__":
    sys.exit(main())
