"""Figures of runs that are few, many, alike or odd: what is drawn can be read and is in its place."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from npgait.comparison import Group, Trained
from npgait.config import make_experiment
from npgait.figures import COLOURS, as_svg, four_figures, loss_figures, save_figures


@pytest.fixture(autouse=True)
def no_warnings():
    """Whatever matplotlib warns of would stand between the lines of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trained(name="bp", *, losses=(2.0, 1.0), angles=(0.0, 10.0, 0.0), layers=None, seed=0):
    """An experiment of so many epochs, measured once in each."""
    layers = layers or [f"hidden{l}" for l in range(1, len(angles))] + ["output"]
    rows = []
    for epoch, loss in enumerate(losses, 1):
        measured = [{"layer": l, "angle": a} for l, a in zip(layers, angles, strict=True)]
        rows.append({"kind": "layers", "epoch": epoch, "step": 10 * epoch, "layers": measured})
        row = {"train_loss": loss, "train_top1": 0.5 / loss if loss else 1.0, "seconds": 1.0}
        rows.append({"kind": "epoch", "epoch": epoch, "step": 10 * epoch, **row})
    experiment = make_experiment({"name": "e", "rule": "bp", "seed": seed}, "here")
    return Group(name, [Trained(Path("run"), experiment, rows, {})])


def drawn(*groups):
    """All figures, each drawn to the end."""
    figures = four_figures(groups) | loss_figures(groups)
    for figure in figures.values():
        as_svg(figure)
    return figures


def test_a_loss_of_exactly_zero_is_drawn_and_needs_no_warning():
    assert drawn(trained(losses=(0.0, 0.0)))["train-loss"].axes[0].get_yscale() == "linear"
    assert drawn(trained(losses=(1.0, 0.0)))["train-loss"].axes[0].get_yscale() == "log"


def test_the_angle_of_a_layer_stands_above_its_name_however_deep_the_other_networks_are():
    shallow, deep = trained("shallow", angles=(20.0, 0.0)), trained("deep", angles=(30.0, 40.0, 0.0))
    axes = drawn(shallow, deep)["angle-by-layer"].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["hidden1", "hidden2", "output"]
    found = {c.get_label(): [round(x) for x in c.lines[0].get_xdata()] for c in axes.containers}
    assert found == {"shallow": [0, 2], "deep": [0, 1, 2]}
    many = drawn(*(trained(str(number)) for number in range(5)))["angle-by-layer"].axes[0]
    places = [c.lines[0].get_xdata() for c in many.containers]
    assert [[round(x) for x in own] for own in places] == [[0, 1, 2]] * 5
    assert len({own[0] for own in places}) == 5


@pytest.mark.parametrize("name", ["_hidden", "bp ($x^2$)", "bp ($\\frac$)", "x" * 100, "\u6570\u5b57"])
def test_a_name_stands_in_the_legend_as_it_is(name):
    for figure in drawn(trained(name)).values():
        legend = (figure.legends or [figure.axes[0].get_legend()])[0]
        assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == [name]


def test_a_legend_of_many_names_covers_no_line():
    groups = [trained(f"experiment-with-a-long-name-{number}") for number in range(12)]
    for figure in drawn(*groups).values():
        (legend,), (axes,) = figure.legends, figure.axes
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert axes.get_window_extent().height > 0.5 * figure.dpi


@pytest.mark.parametrize(
    ("names", "inside"),
    [(["bp", "gait"], True), (["bp", "x" * 40], False), (["a", "b", "c", "d", "e"], False)],
)
def test_a_legend_stands_in_the_axes_if_all_of_it_is_small(names, inside):
    for figure in drawn(*map(trained, names)).values():
        assert bool(figure.axes[0].get_legend()) == inside
        assert bool(figure.legends) != inside


def test_no_two_lines_look_alike():
    figure = drawn(*(trained(str(number)) for number in range(14)))["train-accuracy"]
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 14


def test_a_group_has_one_colour_in_every_figure_and_for_its_band_too():
    bare = Trained(Path("run"), trained().members[0].experiment, trained().members[0].epochs, {})
    spread = [m for seed in (0, 1) for m in trained(losses=(1.0 + seed, 0.5), seed=seed).members]
    figures = four_figures([Group("bare", [bare]), Group("spread", spread)])
    accuracy, angle, by_layer = (f.axes[0] for f in figures.values())
    colours = [to_hex(line.get_color()) for line in accuracy.lines]
    assert colours == [each.lower() for each in COLOURS[:2]]
    assert [to_hex(line.get_color()) for line in angle.lines] == colours[1:]
    assert to_hex(by_layer.containers[0].lines[0].get_color()) == colours[1]
    (band,) = accuracy.collections
    assert to_hex(band.get_facecolor()[0]) == colours[1]


def test_one_epoch_has_one_tick_and_the_spread_of_its_seeds():
    members = [m for seed in (0, 1) for m in trained(losses=(1.0 + seed,), seed=seed).members]
    figures = drawn(Group("bp", members))
    for name in ("train-accuracy", "train-loss", "angle"):
        axes = figures[name].axes[0]
        assert all(tick == int(tick) for tick in axes.get_xticks())
        assert (
            len([tick for tick in axes.get_xticks() if axes.get_xlim()[0] < tick < axes.get_xlim()[1]])
            == 1
        )
        assert axes.lines[0].get_marker() in "os^D"  # a line of one point is none
    (bar,) = figures["train-accuracy"].axes[0].containers[0].lines[2]
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], [25, 50])


def test_a_seed_that_was_not_measured_takes_no_other_seed_s_angles_away():
    measured, bare = trained(seed=0).members + trained(seed=1).members
    bare = Trained(bare.folder, bare.experiment, bare.epochs, {})
    axes = drawn(Group("bp", [measured, bare]))["angle"].axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[10, 20]]


def test_an_angle_by_step_is_the_mean_of_the_layers_that_have_one():
    group = trained(angles=(10.0, None, 80.0, 30.0, 0.0))
    axes = four_figures([group])["angle"].axes[0]
    assert axes.lines[0].get_ydata().tolist() == [40, 40]


def test_axes_say_what_they_are_of_and_in_which_unit():
    figures = four_figures([trained()]) | loss_figures([trained()])
    labels = {name: (f.axes[0].get_xlabel(), f.axes[0].get_ylabel()) for name, f in figures.items()}
    assert labels == {
        "train-accuracy": ("epoch", "train accuracy (%)"),
        "angle": ("step", "angle to BP (degrees)"),
        "angle-by-layer": ("", "angle to BP (degrees)"),
        "train-loss": ("epoch", "train loss"),
    }


def test_a_layer_without_any_angle_has_its_place_and_no_mark():
    group = trained(angles=(10.0, None, 30.0))
    axes = four_figures([group])["angle-by-layer"].axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["hidden1", "hidden2", "output"]
    (bars,) = axes.containers
    assert bars.lines[0].get_xydata().tolist() == [[0, 10], [2, 30]]


def test_figures_are_written_by_name_and_said_where(tmp_path):
    figure = four_figures([trained()])["angle"]
    (path,) = save_figures({"angle": figure}, tmp_path / "a" / "new")
    assert path == tmp_path / "a" / "new" / "angle.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (1e-5, 0.5, 0.0), (80.0, 100.0, 0.0)])
def test_angles_have_an_axis_from_zero(angles):
    figures = drawn(trained(angles=angles))
    for name in ("angle", "angle-by-layer"):
        low, high = figures[name].axes[0].get_ylim()
        assert -0.1 * high < low < 0 and max(np.mean(angles[:2]), 1) <= high
