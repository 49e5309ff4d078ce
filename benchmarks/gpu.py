"""Everything that has to be known of a GPU, in one command under nine minutes.

    python benchmarks/gpu.py [--device gpu] [--out gpu]

Runs the numerical tests of tests/gpu, then times a step of every network at batch 256 to 4096, in
float32 and TF32, beside its floor, and writes OUT.md (one table) and OUT.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from npgait.backend import PRECISIONS, DeviceError, select_device, set_precision
from npgait.cli.bench import choose, measure
from npgait.cli.table import format_table

TESTS = Path(__file__).parents[1] / "tests" / "gpu"
LIMIT = 470.0  # seconds, after which no case is begun: what does not fit is left out, and said
FASTER = {"ortho_decoupled": True, "ortho_strength": 0.25, "implicit_auxiliary": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("mnist-gait-4l", {}),
    ("cifar10-shallow-gait", {}),
    ("cifar10-gait", {}),
    ("imagenet-gait", {}),
    ("imagenet-gait-stored", {}),
    ("imagenet-gait", FASTER),
]
BATCHES = (256, 1024, 4096)
HEADER = [
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


def main() -> int:
    """Test, time, write; status 1 where tests fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    options = parser.parse_args()
    started = time.monotonic()
    try:
        device = select_device(options.device)
    except DeviceError as error:
        print(f"there is no GPU to measure: {error}", file=sys.stderr)
        return 2
    tests = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", str(TESTS)], check=False)
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for batch in BATCHES:
        for precision in PRECISIONS:
            set_precision(precision)
            for preset, changes in CASES:
                label = preset + (" (faster)" if changes else "")
                if time.monotonic() - started > LIMIT:
                    rows.append([label, precision, str(batch), *["no time left"] * 7])
                    continue
                experiments = choose(preset, (), (), {"batch_size": batch, **changes})
                try:
                    result = measure(experiments, device, None, 15)
                except MemoryError as error:  # CuPy's OutOfMemoryError is one
                    rows.append([label, precision, str(batch), *["out of memory"] * 7])
                    print(error, file=sys.stderr)
                    continue
                finally:
                    device.xp.get_default_memory_pool().free_all_blocks()
                results.append({"precision": precision, "batch": batch, "case": label, **result})
                rows += [_row(label, precision, row) for row in result["experiments"]]
    title = f"{_card(device)}; tests {'passed' if tests.returncode == 0 else 'FAILED'}"
    text = f"{title}\n\n```\n{format_table(HEADER, rows, left=2)}\n```\n"
    options.out.with_suffix(".md").write_text(text)
    options.out.with_suffix(".json").write_text(
        json.dumps({"card": title, "results": results}, indent=1)
    )
    print(text)
    return int(tests.returncode != 0)


def _row(label: str, precision: str, row: dict[str, Any]) -> list[str]:
    return [
        row["name"] + label[label.index(" ") :] * (" " in label),
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


def _card(device: Any) -> str:
    properties = device.xp.cuda.runtime.getDeviceProperties(device.index)
    return f"{properties['name'].decode()}, CuPy {device.xp.__version__}"


if __name__ == "__main__":
    sys.exit(main())
