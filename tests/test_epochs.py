"""The lines of epochs, by events and a clock made by hand."""

from __future__ import annotations

import types

import pytest

from npgait.cli import epochs
from npgait.cli.epochs import EpochLines, LiveLine
from npgait.metrics import LayerMeasures
from npgait.training import EpochDone, Measured, StepDone

ROW = {"epoch": 2, "train_loss": 0.25, "train_top1": 0.5, "test_top1": 0.75}


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(epochs, "time", clock)
    return clock


@pytest.fixture
def session():
    experiment = types.SimpleNamespace(name="gait", epochs=4, batch_size=32)
    return types.SimpleNamespace(experiment=experiment, progress=types.SimpleNamespace(step=20))


def measured(*angles):
    return Measured(1, 1, [LayerMeasures("layer", angle, *[None] * 6) for angle in angles])


def test_a_piped_line_says_rate_and_time_left_of_this_start_alone(clock, session, capsys):
    lines = EpochLines(session, 10, quiet=False)
    lines.on_terminal = False
    clock.now += 5
    session.progress.step = 30  # ten steps in five seconds, after twenty of an earlier start
    lines.show(measured(3.0, None, 6.0, 90.0))  # the last is the output
    lines.show(StepDone(30, 2, 10, 10, 0.5))
    lines.show(EpochDone(ROW))
    lines.show(measured(None, 90.0))
    lines.show(EpochDone({k: v for k, v in ROW.items() if k != "test_top1"}))
    assert capsys.readouterr().out.splitlines() == [
        "gait: epoch 2/4, loss 0.250, train 50.0%, test 75.0%, angle 4.5 deg, 64 samples/s, 00:05 left",
        "gait: epoch 2/4, loss 0.250, train 50.0%, 64 samples/s, 00:05 left",
    ]


def test_nothing_is_shown_where_quiet_is_asked_for(clock, session, capsys):
    lines = EpochLines(session, 10, quiet=True)
    for on_terminal in (False, True):
        lines.on_terminal = on_terminal
        for event in (measured(1.0, 2.0), StepDone(21, 3, 1, 10, 0.5), EpochDone(ROW)):
            lines.show(event)
    assert lines.bar is None and lines.angle is None
    assert capsys.readouterr() == ("", "")


def test_a_live_line_counts_the_batches_and_shows_each_tenth_loss_and_the_last(
    clock, session, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "100")
    with EpochLines(session, 13, quiet=False) as lines:
        lines.on_terminal = True
        shown = []
        for batch in range(4, 14):  # an epoch that goes on where it was stopped
            clock.now += 2
            session.progress.step += 1
            lines.show(StepDone(session.progress.step, 3, batch, 13, batch / 10))
            assert (lines.bar.n, lines.bar.initial, lines.bar.total) == (batch, 3, 13)
            shown.append(lines.bar.items.get("loss"))
        assert shown == [None] * 6 + ["loss 1.000"] * 3 + ["loss 1.300"]
        assert lines.bar.items["left"] == "00:44 left"  # 4 x 13 - 30 steps of two seconds
        assert lines.bar.ncols == 99
        first = lines.bar
        lines.show(EpochDone(ROW))
        assert first.items["test"] == "test 75.0%" and lines.bar is None
        lines.show(StepDone(31, 4, 1, 13, 0.1))
        assert lines.bar.desc.startswith("gait 4/4")
        second = lines.bar
    assert second.disable  # closed
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", range(1, 60))
def test_a_live_line_takes_the_room_there_is_and_cuts_no_item(columns, monkeypatch):
    bar = LiveLine(
        total=9,
        desc="gait 2/4",
        ncols=columns,
        bar_format="{desc} 9 it/s{postfix}",
        disable=False,
        file=Null(),
    )
    bar.items = {"loss": "loss 1", "train": "train 2", "test": "test 3", "left": "4 left"}
    behind = (", loss 1, train 2, test 3, 4 left", ", loss 1, train 2, test 3", ", loss 1, test 3",
              ", test 3", "")  # fmt: skip
    fits = [line for items in behind if len(line := "gait 2/4 9 it/s" + items) <= columns]
    assert str(bar) == (fits[0] if fits else "gait 2/4"[-columns:])
    bar.close()


class Null:
    """A terminal that shows nothing."""

    def write(self, text):
        pass

    def flush(self):
        pass
