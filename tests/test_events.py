"""Where a run stands, as plain values and back."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from npgait.events import Progress, Tally, progress_of


@pytest.mark.parametrize("loss", [0.0, 7.5, -2.5])  # a user's own loss may be negative
def test_progress_comes_back_from_its_plain_values(loss):
    progress = Progress(3, 2, 17, 1.5, Tally(loss, 1, 4, 9), "state")
    assert progress_of(asdict(progress)) == progress
    assert progress_of(asdict(Progress())) == Progress()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("run", "seconds", float("inf")),
        ("run", "epoch", -1),
        ("run", "batch", True),
        ("run", "streams", None),
        ("tally", "loss", float("-inf")),
        ("tally", "samples", -1),
        ("tally", "top5", 2.0),
    ],
)
def test_what_no_run_can_have_left_is_refused_by_name(part, name, value):
    values = asdict(Progress())
    (values if part == "run" else values["tally"])[name] = value
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        progress_of(values)


@pytest.mark.parametrize("name", ["epoch", "streams"])
def test_what_is_missing_is_named_and_not_taken_from_the_defaults(name):
    values = asdict(Progress())
    del values[name]
    with pytest.raises(ValueError, match=f"{name} is missing"):
        progress_of(values)
