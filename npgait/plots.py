"""Figures like the papers': accuracy and loss per epoch, angle to BP per step and layer.

matplotlib is imported here only when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from npgait.files import replacing

Rows = Sequence[dict[str, Any]]

# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def plot_run(folder: Path, experiments: Mapping[str, Rows]) -> list[Path]:
    """Draw accuracy.png, loss.png and angle.png into `folder`; return the files written.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    experiments : mapping of name to rows
        The metrics of each experiment, as `run_folder.read_metrics` gives them. What has no rows is
        left out; a figure without any data is not drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in (
        ("accuracy.png", _accuracy),
        ("loss.png", _loss),
        ("angle.png", _angles),
    ):
        figure = draw(experiments)
        if figure is not None:
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, format="png", dpi=150)
            written.append(folder / name)
    return written


def new_figure(panels: int) -> tuple[Any, list[Any]]:
    """Return a figure with `panels` axes side by side; made without pyplot, so no window, no state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, list(axes)


def _epochs(rows: Rows) -> Rows:
    return [row for row in rows if row["kind"] == "epoch"]


def _accuracy(experiments: Mapping[str, Rows]) -> Any:
    return _curves(experiments, "top1", "top-1 accuracy (%)", 100.0)


def _loss(experiments: Mapping[str, Rows]) -> Any:
    return _curves(experiments, "loss", "loss", 1.0)


def _curves(experiments: Mapping[str, Rows], key: str, label: str, factor: float) -> Any:
    """Draw train and test curves per epoch, one colour an experiment."""
    if not any(_epochs(rows) for rows in experiments.values()):
        return None
    figure, axes = new_figure(2)
    for ax, split in zip(axes, ("train", "test"), strict=True):
        for number, (name, rows) in enumerate(experiments.items()):
            points = [
                (row["epoch"], factor * row[f"{split}_{key}"])
                for row in _epochs(rows)
                if row.get(f"{split}_{key}") is not None
            ]
            if points:
                style = "o" if len(points) == 1 else "-"
                ax.plot(*zip(*points, strict=True), style, color=colour(number), label=name)
        ax.set(title=split, xlabel="epoch", ylabel=label)
        if key == "loss":
            ax.set_yscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _angles(experiments: Mapping[str, Rows]) -> Any:
    """Draw the angle between an experiment's update and BP's, per step and layer: a panel each."""
    measured = {
        name: [row for row in rows if row["kind"] == "layers"] for name, rows in experiments.items()
    }
    measured = {name: rows for name, rows in measured.items() if rows}
    if not measured:
        return None
    figure, axes = new_figure(len(measured))
    for ax, (name, rows) in zip(axes, measured.items(), strict=True):
        layers = [layer["layer"] for layer in rows[0]["layers"]]
        for l, layer in enumerate(layers):
            points = [
                (row["step"], row["layers"][l]["angle"])
                for row in rows
                if row["layers"][l]["angle"] is not None
            ]
            if points:
                shade = 0.25 + 0.75 * l / max(len(layers) - 1, 1)
                ax.plot(*zip(*points, strict=True), color="#0072B2", alpha=shade, label=layer)
        ax.set(title=name, xlabel="step", ylim=(-2, 125), yticks=[0, 30, 60, 90, 120])
    axes[0].set_ylabel("angle to BP (degrees)")
    axes[-1].legend(frameon=False, fontsize="x-small", loc="upper right")
    return figure


def colour(number: int) -> str:
    """Return the colour of line `number`, the same in every figure."""
    return COLOURS[number % len(COLOURS)]
