"""Looking at runs: tables over seeds, the four figures, and a page that opens anywhere."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from npgait.cli.main import cli
from npgait.comparison import group_repetitions, read_run
from npgait.figures import four_figures

FIGURES = ["train-accuracy", "test-accuracy", "angle", "angle-by-layer"]


def npgait(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: BP and GAIT with two seeds each, and GAIT at another rate."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--set", "epochs=2", "--device", "cpu", "--no-plots", "--quiet"]
    first = npgait(
        "run", "digits", "-e", "bp", "-e", "gait", "--seeds", 2, "--out", folder / "first", *common
    )
    second = npgait(
        "run",
        "digits",
        "-e",
        "gait",
        "--set",
        "learning_rate=0.002",
        "--out",
        folder / "second",
        *common,
    )
    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    return folder / "first", folder / "second"


def test_seeds_repeat_each_experiment_and_become_one_line_with_mean_and_spread(runs):
    trained = read_run(runs[0])
    assert [t.experiment.name for t in trained] == ["bp-seed0", "bp-seed1", "gait-seed0", "gait-seed1"]
    assert [t.experiment.seed for t in trained] == [0, 1, 0, 1]
    groups = group_repetitions(trained)
    assert [(g.label, len(g.members)) for g in groups] == [("bp", 2), ("gait", 2)]
    finals = [t.final()["test_top1"] for t in trained[2:]]
    assert finals[0] != finals[1]
    assert groups[1].summary()["test_top1"] == pytest.approx((np.mean(finals), np.std(finals, ddof=1)))


def copied(run, to, *, seed=0, epochs=2, name="gait"):
    """A copy of the second run, under another seed, cut back to an epoch, or under another name."""
    shutil.copytree(run, to)
    text = (to / "config.toml").read_text().replace("seed = 0", f"seed = {seed}")
    (to / "config.toml").write_text(text.replace('name = "gait"', f'name = "{name}"'))
    rows = (to / "gait" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["epoch"] <= epochs]
    (to / "gait" / "metrics.jsonl").write_text("".join(kept))
    (to / "gait").rename(to / name)
    return to


def lines(*folders):
    """Label and number of seeds of each line that `compare` shows."""
    run = npgait("compare", *folders, "--no-plots")
    assert run.exit_code == 0, run.output
    rows = [line.split("  ") for line in run.output.split("\n\n")[0].splitlines()[2:]]
    return [(row[0], int(next(filter(None, row[1:])))) for row in rows]


def test_the_same_seed_again_is_a_line_of_its_own_whose_label_tells_its_folder(runs, tmp_path):
    folders = [copied(runs[1], tmp_path / name / "run") for name in ("q1", "q2")]
    assert lines(*folders) == [("gait (q1/run)", 1), ("gait (q2/run)", 1)]
    other = copied(runs[1], tmp_path / "other", seed=1)
    assert lines(folders[0], other) == [("gait", 2)]
    assert lines(*folders, other) == [("gait (q1/run)", 1), ("gait (q2/run)", 1), ("gait (other)", 1)]


def test_a_run_that_is_named_twice_is_one_line(runs, monkeypatch):
    monkeypatch.chdir(runs[1])
    assert lines(runs[1], ".", runs[1].parent / "first" / ".." / "second") == [("gait", 1)]


def test_experiments_of_other_names_keep_them_on_lines_of_their_own_or_on_one(runs, tmp_path):
    same = [copied(runs[1], tmp_path / name, name=name) for name in ("one", "two")]
    assert lines(*same) == [("one", 1), ("two", 1)]
    assert lines(same[0], copied(runs[1], tmp_path / "b", seed=1, name="three")) == [("one, three", 2)]


def test_what_is_at_another_epoch_is_not_part_of_a_mean(runs, tmp_path):
    behind = copied(runs[1], tmp_path / "behind", seed=1, epochs=1)
    assert lines(runs[1], behind) == [("gait (second)", 1), ("gait (behind)", 1)]
    one = tmp_path / "one"  # seeds of one folder, one of them behind
    shutil.copytree(runs[0], one)
    rows = (one / "bp-seed1" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["epoch"] == 1]
    (one / "bp-seed1" / "metrics.jsonl").write_text("".join(kept))
    assert lines(one) == [("bp (epoch 2)", 1), ("bp (epoch 1)", 1), ("gait", 2)]


def test_compare_shows_what_differs_between_runs_and_draws_the_four_figures(runs, tmp_path):
    run = npgait("compare", *runs, "--out", tmp_path / "figures")
    assert run.exit_code == 0, run.output
    assert "gait (first)" in run.output and "gait (second)" in run.output
    assert "learning_rate" in run.output.split("what differs")[1]
    assert " ± " in run.output
    for name in FIGURES:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_plot_draws_into_the_run_in_the_format_asked_for(runs, tmp_path):
    run = npgait("plot", runs[0], "--format", "svg", "--out", tmp_path)
    assert run.exit_code == 0, run.output
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(
        [*FIGURES, "train-loss", "test-loss"]
    )
    assert npgait("plot", runs[1]).exit_code == 0
    assert (runs[1] / "plots" / "angle.png").is_file()


def test_figures_show_the_mean_of_the_seeds(runs):
    groups = group_repetitions(read_run(runs[0]))
    figures = four_figures(groups)
    assert list(figures) == FIGURES
    line = next(l for l in figures["test-accuracy"].axes[0].lines if l.get_label() == "gait")
    expected = np.mean([[100 * row["test_top1"] for row in t.epochs] for t in groups[1].members], axis=0)
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_a_run_without_measurements_has_no_angle_and_still_compares(tmp_path):
    npgait("run", "digits", "-e", "bp", "--set", "epochs=1", "--set", "measure_every=0", "--no-plots",
           "--quiet", "--out", tmp_path / "run")  # fmt: skip
    run = npgait("compare", tmp_path / "run", "--out", tmp_path / "figures")
    assert run.exit_code == 0, run.output
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == FIGURES[1::-1][::1]


@pytest.mark.parametrize("command", ["compare", "plot", "report"])
def test_what_is_no_run_is_a_clear_message(command, runs, tmp_path):
    for folder in (tmp_path / "nothing", tmp_path):
        run = npgait(command, folder)
        assert run.exit_code == 2
        assert f"{folder} is not the folder of a run" in run.output
        assert "Traceback" not in run.output
    damaged = tmp_path / "damaged"
    shutil.copytree(runs[1], damaged)
    (damaged / "gait" / "metrics.jsonl").write_text('{"kind": "epoch"\n')
    run = npgait(command, damaged)
    assert run.exit_code == 2
    assert "line 1 is damaged" in run.output
    (damaged / "config.toml").write_text("[[experiment]\n")
    run = npgait(command, damaged)
    assert run.exit_code == 2
    assert f"{damaged / 'config.toml'}: not TOML" in run.output  # of several runs, the one


# --- the page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    run = npgait("report", *runs, "--out", path)
    assert run.exit_code == 0, run.output
    return path


class Links(HTMLParser):
    """Collects whatever a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [v for k, v in attributes if k in ("src", "href", "data") and v[:1] != "#"]
        self.found += [v for k, v in attributes if k == "xlink:href" and not v.startswith("#")]


def test_the_page_loads_nothing_from_elsewhere(page):
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert links.found == []
    assert "@import" not in text and "url(http" not in text


def test_the_page_holds_table_settings_environment_and_what_changed(page):
    text = html.unescape(page.read_text())
    for words in (
        "What changed between them",
        "learning_rate",
        "gait (first)",
        "Settings",
        "numpy",
        "±",
    ):
        assert words in text
    assert text.count("<svg") == 4


def test_a_folder_whose_name_is_no_text_is_shown_as_far_as_it_is(runs, tmp_path):
    folders = []
    for name in (b"h\xc3\xa4lf-\xff", b"h\xc3\xa4lf-\xfe"):
        folders.append(tmp_path / os.fsdecode(name))
        try:
            shutil.copytree(runs[0], folders[-1])
        except OSError:
            pytest.skip("this file system takes no such name")
    for command in ("compare", "report"):
        options = ["--out", tmp_path / "page.html"] if command == "report" else ["--no-plots"]
        result = npgait(command, *folders, *options)
        assert result.exit_code == 0, (result.output, result.exception)
    assert "h\u00e4lf-\ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_names_are_escaped(runs, tmp_path):
    folder = tmp_path / "<img src=x>"
    shutil.copytree(runs[1], folder)
    info = json.loads((folder / "run.json").read_text())
    info["command"] = ["<script>alert(1)</script>"]
    (folder / "run.json").write_text(json.dumps(info))
    npgait("report", folder, "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text and "<img" not in text


WRAPPER = """<!DOCTYPE html><iframe id="f" width="{width}" height="900" src="report.html"></iframe>
<script>
document.getElementById("f").onload = function () {{
  const d = this.contentDocument, svgs = [...d.querySelectorAll("figure svg")];
  const seen = svgs.filter(s => s.getBoundingClientRect().width > 100).length;
  const right = Math.max(...svgs.map(s => s.getBoundingClientRect().right));
  document.title = "done";
  document.body.append(`RESULT ${{d.documentElement.scrollWidth}} ${{seen}} ${{Math.round(right)}}`);
}};</script>"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desktop_in_a_real_browser(page, width, tmp_path):
    chromium = (
        shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip("there is no Chromium to open the page with")
    (page.parent / f"wrapper{width}.html").write_text(WRAPPER.format(width=width))
    handler = functools.partial(QuietHandler, directory=str(page.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/wrapper{width}.html"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom"]
        run = subprocess.run(
            [chromium, *options, address], capture_output=True, text=True, timeout=120, check=False
        )
        server.shutdown()
    found = re.search(r"RESULT (\d+) (\d+) (\d+)", run.stdout)
    assert found, run.stdout[-500:] + run.stderr[-500:]
    scroll, figures, right = map(int, found.groups())
    assert figures == 4
    assert scroll <= width and right <= width  # nothing sticks out sideways


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
