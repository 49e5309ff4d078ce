"""What `npgait bench` prints for people."""

from __future__ import annotations

from typing import Any

from npgait.cli.table import format_table
from npgait.timing import PARTS


def report(result: dict[str, Any]) -> str:
    """Return the tables that a person reads."""
    rows = result["experiments"]
    rates = ", ".join(f"{v / 1e9:.0f} GFLOP/s {k}" for k, v in result["product_rate"].items())
    header = ["experiment", "ms/step", "samples/s", "GFLOP", "product rate", "floor", "x BP"]
    header += ["GFLOP x BP", "peak memory"]
    steps = [
        [
            row["name"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['samples_per_second']:.0f}",
            f"{row['cost']['operations'] / 1e9:.2f}",
            f"{row['share_of_product_rate']:.0%}",
            f"{row['share_of_floor']:.0%}",
            f"{row['ratio_to_bp']:.2f}",
            f"{row['operations_to_bp']:.2f}",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        ]
        for row in rows
    ]
    parts = [
        [row["name"], *(f"{1e3 * row['parts_seconds'][part]:.1f}" for part in (*PARTS, "loader"))]
        for row in rows
    ]
    refused = [
        f"{row['name']}: not replayed from a CUDA graph: {row['replay_refused']}"
        for row in rows
        if row["replay_refused"]
    ]
    environment = result["environment"]
    return "\n\n".join(
        [
            f"this machine: products {rates}; memory {result['bandwidth'] / 1e9:.1f} GB/s; "
            f"loops: {environment['loops']}; threads: {environment['threads']}",
            format_table(header, steps),
            "product rate: operations a second over this machine's; floor: the least time, operations\n"
            "and the optimizer's bytes at this machine's rates, over the time taken",
            "where the time goes, ms a step:",
            format_table(["experiment", *PARTS, "loader"], parts),
            *refused,
        ]
    )
