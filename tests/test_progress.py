"""Progress of long work where there is no terminal: a line now and then."""

from __future__ import annotations

import types

import pytest

from npgait.cli import progress
from npgait.cli.progress import Lines


@pytest.fixture
def clock(monkeypatch):
    """The time, set by hand."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_every_so_often_says_rate_and_time_left_without_what_an_earlier_start_did(clock, capsys):
    with Lines("store", "image", 1000, quiet=False) as lines:
        for done, seconds in ((400, 0), (450, 5), (500, 6), (550, 9), (700, 4)):
            clock.now += seconds
            lines.show(done, 0 if done < 700 else 3)
    assert capsys.readouterr().err.splitlines() == [
        "store: 500 of 1000 images, 9 a second, 55 s left",
        "store: 700 of 1000 images, 3 bad, 12 a second, 24 s left",
    ]


def test_a_line_is_shown_before_anything_is_done_too(clock, capsys):
    with Lines("store", "image", 1000, quiet=False) as lines:
        lines.show(0, 0)
        clock.now += 11
        lines.show(0, 0)
    assert capsys.readouterr().err.startswith("store: 0 of 1000 images, 0 a second")


def test_quiet_work_shows_nothing(clock, capsys):
    with Lines("store", "image", 1000, quiet=True) as lines:
        lines.show(0, 0)
        clock.now += 11
        lines.show(500, 1)
    assert capsys.readouterr() == ("", "")
