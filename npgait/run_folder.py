"""The folder of a run: what lies where, and how metrics are written and read.

RUN/config.toml              every experiment, every key that has a value
RUN/run.json                 versions, device, command, where the data lay
RUN/NAME/checkpoint.h5       of experiment NAME, after each epoch, every so many minutes, when stopped
RUN/NAME/metrics.jsonl       one line an epoch ("kind": "epoch") or measurement ("layers")
RUN/NAME/metrics.csv         one row an epoch
RUN/NAME/layers.csv          one row a layer and measurement
RUN/plots/*.png              accuracy and loss by epoch, angle by step and by layer
"""

from __future__ import annotations

import csv
import io
import json
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from npgait.backend import Device
from npgait.files import can_be_file, holds, read_text, write_text
from npgait.kernels import loops
from npgait.metrics import LayerMeasures
from npgait.parallel import thread_count

CHECKPOINT, CONFIG, INFO, PLOTS = "checkpoint.h5", "config.toml", "run.json", "plots"
METRICS, METRICS_CSV, LAYERS_CSV = "metrics.jsonl", "metrics.csv", "layers.csv"
MAX_METRICS_BYTES = 1 << 28
REMEDY = 'restore it, or write {"data": "DIR"} there: the folder of the data, null for the digits'
EPOCH_COLUMNS = [
    "epoch",
    "step",
    *(f"{part}_{value}" for part in ("train", "test") for value in ("loss", "top1", "top5")),
    "seconds",
]
LAYER_COLUMNS = ["step", "epoch", *(f.name for f in fields(LayerMeasures))]


class RunFolderError(RuntimeError):
    """A folder is not that of a run, or is damaged; the message is one line."""


def check_run(folder: Path) -> None:
    """Raise a RunFolderError where a folder is not that of a run."""
    if not (folder / CONFIG).is_file():
        raise RunFolderError(
            f"{folder} is not the folder of a run: it has no {CONFIG}; give one that `npgait run` made"
        )


def remove_stale(run: Path, experiments: Iterable[str]) -> None:
    """Remove what a process that was killed had half written; call with the lock held."""
    written = {run: _any_of(CONFIG, INFO), run / PLOTS: r"[a-z-]+\.(png|pdf|svg)"}
    for experiment in experiments:
        written[run / experiment] = _any_of(CHECKPOINT, METRICS, METRICS_CSV, LAYERS_CSV)
    for folder in filter(Path.is_dir, written):
        for path in list(folder.iterdir()):
            if re.fullmatch(rf"\.({written[folder]})\.[0-9]+\.tmp", path.name):
                path.unlink(missing_ok=True)


def _any_of(*names: str) -> str:
    return "|".join(map(re.escape, names))


def describe_environment(device: Device, command: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, machine, device, command."""
    from npgait import __version__

    return {
        "npgait": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": getattr(sys.modules.get("cupy"), "__version__", None),
        "platform": platform.platform(),
        "device": device.name,
        "loops": loops.in_use(),
        "threads": thread_count(),
        "command": list(command),
    }


def read_info(folder: Path) -> dict[str, str | None]:
    """Return what run.json says of the device and the folder of the data.

    Raises
    ------
    RunFolderError
        If the file is missing or damaged.
    """
    info = read_json(folder)
    keys = ("device", "data", "precision")
    found = {key: info.get(key) for key in keys} if isinstance(info, dict) else {}
    if not found or not all(isinstance(value, str | None) for value in found.values()):
        raise RunFolderError(f"{folder / INFO}: does not say where the run was computed; {REMEDY}")
    data = found["data"]
    if data is not None and not can_be_file(data):
        raise RunFolderError(
            f"{folder / INFO}: says that the data are in {data!r}, which is no name of a folder in this "
            f"locale; {REMEDY}"
        )
    return found


def record_data(folder: Path, data: Path) -> None:
    """Note in run.json where the data of a run lie from now on."""
    info = read_json(folder)
    info["data"] = str(data.resolve())
    write_text(folder / INFO, json.dumps(info, indent=2) + "\n")


def read_json(folder: Path) -> Any:
    """Return what run.json holds, whatever that is; a RunFolderError where it cannot be read."""
    path = folder / INFO
    try:
        return json.loads(read_text(path, 1 << 20))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"{path}: cannot be read ({reason}); {REMEDY}") from error


def write_metrics(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write metrics.jsonl, metrics.csv and layers.csv of an experiment, each whole or not at all.

    A file that is as it should be is left alone: a finished run may be read-only by now.
    A value that is missing is null in JSON and empty in CSV; NaN and infinity never stand in for it.
    """
    rows = [_in_order(row) for row in rows]
    lines = [json.dumps(_finite(row), allow_nan=False) for row in rows]
    texts = {METRICS: "".join(line + "\n" for line in lines)}
    epochs = [{k: v for k, v in row.items() if k != "kind"} for row in rows if row["kind"] == "epoch"]
    columns = list(dict.fromkeys(key for row in epochs for key in row))
    texts[METRICS_CSV] = _csv(columns, epochs)
    layers = [
        {"step": row["step"], "epoch": row["epoch"], **layer}
        for row in rows
        if row["kind"] == "layers"
        for layer in row["layers"]
    ]
    texts[LAYERS_CSV] = _csv(LAYER_COLUMNS, layers)
    for name, text in texts.items():
        if not holds(folder / name, text):
            write_text(folder / name, text)


def _in_order(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its keys in one order, wherever it has been: checkpoints sort them."""
    row = _sorted(row, ["kind", *EPOCH_COLUMNS])
    if "layers" in row:
        row["layers"] = [_sorted(layer, LAYER_COLUMNS) for layer in row["layers"]]
    return row


def _sorted(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row with its keys in the order of `columns`, others after them."""
    known = [key for key in columns if key in row]
    return {key: row[key] for key in dict.fromkeys([*known, *row])}


def _finite(value: Any) -> Any:
    """Return `value` with every NaN and infinity in it replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(_finite(row) for row in rows)
    return text.getvalue()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of an experiment's metrics.jsonl; none if it has not been written yet.

    Raises
    ------
    RunFolderError
        If the file is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        text = read_text(path, MAX_METRICS_BYTES)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error})") from error
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            whole = _is_row(row) and row == _finite(row)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise RunFolderError(f"{path}: line {number} is damaged")
        rows.append(row)
    measured = [[layer["layer"] for layer in row["layers"]] for row in rows if row["kind"] == "layers"]
    if any(layers != measured[0] or not layers for layers in measured):
        raise RunFolderError(f"{path}: the layers are not the same throughout")
    return rows


def checked_rows(rows: Any) -> list[dict[str, Any]]:
    """Return the rows of metrics that a checkpoint holds; a ValueError where they are not such."""
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ValueError("its metrics are no rows of metrics.jsonl")
    return rows


def _is_row(row: Any) -> bool:
    """Return whether a line of metrics.jsonl is what `write_metrics` writes."""
    if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in ("epoch", "step")):
        return False
    if row.get("kind") == "epoch":
        others = set(EPOCH_COLUMNS) - {"seconds"}
        return _is_number(row.get("seconds")) and _are_numbers(row, others)
    layers = row.get("layers")
    return (
        row.get("kind") == "layers"
        and isinstance(layers, list)
        and all(isinstance(layer, dict) and isinstance(layer.get("layer"), str) for layer in layers)
        and all({*LAYER_COLUMNS[2:]} <= {*layer} for layer in layers)
        and all(_are_numbers(layer, {*LAYER_COLUMNS[3:]}) for layer in layers)
    )


def _are_numbers(row: dict[str, Any], keys: Iterable[str]) -> bool:
    """Return whether what stands under these keys, if anything does, are numbers."""
    return all(row.get(key) is None or _is_number(row[key]) for key in keys)


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 63  # what a figure can be drawn of
    return isinstance(value, float)


def hidden_angle(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the final angle to BP: the mean over the last epoch measured."""
    measured = [row for row in rows if row["kind"] == "layers"]
    return mean_angle([row for row in measured if row["epoch"] == measured[-1]["epoch"]])


def mean_angle(measured: Sequence[dict[str, Any]]) -> float | None:
    """Return the mean angle to BP of the layers below the output, of rows of measurements.

    The output layer is left out: its error is BP's own under every rule.
    """
    layers = [layer for row in measured for layer in row["layers"][:-1]]
    angles = [layer["angle"] for layer in layers if layer["angle"] is not None]
    return float(np.mean(angles)) if angles else None
