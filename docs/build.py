"""Builds the documentation, by `python docs/build.py OUT`.

Pages are docs/*.md. Three kinds of marker are filled in, so that they cannot go stale:

    <!-- code: npgait/layers/dense.py Dense.forward -->    the lines of a function, without its docstring
    <!-- keys -->                                          every key of an experiment
    commands.md                                            made from the commands themselves

Needs MkDocs (the extra npgait[docs]); it stops at a dead link.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path

import click

from npgait.cli.main import cli
from npgait.config import KEYS

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
CODE = re.compile(r"<!-- code: (\S+) (\S+) -->")


def main(out: Path) -> int:
    """Build the site into `out`; return the exit status of MkDocs."""
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        pages.mkdir()
        for path in DOCS.glob("*.md"):
            (pages / path.name).write_text(filled_in(path.read_text(encoding="utf-8")), "utf-8")
        for path in DOCS.glob("*.svg"):
            shutil.copy(path, pages)
        (pages / "commands.md").write_text(commands_page(), "utf-8")
        shutil.copy(DOCS / "mkdocs.yml", folder)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", f"{folder}/mkdocs.yml"]
        return subprocess.run([*command, "-d", str(out.resolve())], check=False).returncode


def filled_in(text: str) -> str:
    """Return a page with its markers replaced by what they stand for."""
    text = CODE.sub(lambda found: code_block(found[1], found[2]), text)
    return text.replace("<!-- keys -->", keys_table())


def code_block(file: str, name: str) -> str:
    """Return the lines of a function or method as a code block under the name of its file."""
    lines, first = source_of(file, name)
    body = "\n".join(lines)
    return f"`{file}`, line {first}:\n\n```python\n{body}\n```\n"


def source_of(file: str, name: str) -> tuple[list[str], int]:
    """Return the lines of `name` in `file`, without docstring, and the number of the first."""
    text = (ROOT / file).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part
        )
    assert isinstance(node, ast.FunctionDef)
    lines = text.splitlines()
    doc = node.body[0]
    skipped: set[int] = set()
    if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
        skipped = set(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
    last = node.end_lineno or node.lineno
    kept = [lines[n - 1] for n in range(node.lineno, last + 1) if n not in skipped]
    return [line[node.col_offset :] for line in kept], node.lineno


def keys_table() -> str:
    """Return every key of an experiment as a table."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in KEYS.items():
        spec = field.metadata
        # The one key without a default is the name, which the number of the experiment stands in for.
        default = "`experimentN`" if field.default is MISSING else f"`{_toml(field.default)}`"
        meaning = spec["help"] + (f" ({', '.join(spec['choices'])})" if spec["choices"] else "")
        kind = {str: "string", tuple: "list of int"}.get(spec["kind"], spec["kind"].__name__)
        rows.append(f"| `{key}` | {kind} | {default} | {meaning} |")
    return "\n".join(rows)


def _toml(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):  # which is told apart from 0 and 1, its equals
        return str(value).lower()
    return repr(value).replace("'", '"')


def commands_page() -> str:
    """Return the reference of all commands, from their own help texts."""
    parts = ["# Commands\n\nMade from the commands themselves; `--help` shows the same."]
    for path, command in walk(cli, ("npgait",)):
        with click.Context(command, info_name=" ".join(path)) as ctx:
            text = command.get_help(ctx)
        parts.append(f"## {' '.join(path)}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def walk(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and all below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/build.py OUT")
    sys.exit(main(Path(sys.argv[1])))
