"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return rows in aligned columns under a header: the first `left` to the left, others right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            text.ljust(width) if number < left else text.rjust(width)
            for number, (text, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def cell(value: object, form: str = "{}") -> str:
    """Return a value as it stands in a table; "-" where there is none."""
    return "-" if value is None else form.format(value)
