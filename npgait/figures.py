"""The papers' four figures (accuracy by epoch, angle to BP by step and by layer) and the loss.

Lines are means over the seeds of a group, bands reach from the least to the largest. matplotlib is
imported here only when something is drawn.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from npgait.comparison import Group, Trained, group_repetitions, read_run
from npgait.files import replacing
from npgait.run_folder import mean_angle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by colour-blind readers too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES, MARKERS = ("-", "--", ":", "-."), "os^D"  # after all colours have had one
INSIDE = (4, 26)  # names, and letters of one, that a legend in the axes has room for
LINE = 55  # letters of a name that fit side by side below them


class FiguresError(RuntimeError):
    """Figures cannot be drawn on this machine; the message is one line."""


def four_figures(groups: Sequence[Group]) -> dict[str, Figure]:
    """Return matplotlib figures by name: train-accuracy, test-accuracy, angle, angle-by-layer.

    A figure without any data is left out.

    Raises
    ------
    FiguresError
        If matplotlib cannot be imported, or refuses its settings.
    """
    drawn = {
        "train-accuracy": _per_epoch(groups, "train_top1", "train accuracy (%)", 100),
        "test-accuracy": _per_epoch(groups, "test_top1", "test accuracy (%)", 100),
        "angle": _angle_by_step(groups),
        "angle-by-layer": _angle_by_layer(groups),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def loss_figures(groups: Sequence[Group]) -> dict[str, Figure]:
    """Return matplotlib figures by name: train-loss, test-loss. One without any data is left out."""
    drawn = {}
    for split in ("train", "test"):
        figure = _per_epoch(groups, f"{split}_loss", f"{split} loss", 1)
        if figure is not None:
            if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in figure.axes[0].lines):
                figure.axes[0].set_yscale("log")  # a single class has a loss of exactly 0
            drawn[f"{split}-loss"] = figure
    return drawn


def draw_run(run: Path, folder: Path, kind: str = "png") -> list[Path]:
    """Draw all figures of a run, finished or not, into `folder`; return the files.

    Raises
    ------
    RunFolderError, ConfigError
        See `comparison.read_run`.
    FiguresError
        If matplotlib cannot be imported, or refuses its settings.
    """
    groups = group_repetitions(read_run(run))
    return save_figures(four_figures(groups) | loss_figures(groups), folder, kind)


def save_figures(figures: Mapping[str, Figure], folder: Path, kind: str = "png") -> list[Path]:
    """Write each figure to `folder`/NAME.`kind`, whole or not at all; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        with replacing(folder / f"{name}.{kind}") as temporary:
            _write(figure, temporary, format=kind, dpi=150)
        paths.append(folder / f"{name}.{kind}")
    return paths


def as_svg(figure: Figure) -> str:
    """Return a figure as the text of an SVG element, to stand in an HTML page."""
    text = io.StringIO()
    _write(figure, text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _write(figure: Figure, target: Path | io.StringIO, **options: Any) -> None:
    """Write a figure. A letter that the font lacks is drawn as a box, and needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(target, **options)


def _per_epoch(groups: Sequence[Group], key: str, label: str, factor: float) -> Figure | None:
    def points(t: Trained) -> list[tuple[float, float]]:
        return [(row["epoch"], factor * row[key]) for row in t.epochs if row.get(key) is not None]

    return _lines(groups, points, "epoch", label)


def _angle_by_step(groups: Sequence[Group]) -> Figure | None:
    def points(t: Trained) -> list[tuple[float, float]]:
        means = [(row["step"], mean_angle([row])) for row in t.measured]
        return [(step, angle) for step, angle in means if angle is not None]

    figure = _lines(groups, points, "step", "angle to BP (degrees)")
    if figure is not None:
        _from_zero(figure.axes[0])
    return figure


def _lines(
    groups: Sequence[Group],
    points: Callable[[Trained], list[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
) -> Figure | None:
    """Draw the mean of each group over the x that all of its members have, and the band about it."""
    found = [(group, [dict(points(t)) for t in group.members]) for group in groups]
    if not any(any(member) for _, members in found for member in members):
        return None
    figure, axes = _new_figure()
    shown = {}
    for number, (group, members) in enumerate(found):
        members = [member for member in members if member]
        x = sorted(set.intersection(*map(set, members))) if members else []
        if not x:
            continue
        y = np.array([[member[at] for at in x] for member in members])
        style = _style(number, MARKERS if len(x) == 1 else LINES)
        middle, low, high = y.mean(axis=0), y.min(axis=0), y.max(axis=0)
        (shown[group.label],) = axes.plot(x, middle, style, color=_colour(number), label=group.label)
        if len(members) > 1 and len(x) == 1:  # a band as wide as a point is none
            axes.errorbar(x, middle, (middle - low, high - middle), ecolor=_colour(number), capsize=3)
        elif len(members) > 1:
            axes.fill_between(x, low, high, color=_colour(number), alpha=0.2, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.locator_params("x", integer=True, min_n_ticks=1)  # half an epoch is none
    _add_legend(figure, shown)
    return figure


def _angle_by_layer(groups: Sequence[Group]) -> Figure | None:
    """Draw, for each layer, the median of the angle over steps and seeds, and its quartiles."""
    angles = {group.label: _by_layer(group) for group in groups}
    angles = {label: layers for label, layers in angles.items() if any(map(len, layers.values()))}
    if not angles:
        return None
    figure, axes = _new_figure()
    below = [list(layers)[:-1] for layers in angles.values()]  # networks may differ in depth
    names = list(dict.fromkeys([*chain(*below), *(list(layers)[-1] for layers in angles.values())]))
    numbers = {group.label: number for number, group in enumerate(groups)}
    width = 0.6 / max(len(angles) - 1, 1)
    shown = {}
    for place, (label, layers) in enumerate(angles.items()):
        kept = [(names.index(name), values) for name, values in layers.items() if values]
        low, middle, high = np.array([np.percentile(v, (25, 50, 75)) for _, v in kept]).T
        x = np.array([l for l, _ in kept]) + (place - (len(angles) - 1) / 2) * width
        bars = (middle - low, high - middle)
        number = numbers[label]
        fmt, colour = _style(number, MARKERS), _colour(number)
        shown[label] = axes.errorbar(x, middle, bars, fmt=fmt, color=colour, capsize=3, label=label)
    axes.set(xticks=range(len(names)), ylabel="angle to BP (degrees)")
    _from_zero(axes)
    axes.set_xticklabels(names, rotation=30, ha="right")
    _add_legend(figure, shown)
    return figure


def _by_layer(group: Group) -> dict[str, list[float]]:
    layers: dict[str, list[float]] = {}
    for row in (row for t in group.members for row in t.measured):
        for layer in row["layers"]:
            layers.setdefault(layer["layer"], [])
            if layer["angle"] is not None:
                layers[layer["layer"]].append(layer["angle"])
    return layers


def _new_figure() -> tuple[Figure, Axes]:
    """Return a figure and its axes; made without pyplot, so no window, no state."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FiguresError(f"no figures: matplotlib cannot be imported ({error})") from error
    except ValueError as error:  # which it raises of settings when it is imported
        reason = " ".join(str(error).split())
        raise FiguresError(
            f"no figures: matplotlib refuses its settings ({reason}); correct MPLBACKEND or matplotlibrc"
        ) from error

    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _from_zero(axes: Axes) -> None:
    """Let the axis of angles begin just below 0 and reach 1 degree at least: less is rounding."""
    high = max(axes.get_ylim()[1], 1)
    axes.set_ylim(-0.03 * high, high)


def _add_legend(figure: Figure, shown: Mapping[str, Any]) -> None:
    """Add a legend of what is drawn, by label: in the axes if it is small, else below them.

    matplotlib leaves out a label that begins with "_", and reads formulas between "$"; names hold both.
    """
    labels = [textwrap.fill(label, LINE) for label in shown]
    many, long = INSIDE
    options: dict[str, Any] = {"frameon": False, "fontsize": "small"}
    numbers = [str(number) for number in range(len(labels))]  # in the labels' place for a moment
    if len(labels) <= many and max(map(len, shown)) <= long:
        legend = figure.axes[0].legend(list(shown.values()), numbers, **options)
    else:
        figure.set_figheight(figure.get_figheight() + 0.18 * sum(l.count("\n") + 1 for l in labels))
        legend = figure.legend(list(shown.values()), numbers, loc="outside lower center", **options)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _colour(number: int) -> str:
    """Return the colour of line `number`, the same in every figure."""
    return COLOURS[number % len(COLOURS)]


def _style(number: int, styles: Sequence[str]) -> str:
    """Return the style of line `number`: another one each time that all colours have been used."""
    return styles[number // len(COLOURS) % len(styles)]
