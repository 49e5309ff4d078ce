"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm.utils import disp_len


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return rows in aligned columns under a header: the first `left` to the left, others right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(disp_len, column)) for column in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = []
        for number, (text, width) in enumerate(zip(cells, widths, strict=True)):
            room = " " * (width - disp_len(text))  # some letters are two columns wide
            aligned.append(text + room if number < left else room + text)
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def cell(value: object, form: str = "{}") -> str:
    """Return a value as it stands in a table; "-" where there is none."""
    return "-" if value is None else form.format(value)
