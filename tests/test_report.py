"""Groups of runs made by hand: their numbers, their lines and bands, and what the page says of them."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from npgait.comparison import Group, Trained, changed_settings, group_repetitions, read_run
from npgait.config import make_experiment
from npgait.figures import as_svg, four_figures, loss_figures
from npgait.report import TITLES, report_page
from npgait.run_folder import CONFIG, INFO, RunFolderError, write_metrics


def trained(seed=0, *, name="gait", folder="runs/a", epochs=2, **settings):
    """An experiment whose numbers are all different, and differ from seed to seed."""
    values = {"name": name, "rule": "gait", "seed": seed} | settings
    rows = []
    for epoch in range(1, epochs + 1):
        angles = {"hidden1": epoch + seed, "hidden2": 3.0 * epoch, "output": 50.0}
        layers = [{"layer": layer, "angle": angle} for layer, angle in angles.items()]
        rows.append({"kind": "layers", "epoch": epoch, "step": 10 * epoch, "layers": layers})
        row = {"epoch": epoch, "step": 10 * epoch, "seconds": 2.0 * epoch}
        row |= {"train_loss": 4.0 / epoch + seed, "test_loss": 6.0 / epoch + seed}
        row |= {"train_top1": 0.1 * epoch, "test_top1": 0.5 - 0.1 * epoch + 0.02 * seed}
        rows.append({"kind": "epoch", **row})
    info = {"npgait": "1.0", "command": ["npgait", "run"], "commit": None}
    return Trained(Path(folder), make_experiment(values, "here"), rows, info)


def test_final_numbers_are_of_the_last_epoch_but_for_the_best_and_the_seconds():
    final = trained(epochs=3).final()
    assert final.pop("angle") == pytest.approx(np.mean([3.0, 9.0]))
    assert final == pytest.approx(
        {
            "epoch": 3,
            "train_top1": 0.3,
            "test_top1": 0.2,
            "best_test_top1": 0.4,
            "train_loss": 4 / 3,
            "test_loss": 2.0,
            "seconds": 2.0 + 4.0 + 6.0,
        }
    )
    assert replace(trained(), rows=[]).final() == {}


def test_a_mean_is_over_the_seeds_that_have_the_number_and_of_one_there_is_no_spread():
    members = [trained(seed) for seed in (0, 1, 2)]
    summary = Group("gait", members).summary()
    assert summary["test_loss"] == pytest.approx((4.0, 1.0))
    for row in members[0].epochs:
        del row["test_loss"]
    assert Group("gait", members).summary()["test_loss"] == pytest.approx((4.5, 0.5**0.5))
    assert Group("gait", members[:1]).summary()["train_loss"] == (2.0, 0.0)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([trained(0, name="g-seed0"), trained(1, name="g-seed1")], {"g": 2}),
        ([trained(0, name="g-seed0x"), trained(1, name="g-seed0y")], {"g-seed0x, g-seed0y": 2}),
        ([trained(0, name="g-seed0"), trained(0, name="h-seed0")], {"g": 1, "h": 1}),
        ([trained(s, name=f"{n}-seed{s}") for n in "gh" for s in (0, 1)], {"g": 2, "h": 2}),
        ([trained(0, name="g"), trained(0, name="g-seed0")], {"g (g)": 1, "g (g-seed0)": 1}),
        ([trained(0, gamma=0.1), trained(0, gamma=0.2)], {"gait (1)": 1, "gait (2)": 1}),
        ([trained(0), trained(1, epochs=3)], {"gait (epoch 2)": 1, "gait (epoch 3)": 1}),
        ([trained(0, folder="a/x"), trained(0, folder="b/x")], {"gait (a/x)": 1, "gait (b/x)": 1}),
        (
            [trained(0, folder="a"), trained(1, folder="a"), trained(0, folder="b")],
            {"gait (a)": 2, "gait (b)": 1},
        ),
    ],
)
def test_a_label_tells_a_group_from_the_others_by_no_more_than_it_takes(members, expected):
    groups = group_repetitions(members)
    assert {group.label: len(group.members) for group in groups} == expected


def test_a_folder_is_called_by_its_name_from_wherever_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    groups = group_repetitions([trained(folder="."), trained(folder="../there")])
    assert [group.label for group in groups] == ["gait (here)", "gait (there)"]


@pytest.mark.parametrize("info", ['{"npgait": "1.0"}', "[1]"])
def test_a_run_is_the_experiments_that_have_numbers_and_one_without_any_is_said_to_be(info, tmp_path):
    names = '[[experiment]]\nname = "a"\n[[experiment]]\nname = "b"\n'
    (tmp_path / CONFIG).write_text(names)
    (tmp_path / INFO).write_text(info)
    with pytest.raises(RunFolderError, match="no experiment has finished an epoch yet"):
        read_run(tmp_path)
    (tmp_path / "b").mkdir()
    write_metrics(tmp_path / "b", trained().epochs)
    (read,) = read_run(tmp_path)
    assert (read.experiment.name, read.folder) == ("b", tmp_path)
    assert [row["epoch"] for row in read.epochs] == [1, 2]
    assert read.info == ({"npgait": "1.0"} if "npgait" in info else {})


def test_what_differs_between_groups_is_shown_with_the_value_of_each():
    groups = [Group(n, [trained(s, name=n, gamma=g)]) for n, s, g in (("a", 0, 0.1), ("b", 1, 0.2))]
    assert changed_settings(groups) == {"gamma": [0.1, 0.2]}
    assert changed_settings(groups[:1]) == {}


# --- figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "factor"),
    [
        ("train-accuracy", "train_top1", 100),
        ("test-accuracy", "test_top1", 100),
        ("train-loss", "train_loss", 1),
        ("test-loss", "test_loss", 1),
    ],
)
def test_a_line_is_the_mean_by_epoch_and_its_band_reaches_from_the_least_to_the_largest(
    name, key, factor
):
    group = Group("gait", [trained(seed, epochs=3) for seed in (0, 1, 5)])
    (axes,) = (four_figures([group]) | loss_figures([group]))[name].axes
    values = factor * np.array([[row[key] for row in t.epochs] for t in group.members])
    (line,), (band,) = axes.lines, axes.collections
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
    corners = band.get_paths()[0].vertices
    for epoch, low, high in zip((1, 2, 3), values.min(axis=0), values.max(axis=0), strict=True):
        edge = corners[corners[:, 0] == epoch, 1]
        assert (edge.min(), edge.max()) == pytest.approx((low, high))


def test_the_angle_by_step_is_the_mean_of_the_layers_below_the_output():
    (axes,) = four_figures([Group("gait", [trained(), trained(2)])])["angle"].axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [10, 20])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [(1 + 3 + 3 + 3) / 4, (2 + 6 + 4 + 6) / 4])


def test_the_angle_by_layer_is_the_median_with_its_quartiles_side_by_side_for_each_group():
    groups = [Group("none", [replace(trained(), rows=[])])]
    groups += [Group(name, [trained(epochs=5)]) for name in ("a", "b")]
    groups[1].members[0].measured[0]["layers"][0]["angle"] = None  # it had none there
    figures = four_figures(groups)
    (axes,) = figures["angle-by-layer"].axes
    a, b = axes.containers
    np.testing.assert_allclose(a.lines[0].get_ydata(), [3.5, 9, 50])
    np.testing.assert_allclose(b.lines[0].get_ydata(), [3, 9, 50])
    bars = [segment[:, 1] for segment in b.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[2, 4], [6, 12], [50, 50]])
    np.testing.assert_allclose(a.lines[0].get_xdata() + b.lines[0].get_xdata(), [0, 2, 4])
    assert (a.lines[0].get_xdata() < b.lines[0].get_xdata()).all()
    # A group has one colour in every figure, wherever another has nothing to show.
    by_step = [line.get_color() for line in figures["angle"].axes[0].lines]
    assert by_step == [a.lines[0].get_color(), b.lines[0].get_color()]
    assert len(set(by_step)) == 2


def test_what_nothing_was_recorded_of_is_not_drawn():
    bare = trained()
    for row in bare.epochs:
        del row["test_top1"], row["test_loss"]
    group = Group("gait", [replace(bare, rows=bare.epochs)])
    assert [*four_figures([group]), *loss_figures([group])] == ["train-accuracy", "train-loss"]


def test_a_figure_holds_no_time_at_which_it_was_drawn():
    figure = four_figures([Group("gait", [trained()])])["angle"]
    svg = as_svg(figure)
    assert svg.startswith("<svg") and "<dc:date>" not in svg and "Matplotlib" not in svg


# --- the page ---------------------------------------------------------------------------------------


def tables(page):
    """The cells of each table of a page, row by row."""
    found = re.findall(r"<table>(.*?)</table>", page, re.DOTALL)
    cells = [re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL) for table in found]
    return [
        [[html.unescape(c) for c in re.findall(r"<t[hd]>(.*?)</t[hd]>", r)] for r in t] for t in cells
    ]


def test_the_page_s_tables_hold_results_changes_settings_and_environments():
    groups = [
        Group("a<b>", [trained(0, gamma=0.1), trained(3, gamma=0.1, folder="runs/b")]),
        Group("c", [trained(0, gamma=0.2)]),
    ]
    page = report_page(groups, ["name & more", "x"], [["a<b>", "1"]])
    results, changed, first, second, one, other = tables(page)
    assert results == [["name & more", "x"], ["a<b>", "1"]]
    assert changed == [["experiment", "gamma"], ["a<b>", "0.1"], ["c", "0.2"]]
    assert (dict(first)["seeds"], dict(second)["seeds"]) == ("0, 3", "0")
    assert (dict(first)["gamma"], dict(second)["gamma"]) == ("0.1", "0.2")
    assert not {"name", "description", "seed"} & {key for key, _ in first}
    assert dict(one) == dict(other) | {"key": "value"}
    assert (dict(one)["command"], dict(one)["commit"]) == ("npgait run", "-")
    summaries = [html.unescape(s) for s in re.findall(r"<summary>(.*?)</summary>", page)]
    assert summaries == ["a<b>", "c", "runs/a", "runs/b"]
    assert "<b>" not in page and "name &amp; more" in page
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [TITLES[name] for name in four_figures(groups)]
    assert "<h1>npgait: a, b</h1>" in page and "<title>npgait: a, b</title>" in page


class Elements(HTMLParser):
    """What stands open where text is found, and each element closed before the one that holds it."""

    def __init__(self, page):
        super().__init__()
        self.open, self.holding_text = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.holding_text.add(self.open[-1])


def test_the_page_is_well_formed_and_no_text_stands_between_cells_rows_or_sections(monkeypatch):
    monkeypatch.setattr("npgait.report.four_figures", lambda groups: {"angle": None})
    monkeypatch.setattr("npgait.report.as_svg", lambda figure: "<svg/>")
    groups = [Group(f"{gamma}", [trained(gamma=gamma)]) for gamma in (0.1, 0.2)]
    elements = Elements(report_page(groups, ["name", "x"], [["a", "1"], ["b", "2"]]))
    assert elements.open == []
    text = {"title", "style", "h1", "h2", "p", "th", "td", "summary", "figcaption"}
    assert elements.holding_text == text


def test_a_page_of_experiments_that_do_not_differ_says_nothing_of_changes(monkeypatch):
    monkeypatch.setattr("npgait.report.four_figures", lambda groups: {})
    assert "What changed" not in report_page([Group("a", [trained()])], ["x"], [])
    alike = [Group("a", [trained()]), Group("b", [trained(folder="runs/b")])]
    assert "What changed" not in report_page(alike, ["x"], [])
