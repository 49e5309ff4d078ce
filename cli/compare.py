"""`npgait compare`, `plot` and `report`: what was trained, side by side, on paper and on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from npgait.cli.paths import NamedPath
from npgait.cli.table import cell, format_table
from npgait.comparison import Group, changed_settings, group_repetitions, read_run
from npgait.figures import draw_run, four_figures, save_figures
from npgait.files import write_text
from npgait.report import report_page
from npgait.run_folder import PLOTS

# Key of `Trained.final`, heading, form of a value.
COLUMNS = (
    ("epoch", "epochs", "{:.0f}"),
    ("train_top1", "train top-1, %", "{:.2f}"),
    ("test_top1", "test top-1, %", "{:.2f}"),
    ("best_test_top1", "best, %", "{:.2f}"),
    ("test_loss", "test loss", "{:.4f}"),
    ("angle", "angle to BP", "{:.2f}"),
    ("seconds", "time, s", "{:.1f}"),
)
HEADER = ["experiment", "seeds", *(heading for _, heading, _ in COLUMNS)]
runs_argument = click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=NamedPath())
format_option = click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "svg", "pdf"]),
    default="png",
    show_default=True,
    help="Of the figures.",
)


@click.command(short_help="Compare experiments: a table, and the papers' four figures.")
@runs_argument
@click.option(
    "--out",
    type=NamedPath(file_okay=False),
    default=Path("comparison"),
    show_default=True,
    help="Folder for the figures.",
)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw the figures.")
@format_option
def compare(runs: Sequence[Path], out: Path, plots: bool, kind: str) -> None:
    """Compare the experiments of one run or more: a table, and the papers' four figures.

    Experiments that differ in nothing but their seed, and are at the same epoch, are one line: mean and
    standard deviation. The same seed again is a line of its own. The figures are accuracy in training
    and test by epoch, the angle to backpropagation by step, and by layer with its quartiles.

    \b
    npgait compare runs/digits-20261123-101500
    npgait compare runs/bp runs/gait --out figures --format pdf
    """  # noqa: D301 - click wants the control character
    groups = read_groups(runs)
    click.echo(format_table(HEADER, table_rows(groups)))
    changed = changed_settings(groups)
    if changed:
        click.echo("\nwhat differs:\n" + changes_table(groups, changed))
    if plots:
        for path in save_figures(four_figures(groups), out, kind):
            click.echo(f"figure: {path}")


@click.command(short_help="Draw the figures of a run, finished or not.")
@click.argument("run", metavar="RUN", type=NamedPath())
@click.option(
    "--out",
    type=NamedPath(file_okay=False),
    help=f"Folder for the figures  [default: RUN/{PLOTS}]",
)
@format_option
def plot(run: Path, out: Path | None, kind: str) -> None:
    """Draw the papers' four figures and the loss of a run, finished or not."""
    for path in draw_run(run, out or run / PLOTS, kind):
        click.echo(f"figure: {path}")


@click.command(short_help="Write one HTML page of runs.")
@runs_argument
@click.option(
    "--out",
    type=NamedPath(dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
def report(runs: Sequence[Path], out: Path) -> None:
    """Write one HTML page of runs: table, figures, settings, environment, what changed between them.

    The page is one file that opens without a network.
    """
    groups = read_groups(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, report_page(groups, HEADER, table_rows(groups)))
    click.echo(f"report: {out}")


def read_groups(runs: Sequence[Path]) -> list[Group]:
    """Return the experiments of all runs, repetitions together."""
    once: dict[Path, Path] = {}
    for run in runs:
        once.setdefault(run.resolve(), run)  # however it is spelt
    return group_repetitions([t for run in once.values() for t in read_run(run)])


def table_rows(groups: Sequence[Group]) -> list[list[str]]:
    """Return the cells of the table: mean, and spread where there is more than one seed."""
    rows = []
    for group in groups:
        summary = group.summary()
        cells = []
        for key, _, form in COLUMNS:
            if key not in summary:
                cells.append("-")
                continue
            mean, spread = (100 * v if "top1" in key else v for v in summary[key])
            several = len(group.members) > 1 and key != "epoch"
            cells.append(form.format(mean) + (" ± " + form.format(spread) if several else ""))
        rows.append([group.label, str(len(group.members)), *cells])
    return rows


def changes_table(groups: Sequence[Group], changed: Mapping[str, Sequence[Any]]) -> str:
    """Return the keys that differ between groups, a column each."""
    rows = [
        [group.label, *(cell(values[number]) for values in changed.values())]
        for number, group in enumerate(groups)
    ]
    return format_table(["experiment", *changed], rows)
