"""Tables: columns stay columns, whatever letters stand in them."""

from __future__ import annotations

from tqdm.utils import disp_len

from npgait.cli.table import format_table


def test_letters_of_two_columns_take_the_room_of_two():
    lines = format_table(["experiment", "日本"], [["日本語", "1"], ["bp", "22"]]).splitlines()
    assert {disp_len(line) for line in lines} == {len("experiment") + 2 + 4}
    assert lines[2] == "日本語" + 4 * " " + 2 * " " + "   1"
