"""One HTML page of runs: figures, table, settings, environment; a single file without a network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from npgait.comparison import NAMING, Group, changed_settings
from npgait.figures import as_svg, four_figures
from npgait.files import printable

TITLES = {
    "train-accuracy": "Accuracy on the training set, by epoch",
    "test-accuracy": "Accuracy on the test set, by epoch",
    "angle": "Angle to backpropagation by step, mean of the layers below the output",
    "angle-by-layer": "Angle to backpropagation by layer: median and quartiles over steps and seeds",
}
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto;
       max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.figures { display: grid; gap: 1rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; color: #444; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; }
details { margin: .4rem 0; } summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
"""


def report_page(groups: Sequence[Group], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the page as text.

    Parameters
    ----------
    groups : sequence of Group
    header, rows
        The table of results, as `npgait compare` shows it.
    """
    folders = list(dict.fromkeys(t.folder for group in groups for t in group.members))
    title = "npgait: " + ", ".join(folder.resolve().name for folder in folders)
    changed = changed_settings(groups)
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(groups)} experiments, written {time.strftime('%Y-%m-%d %H:%M')}. Accuracy and angle "
        "are of the last epoch; ± is the standard deviation over seeds.</p>",
        "<h2>Results</h2>",
        _table(header, rows),
        "<h2>Figures</h2>",
        _figures(groups),
    ]
    if changed:
        cells = [
            [group.label, *(_plain(values[number]) for values in changed.values())]
            for number, group in enumerate(groups)
        ]
        sections += ["<h2>What changed between them</h2>", _table(["experiment", *changed], cells)]
    sections += ["<h2>Settings</h2>", *map(_settings, groups)]
    sections += ["<h2>Environment</h2>", *_environments(groups)]
    return printable(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _figures(groups: Sequence[Group]) -> str:
    figures = [
        f"<figure>{as_svg(figure)}<figcaption>{escape(TITLES[name])}</figcaption></figure>"
        for name, figure in four_figures(groups).items()
    ]
    return '<div class="figures">' + "\n".join(figures) + "</div>"


def _settings(group: Group) -> str:
    experiment = asdict(group.members[0].experiment)
    seeds = ", ".join(str(t.experiment.seed) for t in group.members)
    values = {k: v for k, v in experiment.items() if k not in NAMING} | {"seeds": seeds}
    return _details(group.label, values.items())


def _environments(groups: Sequence[Group]) -> list[str]:
    """Return what run.json of each run folder says, once a folder."""
    infos = {str(t.folder): t.info for group in groups for t in group.members}
    sections = []
    for folder, info in infos.items():
        values = {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in info.items()}
        sections.append(_details(folder, values.items()))
    return sections


def _details(name: str, items: Iterable[tuple[str, Any]]) -> str:
    rows = [[key, _plain(value)] for key, value in items]
    return f"<details><summary>{escape(name)}</summary>{_table(['key', 'value'], rows)}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def _plain(value: object) -> str:
    return "-" if value is None else str(value)
