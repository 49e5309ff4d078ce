"""The documentation: it builds without a dead link, its commands exist and its snippets run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from npgait.cli.main import cli
from npgait.config import KEYS
from npgait.experiments import find_experiments

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
FENCE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def build():
    """docs/build.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (npgait[docs])")
    command = [sys.executable, str(DOCS / "build.py"), str(tmp_path / "site")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "site" / "equations.html").read_text()
    assert "def difference_inverse" in page
    for html in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', html.read_text())
        assert [link for link in loaded if "canonical" not in link] == [], html.name


def test_a_dead_link_stops_the_build(tmp_path):
    pytest.importorskip("mkdocs", reason="MkDocs is not installed (npgait[docs])")
    import shutil

    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "npgait", tmp_path / "npgait", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs" / "index.md").write_text("# npgait\n\n[nowhere](nowhere.md)\n")
    command = [sys.executable, str(tmp_path / "docs" / "build.py"), str(tmp_path / "site")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "nowhere.md" in run.stderr + run.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        made = target == "commands.md" and page.parent == DOCS
        assert target.startswith("https://") or made or (page.parent / target).exists(), target


def test_every_module_stands_in_the_table_of_where_things_are_and_imports_from_above_alone():
    table = (DOCS / "extending.md").read_text().split("\n## ")[1]
    lines = [re.findall(r"`([a-z_/]+?)(?:\.py|/)`", line) for line in re.findall(r"^\|.*", table, re.M)]
    row = {name.split("/")[-1]: number for number, names in enumerate(lines) for name in names}
    row["layers"] = row["dense"]
    for path in (ROOT / "npgait").glob("[a-z]*.py"):
        for imported in re.findall(r"^ *from npgait\.([a-z_]+)", path.read_text(), re.M):
            assert row[imported] <= row[path.stem], (path.name, imported)


@pytest.mark.parametrize("page", ["tour.md", "extending.md"])
def test_python_snippets_run(page, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (npgait[sklearn])")
    code = "\n".join(FENCE.findall((DOCS / page).read_text()))
    (tmp_path / "snippets.py").write_text(code)
    run = subprocess.run(
        [sys.executable, "snippets.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_experiment_file_of_the_tour_is_one(tmp_path):
    (text,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "tour.md").read_text(), re.M | re.S)
    (tmp_path / "my.toml").write_text(text)
    assert [e.name for e in find_experiments(str(tmp_path / "my.toml"))] == ["bp", "gait"]


def commands_in(page):
    """Yield the words of every `npgait ...` that stands on a line of its own or in code."""
    for line in re.findall(r"^    (npgait [^\n#]*)|`(npgait [a-z][^`\n]*)`", page.read_text(), re.M):
        yield (line[0] or line[1]).split("|")[0].strip(" \\")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_options_that_are_written_about_exist(page):
    for text in commands_in(page):
        words = shlex.split(text)[1:]
        command = cli
        while words and isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not cli, text
        known = {name for p in command.params for name in getattr(p, "opts", [])} | {"--help", "-h"}
        known |= {name for p in command.params for name in getattr(p, "secondary_opts", [])}
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.split("=")[0] in known, text


def test_every_key_of_an_experiment_stands_on_the_page_of_formats(build):
    page = build.filled_in((DOCS / "formats.md").read_text())
    for key in KEYS:
        assert f"| `{key}` |" in page


def test_defaults_on_the_page_of_formats_are_those_of_a_file(build, tmp_path):
    (tmp_path / "my.toml").write_text("[[experiment]]\n")
    (found,) = find_experiments(str(tmp_path / "my.toml"))
    for key in ("ortho_strength", "ortho_every", "seed", "normalised", "learning_rate", "data"):
        (default,) = re.findall(rf"\| `{key}` \| [^|]+ \| `([^`]+)` \|", build.keys_table())
        assert tomllib.loads(f"value = {default}")["value"] == getattr(found, key), key
        assert default.isalpha() == isinstance(getattr(found, key), bool), key
    assert found.name == "experiment1"


def test_every_file_of_a_run_and_every_key_of_run_json_stands_on_the_page_of_formats(tmp_path):
    command = ["run", "-e", "fa", "--set", "epochs=1", "--set", "depth=1", "--out", str(tmp_path / "r")]
    assert CliRunner().invoke(cli, command).exit_code == 0
    page = (DOCS / "formats.md").read_text()
    files = [p.relative_to(tmp_path / "r").as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    for name in files:
        shown = name.removeprefix("plots/").replace("fa/", "NAME/")
        assert f"`{shown}`" in page, name
    for key in json.loads((tmp_path / "r" / "run.json").read_text()):
        assert f"`{key}`" in page, key
    assert len(files) == 12


def test_every_command_stands_in_the_reference(build):
    page = build.commands_page()
    for path, command in build.walk(cli, ("npgait",)):
        assert f"## {' '.join(path)}\n" in page
        assert command.help


@pytest.mark.parametrize("name", [None, "data", "presets"])
def test_lists_of_commands_are_whole_on_a_narrow_terminal(name):
    group = cli if name is None else cli.commands[name]
    text = group.get_help(click.Context(group, info_name="npgait", terminal_width=80))
    listed = text[text.index("Commands:") :]
    assert all(command in listed for command in group.commands)
    assert "..." not in listed


def test_code_beside_the_equations_is_the_code(build):
    text = (DOCS / "equations.md").read_text()
    shown = build.filled_in(text)
    assert "<!-- code" not in shown
    assert len(build.CODE.findall(text)) > 20
    assert "e = layer.difference_inverse(y, v, s, solver=solver, G=grams[l])" in shown
