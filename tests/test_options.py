"""Options of several commands: which precision a GPU computes in."""

from __future__ import annotations

import types

import pytest

from npgait.backend import CPU
from npgait.cli import options
from npgait.cli.options import choose_device


@pytest.mark.parametrize(
    ("asked", "recorded", "taken"),
    [
        ("float32", "tf32", "float32"),
        ("tf32", None, "tf32"),
        (None, "tf32", "tf32"),
        (None, None, "float32"),
    ],
)
def test_a_gpu_computes_as_it_is_asked_to_or_else_as_the_run_began(asked, recorded, taken, monkeypatch):
    gpu, precisions = types.SimpleNamespace(is_gpu=True), []
    monkeypatch.setattr(options, "select_device", lambda spec: gpu)
    monkeypatch.setattr(options, "set_precision", precisions.append)
    assert choose_device("gpu", asked, recorded) is gpu
    assert precisions == [taken]


def test_a_run_that_began_in_tf32_goes_on_on_a_cpu():
    assert choose_device("cpu", None, "tf32") == CPU
